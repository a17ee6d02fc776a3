"""Crosses: numbers about a candidate and a user as of a moment, for rankers that keep a DLRM's features.

All of them are point in time: what happened at the moment itself, or later, is not counted.

Shapes: B users, L events, C candidates, N examples, F crosses.
"""

import numpy as np
import torch
from torch import Tensor

from models.long_history.inputs import History, Items

SMOOTHING = 10.0
NUM_CROSSES = 4


class Running:
    """Counts and sums of each item's past at any moment.

    Args:
        items: Rows of the catalogue.
        times: Microseconds.
        values: What is summed.
    """

    def __init__(self, items: np.ndarray, times: np.ndarray, values: np.ndarray):
        order = np.lexsort((times, items))
        self.moments = np.unique(times)
        self.width = len(self.moments) + 1
        self.keys = items[order].astype(np.int64) * self.width + np.searchsorted(self.moments, times[order])
        self.sums = np.concatenate([[0.0], np.cumsum(values[order], dtype=np.float64)])

    def before(self, items: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number and sum of the events of ``items`` strictly before ``times``; both of one shape."""
        first = items.astype(np.int64) * self.width
        start = np.searchsorted(self.keys, first)
        stop = np.searchsorted(self.keys, first + np.searchsorted(self.moments, times))
        return stop - start, self.sums[stop] - self.sums[start]


def item_crosses(seen: Running, likes: Running, base_rate: float, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Events of each item before the moment, and the log-odds of a like by then, smoothed; ... x 2.

    Args:
        seen: All events.
        likes: Labelled events.
        base_rate: Share of likes that an item without a past has: that of the training split.
        items: Rows of the catalogue.
        times: Microseconds.
    """
    count, _ = seen.before(items, times)
    rated, liked = likes.before(items, times)
    rate = (liked + SMOOTHING * base_rate) / (rated + SMOOTHING)
    rate = np.clip(rate, 1e-3, 1 - 1e-3)
    return np.stack([count, np.log(rate / (1 - rate))], -1).astype(np.float32)


def history_crosses(history: History, candidates: Items) -> Tensor:
    """Events that are seen of the user, and the share of them of the candidate's category; B x C x 2.

    The category is the first code of the semantic ID, or the item itself where there are none.
    """
    with_codes = candidates.codes.shape[-1] > 0
    ours_BC = candidates.codes[..., 0] if with_codes else candidates.ids
    theirs_BL = history.items.codes[..., 0] if with_codes else history.items.ids
    same_BCL = (ours_BC[..., None] == theirs_BL[:, None]) & (ours_BC[..., None] > 0) & history.valid_BL[:, None]
    lengths_B1 = history.lengths_B[:, None].float()
    share_BC = same_BCL.sum(-1) / lengths_B1.clamp(min=1)
    return torch.stack([lengths_B1.expand_as(share_BC), share_BC], -1)
