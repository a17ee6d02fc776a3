"""SASRec: a causal softmax transformer over the items of a history (arXiv 1808.09781).

It is meant to be trained with full cross-entropy over the catalogue at every place: trained so, it is a far stronger
baseline than with the binary loss of the paper (arXiv 2309.07602, "SASRec+").

Shapes: B users, L events of a history, P positions, S pieces of a history, C candidates, D width.
"""

from typing import Literal

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.attention import SoftmaxBlock
from models.long_history.inputs import (
    STRICT,
    EventEncoder,
    History,
    HistoryModelConfig,
    ItemEncoder,
    Items,
    initialise_embeddings,
)
from models.long_history.interface import NextItemModel
from models.long_history.parts import last_of, newest_events


@dataclass(frozen=True, config=STRICT)
class SasrecConfig(HistoryModelConfig):
    """Constructor arguments of `Sasrec`; ``dropout`` is that of tokens and of residual branches.

    Attributes:
        max_positions: Positions that are learned. A longer history is cut into pieces of so many events.
        expansion: Hidden width of a block's second part, in widths.
        token: What a token says of an event: its item alone, as in the paper, or also what the user did, and when.
    """

    max_positions: PositiveInt = 200
    expansion: PositiveInt = 4
    token: Literal["item", "event"] = "item"


class Sasrec(NextItemModel):
    """States and items share one embedding; the encoding of a history is its last state.

    Positions count from the first event that is seen, so that a state knows nothing of what follows, not even how
    much. A state and an item's vector are one wider than the model: the last channel carries the item's bias.
    """

    def __init__(self, config: SasrecConfig):
        super().__init__()
        self.config = config
        self.items = ItemEncoder(config)
        self.events = EventEncoder(config, recency=False) if config.token == "event" else None
        self.position = nn.Embedding(config.max_positions, config.width)
        self.dropout = nn.Dropout(config.dropout)
        hidden = config.expansion * config.width
        self.blocks = nn.ModuleList(
            SoftmaxBlock(config.width, config.heads, hidden, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.RMSNorm(config.width)
        self.bias = nn.Embedding(config.num_items, 1)
        initialise_embeddings(self, config.embedding_std)
        nn.init.zeros_(self.bias.weight)
        # A user of whom nothing is known gets the items' biases until the training says better.
        self.start_D = nn.Parameter(torch.zeros(config.width))

    def states(self, history: History) -> Tensor:
        """See `NextItemModel.states`; B x L x (D + 1).

        A history longer than ``max_positions`` is cut into pieces that end with its newest event, and a state sees
        its own piece only: time is linear in the history.
        """
        tokens_BLD = self._tokens(history)
        if tokens_BLD.shape[1] <= self.config.max_positions:
            return self._transform(tokens_BLD)
        places_BT, back_BL = _pieces(history, self.config.max_positions)
        x_BTD = _take(tokens_BLD, places_BT)
        x_SPD = self._transform(x_BTD.reshape(-1, self.config.max_positions, x_BTD.shape[-1]))
        return _take(x_SPD.reshape(len(x_BTD), -1, x_SPD.shape[-1]), back_BL)

    def item_vectors(self, items: Items) -> Tensor:
        """See `NextItemModel.item_vectors`; ... x (D + 1)."""
        return torch.cat([self.items(items), self.bias(items.ids)], dim=-1)

    def encode_history(self, history: History) -> Tensor:
        """The state after the newest event, B x (D + 1); a learned one for users without events."""
        history = newest_events(history, self.config.max_positions)
        last_BD = last_of(self.states(history), history.lengths_B)
        start_D = torch.cat([self.start_D, self.start_D.new_ones(1)]).to(last_BD.dtype)
        return torch.where((history.lengths_B > 0)[:, None], last_BD, start_D)

    def score(self, encoding: Tensor, candidates: Items) -> Tensor:
        """Inner products with the items, plus their biases, B x C."""
        return (self.item_vectors(candidates) @ encoding[..., None]).squeeze(-1)

    def _tokens(self, history: History) -> Tensor:
        items_BLD = self.items(history.items)
        return items_BLD if self.events is None else self.events(history, items_BLD)

    def _transform(self, x_BLD: Tensor) -> Tensor:
        x_BLD = self.dropout(x_BLD + self.position.weight[: x_BLD.shape[1]])
        for block in self.blocks:
            x_BLD = block(x_BLD, causal=True)
        x_BLD = self.norm(x_BLD)
        return torch.cat([x_BLD, torch.ones_like(x_BLD[..., :1])], dim=-1)


def _take(x_BLD: Tensor, places_BT: Tensor) -> Tensor:
    return x_BLD.gather(1, places_BT[..., None].expand(-1, -1, x_BLD.shape[-1]))


def _pieces(history: History, size: int) -> tuple[Tensor, Tensor]:
    """Events of each piece (B x S P), and where each event went (B x L). Only a history's first piece may be short."""
    longest = history.actions_BL.shape[1]
    steps = torch.arange((longest // size + 1) * size, device=history.lengths_B.device)
    # The first piece has the events that the full ones leave.
    first_B1 = (history.lengths_B % size)[:, None]
    places_BT = torch.where(steps < size, steps, steps - size + first_B1).clamp(max=longest - 1)
    events_L = steps[:longest]
    back_BL = torch.where(events_L < first_B1, events_L, events_L - first_B1 + size)
    return places_BT, back_BL.clamp(max=len(steps) - 1)
