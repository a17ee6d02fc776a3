"""Leave-one-out: each user's last event is the test target, the one before is the validation target.

Order is (timestamp, input order), as everywhere: a target's history is every event before it in that order, those of
its own second among them. All of it is places in `Events`, so that another program can be given the very same split.
"""

from typing import NamedTuple

import numpy as np

from models.long_history.histories import Events
from models.ranking.full_ranking import Exclusions, Histories

FEWEST_EVENTS = 3


class Targets(NamedTuple):
    """Events that are to be foretold, one a user.

    Attributes:
        users: User of each.
        places: The event.
        starts: First event of its history.
    """

    users: np.ndarray
    places: np.ndarray
    starts: np.ndarray


class Windows(NamedTuple):
    """Histories to learn from: the event after each of theirs is its target.

    Attributes:
        starts: First event.
        stops: End, exclusive; this event is the last one's target.
    """

    starts: np.ndarray
    stops: np.ndarray


class AnchoredBlocks(NamedTuple):
    """Blocks of consecutive targets of one user that share the history before the first of them.

    Attributes:
        starts: First target; also the end of the history, exclusive.
        stops: End of the targets, exclusive.
        history_starts: First event of the history.
    """

    starts: np.ndarray
    stops: np.ndarray
    history_starts: np.ndarray


def train_stops(offsets: np.ndarray) -> np.ndarray:
    """End (exclusive) of each user's events to learn from; users of fewer than three events hold none out.

    Args:
        offsets: First event of each user, and the number of events.
    """
    counts = np.diff(offsets)
    return offsets[1:] - np.where(counts >= FEWEST_EVENTS, 2, 0)


def held_out(events: Events, split: str, limit: int) -> Targets:
    """The targets of ``valid`` or ``test``.

    Args:
        events: All events.
        split: Which.
        limit: Most events of a history; the newest are kept.
    """
    users = np.flatnonzero(np.diff(events.offsets) >= FEWEST_EVENTS)
    places = events.offsets[users + 1] - {"valid": 2, "test": 1}[split]
    return Targets(users, places, np.maximum(events.offsets[users], places - limit))


def cut_windows(events: Events, limit: int, phases: np.ndarray) -> Windows:
    """Windows of at most ``limit`` events that make every training event but each user's first a target once.

    Args:
        events: All events.
        limit: Most events of a window.
        phases: Events of the first window of users with more than ``limit``, 1 to ``limit``. Other ones in every epoch
            let a target be seen with few events before it and with many, as users are when they are evaluated.
    """
    begins, stops = events.offsets[:-1], train_stops(events.offsets) - 1
    lengths = np.maximum(stops - begins, 0)
    first = np.where(lengths > limit, phases, lengths)
    counts = np.where(lengths > 0, 1 - (first - lengths) // limit, 0)
    users = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = np.minimum(begins[users] + first[users] + nth * limit, stops[users])
    return Windows(begins[users] + np.where(nth > 0, first[users] + (nth - 1) * limit, 0), ends)


def cut_anchored_blocks(events: Events, size: int, limit: int, phases: np.ndarray) -> AnchoredBlocks:
    """Blocks of at most ``size`` targets that cover every training event but each user's first once.

    Args:
        events: All events.
        size: Most targets of a block.
        limit: Most events of a history; the newest are kept.
        phases: Targets of each user's first block, 1 to ``size``: other blocks in every epoch.
    """
    begins, stops = events.offsets[:-1], train_stops(events.offsets)
    counts = np.maximum(stops - begins - 1, 0)
    blocks = np.where(counts > 0, 1 + np.maximum(-(-(counts - phases) // size), 0), 0)
    users = np.repeat(np.arange(len(counts)), blocks)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    first = begins[users] + 1
    starts = first + np.where(nth > 0, phases[users] + (nth - 1) * size, 0)
    ends = np.minimum(first + phases[users] + nth * size, stops[users])
    return AnchoredBlocks(starts, ends, np.maximum(begins[users], starts - limit))


def met_before(events: Events, targets: Targets) -> np.ndarray:
    """Which targets are items of their user's own past, and so cannot be ranked."""
    past = own_earlier_items(events, targets)
    owner = np.repeat(np.arange(len(targets.users)), np.diff(past.indptr_N))
    met = np.zeros(len(targets.users), bool)
    met[owner[past.item_X == events.items[targets.places][owner] - 1]] = True
    return met


def own_earlier_items(events: Events, targets: Targets) -> Exclusions:
    """The items of the user's own events before each target; they are not ranked. Items by row of the catalogue - 1."""
    owner = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
    position = np.arange(len(owner)) - events.offsets[owner]
    histories = Histories(owner, events.items - 1, position)
    return histories.before(targets.users, targets.places - events.offsets[targets.users])
