"""What every model of long histories reads: items, events, and their embeddings.

Shapes: B users, L events of a history, C candidates, M code levels, F crosses, D width.
"""

from typing import Annotated, NamedTuple

import pydantic
import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

LOG_BUCKETS = 64
"""Enough for floor(log2) of any 63-bit number."""


Share = Annotated[float, pydantic.Field(ge=0, lt=1)]

# Arguments come from people, through a job's config: a misspelt or impossible one is refused by its name.
STRICT = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, config=STRICT)
class HistoryModelConfig:
    """Constructor arguments that all models of long histories share.

    Attributes:
        num_items: Rows of the item table; 0 is "unknown".
        num_codes: Rows of the code table over all levels; 0 is "unknown". 1 when there are no semantic IDs.
        num_actions: Rows of the action table; 0 is "unknown".
        num_values: Rows of the value table; 0 is "no value".
        width: Width of a token.
        heads: Attention heads.
        layers: Blocks over the history.
        dropout: Dropout, where the model has it.
        item_dropout: Share of items whose own embedding is hidden in training, so that "unknown" and the codes
            learn to stand for items never seen.
        embedding_std: Spread of new embeddings. Small ones overfit less, 1.0 finds what items and values say
            together sooner.
    """

    num_items: PositiveInt
    num_codes: PositiveInt
    num_actions: PositiveInt
    num_values: PositiveInt
    width: PositiveInt = 32
    heads: PositiveInt = 2
    layers: PositiveInt = 2
    dropout: Share = 0.1
    item_dropout: Share = 0.1
    embedding_std: NonNegativeFloat = 0.1

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"The width {self.width} must be a multiple of the {self.heads} heads.")


class Items(NamedTuple):
    """Items by their inputs.

    Attributes:
        ids: Rows of the item table (...), int64; 0 is unknown.
        codes: Rows of the code table (... x M), int64; 0 is unknown.
        crosses: Numbers about the item and the user at the moment of the request, e.g. counts and rates (... x F);
            None for models that read none.
    """

    ids: Tensor
    codes: Tensor
    crosses: Tensor | None = None


class History(NamedTuple):
    """Histories, oldest event first, padded at the end.

    Attributes:
        items: Items, B x L.
        actions_BL: Actions.
        values_BL: Value buckets.
        gaps_BL: Log buckets of the time since the user's previous event.
        times_BL: Seconds since the epoch, int64; 0 in the padding.
        lengths_B: Events of each history.
    """

    items: Items
    actions_BL: Tensor
    values_BL: Tensor
    gaps_BL: Tensor
    times_BL: Tensor
    lengths_B: Tensor

    @property
    def valid_BL(self) -> Tensor:
        """Which places are events."""
        places_L = torch.arange(self.actions_BL.shape[1], device=self.lengths_B.device)
        return places_L < self.lengths_B[:, None]


def log_bucket(x: Tensor) -> Tensor:
    """1 + floor(log2(1 + x)) for non-negative integers, at most ``LOG_BUCKETS - 1``."""
    return (torch.log2(x.double() + 1).floor().long() + 1).clamp(0, LOG_BUCKETS - 1)


class ItemEncoder(nn.Module):
    """Embedding of an item: its own, plus those of its semantic ID's codes."""

    def __init__(self, config: HistoryModelConfig):
        super().__init__()
        self.own = nn.Embedding(config.num_items, config.width)
        self.code = nn.Embedding(config.num_codes, config.width, padding_idx=0)
        self.hidden_share = config.item_dropout

    def forward(self, items: Items) -> Tensor:
        """... x D."""
        ids = items.ids
        if self.training and self.hidden_share > 0:
            ids = torch.where(torch.rand(ids.shape, device=ids.device) < self.hidden_share, 0, ids)
        return self.own(ids) + self.code(items.codes).sum(-2)


class EventEncoder(nn.Module):
    """Embedding of an event: its item, what the user did with it, and when.

    Args:
        config: Sizes.
        recency: Whether an event knows its rank from the end. An encoder that is refreshed by new events alone may
            not: the rank of every older event would change.
    """

    def __init__(self, config: HistoryModelConfig, recency: bool = True):
        super().__init__()
        width = config.width
        self.action = nn.Embedding(config.num_actions, width)
        self.value = nn.Embedding(config.num_values, width)
        self.value_gate = nn.Embedding(config.num_values, width)
        self.gap = nn.Embedding(LOG_BUCKETS, width)
        self.recency = nn.Embedding(LOG_BUCKETS, width) if recency else None

    def forward(self, history: History, items_BLD: Tensor) -> Tensor:
        """B x L x D; what stands in the padding means nothing.

        Args:
            history: Histories.
            items_BLD: Their items' embeddings.
        """
        # A sum of embeddings can't say that an item was liked: the value also gates the item.
        gated_BLD = items_BLD * (1 + self.value_gate(history.values_BL))
        tokens_BLD = (
            gated_BLD + self.action(history.actions_BL) + self.value(history.values_BL) + self.gap(history.gaps_BL)
        )
        if self.recency is None:
            return tokens_BLD
        places_L = torch.arange(history.actions_BL.shape[1], device=history.lengths_B.device)
        from_end_BL = (history.lengths_B[:, None] - 1 - places_L).clamp(min=0)
        return tokens_BLD + self.recency(log_bucket(from_end_BL))


def initialise_embeddings(model: nn.Module, std: float) -> None:
    """Draws every embedding of ``model`` anew with this spread; rows of padding are zero."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=std)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx].zero_()
