"""Parts of padded histories.

Shapes: B users, L events of a history, W events of a window.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.long_history.inputs import History, Items


def part(history: History, start: int, stop: int) -> History:
    """The events at the places from ``start`` to before ``stop``; users that have none there are empty."""
    return _taken(history, lambda column: column[:, start:stop], (history.lengths_B - start).clamp(0, stop - start))


def newest(history: History, count: int) -> History:
    """The last ``count`` events of every history, or all it has."""
    width = min(count, history.actions_BL.shape[1])
    starts_B = (history.lengths_B - width).clamp(min=0)
    places_BW = starts_B[:, None] + torch.arange(width, device=starts_B.device)
    users_B1 = torch.arange(len(starts_B), device=starts_B.device)[:, None]
    return _taken(history, lambda column: column[users_B1, places_BW], history.lengths_B.clamp(max=width))


def _taken(history: History, take: Callable[[Tensor], Tensor], lengths_B: Tensor) -> History:
    """What ``take`` gives of every column."""
    ids, codes, crosses = history.items
    return History(
        Items(take(ids), take(codes), None if crosses is None else take(crosses)),
        take(history.actions_BL),
        take(history.values_BL),
        take(history.gaps_BL),
        take(history.times_BL),
        lengths_B,
    )
