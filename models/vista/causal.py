"""VISTA that is refreshed by new events alone: history tokens attend causally, seeds read what layers remember.

Shapes: B users, L events of a history, K seeds (= summary tokens), C candidates, N layers, H heads, E width of a head,
D width (H x E).
"""

from typing import NamedTuple, cast

import torch
from pydantic import NonNegativeFloat
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.causal_attention import CausalLinearBlock, decay_rates, weigh
from models.long_history.inputs import (
    LOG_BUCKETS,
    STRICT,
    EventEncoder,
    History,
    ItemEncoder,
    Items,
    initialise_embeddings,
    log_bucket,
)
from models.long_history.interface import IncrementalModel, ModelOutput
from models.long_history.parts import newest_events, part
from models.vista.model import ReconstructionDecoder, TargetAttention, VistaConfig

PART = 4096
"""Events that are worked through at a time; memory does not grow with the rest."""


@dataclass(frozen=True, config=STRICT)
class CausalVistaConfig(VistaConfig):
    """Constructor arguments of `CausalVista`.

    Attributes:
        half_life: Events after which the first head has forgotten half; each next head remembers 8 times as long, the
            last for ever. 0: no head forgets.
    """

    half_life: NonNegativeFloat = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention != "quasi_linear":
            raise ValueError(
                f"Softmax attention has no state of fixed size: set attention to quasi_linear, not {self.attention}."
            )


class CausalState(NamedTuple):
    """What is remembered of histories; its size does not grow with them.

    Attributes:
        means_BNHEE: Weighted mean of phi(k) v^T over all events, of each layer and head.
        count_B: Events seen.
    """

    means_BNHEE: Tensor
    count_B: Tensor


class CausalSummarizer(nn.Module):
    """Stage 1 in two steps: events extend the memory of every layer, seeds read it.

    Seeds are no sources, and stand after all events. So a summary is a function of the memory alone.
    """

    rates_H: Tensor

    def __init__(self, config: CausalVistaConfig):
        super().__init__()
        width = config.width
        self.events = EventEncoder(config, recency=False)
        self.length = nn.Embedding(LOG_BUCKETS, width)
        self.seeds_KD = nn.Parameter(torch.randn(config.num_seeds, width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(CausalLinearBlock(width, config.heads, 2 * width) for _ in range(config.layers))
        self.register_buffer("rates_H", decay_rates(config.heads, config.half_life), persistent=False)
        self.norm = nn.RMSNorm(width)

    @property
    def _layers(self) -> list[CausalLinearBlock]:
        return cast(list[CausalLinearBlock], list(self.blocks))

    def embed(self, history: History, items_BLD: Tensor) -> Tensor:
        """History tokens, B x L x D."""
        return self.dropout(self.events(history, items_BLD))

    def extend(self, state: CausalState, tokens_BLD: Tensor, valid_BL: Tensor) -> CausalState:
        """The state after these tokens."""
        means, lengths_B = [], valid_BL.sum(-1)
        dtype = state.means_BNHEE.dtype
        weights = weigh(self.rates_H, state.count_B, lengths_B, valid_BL.shape[1], dtype)
        for number, block in enumerate(self._layers):
            last = number + 1 == len(self.blocks)
            mean_BHEE = state.means_BNHEE[:, number]
            tokens_BLD, mean_BHEE = block.advance(tokens_BLD, valid_BL, weights, mean_BHEE, last)
            means.append(mean_BHEE)
        return CausalState(torch.stack(means, 1), state.count_B + lengths_B)

    def read(self, state: CausalState) -> Tensor:
        """Summary tokens, B x K x D."""
        x_BKD = self.seeds_KD + self.length(log_bucket(state.count_B))[:, None]
        for number, block in enumerate(self._layers):
            x_BKD = block.look(x_BKD, state.means_BNHEE[:, number])
        return self.norm(x_BKD)


class CausalVista(IncrementalModel):
    """Both stages; new events extend a user's state in time proportional to them, and the summary is read from it.

    Where it differs from the paper, which does not refresh incrementally (arXiv 2510.22049):

    * Attention over the history is causal. The paper found no significant difference (3.2.2) and chose full attention,
      where every new event changes what all older ones are.
    * The outer phi of quasi-linear attention is the identity for events and SiLU for seeds; appendix B.2 lets them
      differ. With another one for events, none of them could be read without a state of its own.
    * Seeds read the memory and write nothing; nothing is said of their place in the paper.
    * Sums are divided by their count. Heads forget at different rates: an event cannot know its rank from the end,
      which every new event changes, so that this is how the newest events are told from old ones.
    """

    def __init__(self, config: CausalVistaConfig):
        super().__init__()
        self.config = config
        self.items = ItemEncoder(config)
        self.summarizer = CausalSummarizer(config)
        self.target = TargetAttention(config)
        self.bias = nn.Embedding(config.num_items, 1)
        self.decoder = ReconstructionDecoder(config) if config.reconstruction_weight > 0 else None
        initialise_embeddings(self, config.embedding_std)
        nn.init.zeros_(self.bias.weight)

    def empty_state(self, num_users: int) -> CausalState:
        """See `IncrementalModel.empty_state`."""
        seeds_KD = self.summarizer.seeds_KD
        head = self.config.width // self.config.heads
        shape = (num_users, self.config.layers, self.config.heads, head, head)
        # A network in half precision still remembers in single.
        dtype = torch.promote_types(seeds_KD.dtype, torch.float32)
        return CausalState(
            torch.zeros(shape, dtype=dtype, device=seeds_KD.device),
            torch.zeros(num_users, dtype=torch.int64, device=seeds_KD.device),
        )

    def extend(self, state: CausalState, events: History) -> CausalState:
        """See `IncrementalModel.extend`; works through the events part by part."""
        length = events.actions_BL.shape[1]
        for start in range(0, length, PART):
            some = part(events, start, start + PART) if length > PART else events
            if torch.is_grad_enabled() and length > PART:
                state = CausalState(*checkpoint(self._extend, *state, some, use_reentrant=False))
            else:
                state = self._extend(*state, some)
        return state

    def _extend(self, means_BNHEE: Tensor, count_B: Tensor, events: History) -> CausalState:
        tokens_BLD = self.summarizer.embed(events, self.items(events.items))
        return self.summarizer.extend(CausalState(means_BNHEE, count_B), tokens_BLD, events.valid_BL)

    def read(self, state: CausalState) -> Tensor:
        """Summary tokens, B x K x D."""
        return self.summarizer.read(state)

    def score(self, encoding: Tensor, candidates: Items) -> Tensor:
        """Stage 2: logits of candidates, B x C, against (cached) summary tokens."""
        return self.target(encoding, self.items(candidates)) + self.bias(candidates.ids).squeeze(-1)

    def forward(self, history: History, candidates: Items) -> ModelOutput:
        """Both stages and the weighted reconstruction error."""
        summary_BKD = self.encode_history(history)
        auxiliary = summary_BKD.new_zeros(())
        if self.decoder is not None and self.training and history.actions_BL.shape[1] > 1:
            # Embedded anew: they are few, and the memory's tokens are gone part by part.
            seen = newest_events(history, self.config.reconstruction_events)
            tokens_BWD = self.summarizer.embed(seen, self.items(seen.items))
            auxiliary = self.config.reconstruction_weight * self.decoder(summary_BKD, tokens_BWD, seen.lengths_B)
        return ModelOutput(self.score(summary_BKD, candidates), auxiliary)
