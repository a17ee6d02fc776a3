"""Parts of padded histories: by place, or the newest events, for models that see a bounded number of them.

Shapes: B users, L events of a history, W events of a window, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from models.long_history.inputs import History, Items


def part(history: History, start: int, stop: int) -> History:
    """The events at the places from ``start`` to before ``stop``; users that have none there are empty."""
    return _taken(history, lambda column: column[:, start:stop], (history.lengths_B - start).clamp(0, stop - start))


def newest_events(history: History, count: int) -> History:
    """The last ``count`` events of every history, or all it has."""
    if history.actions_BL.shape[1] <= count:
        return history
    starts_B = (history.lengths_B - count).clamp(min=0)
    places_BW = starts_B[:, None] + torch.arange(count, device=starts_B.device)
    users_B1 = torch.arange(len(starts_B), device=starts_B.device)[:, None]
    return _taken(history, lambda column: column[users_B1, places_BW], history.lengths_B.clamp(max=count))


def split_newest(history: History, count: int) -> tuple[History, History]:
    """The events before the newest ``count``, and these."""
    width = max(history.actions_BL.shape[1] - count, 1)
    older_B = (history.lengths_B - count).clamp(min=0)
    return _taken(history, lambda column: column[:, :width], older_B), newest_events(history, count)


def last_of(x_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """What stands at the last event of each history, B x D; of an empty one, what stands in the padding."""
    last_B = (lengths_B - 1).clamp(min=0)
    return x_BLD.gather(1, last_B[:, None, None].expand(-1, 1, x_BLD.shape[-1])).squeeze(1)


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
