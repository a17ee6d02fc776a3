"""The newest events of histories, for models that see a bounded number of them.

Shapes: B users, L events of a history, W events that are kept.
"""

import torch
from torch import Tensor

from models.long_history.inputs import History, Items


def events_at(history: History, places_BW: Tensor, lengths_B: Tensor) -> History:
    """The events at ``places_BW`` of each history, of which the first ``lengths_B`` are real."""

    def take(column: Tensor) -> Tensor:
        index = places_BW if column.ndim == 2 else places_BW[..., None].expand(-1, -1, column.shape[-1])
        return column.gather(1, index)

    return History(
        Items(take(history.items.ids), take(history.items.codes)),
        take(history.actions_BL),
        take(history.values_BL),
        take(history.gaps_BL),
        take(history.times_BL),
        lengths_B,
    )


def newest_events(history: History, num: int) -> History:
    """Every history cut to its newest ``num`` events."""
    if history.actions_BL.shape[1] <= num:
        return history
    starts_B = (history.lengths_B - num).clamp(min=0)
    places_BW = starts_B[:, None] + torch.arange(num, device=starts_B.device)
    return events_at(history, places_BW, history.lengths_B.clamp(max=num))


def last_of(x_BLD: Tensor, lengths_B: Tensor) -> Tensor:
    """What stands at the last event of each history, B x D; of an empty one, what stands in the padding."""
    last_B = (lengths_B - 1).clamp(min=0)
    return x_BLD.gather(1, last_B[:, None, None].expand(-1, 1, x_BLD.shape[-1])).squeeze(1)


def split_newest(history: History, num: int) -> tuple[History, History]:
    """The events before the newest ``num``, and these."""
    width = max(history.actions_BL.shape[1] - num, 1)
    older_B = (history.lengths_B - num).clamp(min=0)
    places_BW = torch.arange(width, device=older_B.device).expand(len(older_B), -1)
    return events_at(history, places_BW, older_B), newest_events(history, num)
