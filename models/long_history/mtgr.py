"""MTGR: a generative ranker that keeps the cross features of a DLRM (arXiv 2505.18654).

Crosses live in the candidates' tokens: without them the published model loses all that it gains over a DLRM.

Shapes: B users, L events of a history, T static tokens, R events of the real-time part, N tokens in all, C candidates,
F crosses, Y layers, H heads, E width of a head, D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.attention import merge_heads, split_heads
from models.long_history.inputs import (
    LOG_BUCKETS,
    STRICT,
    EventEncoder,
    History,
    HistoryModelConfig,
    ItemEncoder,
    Items,
    initialise_embeddings,
    log_bucket,
)
from models.long_history.interface import HistoryModel
from models.long_history.parts import last_of, newest_events, split_newest
from models.long_history.pointwise import sum_over_keys

USER, SEQUENCE, REAL_TIME, CANDIDATE = range(4)
"""Domains of tokens; each has a normalisation of its own."""
USER_TOKENS = 2
KEYS_AT_ONCE = 1024


@dataclass(frozen=True, config=STRICT)
class MtgrConfig(HistoryModelConfig):
    """Constructor arguments of `Mtgr`; ``dropout`` is that of tokens and of residual branches.

    Attributes:
        num_crosses: Numbers of `Items.crosses`; None there counts as zeros.
        sequence_events: Most events of the static part; it is quadratic in them. Older ones are not seen.
        realtime_events: Newest events, which are read in the order of time.
        micro_batch: Candidates of one pass against the kept keys and values.
    """

    num_crosses: NonNegativeInt = 0
    sequence_events: PositiveInt = 1000
    realtime_events: PositiveInt = 16
    micro_batch: PositiveInt = 256


class MtgrEncoding(NamedTuple):
    """What later tokens need of the static part, or candidates of both.

    Attributes:
        keys_BYHNE: Keys of each layer.
        values_BYHNE: Values of each layer; 0 in the padding.
        counts_B: Tokens that are no padding.
    """

    keys_BYHNE: Tensor
    values_BYHNE: Tensor
    counts_B: Tensor


class Projections(NamedTuple):
    """One layer's reading of its input, after SiLU: gate (B x N x D), values, queries and keys (B x H x N x E)."""

    gate: Tensor
    values: Tensor
    queries: Tensor
    keys: Tensor


class GroupLayerNorm(nn.Module):
    """LayerNorm whose scale and shift belong to the token's domain."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.ones(CANDIDATE + 1, width))
        self.shift = nn.Parameter(torch.zeros(CANDIDATE + 1, width))

    def forward(self, x_BND: Tensor, domains_N: Tensor) -> Tensor:
        """Same shape."""
        return F.layer_norm(x_BND, (self.width,)) * self.scale[domains_N] + self.shift[domains_N]


class MtgrLayer(nn.Module):
    """One block: normalise by domain, project, (attend,) gate, normalise by domain, mix."""

    def __init__(self, config: MtgrConfig):
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm, self.mix_norm = GroupLayerNorm(width), GroupLayerNorm(width)
        self.gate_value_query_key = nn.Linear(width, 4 * width)
        self.output = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def project(self, x_BND: Tensor, domains_N: Tensor) -> Projections:
        """What the layer reads of its input."""
        parts = F.silu(self.gate_value_query_key(self.norm(x_BND, domains_N))).chunk(4, dim=-1)
        return Projections(parts[0], *(split_heads(part, self.heads) for part in parts[1:]))

    def mix(self, x_BND: Tensor, read_BHNE: Tensor, gate_BND: Tensor, domains_N: Tensor) -> Tensor:
        """The layer's output, given what was read."""
        gated_BND = self.mix_norm(merge_heads(read_BHNE) * gate_BND, domains_N)
        return x_BND + self.dropout(self.output(gated_BND))


class Mtgr(HistoryModel):
    """Tokens of the user, of the static sequence, of real-time events and of candidates in one masked pass.

    Who sees whom: static tokens (user and sequence) see each other; a real-time event sees them, itself, and the
    real-time events that came strictly before; a candidate sees all of these and itself. So nothing of the real-time
    part is in the static tokens, which may be kept while it changes. Reads are means over what a token sees.
    """

    def __init__(self, config: MtgrConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.items = ItemEncoder(config)
        self.events = EventEncoder(config)
        self.activity = nn.Embedding(LOG_BUCKETS, width)
        self.tenure = nn.Embedding(LOG_BUCKETS, width)
        self.candidate = nn.Sequential(
            nn.Linear(width + config.num_crosses, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(MtgrLayer(config) for _ in range(config.layers))
        self.head = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, 1))
        self.bias = nn.Embedding(config.num_items, 1)
        initialise_embeddings(self, config.embedding_std)
        nn.init.zeros_(self.bias.weight)

    def encode_history(self, history: History) -> MtgrEncoding:
        """Keys and values of all tokens that candidates see."""
        seen = newest_events(history, self.config.sequence_events + self.config.realtime_events)
        older, newest = split_newest(seen, self.config.realtime_events)
        return self.extend(self.encode_static(older), newest)

    def encode_static(self, older: History) -> MtgrEncoding:
        """The static part: what is known of the user, and the events before the real-time ones."""
        x_BTD = torch.cat([self._user_tokens(older), self._event_tokens(older)], dim=1)
        is_sequence_T = torch.arange(x_BTD.shape[1], device=x_BTD.device) >= USER_TOKENS
        domains_T = torch.where(is_sequence_T, SEQUENCE, USER)
        seen_BT = F.pad(older.valid_BL, (USER_TOKENS, 0), value=True)
        keys, values, counts_B = [], [], seen_BT.sum(-1)
        layers = self._stack()
        for layer in layers:
            read = layer.project(x_BTD, domains_T)
            keys.append(read.keys)
            values.append(read.values * seen_BT[:, None, :, None])
            if layer is not layers[-1]:
                sums_BHTE = sum_over_keys(read.queries, keys[-1], values[-1], None, KEYS_AT_ONCE)
                x_BTD = layer.mix(x_BTD, sums_BHTE / counts_B[:, None, None, None], read.gate, domains_T)
        return MtgrEncoding(torch.stack(keys, dim=1), torch.stack(values, dim=1), counts_B)

    def extend(self, static: MtgrEncoding, newest: History) -> MtgrEncoding:
        """The encoding of both parts, from the (kept) static one and the real-time events."""
        x_BRD = self._event_tokens(newest)
        domains_R = torch.full((x_BRD.shape[1],), REAL_TIME, device=x_BRD.device)
        valid_BR, times_BR = newest.valid_BL, newest.times_BL
        own_RR = torch.eye(x_BRD.shape[1], dtype=torch.bool, device=x_BRD.device)
        earlier_BRR = (times_BR[:, None, :] < times_BR[:, :, None]) & valid_BR[:, None, :]
        mask_BRR = (earlier_BRR | own_RR).to(x_BRD.dtype)
        seen_BR = static.counts_B[:, None] + mask_BRR.sum(-1)
        keys, values = [], []
        layers = self._stack()
        for place, layer in enumerate(layers):
            read = layer.project(x_BRD, domains_R)
            keys.append(read.keys)
            values.append(read.values * valid_BR[:, None, :, None])
            if layer is not layers[-1]:
                kept = static.keys_BYHNE[:, place], static.values_BYHNE[:, place]
                sums_BHRE = sum_over_keys(read.queries, *kept, None, KEYS_AT_ONCE)
                weights_BHRR = F.silu(read.queries @ read.keys.transpose(-1, -2)) * mask_BRR[:, None]
                sums_BHRE = sums_BHRE + weights_BHRR @ read.values
                x_BRD = layer.mix(x_BRD, sums_BHRE / seen_BR[:, None, :, None], read.gate, domains_R)
        return MtgrEncoding(
            torch.cat([static.keys_BYHNE, torch.stack(keys, dim=1)], dim=3),
            torch.cat([static.values_BYHNE, torch.stack(values, dim=1)], dim=3),
            static.counts_B + newest.lengths_B,
        )

    def score(self, encoding: MtgrEncoding, candidates: Items) -> Tensor:
        """Logits of candidates, B x C, in micro-batches against the kept keys and values."""
        tokens_BCD = self.dropout(self.candidate_tokens(candidates))
        parts = [self._score(encoding, x_BCD) for x_BCD in tokens_BCD.split(self.config.micro_batch, dim=1)]
        return torch.cat(parts, dim=1) + self.bias(candidates.ids).squeeze(-1)

    def candidate_tokens(self, candidates: Items) -> Tensor:
        """MLP of each item's embedding and crosses, B x C x D."""
        items_BCD, num = self.items(candidates), self.config.num_crosses
        crosses_BCF = candidates.crosses
        if crosses_BCF is None or not num:
            crosses_BCF = items_BCD.new_zeros((*candidates.ids.shape, num))
        if crosses_BCF.shape[-1] != num:
            raise ValueError(
                f"Candidates have {crosses_BCF.shape[-1]} crosses, the model was built for {num}: "
                "give those that it was trained on, or train it again."
            )
        # Counts have long tails.
        squeezed_BCF = crosses_BCF.sign() * crosses_BCF.abs().log1p()
        return self.candidate(torch.cat([items_BCD, squeezed_BCF.to(items_BCD.dtype)], dim=-1))

    def _score(self, encoding: MtgrEncoding, x_BCD: Tensor) -> Tensor:
        domains_C = torch.full((x_BCD.shape[1],), CANDIDATE, device=x_BCD.device)
        seen_B111 = (encoding.counts_B + 1)[:, None, None, None]
        for place, layer in enumerate(self._stack()):
            gate, values, queries, keys = layer.project(x_BCD, domains_C)
            kept = encoding.keys_BYHNE[:, place], encoding.values_BYHNE[:, place]
            sums_BHCE = sum_over_keys(queries, *kept, None, KEYS_AT_ONCE)
            sums_BHCE = sums_BHCE + F.silu((queries * keys).sum(-1, keepdim=True)) * values
            x_BCD = layer.mix(x_BCD, sums_BHCE / seen_B111, gate, domains_C)
        return self.head(x_BCD).squeeze(-1)

    def _user_tokens(self, older: History) -> Tensor:
        """How many events the user has, and how long ago the first of them was, B x 2 x D."""
        newest_B1 = last_of(older.times_BL[..., None], older.lengths_B)
        tenure_B = (newest_B1.squeeze(-1) - older.times_BL[:, 0]).clamp(min=0)
        features = self.activity(log_bucket(older.lengths_B)), self.tenure(log_bucket(tenure_B))
        return self.dropout(torch.stack(features, dim=1))

    def _event_tokens(self, history: History) -> Tensor:
        return self.dropout(self.events(history, self.items(history.items)))

    def _stack(self) -> list[MtgrLayer]:
        return [layer for layer in self.layers if isinstance(layer, MtgrLayer)]
