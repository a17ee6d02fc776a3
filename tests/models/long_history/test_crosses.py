"""Crosses against loops: nothing of the moment itself, or later, is counted."""

import numpy as np
import pytest
import torch

from models.long_history.crosses import SMOOTHING, Running, history_crosses, item_crosses
from tests.models.long_history.tiny import candidates, histories


def test_an_items_past_ends_strictly_before_the_moment():
    rng = np.random.default_rng(0)
    items, times, labels = rng.integers(1, 6, 80), rng.integers(0, 9, 80), rng.integers(0, 2, 80).astype(float)
    asked, moments = rng.integers(0, 8, (5, 6)), rng.integers(-1, 11, (5, 6))
    running = Running(items, times, labels)
    found = item_crosses(running, running, 0.3, asked, moments)
    for at in np.ndindex(5, 6):
        past = (items == asked[at]) & (times < moments[at])
        rate = (labels[past].sum() + SMOOTHING * 0.3) / (past.sum() + SMOOTHING)
        assert found[at][0] == past.sum() and found[at][1] == pytest.approx(np.log(rate / (1 - rate)), abs=1e-5)
    nothing = Running(np.zeros(0, int), np.zeros(0, int), np.zeros(0))
    assert item_crosses(running, nothing, 0.0, asked, moments)[..., 1].max() < 0


@pytest.mark.parametrize("coded", [True, False])
def test_the_share_is_that_of_real_events_of_the_category(coded):
    history, items = histories([6, 0, 3]), candidates(3, 4)
    if not coded:
        none = torch.zeros(3, 6, 0, dtype=torch.long)
        history = history._replace(items=history.items._replace(codes=none))
        items = items._replace(codes=none[:, :4], ids=items.ids % 5)
        history = history._replace(items=history.items._replace(ids=history.items.ids % 5))
    found = history_crosses(history, items)
    for b, length in enumerate([6, 0, 3]):
        for c in range(4):
            ours = items.codes[b, c, 0] if coded else items.ids[b, c]
            theirs = history.items.codes[b, :length, 0] if coded else history.items.ids[b, :length]
            same = int((theirs == ours).sum()) if ours > 0 else 0
            assert found[b, c].tolist() == [length, pytest.approx(same / max(length, 1))]
