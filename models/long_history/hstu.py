"""HSTU with M-FALCON: pointwise attention over a history, and candidates against its kept keys and values.

Shapes: B users, L events of a history, C candidates, Y layers, H heads, E width of a head, D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.attention import merge_heads, split_heads
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
from models.long_history.pointwise import CausalTiles, RelativeBias, causal_attention, relative_times, sum_over_keys


@dataclass(frozen=True, config=STRICT)
class HstuConfig(HistoryModelConfig):
    """Constructor arguments of `Hstu`; ``dropout`` is that of tokens and of residual branches.

    Attributes:
        max_distance: Distances (in events) with a bias of their own; farther events share the last.
        micro_batch: Candidates of one pass against the kept keys and values.
        tile: Rows and keys that are worked on at once; a history of so many events needs one tile.
    """

    max_distance: PositiveInt = 1024
    micro_batch: PositiveInt = 256
    tile: PositiveInt = 512


class HstuEncoding(NamedTuple):
    """What candidates need of histories.

    Attributes:
        keys_BYHLE: Keys of each layer.
        values_BYHLE: Values of each layer; 0 in the padding.
        times_BL: Seconds before the newest event, int32.
        lengths_B: Events of each history.
    """

    keys_BYHLE: Tensor
    values_BYHLE: Tensor
    times_BL: Tensor
    lengths_B: Tensor


class Projections(NamedTuple):
    """One layer's reading of its input, after SiLU: gate (B x N x D), values, queries and keys (B x H x N x E)."""

    gate: Tensor
    values: Tensor
    queries: Tensor
    keys: Tensor


class HstuLayer(nn.Module):
    """One layer: project, attend, gate, mix (equations 1 to 3), with the relative bias as a part of it."""

    def __init__(self, config: HstuConfig):
        super().__init__()
        self.heads, self.width = config.heads, config.width
        self.gate_value_query_key = nn.Linear(config.width, 4 * config.width, bias=False)
        self.bias = RelativeBias(config.max_distance)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x_BND: Tensor) -> Projections:
        """What the layer reads of its input."""
        parts = F.silu(self.gate_value_query_key(F.layer_norm(x_BND, (self.width,)))).chunk(4, dim=-1)
        return Projections(parts[0], *(split_heads(part, self.heads) for part in parts[1:]))

    def attend(self, x_BND: Tensor, read: Projections, tiles: CausalTiles) -> Tensor:
        """The layer's output for tokens that see themselves and earlier ones."""
        return self.mix(x_BND, causal_attention(read.queries, read.keys, read.values, self.bias, tiles), read.gate)

    def mix(self, x_BND: Tensor, read_BHNE: Tensor, gate_BND: Tensor) -> Tensor:
        """The layer's output: what was read, normalised and gated, beside the input."""
        read_BND = F.layer_norm(merge_heads(read_BHNE), (self.width,))
        return x_BND + self.output(self.dropout(read_BND * gate_BND))


class Hstu(NextItemModel):
    """Histories run through causal layers; candidates stand behind the newest event and never see each other.

    A row's bias knows times up to its own event, and a candidate takes the time of the newest one: the official code
    uses the time of the event that is to be foretold. Reads are means over the keys that a row sees.
    """

    def __init__(self, config: HstuConfig):
        super().__init__()
        self.config = config
        self.items = ItemEncoder(config)
        self.events = EventEncoder(config, recency=False)
        self.candidate_D = nn.Parameter(torch.randn(config.width) * config.embedding_std)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(HstuLayer(config) for _ in range(config.layers))
        self.head = nn.Sequential(
            nn.RMSNorm(config.width),
            nn.Linear(config.width, 2 * config.width),
            nn.GELU(),
            nn.Linear(2 * config.width, 1),
        )
        self.bias = nn.Embedding(config.num_items, 1)
        initialise_embeddings(self, config.embedding_std)
        nn.init.zeros_(self.bias.weight)

    def states(self, history: History) -> Tensor:
        """See `NextItemModel.states`; B x L x (D + 1), where the last channel carries an item's bias."""
        x_BLD, tiles = self._embed(history)
        for layer in self._stack():
            x_BLD = layer.attend(x_BLD, layer.project(x_BLD), tiles)
        x_BLD = F.layer_norm(x_BLD, (self.config.width,))
        return torch.cat([x_BLD, torch.ones_like(x_BLD[..., :1])], dim=-1)

    def item_vectors(self, items: Items) -> Tensor:
        """See `NextItemModel.item_vectors`; ... x (D + 1)."""
        return torch.cat([self.items(items), self.bias(items.ids)], dim=-1)

    def encode_history(self, history: History) -> HstuEncoding:
        """Keys and values of every layer; what the last layer would say of the events is not needed."""
        x_BLD, tiles = self._embed(history)
        layers, seen_BL = self._stack(), history.valid_BL[:, None, :, None]
        keys_BHLE, values_BHLE = [], []
        for layer in layers:
            read = layer.project(x_BLD)
            keys_BHLE.append(read.keys)
            values_BHLE.append(read.values * seen_BL)
            if layer is not layers[-1]:
                x_BLD = layer.attend(x_BLD, read, tiles)
        keys_BYHLE, values_BYHLE = torch.stack(keys_BHLE, dim=1), torch.stack(values_BHLE, dim=1)
        return HstuEncoding(keys_BYHLE, values_BYHLE, tiles.times_BN, history.lengths_B)

    def score(self, encoding: HstuEncoding, candidates: Items) -> Tensor:
        """Logits of candidates, B x C, in micro-batches of one pass each (M-FALCON, algorithm 1)."""
        tokens_BCD = self.dropout(self.items(candidates) + self.candidate_D)
        biases = [layer.bias.newest(encoding.times_BL, encoding.lengths_B) for layer in self._stack()]
        parts = [self._score(encoding, biases, x_BCD) for x_BCD in tokens_BCD.split(self.config.micro_batch, dim=1)]
        return torch.cat(parts, dim=1) + self.bias(candidates.ids).squeeze(-1)

    def _score(self, encoding: HstuEncoding, biases: list[Tensor], x_BCD: Tensor) -> Tensor:
        """Logits of one micro-batch: only its own rows are computed."""
        seen_B111 = (encoding.lengths_B + 1)[:, None, None, None].to(x_BCD.dtype)
        for place, layer in enumerate(self._stack()):
            gate, values, queries, keys = layer.project(x_BCD)
            kept = encoding.keys_BYHLE[:, place], encoding.values_BYHLE[:, place]
            read_BHCE = sum_over_keys(queries, *kept, biases[place], 2 * self.config.tile)
            own_BHC1 = F.silu((queries * keys).sum(-1, keepdim=True) + layer.bias.own())
            x_BCD = layer.mix(x_BCD, (read_BHCE + own_BHC1 * values) / seen_B111, gate)
        return self.head(x_BCD).squeeze(-1)

    def _embed(self, history: History) -> tuple[Tensor, CausalTiles]:
        """Tokens, and the tiles of their attention."""
        times_BL = relative_times(history.times_BL, history.lengths_B)
        tokens_BLD = self.dropout(self.events(history, self.items(history.items)))
        return tokens_BLD, CausalTiles(times_BL, self.config.tile)

    def _stack(self) -> list[HstuLayer]:
        return [layer for layer in self.layers if isinstance(layer, HstuLayer)]
