"""Floors of next-item ranking: popularity, item neighbours, the last item's successors; every event counts alike.

The fitting and the formulas are those of `models.ranking.floors`, where an event may also be disliked.
"""

import numpy as np

from models.long_history.histories import Events, windows
from models.long_history.leave_one_out import Targets, train_stops
from models.ranking import floors
from models.ranking.examples import Examples
from models.ranking.floors import FLOORS, Floor, log_odds


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


def like_logits(items: np.ndarray, labels: np.ndarray, num_items: int) -> np.ndarray:
    """Log-odds of a like of each row of the catalogue; finite, also if everything is liked, or nothing.

    Args:
        items: Item of each example.
        labels: 0 or 1.
        num_items: Items of the catalogue, rows 1 and up.
    """
    examples = floors.Events(np.zeros_like(items), items, labels, np.ones(len(items), bool))
    return log_odds(FLOORS["popularity"].fit(examples, num_items).arrays["rate"]).astype(np.float32)


def floor_scores(floor: Floor, events: Events, targets: Targets, rows: np.ndarray) -> np.ndarray:
    """Scores of the whole catalogue, rows x items, for some of the targets."""
    places, real = windows(targets.starts[rows], targets.places[rows])
    # The newest first; those of short histories stand at the end of the matrix.
    newest = targets.places[rows][:, None] - 1 - np.arange(places.shape[1])
    recent = np.where(real, events.items[np.maximum(newest, 0)], 0)
    nothing = np.zeros(len(rows), np.int64)
    empty = np.zeros((len(rows), 0))
    return floor.interest(
        Examples(nothing, nothing, empty, recent, (recent > 0).astype(np.int8), empty, empty, empty, empty)
    )
