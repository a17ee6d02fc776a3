"""DIN (arXiv 1706.06978): a small network weighs every event for every candidate.

Nothing of that can be kept between candidates: the cost of a candidate grows with the history.

Shapes: B users, L events of a history, C candidates, D width, U width of the activation unit.
"""

from typing import NamedTuple

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.long_history.inputs import (
    STRICT,
    EventEncoder,
    History,
    HistoryModelConfig,
    ItemEncoder,
    Items,
    initialise_embeddings,
)
from models.long_history.interface import HistoryModel
from models.long_history.target_attention import TargetHead, in_chunks, masked_softmax


@dataclass(frozen=True, config=STRICT)
class DinConfig(HistoryModelConfig):
    """Constructor arguments of `Din`; ``layers`` are hidden layers of the activation unit, ``heads`` mean nothing.

    Attributes:
        unit_width: Width of the activation unit's hidden layers.
        softmax: Whether weights sum to 1. The paper's do not, so that their sum says how much there was to find.
        dice: Whether the activation unit has Dice in place of PReLU.
    """

    unit_width: PositiveInt = 32
    softmax: bool = False
    dice: bool = False


class DinEncoding(NamedTuple):
    """What DIN keeps of histories.

    Attributes:
        tokens_BLD: Event tokens.
        valid_BL: Which of them are events.
    """

    tokens_BLD: Tensor
    valid_BL: Tensor


class Dice(nn.Module):
    """The data-adaptive PReLU of section 5.3: the gate between both slopes is centred on the batch's mean.

    Statistics are those of real events alone; running ones stand in outside of training.
    """

    mean_U: Tensor
    variance_U: Tensor

    def __init__(self, width: int, momentum: float = 0.1):
        super().__init__()
        self.momentum = momentum
        self.slope_U = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean_U", torch.zeros(width))
        self.register_buffer("variance_U", torch.ones(width))

    def forward(self, x_BLCU: Tensor, valid_BL: Tensor) -> Tensor:
        """Same shape."""
        mean_U, variance_U = self.mean_U, self.variance_U
        if self.training and valid_BL.any():
            real_NU = x_BLCU[valid_BL].flatten(0, 1).float()
            variance_U, mean_U = torch.var_mean(real_NU, dim=0, correction=0)
            with torch.no_grad():
                self.mean_U.lerp_(mean_U, self.momentum)
                self.variance_U.lerp_(variance_U, self.momentum)
        gate_BLCU = torch.sigmoid((x_BLCU - mean_U) * torch.rsqrt(variance_U + 1e-6))
        return x_BLCU * (gate_BLCU + (1 - gate_BLCU) * self.slope_U)


class ActivationUnit(nn.Module):
    """Weight of each event for each candidate: a network over [q, k, q - k, q * k]."""

    def __init__(self, config: DinConfig):
        super().__init__()
        unit = config.unit_width
        self.entry = nn.Linear(4 * config.width, unit)
        self.hidden = nn.ModuleList(nn.Linear(unit, unit) for _ in range(config.layers - 1))
        self.activations = nn.ModuleList(Dice(unit) if config.dice else nn.PReLU() for _ in range(config.layers))
        self.output = nn.Linear(unit, 1)

    def forward(self, candidates_BCD: Tensor, tokens_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Weights, B x C x L."""
        # One matrix and one bias a candidate say the same as the entry's four blocks, and no pair needs 4 D numbers.
        query_UD, key_UD, difference_UD, product_UD = self.entry.weight.chunk(4, dim=1)
        matrices_BCUD = (key_UD - difference_UD) + product_UD * candidates_BCD[:, :, None, :]
        biases_BCU = candidates_BCD @ (query_UD + difference_UD).T + self.entry.bias
        x_BLN = torch.baddbmm(biases_BCU.flatten(1)[:, None], tokens_BLD, matrices_BCUD.flatten(1, 2).transpose(1, 2))
        x_BLCU = x_BLN.unflatten(-1, biases_BCU.shape[1:])
        for at, activation in enumerate(self.activations):
            x_BLCU = activation(x_BLCU, valid_BL) if isinstance(activation, Dice) else activation(x_BLCU)
            if at < len(self.hidden):
                x_BLCU = self.hidden[at](x_BLCU)
        return self.output(x_BLCU).squeeze(-1).transpose(1, 2)


class Din(HistoryModel):
    """The encoding of a history is its event tokens: all else of DIN depends on the candidate."""

    def __init__(self, config: DinConfig):
        super().__init__()
        self.config = config
        self.items = ItemEncoder(config)
        self.events = EventEncoder(config)
        self.norm = nn.RMSNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.unit = ActivationUnit(config)
        self.head = TargetHead(config)
        initialise_embeddings(self, config.embedding_std)
        nn.init.zeros_(self.head.bias.weight)

    def encode_history(self, history: History) -> DinEncoding:
        """See `HistoryModel.encode_history`."""
        tokens_BLD = self.norm(self.events(history, self.items(history.items)))
        return DinEncoding(self.dropout(tokens_BLD), history.valid_BL)

    def score(self, encoding: DinEncoding, candidates: Items) -> Tensor:
        """See `HistoryModel.score`."""
        candidates_BCD = self.norm(self.items(candidates))
        elements = encoding.valid_BL.numel() * self.config.unit_width
        read_BCD = in_chunks(lambda part: self._read(encoding, part), candidates_BCD, elements)
        return self.head(candidates_BCD, read_BCD, candidates.ids)

    def _read(self, encoding: DinEncoding, candidates_BCD: Tensor) -> Tensor:
        """Weighted sum of the events, B x C x D."""
        weights_BCL = self.unit(candidates_BCD, encoding.tokens_BLD, encoding.valid_BL)
        valid_B1L = encoding.valid_BL[:, None]
        weights_BCL = masked_softmax(weights_BCL, valid_B1L) if self.config.softmax else weights_BCL * valid_B1L
        return weights_BCL @ encoding.tokens_BLD
