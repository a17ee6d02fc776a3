"""A DLRM-style ranker with two heads that share their embeddings.

Naumov et al. 2019 (arXiv 1906.00091): sparse embeddings, a bottom MLP over dense features, pairwise dot
interactions, a top MLP. A model of *observed* ratings cannot rank items that the user never saw, because what is
observed was chosen: so beside the ``like`` head, trained on labelled examples, an ``interest`` head is trained over
the whole catalogue, with positives against everything else. That is the entire-space idea of ESMM (Ma et al. 2018,
arXiv 1804.07931): learn in the space in which the model will be used.

Shape letters: B batch, F dense features, L recent items, T tokens an item, D width, I catalogue (row 0: unknown),
K summary tokens, W their width, V interacting vectors, H hidden.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import nn

from models.ranking.tokens import TokenBag

ITEMS_AT_ONCE = 16_384


@dataclasses.dataclass(frozen=True)
class DLRMConfig:
    """Constructor arguments of `DLRM`.

    Attributes:
        num_users: Users with an embedding of their own.
        num_items: Size of the catalogue.
        num_dense: F.
        width: D.
        hidden: Width of the MLPs.
        num_tokens: T; 0 uses no caption tokens.
        token_buckets: Rows of the hashed token table.
        summary_tokens: K; 0 uses no VISTA summaries.
        summary_width: W.
        decay: Weight of a recent item against the next newer one.
        dropout: Dropout of interaction inputs and MLPs.
        unknown_user: Share of training rows in which the user is made unknown.
        unknown_item: The same for items.
        token_dropout: Share of caption tokens that are left out in training.
    """

    num_users: int
    num_items: int
    num_dense: int
    width: int = 32
    hidden: int = 64
    num_tokens: int = 0
    token_buckets: int = 8192
    summary_tokens: int = 0
    summary_width: int = 0
    decay: float = 0.95
    dropout: float = 0.2
    unknown_user: float = 0.3
    unknown_item: float = 0.1
    token_dropout: float = 0.0


class Batch(NamedTuple):
    """`Examples` as tensors; see there."""

    user_B: torch.Tensor
    item_B: torch.Tensor
    dense_BF: torch.Tensor
    recent_BL: torch.Tensor
    liked_BL: torch.Tensor
    tokens_BT: torch.Tensor
    summary_BKW: torch.Tensor
    scales_BK: torch.Tensor


class User(NamedTuple):
    """The vectors of a user as of a moment, each (B, D)."""

    identity: torch.Tensor
    liked: torch.Tensor
    disliked: torch.Tensor
    profile: torch.Tensor | None
    summary: torch.Tensor | None

    def take(self, rows_P: torch.Tensor) -> "User":
        """The given rows."""
        profile = None if self.profile is None else self.profile[rows_P]
        summary = None if self.summary is None else self.summary[rows_P]
        return User(self.identity[rows_P], self.liked[rows_P], self.disliked[rows_P], profile, summary)


class Catalogue(NamedTuple):
    """Item vectors of the whole catalogue, row 0 the unknown item: each (I + 1, D)."""

    identity: torch.Tensor
    tokens: torch.Tensor | None


def mlp(*sizes: int, dropout: float) -> nn.Sequential:
    """Linear layers with ReLU and dropout after each."""
    layers: list[nn.Module] = []
    for size_in, size_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(size_in, size_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class DLRM(nn.Module):
    """The ranker.

    Args:
        config: Constructor arguments.
    """

    seen_I: torch.Tensor
    catalogue_IT: torch.Tensor

    def __init__(self, config: DLRMConfig):
        super().__init__()
        self.config = c = config
        self.users = nn.Embedding(c.num_users + 1, c.width)
        self.items = nn.Embedding(c.num_items + 1, c.width)
        nn.init.normal_(self.users.weight, std=0.02)
        nn.init.normal_(self.items.weight, std=0.1)
        self.bottom = mlp(c.num_dense, c.hidden, c.width, dropout=c.dropout)
        self.bag = TokenBag(c.token_buckets, c.width, c.token_dropout) if c.num_tokens else None
        self.register_buffer("seen_I", torch.zeros(c.num_items + 1, dtype=torch.bool))
        self.register_buffer("catalogue_IT", torch.zeros(c.num_items + 1, c.num_tokens, dtype=torch.int64))
        if c.summary_tokens:
            self.keys = nn.Linear(c.summary_width, c.width)
            self.values = nn.Linear(c.summary_width, c.width)
            self.query = nn.Linear(c.width, c.width)
            self.pooling_query = nn.Parameter(torch.zeros(c.width))
            self.no_summary = nn.Parameter(torch.zeros(c.width))
        num_vectors = 5 + 2 * bool(c.num_tokens) + bool(c.summary_tokens)
        self.top = mlp(c.width + num_vectors * (num_vectors - 1) // 2, c.hidden, c.hidden // 2, dropout=c.dropout)
        self.like = nn.Linear(c.hidden // 2, 1)
        self.drop = nn.Dropout(c.dropout)
        num_user = 3 + bool(c.num_tokens) + bool(c.summary_tokens)
        self.interest_user = nn.Linear(num_user * c.width, c.width)
        self.interest_bias = nn.Embedding(c.num_items + 1, 1)
        nn.init.zeros_(self.interest_bias.weight)

    def _known(self, item: torch.Tensor) -> torch.Tensor:
        """Rows of items that were trained; the others', and a few in training, become the unknown row 0."""
        known = self.seen_I[item]
        if self.training:
            known = known & (torch.rand(item.shape, device=item.device) >= self.config.unknown_item)
        return torch.where(known, item, 0)

    def catalogue(self, needed_X: torch.Tensor | None = None) -> Catalogue:
        """Vectors of every item of the catalogue.

        Args:
            needed_X: The items whose tokens will be looked up; in a large catalogue the others' are left at zero.
                None: all of them.
        """
        if self.bag is None:
            return Catalogue(self.items.weight, None)
        if needed_X is None or len(self.catalogue_IT) <= ITEMS_AT_ONCE:
            parts = [self.bag(part_XT) for part_XT in self.catalogue_IT.split(ITEMS_AT_ONCE)]
            return Catalogue(self.items.weight, torch.cat(parts))
        tokens_XD = self.bag(self.catalogue_IT[needed_X])
        nothing = tokens_XD.new_zeros(len(self.catalogue_IT), tokens_XD.shape[1])
        return Catalogue(self.items.weight, nothing.index_put((needed_X,), tokens_XD))

    def user(self, batch: Batch, catalogue: Catalogue) -> User:
        """Vectors of the batch's users as of the batch's moments."""
        c = self.config
        user_B = batch.user_B
        if self.training:
            user_B = torch.where(torch.rand(user_B.shape, device=user_B.device) < c.unknown_user, 0, user_B)
        decay_L = c.decay ** torch.arange(batch.recent_BL.shape[1], device=user_B.device)
        weight_B2L = torch.stack([(batch.liked_BL > 0) * decay_L, (batch.liked_BL < 0) * decay_L], 1)
        # Divided by the root of the weights' sum, so that long histories do not saturate.
        weight_B2L = weight_B2L / weight_B2L.sum(-1, keepdim=True).clamp_min(1.0).sqrt()
        recent_BLD = self.items(torch.where(self.seen_I[batch.recent_BL], batch.recent_BL, 0))
        pooled_B2D = weight_B2L @ recent_BLD
        profile = None
        if catalogue.tokens is not None:
            profile = (weight_B2L[:, :1] @ catalogue.tokens[batch.recent_BL])[:, 0]
        return User(
            self.users(user_B),
            pooled_B2D[:, 0],
            pooled_B2D[:, 1],
            profile,
            self._attend(batch, self.pooling_query) if c.summary_tokens else None,
        )

    def _attend(self, batch: Batch, query: torch.Tensor) -> torch.Tensor:
        """Attention over the cached summary tokens, by the target item (B, D) or by a learned query (D)."""
        summary_BKW = batch.summary_BKW.to(query.dtype) * batch.scales_BK[..., None]
        keys_BKD, values_BKD = self.keys(summary_BKW), self.values(summary_BKW)
        weights_BK = torch.softmax((keys_BKD * query.unsqueeze(-2)).sum(-1) / query.shape[-1] ** 0.5, -1)
        attended_BD = (weights_BK[..., None] * values_BKD).sum(1)
        absent_B1 = (batch.scales_BK == 0).all(1, keepdim=True)
        return torch.where(absent_B1, self.no_summary, attended_BD)

    def like_logit(self, batch: Batch, user: User) -> torch.Tensor:
        """Logit of P(like | the user chose to rate the item), (B,)."""
        item_BD = self.items(self._known(batch.item_B))
        dense_BD = self.bottom(batch.dense_BF)
        vectors = [dense_BD, item_BD, user.identity, user.liked, user.disliked]
        target_BD = item_BD
        if self.bag is not None:
            tokens_BD = self.bag(batch.tokens_BT)
            assert user.profile is not None
            vectors += [tokens_BD, user.profile]
            target_BD = target_BD + tokens_BD
        if self.config.summary_tokens:
            vectors.append(self._attend(batch, self.query(target_BD)))
        all_BVD = torch.cat([dense_BD[:, None], self.drop(torch.stack(vectors[1:], 1))], 1)
        dots_BVV = all_BVD @ all_BVD.transpose(1, 2)
        above = torch.triu_indices(len(vectors), len(vectors), 1, device=dots_BVV.device)
        return self.like(self.top(torch.cat([dense_BD, dots_BVV[:, above[0], above[1]]], 1)))[:, 0]

    def forward(
        self, batch: Batch, positive_P: torch.Tensor, item_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both heads in one pass, for training.

        Args:
            batch: Examples.
            positive_P: Rows that the interest head learns from.
            item_S: Catalogue indices that these rows choose among.

        Returns:
            Logits of the like head (B,) and of the interest head (P, S).
        """
        # Bags of a whole large catalogue, with their gradients, would not fit.
        catalogue = self.catalogue(torch.unique(torch.cat([batch.recent_BL.flatten(), item_S])))
        user = self.user(batch, catalogue)
        return self.like_logit(batch, user), self.interest_logits(user.take(positive_P), catalogue, item_S)

    def interest_vector(self, user: User) -> torch.Tensor:
        """The user's side of the interest head, (B, D)."""
        parts = [v for v in (user.identity, user.liked, user.disliked, user.profile, user.summary) if v is not None]
        return self.interest_user(self.drop(torch.cat(parts, 1)))

    def interest_logits(self, user: User, catalogue: Catalogue, item_S: torch.Tensor) -> torch.Tensor:
        """Scores of items for each user, (B, S): any item, whether the user would ever have seen it or not.

        Args:
            user: The users.
            catalogue: Item vectors.
            item_S: Catalogue indices of the items.
        """
        known_S = self._known(item_S)
        vectors_SD = catalogue.identity[known_S]
        if catalogue.tokens is not None:
            vectors_SD = vectors_SD + catalogue.tokens[item_S]
        return self.interest_vector(user) @ vectors_SD.T + self.interest_bias(known_S)[:, 0]
