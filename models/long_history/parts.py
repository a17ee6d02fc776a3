"""Parts of padded histories.

Shapes: B users, L events of a history, W events of a window.
"""

import torch

from models.long_history.inputs import History, Items


def part(history: History, start: int, stop: int) -> History:
    """The events at the places from ``start`` to before ``stop``; users that have none there are empty."""
    ids, codes, crosses = history.items
    items = Items(ids[:, start:stop], codes[:, start:stop], None if crosses is None else crosses[:, start:stop])
    columns = (column[:, start:stop] for column in history[1:-1])
    return History(items, *columns, (history.lengths_B - start).clamp(0, stop - start))


def newest(history: History, count: int) -> History:
    """The last ``count`` events of every history, or all it has."""
    width = min(count, history.actions_BL.shape[1])
    starts_B = (history.lengths_B - width).clamp(min=0)
    places_BW = starts_B[:, None] + torch.arange(width, device=starts_B.device)
    ids, codes, crosses = history.items

    def taken(column: torch.Tensor) -> torch.Tensor:
        return column.gather(
            1, places_BW.reshape(places_BW.shape + (1,) * (column.dim() - 2)).expand(-1, -1, *column.shape[2:])
        )

    items = Items(taken(ids), taken(codes), None if crosses is None else taken(crosses))
    return History(items, *(taken(column) for column in history[1:-1]), history.lengths_B.clamp(max=width))
