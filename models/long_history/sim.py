"""SIM (arXiv 2006.05639): a general search finds K events for a candidate, attention reads these alone.

Shapes: B users, L events of a history, C candidates, K found events, M code levels, H heads, E width of a head,
D width.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.long_history.inputs import STRICT, History, HistoryModelConfig, ItemEncoder, Items, initialise_embeddings
from models.long_history.interface import HistoryModel, ModelOutput
from models.long_history.target_attention import AgedEvents, TargetHead, in_chunks, masked_softmax, take_events


@dataclass(frozen=True, config=STRICT)
class SimConfig(HistoryModelConfig):
    """Constructor arguments of `Sim`; ``layers`` mean nothing to it.

    Attributes:
        search: Which events a candidate finds: ``hard``, the newest of its category, or ``soft``, those with the
            largest inner products.
        found_events: Most events that a candidate finds.
        auxiliary_weight: Weight of the loss of the soft search.
    """

    search: Literal["hard", "soft"] = "soft"
    found_events: PositiveInt = 100
    auxiliary_weight: NonNegativeFloat = 1.0


class SimEncoding(NamedTuple):
    """What SIM keeps of histories.

    Attributes:
        search: What candidates are compared with: categories (B x L), or projected events (B x L x D).
        keys_values_BLD: Keys and values of the attention, side by side.
        valid_BL: Which places are events.
    """

    search: Tensor
    keys_values_BLD: Tensor
    valid_BL: Tensor


class HardSearch(nn.Module):
    """The newest events of the candidate's category, or the newest of all where it has none.

    The category is the first code of the semantic ID; an unknown one is like no other.
    """

    def keys(self, items: Items, tokens: Tensor) -> Tensor:
        """Categories of items (...)."""
        return items.codes[..., 0] if items.codes.shape[-1] else torch.zeros_like(items.ids)

    queries = keys

    def scores(self, queries_BC: Tensor, keys_BL: Tensor, valid_BL: Tensor) -> Tensor:
        """Place of each event that may be found, the smallest number for others; B x C x L."""
        same_BCL = (queries_BC[..., None] == keys_BL[:, None]) & (queries_BC[..., None] > 0) & valid_BL[:, None]
        found_BCL = torch.where(same_BCL.any(-1, keepdim=True), same_BCL, valid_BL[:, None])
        # Whole numbers up to 2^24 are exact.
        places_L = torch.arange(keys_BL.shape[1], device=keys_BL.device, dtype=torch.float32)
        return torch.where(found_BCL, places_L, torch.finfo(torch.float32).min)


class SoftSearch(nn.Module):
    """Inner products of projected events and candidates, (W_b e_i) . (W_a e_a)."""

    def __init__(self, config: SimConfig):
        super().__init__()
        width = config.width
        self.event = nn.Linear(width, width, bias=False)
        self.candidate = nn.Linear(width, width, bias=False)
        self.head = TargetHead(config)

    def keys(self, items: Items, tokens: Tensor) -> Tensor:
        """Projected events."""
        return self.event(tokens)

    def queries(self, items: Items, tokens: Tensor) -> Tensor:
        """Projected candidates."""
        return self.candidate(tokens)

    def scores(self, queries_BCD: Tensor, keys_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Inner products, the smallest number in the padding; B x C x L."""
        scores_BCL = queries_BCD @ keys_BLD.transpose(1, 2)
        return scores_BCL.masked_fill(~valid_BL[:, None], torch.finfo(scores_BCL.dtype).min)

    def logits(self, candidates: Items, candidates_BCD: Tensor, tokens_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """What the search alone says of a click, from all events weighted by their inner products; B x C."""
        # The sum over events comes first, so that no pair of a candidate and an event costs anything.
        keys_BLD = self.event(tokens_BLD) * valid_BL[..., None]
        sums_BDD = keys_BLD.transpose(1, 2) @ tokens_BLD / valid_BL.sum(-1).clamp(min=1)[:, None, None]
        return self.head(candidates_BCD, self.candidate(candidates_BCD) @ sums_BDD, candidates.ids)


class Sim(HistoryModel):
    """Search, then multi-head attention of each candidate to what it found."""

    def __init__(self, config: SimConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.items = ItemEncoder(config)
        self.item_norm = nn.RMSNorm(width)
        self.events = AgedEvents(config)
        self.search = SoftSearch(config) if config.search == "soft" else HardSearch()
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.head = TargetHead(config)
        initialise_embeddings(self, config.embedding_std)
        for module in self.modules():
            if isinstance(module, TargetHead):
                nn.init.zeros_(module.bias.weight)

    def encode_history(self, history: History) -> SimEncoding:
        """See `HistoryModel.encode_history`."""
        return self._encoding(history, self._tokens(history))

    def score(self, encoding: SimEncoding, candidates: Items) -> Tensor:
        """See `HistoryModel.score`."""
        return self._score(encoding, candidates, self._candidates(candidates))

    def forward(self, history: History, candidates: Items) -> ModelOutput:
        """Both halves, and in training the soft search's own click loss.

        Labels are the task's: the search learns from the probabilities of the attention, which learns from labels.
        """
        tokens_BLD, candidates_BCD = self._tokens(history), self._candidates(candidates)
        logits_BC = self._score(self._encoding(history, tokens_BLD), candidates, candidates_BCD)
        auxiliary = logits_BC.new_zeros(())
        if self.training and isinstance(self.search, SoftSearch):
            searched_BC = self.search.logits(candidates, candidates_BCD, tokens_BLD, history.valid_BL)
            taught_BC = logits_BC.detach().float().sigmoid()
            error = F.binary_cross_entropy_with_logits(searched_BC.float(), taught_BC)
            auxiliary = self.config.auxiliary_weight * error
        return ModelOutput(logits_BC, auxiliary)

    def found(self, encoding: SimEncoding, queries: Tensor) -> Tensor:
        """Places of the events that each candidate finds, B x C x K; -1 where there are fewer than K."""
        most = min(self.config.found_events, encoding.valid_BL.shape[1])
        scores_BCL = self.search.scores(queries, encoding.search, encoding.valid_BL)
        scores_BCK, places_BCK = scores_BCL.topk(most, dim=-1)
        return places_BCK.where(scores_BCK > torch.finfo(scores_BCK.dtype).min, -1)

    def _tokens(self, history: History) -> Tensor:
        return self.events(history, self.items(history.items))

    def _candidates(self, candidates: Items) -> Tensor:
        return self.item_norm(self.items(candidates))

    def _encoding(self, history: History, tokens_BLD: Tensor) -> SimEncoding:
        keys = self.search.keys(history.items, tokens_BLD)
        return SimEncoding(keys, self.key_value(tokens_BLD), history.valid_BL)

    def _score(self, encoding: SimEncoding, candidates: Items, candidates_BCD: Tensor) -> Tensor:
        # Which events are found has no gradient.
        with torch.no_grad():
            queries = self.search.queries(candidates, candidates_BCD)
            places_BCK = in_chunks(lambda part: self.found(encoding, part), queries, encoding.valid_BL.numel())
        read_BCD = self.output(self._attend(encoding, self.query(candidates_BCD), places_BCK))
        return self.head(candidates_BCD, read_BCD, candidates.ids)

    def _attend(self, encoding: SimEncoding, queries_BCD: Tensor, places_BCK: Tensor) -> Tensor:
        """Softmax attention of each candidate to its own events, B x C x D."""
        heads = self.config.heads
        taken_BCKD = take_events(encoding.keys_values_BLD, places_BCK.clamp(min=0))
        keys_BCKHE, values_BCKHE = (x.unflatten(-1, (heads, -1)) for x in taken_BCKD.chunk(2, dim=-1))
        queries_BCHE = queries_BCD.unflatten(-1, (heads, -1)) * keys_BCKHE.shape[-1] ** -0.5
        scores_BCHK = torch.einsum("bche,bckhe->bchk", queries_BCHE, keys_BCKHE)
        weights_BCHK = masked_softmax(scores_BCHK, (places_BCK >= 0)[:, :, None])
        return torch.einsum("bchk,bckhe->bche", weights_BCHK, values_BCKHE).flatten(-2)
