"""VISTA: stage 1 summarises a history into tokens that can be cached, stage 2 lets candidates attend to them.

Shapes: B users, L events of a history, K seeds (= summary tokens), C candidates, M code levels, D width.
"""

import dataclasses
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from models.attention import QuasiLinearBlock, SoftmaxBlock

LOG_BUCKETS = 64
"""Enough for floor(log2) of any 63-bit number."""


@dataclasses.dataclass(frozen=True)
class VistaConfig:
    """Constructor arguments of `Vista`.

    Attributes:
        num_items: Rows of the item table; 0 is "unknown".
        num_codes: Rows of the code table over all levels; 0 is "unknown". 1 when there are no semantic IDs.
        num_actions: Rows of the action table; 0 is "unknown".
        num_values: Rows of the value table; 0 is "no value".
        num_seeds: Summary tokens of a user.
        width: Width of a token.
        heads: Attention heads.
        layers: Blocks of stage 1.
        target_layers: Blocks of stage 2.
        attention: Attention of stage 1.
        reconstruction_weight: Weight of the reconstruction loss; 0 leaves the decoder out.
        reconstruction_events: Newest events that the decoder sees; it is quadratic in them.
        stop_gradient: Whether the targets of the reconstruction are constants. On by default: otherwise the loss
            has the trivial minimum of equal embeddings for all events.
        dropout: Dropout of history tokens, and of stage 2's residual branches.
        item_dropout: Share of items whose own embedding is hidden in training, so that "unknown" and the codes
            learn to stand for items never seen.
        embedding_std: Spread of new embeddings. Small ones overfit less, 1.0 finds what items and values say
            together sooner.
    """

    num_items: int
    num_codes: int
    num_actions: int
    num_values: int
    num_seeds: int = 16
    width: int = 32
    heads: int = 2
    layers: int = 2
    target_layers: int = 1
    attention: Literal["quasi_linear", "softmax"] = "quasi_linear"
    reconstruction_weight: float = 0.1
    reconstruction_events: int = 32
    stop_gradient: bool = True
    dropout: float = 0.1
    item_dropout: float = 0.1
    embedding_std: float = 0.1


class Items(NamedTuple):
    """Items by their inputs: ``ids`` (...) and ``codes`` (... x M), int64, 0 = unknown."""

    ids: Tensor
    codes: Tensor


class History(NamedTuple):
    """Histories, oldest event first, padded at the end.

    Attributes:
        items: Items, B x L.
        actions_BL: Actions.
        values_BL: Value buckets.
        gaps_BL: Log buckets of the time since the user's previous event.
        lengths_B: Events of each history.
    """

    items: Items
    actions_BL: Tensor
    values_BL: Tensor
    gaps_BL: Tensor
    lengths_B: Tensor


class VistaOutput(NamedTuple):
    """Output of the joint pass.

    Attributes:
        logits_BC: One logit a candidate.
        reconstruction: Mean squared error of the decoder's next-event predictions; 0 without a decoder.
    """

    logits_BC: Tensor
    reconstruction: Tensor


def log_bucket(x: Tensor) -> Tensor:
    """1 + floor(log2(1 + x)) for non-negative integers, at most ``LOG_BUCKETS - 1``."""
    return (torch.log2(x.double() + 1).floor().long() + 1).clamp(0, LOG_BUCKETS - 1)


class ItemEncoder(nn.Module):
    """Embedding of an item: its own, plus those of its semantic ID's codes."""

    def __init__(self, config: VistaConfig):
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
        self.action = nn.Embedding(config.num_actions, width)
        self.value = nn.Embedding(config.num_values, width)
        self.value_gate = nn.Embedding(config.num_values, width)
        self.gap = nn.Embedding(LOG_BUCKETS, width)
        self.recency = nn.Embedding(LOG_BUCKETS, width)
        self.length = nn.Embedding(LOG_BUCKETS, width)
        self.seeds_KD = nn.Parameter(torch.randn(config.num_seeds, width))
        self.dropout = nn.Dropout(config.dropout)
        block = QuasiLinearBlock if config.attention == "quasi_linear" else SoftmaxBlock
        self.blocks = nn.ModuleList(block(width, config.heads, 2 * width) for _ in range(config.layers))
        self.norm = nn.RMSNorm(width)

    def embed(self, history: History, items_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """History tokens, B x L x D, and which of them are events, B x L."""
        places_L = torch.arange(history.actions_BL.shape[1], device=history.lengths_B.device)
        valid_BL = places_L < history.lengths_B[:, None]
        from_end_BL = (history.lengths_B[:, None] - 1 - places_L).clamp(min=0)
        # A sum of embeddings can't say that an item was liked: the value also gates the item.
        gated_BLD = items_BLD * (1 + self.value_gate(history.values_BL))
        tokens_BLD = (
            gated_BLD
            + self.action(history.actions_BL)
            + self.value(history.values_BL)
            + self.gap(history.gaps_BL)
            + self.recency(log_bucket(from_end_BL))
        )
        return self.dropout(tokens_BLD), valid_BL

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


class Vista(nn.Module):
    """Both stages. ``forward`` is the joint pass; ``score(summarize(history), candidates)`` gives the same logits."""

    def __init__(self, config: VistaConfig):
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"The width {config.width} must be a multiple of the {config.heads} heads.")
        self.config = config
        self.items = ItemEncoder(config)
        self.summarizer = HistorySummarizer(config)
        self.target = TargetAttention(config)
        self.bias = nn.Embedding(config.num_items, 1)
        self.decoder = ReconstructionDecoder(config) if config.reconstruction_weight > 0 else None
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=config.embedding_std)
        nn.init.zeros_(self.bias.weight)
        with torch.no_grad():
            self.items.code.weight[0].zero_()

    def summarize(self, history: History) -> Tensor:
        """Stage 1: summary tokens, B x K x D."""
        return self.summarizer(*self.summarizer.embed(history, self.items(history.items)))

    def score(self, summary_BKD: Tensor, candidates: Items) -> Tensor:
        """Stage 2: logits of candidates, B x C, against (cached) summary tokens."""
        return self.target(summary_BKD, self.items(candidates)) + self.bias(candidates.ids).squeeze(-1)

    def forward(self, history: History, candidates: Items) -> VistaOutput:
        """Both stages and the reconstruction error."""
        tokens_BLD, valid_BL = self.summarizer.embed(history, self.items(history.items))
        summary_BKD = self.summarizer(tokens_BLD, valid_BL)
        reconstruction = summary_BKD.new_zeros(())
        if self.decoder is not None and self.training and tokens_BLD.shape[1] > 1:
            reconstruction = self.decoder(summary_BKD, tokens_BLD, history.lengths_B)
        return VistaOutput(self.score(summary_BKD, candidates), reconstruction)
