"""Histories and blocks of candidates as flat arrays with offsets; batches are windows into them.

Nothing here loops over events, examples or users. Every rule of time is in this file: a history holds the events
strictly before its moment, so that events with the same timestamp as a candidate are not seen.
"""

from typing import NamedTuple

import numpy as np
import torch

from models.long_history.inputs import History, Items

MICROSECONDS = 1_000_000


class Events(NamedTuple):
    """Encoded events, sorted by user, time and input order.

    Attributes:
        offsets: First event of each user, and the number of events at the end; users + 1.
        times: Microseconds since the epoch.
        items: Row of `Catalogue` of each event.
        actions: Rows of the action table.
        values: Rows of the value table.
        gaps: Log bucket of the seconds since the user's previous event; 0 for the first.
    """

    offsets: np.ndarray
    times: np.ndarray
    items: np.ndarray
    actions: np.ndarray
    values: np.ndarray
    gaps: np.ndarray


class Catalogue(NamedTuple):
    """The inputs of every known item; row 0 is the unknown item.

    Attributes:
        ids: Row of the item table, one an item.
        codes: Rows of the code table, items x levels.
    """

    ids: np.ndarray
    codes: np.ndarray

    def take(self, rows: np.ndarray) -> Items:
        """Inputs of items by their rows, of any shape."""
        return Items(torch.from_numpy(self.ids[rows]), torch.from_numpy(self.codes[rows]))


class Blocks(NamedTuple):
    """Blocks of consecutive examples of one user, each with the history that all of them share.

    Attributes:
        starts: First example of each block.
        stops: End of its examples, exclusive.
        history_starts: First event of its history.
        history_stops: End of its history, exclusive.
    """

    starts: np.ndarray
    stops: np.ndarray
    history_starts: np.ndarray
    history_stops: np.ndarray


class Snapshots(NamedTuple):
    """Moments at which a user's history is summarised.

    Attributes:
        users: User of each.
        stops: End of its history, exclusive, as a place in the events; never inside of a tie in time.
        seen: Events of the user until there.
        latest: Whether it is the user's last.
        regular: Whether it is due after a number of events, and not only because there are no more.
    """

    users: np.ndarray
    stops: np.ndarray
    seen: np.ndarray
    latest: np.ndarray
    regular: np.ndarray


class Held(NamedTuple):
    """Which events of some users' histories are held, as positions in these.

    Attributes:
        firsts: Position of the first event that is held.
        starts: First position after which snapshots are wanted.
        stops: End of these, exclusive.
        totals: Events of the whole history.
    """

    firsts: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    totals: np.ndarray


def offsets_of(sorted_users: np.ndarray, num_users: int) -> np.ndarray:
    """First row of each user in a column of sorted user numbers, and the number of rows at the end."""
    return np.searchsorted(sorted_users, np.arange(num_users + 1)).astype(np.int64)


def gap_buckets(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """1 + floor(log2(1 + seconds since the user's previous event)); 0 for a user's first event."""
    if not len(times):
        return np.zeros(0, np.int64)
    gaps = np.diff(times, prepend=times[:1]) // MICROSECONDS
    first = np.diff(users, prepend=-1) != 0
    return np.where(first, 0, np.log2(1.0 + np.maximum(gaps, 0)).astype(np.int64) + 1)


def events_before(events: Events, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """End (exclusive) of the events of ``users`` strictly before ``times``, as places in ``events``."""
    # One sorted key for both levels: the user, then the rank of the moment among all moments.
    moments = np.unique(np.concatenate([events.times, times]))
    width = len(moments) + 1
    owner = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
    keys = owner * width + np.searchsorted(moments, events.times)
    return np.searchsorted(keys, users * width + np.searchsorted(moments, times), side="left").astype(np.int64)


def cut_blocks(
    events: Events, users: np.ndarray, groups: np.ndarray, times: np.ndarray, size: int, limit: int
) -> Blocks:
    """Cuts sorted examples into blocks of at most ``size``, within one user and group (split).

    Args:
        events: All events.
        users: User of each example; examples are sorted by user, group, time.
        groups: Group of each example.
        times: Moment of each example, microseconds.
        size: Most examples of a block.
        limit: Most events of a history; the newest are kept.
    """
    if not len(users):
        nothing = np.zeros(0, np.int64)
        return Blocks(nothing, nothing, nothing, nothing)
    new = (np.diff(users, prepend=-1) != 0) | (np.diff(groups, prepend=-1) != 0)
    first = np.flatnonzero(new)
    rank = np.arange(len(users)) - np.repeat(first, np.diff(np.append(first, len(users))))
    starts = np.flatnonzero(rank % size == 0)
    stops = np.append(starts[1:], len(users))
    history_stops = events_before(events, users[starts], times[starts])
    history_starts = np.maximum(events.offsets[users[starts]], history_stops - limit)
    return Blocks(starts, stops, history_starts, history_stops)


def cut_snapshots(events: Events, every: int, held: Held | None = None) -> Snapshots:
    """A snapshot of each user after every ``every`` events and after the last, moved to the end of its tie.

    Args:
        events: Events of some users: whole histories, or windows of them that end with a tie or with the history.
        every: Events between two snapshots.
        held: What of their histories the events are; all by default.
    """
    counts = np.diff(events.offsets)
    if held is None:
        held = Held(np.zeros_like(counts), np.zeros_like(counts), counts, counts)
    # A snapshot belongs to the window that has the event after which it is due.
    first = held.starts // every + 1
    num_cuts = np.maximum(held.stops // every - held.starts // every, 0)
    users = np.repeat(np.arange(len(counts)), num_cuts)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(num_cuts) - num_cuts, num_cuts)
    due = (first[users] + nth) * every - 1
    ending = np.flatnonzero((held.stops == held.totals) & (held.stops > held.starts))
    users, due = np.append(users, ending), np.append(due, held.totals[ending] - 1)
    regular = np.arange(len(users)) < len(users) - len(ending)
    owner = np.repeat(np.arange(len(counts)), counts)
    new = np.ones(len(owner), bool)
    new[1:] = (np.diff(owner) != 0) | (np.diff(events.times) != 0)
    ends = np.append(np.flatnonzero(new), len(owner))
    run = np.cumsum(new) - 1
    places = events.offsets[users] + due - held.firsts[users]
    stops = ends[run[places] + 1] if len(users) else np.zeros(0, np.int64)
    # Regular ones come first, so that of two at the same place they are the one that counts.
    stops, chosen = np.unique(stops, return_index=True)
    users = users[chosen]
    seen = held.firsts[users] + stops - events.offsets[users]
    return Snapshots(users, stops, seen, seen == held.totals[users], regular[chosen])


def windows(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of ragged windows as a matrix, windows x longest, and which of them are real."""
    lengths = stops - starts
    places = np.arange(max(int(lengths.max(initial=0)), 1))
    return starts[:, None] + np.minimum(places, np.maximum(lengths - 1, 0)[:, None]), places < lengths[:, None]


def history_batch(events: Events, catalogue: Catalogue, starts: np.ndarray, stops: np.ndarray) -> History:
    """Histories as padded tensors."""
    places, real = windows(starts, stops)
    # An empty history at the very end points past the last event.
    places = np.where(real, places, 0)
    # Without any event there is nothing to look up at place 0.
    padded = Events(events.offsets, *(column if len(column) else np.zeros(1, np.int64) for column in events[1:]))
    rows, actions, values, gaps, times = (
        np.where(real, column[places], 0).astype(np.int64)
        for column in (padded.items, padded.actions, padded.values, padded.gaps, padded.times)
    )
    return History(
        catalogue.take(rows),
        torch.from_numpy(actions),
        torch.from_numpy(values),
        torch.from_numpy(gaps),
        torch.from_numpy(times // MICROSECONDS),
        torch.from_numpy(stops - starts),
    )
