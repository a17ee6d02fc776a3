"""Floors of next items and of likes: popularity, item neighbours, the last item's successors.

The fitting and the formulas are those of `models.ranking.floors`. For next items every event counts alike; for likes
an event may also be disliked.

Shapes: N examples, L events of a history.
"""

from typing import NamedTuple

import numpy as np

from models.long_history.histories import Events, windows
from models.long_history.leave_one_out import Targets, train_stops
from models.ranking import floors
from models.ranking.examples import Examples
from models.ranking.floors import FLOORS, Floor, Popularity, log_odds

ROWS_AT_ONCE = 4096


def fit_floor(name: str, events: Events, num_items: int) -> Floor:
    """Fits a floor on the training events of leave-one-out.

    Args:
        name: Out of `models.ranking.floors.FLOORS`.
        events: All events.
        num_items: Items of the catalogue, rows 1 and up.
    """
    owner = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
    mine = np.arange(len(owner)) < train_stops(events.offsets)[owner]
    seen = int(mine.sum())
    return FLOORS[name].fit(
        floors.Events(owner[mine], events.items[mine], np.ones(seen, np.int8), np.ones(seen, bool)), num_items
    )


class Asked(NamedTuple):
    """Items that somebody may like, each with the history before it.

    Attributes:
        items: Row of the catalogue of each.
        starts: First event of its history.
        stops: End of its history, exclusive.
    """

    items: np.ndarray
    starts: np.ndarray
    stops: np.ndarray


def signs_of(events: Events, users: np.ndarray, times: np.ndarray, items: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """What labelled examples say of each event: 1 liked, -1 not liked, 0 nothing.

    Args:
        events: All events.
        users: User of each example.
        times: Its moment, microseconds.
        items: Its item.
        labels: 0 or 1.
    """
    owner = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
    rows = np.concatenate([np.stack([users, times, items], 1), np.stack([owner, events.times, events.items], 1)])
    same = np.unique(rows, axis=0, return_inverse=True)[1].ravel()
    signs = np.zeros(same.max(initial=-1) + 1, np.int8)
    signs[same[: len(users)]] = np.where(labels > 0, 1, -1)
    return signs[same[len(users) :]]


def like_logits(floor: Floor, events: Events, signs: np.ndarray, asked: Asked) -> np.ndarray:
    """Log-odds of a like, (N,); finite, also if everything is liked, or nothing.

    Args:
        floor: Fitted on labelled examples of the training split.
        events: All events.
        signs: See `signs_of`.
        asked: What is asked.
    """
    if isinstance(floor, Popularity):
        return log_odds(floor.arrays["rate"][asked.items]).astype(np.float32)
    found = [np.zeros(0)]
    for at in range(0, len(asked.items), ROWS_AT_ONCE):
        items, starts, stops = (column[at : at + ROWS_AT_ONCE] for column in asked)
        found.append(floor.like(_examples(events, starts, stops, signs, items)))
    return np.concatenate(found).astype(np.float32)


def floor_scores(floor: Floor, events: Events, targets: Targets, rows: np.ndarray) -> np.ndarray:
    """Scores of the whole catalogue, rows x items, for some of the targets."""
    ones = np.ones(len(events.items), np.int8)
    return floor.interest(_examples(events, targets.starts[rows], targets.places[rows], ones))


def _examples(
    events: Events, starts: np.ndarray, stops: np.ndarray, signs: np.ndarray, items: np.ndarray | None = None
) -> Examples:
    """Rows with histories, the newest event first; those of short histories stand at the end of the matrix."""
    places, real = windows(starts, stops)
    newest = np.maximum(stops[:, None] - 1 - np.arange(places.shape[1]), 0)
    recent, liked = (np.where(real, column[newest], 0) for column in (events.items, signs))
    nothing, empty = np.zeros(len(starts), np.int64), np.zeros((len(starts), 0))
    return Examples(
        nothing, nothing if items is None else items, empty, recent, liked * (recent > 0), empty, empty, empty, empty
    )
