"""Leave-one-out: who is held out, what is learned from, what is not ranked. Each array rule against a loop."""

import numpy as np
import pytest

from models.long_history.leave_one_out import (
    cut_anchored_blocks,
    cut_windows,
    held_out,
    met_before,
    own_earlier_items,
    train_stops,
)
from tests.models.long_history.test_histories import drawn


@pytest.fixture(params=range(4))
def events(request):
    # Few events of some users: one has none, some have less than three.
    return drawn(request.param, num_users=12, num_events=50)[1]


def learned_targets(events):
    """Every training event but each user's first."""
    stops = train_stops(events.offsets)
    return [p for a, b in zip(events.offsets, stops, strict=False) for p in range(a + 1, b)]


def test_the_last_event_is_test_and_the_one_before_is_valid(events):
    for split, back in (("valid", 2), ("test", 1)):
        found = held_out(events, split, limit=4)
        for user, place, start in zip(*found, strict=True):
            first, end = events.offsets[user], events.offsets[user + 1]
            assert end - first >= 3 and place == end - back and start == max(first, place - 4)
        assert len(found.users) == sum(np.diff(events.offsets) >= 3)
    stops = train_stops(events.offsets)
    for first, end, stop in zip(events.offsets[:-1], events.offsets[1:], stops, strict=True):
        assert stop == (end - 2 if end - first >= 3 else end)


@pytest.mark.parametrize("phase", [1, 2, 3])
def test_windows_make_every_training_event_a_target_once(events, phase):
    found = cut_windows(events, 3, np.full(12, phase))
    assert (found.stops - found.starts <= 3).all() and (found.stops > found.starts).all()
    firsts = {p: stop - p for p, stop in zip(*found, strict=True) if p in events.offsets[:-1]}
    lengths = dict(zip(events.offsets[:-1], train_stops(events.offsets) - 1 - events.offsets[:-1], strict=True))
    assert firsts and all(n == (phase if lengths[p] > 3 else lengths[p]) for p, n in firsts.items())
    targets = np.concatenate([np.arange(a + 1, b + 1) for a, b in zip(*found, strict=True)])
    assert sorted(targets) == learned_targets(events)


@pytest.mark.parametrize("phase", [1, 2, 4])
def test_blocks_make_every_training_event_a_target_once_with_the_history_before(events, phase):
    owner = np.repeat(np.arange(12), np.diff(events.offsets))
    found = cut_anchored_blocks(events, 4, 5, np.full(12, phase))
    targets = np.concatenate([np.arange(a, b) for a, b in zip(found.starts, found.stops, strict=True)])
    assert sorted(targets) == learned_targets(events)
    for start, stop, first in zip(*found, strict=True):
        assert 1 <= stop - start <= 4 and len({*owner[start:stop]}) == 1
        assert first == max(events.offsets[owner[start]], start - 5)


def test_items_of_the_users_own_past_are_not_ranked(events):
    repeated = events._replace(items=1 + events.items % 5)
    found = held_out(repeated, "test", limit=2)
    excluded = own_earlier_items(repeated, found)
    for n, (user, place) in enumerate(zip(found.users, found.places, strict=True)):
        items = excluded.item_X[excluded.indptr_N[n] : excluded.indptr_N[n + 1]]
        assert sorted(items) == sorted({*(repeated.items[repeated.offsets[user] : place] - 1)})
        assert met_before(repeated, found)[n] == (repeated.items[place] - 1 in items)
