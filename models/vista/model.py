"""VISTA: stage 1 summarises a history into tokens that can be cached, stage 2 lets candidates attend to them.

Shapes: B users, L events of a history, K seeds (= summary tokens), C candidates, M code levels, D width.
"""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from models.attention import QuasiLinearBlock, SoftmaxBlock
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
from models.long_history.interface import HistoryModel, ModelOutput


@dataclass(frozen=True, config=STRICT)
class VistaConfig(HistoryModelConfig):
    """Constructor arguments of `Vista`; ``dropout`` is that of history tokens and of stage 2's residual branches.

    Attributes:
        num_seeds: Summary tokens of a user.
        target_layers: Blocks of stage 2.
        attention: Attention of stage 1.
        reconstruction_weight: Weight of the reconstruction loss; 0 leaves the decoder out.
        reconstruction_events: Newest events that the decoder sees; it is quadratic in them.
        stop_gradient: Whether the targets of the reconstruction are constants. On by default: otherwise the loss
            has the trivial minimum of equal embeddings for all events.
    """

    num_seeds: PositiveInt = 16
    target_layers: PositiveInt = 1
    attention: Literal["quasi_linear", "softmax"] = "quasi_linear"
    reconstruction_weight: NonNegativeFloat = 0.1
    reconstruction_events: PositiveInt = 32
    stop_gradient: bool = True


class HistorySummarizer(nn.Module):
    """Stage 1: learned seeds and history tokens through L blocks; the outputs at the seeds are the summary.

    Candidates never enter it, so that its output is a function of the history alone and can be cached. Seeds and
    history tokens are all sources (full attention, as in 3.2.2). Order enters by how recent an event is (log rank
    from the end) and by the time since the one before.
    """

    def __init__(self, config: VistaConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.events = EventEncoder(config)
        self.length = nn.Embedding(LOG_BUCKETS, width)
        self.seeds_KD = nn.Parameter(torch.randn(config.num_seeds, width))
        self.dropout = nn.Dropout(config.dropout)
        block = QuasiLinearBlock if config.attention == "quasi_linear" else SoftmaxBlock
        self.blocks = nn.ModuleList(block(width, config.heads, 2 * width) for _ in range(config.layers))
        self.norm = nn.RMSNorm(width)

    def embed(self, history: History, items_BLD: Tensor) -> Tensor:
        """History tokens, B x L x D."""
        return self.dropout(self.events(history, items_BLD))

    def forward(self, tokens_BLD: Tensor, valid_BL: Tensor) -> Tensor:
        """Summary tokens, B x K x D."""
        num_seeds = self.config.num_seeds
        lengths_BD = self.length(log_bucket(valid_BL.sum(-1)))
        x_BND = torch.cat([self.seeds_KD + lengths_BD[:, None], tokens_BLD], dim=1)
        valid_BN = torch.cat([valid_BL.new_ones(len(valid_BL), num_seeds), valid_BL], dim=1)
        for block in self.blocks:
            if self.config.attention == "quasi_linear":
                x_BND = block(x_BND, valid_BN)
            else:
                x_BND = block(x_BND, mask=valid_BN[:, None, None, :])
        return self.norm(x_BND[:, :num_seeds])


class ReconstructionDecoder(nn.Module):
    """One causal softmax block over (summary tokens, history tokens) that foretells each next event (3.2.3)."""

    def __init__(self, config: VistaConfig):
        super().__init__()
        self.config = config
        self.block = SoftmaxBlock(config.width, config.heads, 2 * config.width)

    def forward(self, summary_BKD: Tensor, tokens_BLD: Tensor, lengths_B: Tensor) -> Tensor:
        """Mean over pairs of neighbours and channels of (v_i - u_{i+1})^2; 0 where no history has two events."""
        window = min(self.config.reconstruction_events, tokens_BLD.shape[1])
        starts_B = (lengths_B - window).clamp(min=0)
        places_BW = starts_B[:, None] + torch.arange(window, device=lengths_B.device)
        u_BWD = tokens_BLD.gather(1, places_BW[..., None].expand(-1, -1, tokens_BLD.shape[-1]))
        v_BWD = self.block(torch.cat([summary_BKD, u_BWD], dim=1), causal=True)[:, summary_BKD.shape[1] :]
        target_BWD = u_BWD.detach() if self.config.stop_gradient else u_BWD
        pairs_BW = (places_BW < lengths_B[:, None])[:, 1:]
        error_BW = (v_BWD[:, :-1] - target_BWD[:, 1:]).square().mean(-1)
        return (error_BW * pairs_BW).sum() / pairs_BW.sum().clamp(min=1)


class TargetAttention(nn.Module):
    """Stage 2: softmax blocks over summary tokens and candidates. Its cost does not know the history's length.

    Summary tokens see each other; a candidate sees the summary and itself, never another candidate.
    """

    def __init__(self, config: VistaConfig):
        super().__init__()
        width = config.width
        self.candidate_D = nn.Parameter(torch.randn(width))
        self.blocks = nn.ModuleList(
            SoftmaxBlock(width, config.heads, 2 * width, config.dropout) for _ in range(config.target_layers)
        )
        self.head = nn.Sequential(
            nn.RMSNorm(2 * width), nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, 1)
        )

    def forward(self, summary_BKD: Tensor, candidates_BCD: Tensor) -> Tensor:
        """Logits, B x C."""
        num_tokens, num_candidates = summary_BKD.shape[1], candidates_BCD.shape[1]
        total = num_tokens + num_candidates
        mask_NN = torch.eye(total, dtype=torch.bool, device=summary_BKD.device)
        mask_NN[:, :num_tokens] = True
        x_BND = torch.cat([summary_BKD, candidates_BCD + self.candidate_D], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND, mask=mask_NN)
        return self.head(torch.cat([x_BND[:, num_tokens:], candidates_BCD], dim=-1)).squeeze(-1)


class Vista(HistoryModel):
    """Both stages: the encoding of a history is its summary tokens, B x K x D."""

    def __init__(self, config: VistaConfig):
        super().__init__()
        self.config = config
        self.items = ItemEncoder(config)
        self.summarizer = HistorySummarizer(config)
        self.target = TargetAttention(config)
        self.bias = nn.Embedding(config.num_items, 1)
        self.decoder = ReconstructionDecoder(config) if config.reconstruction_weight > 0 else None
        initialise_embeddings(self, config.embedding_std)
        nn.init.zeros_(self.bias.weight)

    def encode_history(self, history: History) -> Tensor:
        """Stage 1: summary tokens, B x K x D."""
        tokens_BLD = self.summarizer.embed(history, self.items(history.items))
        return self.summarizer(tokens_BLD, history.valid_BL)

    def score(self, encoding: Tensor, candidates: Items) -> Tensor:
        """Stage 2: logits of candidates, B x C, against (cached) summary tokens."""
        return self.target(encoding, self.items(candidates)) + self.bias(candidates.ids).squeeze(-1)

    def forward(self, history: History, candidates: Items) -> ModelOutput:
        """Both stages and the weighted reconstruction error."""
        tokens_BLD = self.summarizer.embed(history, self.items(history.items))
        summary_BKD = self.summarizer(tokens_BLD, history.valid_BL)
        auxiliary = summary_BKD.new_zeros(())
        if self.decoder is not None and self.training and tokens_BLD.shape[1] > 1:
            error = self.decoder(summary_BKD, tokens_BLD, history.lengths_B)
            auxiliary = self.config.reconstruction_weight * error
        return ModelOutput(self.score(summary_BKD, candidates), auxiliary)
