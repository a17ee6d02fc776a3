"""What rankers with target attention share: candidates in chunks, the events they find, and the head.

Shapes: B users, L events of a history, C candidates, K found events, D width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.long_history.inputs import LOG_BUCKETS, EventEncoder, History, HistoryModelConfig, log_bucket

BUDGET = 1 << 22
"""Most elements of a tensor that has a row for every pair of a candidate and an event."""


def in_chunks(function: Callable[[Tensor], Tensor], candidates: Tensor, elements: int) -> Tensor:
    """Applies ``function`` to slices of candidates and joins what it gives; both have them in dimension 1.

    Args:
        function: What to compute of a slice.
        candidates: Its argument, B x C ...
        elements: Elements of the largest tensor that one candidate of every user costs.
    """
    size = max(BUDGET // max(elements, 1), 1)
    return torch.cat([function(part) for part in candidates.split(size, dim=1)], dim=1)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension where ``mask`` is true; all zeros where it is true nowhere."""
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask


def take_events(events: Tensor, places: Tensor) -> Tensor:
    """Events (... x L x D) at ``places`` (... x C x K): ... x C x K x D."""
    # As a look-up in a table: the gradient of that adds rows, while that of an index adds one number at a time.
    starts = torch.arange(events[..., 0, 0].numel(), device=places.device).reshape(*events.shape[:-2], 1, 1)
    return F.embedding(places + starts * events.shape[-2], events.flatten(0, -2))


class AgedEvents(nn.Module):
    """Event tokens that also know how long before the newest event they were, which is known before any request."""

    def __init__(self, config: HistoryModelConfig):
        super().__init__()
        self.events = EventEncoder(config)
        self.age = nn.Embedding(LOG_BUCKETS, config.width)
        self.norm = nn.RMSNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, history: History, items_BLD: Tensor) -> Tensor:
        """Tokens, B x L x D."""
        return self.dropout(self.norm(self.events(history, items_BLD) + self.age(ages(history))))


def ages(history: History) -> Tensor:
    """Log bucket of the seconds between each event and the newest, B x L."""
    newest_B1 = history.times_BL.gather(1, (history.lengths_B - 1).clamp(min=0)[:, None])
    return log_bucket((newest_B1 - history.times_BL).clamp(min=0))


class TargetHead(nn.Module):
    """Logit from a candidate, what it read of the history, and their product, plus the item's own bias."""

    def __init__(self, config: HistoryModelConfig):
        super().__init__()
        width = config.width
        # One norm over all parts: how much was read, beside the candidate, stays to be seen.
        self.mix = nn.Sequential(
            nn.RMSNorm(3 * width),
            nn.Linear(3 * width, 2 * width),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * width, 1),
        )
        self.bias = nn.Embedding(config.num_items, 1)

    def forward(self, candidates_BCD: Tensor, read_BCD: Tensor, ids_BC: Tensor) -> Tensor:
        """Logits, B x C."""
        x_BC3 = torch.cat([candidates_BCD, read_BCD, candidates_BCD * read_BCD], dim=-1)
        return (self.mix(x_BC3) + self.bias(ids_BC)).squeeze(-1)
