"""TWIN (arXiv 2302.02352): the search for K events and the attention to them go by one and the same score.

Shapes: B users, L events of a history, C candidates, K found events, H heads, E width of a head, D width.
"""

from typing import NamedTuple

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.attention import merge_heads, split_heads
from models.long_history.inputs import (
    LOG_BUCKETS,
    STRICT,
    History,
    HistoryModelConfig,
    ItemEncoder,
    Items,
    initialise_embeddings,
    log_bucket,
)
from models.long_history.interface import HistoryModel
from models.long_history.target_attention import (
    AgedEvents,
    TargetHead,
    ages,
    in_chunks,
    masked_softmax,
    take_events,
)


@dataclass(frozen=True, config=STRICT)
class TwinConfig(HistoryModelConfig):
    """Constructor arguments of `Twin`; ``layers`` mean nothing to it.

    Attributes:
        found_events: Most events that each head finds for a candidate.
    """

    found_events: PositiveInt = 100


class TwinEncoding(NamedTuple):
    """What TWIN keeps of histories.

    Attributes:
        keys_BLD: Items' projections.
        biases_BLH: What user and item had to do with each other, one number a head.
        values_BLD: Projections of whole events.
        valid_BL: Which places are events.
    """

    keys_BLD: Tensor
    biases_BLH: Tensor
    values_BLD: Tensor
    valid_BL: Tensor


class CrossBiases(nn.Module):
    """Each feature that user and item share as one number a head, (K_c W^c) beta of section 3.3."""

    def __init__(self, config: HistoryModelConfig):
        super().__init__()
        # A feature is one of a few: its embedding, projected to a number, is a table of numbers.
        self.action = nn.Embedding(config.num_actions, config.heads)
        self.value = nn.Embedding(config.num_values, config.heads)
        self.gap = nn.Embedding(LOG_BUCKETS, config.heads)
        self.age = nn.Embedding(LOG_BUCKETS, config.heads)
        self.recency = nn.Embedding(LOG_BUCKETS, config.heads)

    def forward(self, history: History) -> Tensor:
        """Sums over the features, B x L x H."""
        places_L = torch.arange(history.actions_BL.shape[1], device=history.lengths_B.device)
        from_end_BL = (history.lengths_B[:, None] - 1 - places_L).clamp(min=0)
        return (
            self.action(history.actions_BL)
            + self.value(history.values_BL)
            + self.gap(history.gaps_BL)
            + self.age(ages(history))
            + self.recency(log_bucket(from_end_BL))
        )


class Twin(HistoryModel):
    """Every head finds the K events with its largest scores, and its softmax is over these.

    Keys know the item alone, so that a platform may keep them by item and not by user.
    """

    def __init__(self, config: TwinConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.items = ItemEncoder(config)
        self.item_norm = nn.RMSNorm(width)
        self.events = AgedEvents(config)
        self.biases = CrossBiases(config)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.head = TargetHead(config)
        initialise_embeddings(self, config.embedding_std)
        nn.init.zeros_(self.head.bias.weight)

    def encode_history(self, history: History) -> TwinEncoding:
        """See `HistoryModel.encode_history`."""
        items_BLD = self.items(history.items)
        return TwinEncoding(
            self.key(self.item_norm(items_BLD)),
            self.biases(history),
            self.value(self.events(history, items_BLD)),
            history.valid_BL,
        )

    def score(self, encoding: TwinEncoding, candidates: Items) -> Tensor:
        """See `HistoryModel.score`."""
        candidates_BCD = self.item_norm(self.items(candidates))
        elements = encoding.valid_BL.numel() * self.config.heads
        read_BCD = in_chunks(lambda part: self._read(encoding, part), self.query(candidates_BCD), elements)
        return self.head(candidates_BCD, self.output(read_BCD), candidates.ids)

    def scores(self, encoding: TwinEncoding, queries_BCD: Tensor) -> Tensor:
        """The score of both stages, B x H x C x L."""
        queries_BHCE = split_heads(queries_BCD, self.config.heads)
        keys_BHLE = split_heads(encoding.keys_BLD, self.config.heads)
        scores_BHCL = queries_BHCE * queries_BHCE.shape[-1] ** -0.5 @ keys_BHLE.transpose(-1, -2)
        return scores_BHCL + encoding.biases_BLH.transpose(1, 2)[:, :, None]

    def _read(self, encoding: TwinEncoding, queries_BCD: Tensor) -> Tensor:
        """Attention of each candidate to the events it finds, B x C x D."""
        valid_BL = encoding.valid_BL
        most = min(self.config.found_events, valid_BL.shape[1])
        scores_BHCL = self.scores(encoding, queries_BCD)
        scores_BHCL = scores_BHCL.masked_fill(~valid_BL[:, None, None], torch.finfo(scores_BHCL.dtype).min)
        scores_BHCK, places_BHCK = scores_BHCL.topk(most, dim=-1)
        # Valid events come first, so that as many are found as there are.
        found_B11K = torch.arange(most, device=valid_BL.device) < valid_BL.sum(-1)[:, None, None, None]
        weights_BHCK = masked_softmax(scores_BHCK, found_B11K)
        values_BHCKE = take_events(split_heads(encoding.values_BLD, self.config.heads), places_BHCK)
        return merge_heads((weights_BHCK[..., None, :] @ values_BHCKE).squeeze(-2))
