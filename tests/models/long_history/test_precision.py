"""Sequence models in bfloat16: logits near those of single precision, also where a history has thousands of keys."""

import pytest
import torch

from models.long_history.families import FAMILIES
from tests.models.long_history.tiny import SIZES, candidates, histories

CHANGES = {"sasrec": {}, "hstu": {"tile": 64}, "mtgr": {"sequence_events": 500}}


@pytest.mark.parametrize("family", CHANGES)
def test_half_precision_is_near_single_precision(family):
    torch.manual_seed(0)
    model = FAMILIES[family].build(**SIZES, width=16, embedding_std=1.0, **CHANGES[family]).eval()
    history, items = histories([600, 3, 0]), candidates(3, 20)
    with torch.no_grad():
        exact = model(history, items).logits_BC
        with torch.autocast("cpu", torch.bfloat16):
            near = model(history, items).logits_BC.float()
    assert (near - exact).abs().max() < 0.03 * max(float(exact.abs().max()), 1.0)


@pytest.mark.parametrize("family", CHANGES)
def test_gradients_are_finite_in_half_precision(family):
    torch.manual_seed(0)
    model = FAMILIES[family].build(**SIZES, width=16, **CHANGES[family]).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(histories([40, 0, 1]), candidates(3, 5)).logits_BC.float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
