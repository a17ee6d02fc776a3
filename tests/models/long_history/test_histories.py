"""Rules of time: who sees what. Each array rule against a loop over events."""

import numpy as np
import pytest

from models.long_history.histories import (
    MICROSECONDS,
    Catalogue,
    Events,
    cut_blocks,
    cut_snapshots,
    events_before,
    gap_buckets,
    history_batch,
    offsets_of,
)


def drawn(seed, num_users=6, num_events=80):
    rng = np.random.default_rng(seed)
    users = np.sort(rng.integers(0, num_users, num_events))
    times = rng.integers(0, 12, num_events) * MICROSECONDS
    order = np.lexsort((times, users))
    users, times = users[order], times[order]
    count = np.arange(num_events)
    return users, Events(
        offsets_of(users, num_users), times, count + 1, count % 3, count % 5, gap_buckets(users, times)
    )


@pytest.mark.parametrize("seed", range(5))
def test_history_is_what_came_strictly_before(seed):
    users, events = drawn(seed)
    rng = np.random.default_rng(seed)
    asked, times = rng.integers(0, 6, 40), rng.integers(-1, 14, 40) * MICROSECONDS
    ends = events_before(events, asked, times)
    for user, time, end in zip(asked, times, ends, strict=True):
        start = events.offsets[user]
        assert end - start == sum((users == user) & (events.times < time))


@pytest.mark.parametrize("seed", range(5))
def test_blocks_cover_every_example_once_and_never_mix(seed):
    users, events = drawn(seed)
    groups = np.sort(np.random.default_rng(seed).integers(0, 2, len(users)))
    order = np.lexsort((events.times, groups, users))
    owner, group, times = users[order], groups[order], events.times[order]
    blocks = cut_blocks(events, owner, group, times, size=4, limit=5)
    assert np.concatenate([np.arange(a, b) for a, b in zip(blocks.starts, blocks.stops, strict=True)]).tolist() == list(
        range(len(owner))
    )
    for a, b, start, stop in zip(*blocks, strict=True):
        assert 1 <= b - a <= 4 and len(set(owner[a:b])) == len(set(group[a:b])) == 1
        assert stop - start <= 5
        seen = slice(start, stop)
        assert (users[seen] == owner[a]).all() and (events.times[seen] < times[a]).all()
        everything = sum((users == owner[a]) & (events.times < times[a]))
        assert stop - start == min(everything, 5)


@pytest.mark.parametrize("seed", range(5))
def test_snapshots_end_at_ties_and_cover_every_user(seed):
    users, events = drawn(seed)
    snapshots = cut_snapshots(events, every=4)
    last_time = events.times[snapshots.stops - 1]
    assert len({*zip(snapshots.users, last_time, strict=True)}) == len(snapshots.users)
    for user, stop in zip(snapshots.users, snapshots.stops, strict=True):
        at_once = (users == user) & (events.times == events.times[stop - 1])
        assert np.flatnonzero(at_once)[-1] == stop - 1
    present = np.unique(users)
    assert snapshots.users[snapshots.latest].tolist() == present.tolist()
    assert (snapshots.stops[snapshots.latest] == events.offsets[present + 1]).all()
    for user in present:
        mine = np.sort(snapshots.stops[snapshots.users == user]) - events.offsets[user]
        ties = max(np.bincount(events.times[users == user] // MICROSECONDS))
        assert np.diff(mine, prepend=0).max() <= 4 + ties


def test_a_user_without_events_has_no_snapshot_and_an_empty_history():
    events = Events(
        np.array([0, 0, 2]), np.array([5, 6]), np.array([1, 2]), np.array([1, 1]), np.array([0, 1]), np.array([0, 1])
    )
    assert cut_snapshots(events, 16).users.tolist() == [1]
    assert events_before(events, np.array([0, 1]), np.array([9, 9])).tolist() == [0, 2]


def test_batches_hold_the_events_and_nothing_else():
    catalogue = Catalogue(np.arange(81), np.zeros((81, 0), np.int64))
    _, events = drawn(0)
    history = history_batch(events, catalogue, np.array([3, 10, 80]), np.array([6, 10, 80]))
    assert history.lengths_B.tolist() == [3, 0, 0]
    assert history.items.ids[0].tolist() == [4, 5, 6]
    assert not history.items.ids[1:].any() and not history.actions_BL[1:].any()


def test_batches_of_no_events_at_all():
    nothing = np.zeros(0, np.int64)
    events = Events(np.array([0, 0]), nothing, nothing, nothing, nothing, nothing)
    history = history_batch(
        events, Catalogue(np.zeros(1, np.int64), np.zeros((1, 2), np.int64)), np.array([0]), np.array([0])
    )
    assert history.lengths_B.tolist() == [0] and history.items.codes.shape == (1, 1, 2)
    assert cut_snapshots(events, 4).users.tolist() == []


def test_gaps_are_logarithms_within_a_user():
    users, seconds = np.array([0, 0, 0, 1, 1]), np.array([10, 10, 13, 0, 1023])
    assert gap_buckets(users, seconds * MICROSECONDS).tolist() == [0, 1, 3, 0, 11]
    assert gap_buckets(np.zeros(0, int), np.zeros(0, int)).tolist() == []
