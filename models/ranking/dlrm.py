"""A DLRM-style ranker with two heads that share their embeddings.

Naumov et al. 2019 (arXiv 1906.00091): sparse embeddings, a bottom MLP over dense features, pairwise dot
interactions, a top MLP. A model of *observed* ratings cannot rank items that the user never saw, because what is
observed was chosen: so beside the ``like`` head, trained on labelled examples, an ``interest`` head is trained over
the whole catalogue, with positives against everything else. That is the entire-space idea of ESMM (Ma et al. 2018,
arXiv 1804.07931): learn in the space in which the model will be used.

What is known of an item enters as up to three vectors: its ID's, its caption tokens' and that of a dense embedding of
its content. The user's recent items enter the same way, and the crosses of tokens beside the dense features.

Shape letters: B batch, F dense features, C crosses, L recent items, T tokens an item, D width, I catalogue (row 0:
unknown), E width of content embeddings, K summary tokens, W their width, V interacting vectors, H hidden.
"""

import dataclasses
import itertools
from typing import NamedTuple

import torch
from torch import nn

from models.ranking.crosses import DECAY, PROFILE_TOKENS
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
        num_crosses: C, of `models.ranking.crosses`; 0 uses none.
        vocabulary: Different tokens of the catalogue, for the crosses.
        profile_tokens: Most tokens of a user's profile, for the crosses.
        content_width: E; 0 uses no content embeddings.
        item_ids: Whether items have embeddings and biases of their own. Without, an item is its content, in the
            history and as the target.
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
    decay: float = DECAY
    dropout: float = 0.2
    unknown_user: float = 0.3
    unknown_item: float = 0.1
    token_dropout: float = 0.0
    num_crosses: int = 0
    vocabulary: int = 0
    profile_tokens: int = PROFILE_TOKENS
    content_width: int = 0
    item_ids: bool = True


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
    crosses_BC: torch.Tensor


class User(NamedTuple):
    """The vectors of a user as of a moment, each (B, D); None for what the network does not read.

    Attributes:
        identity: The user's own.
        liked: Liked recent items by their IDs, decayed.
        disliked: The others.
        profile: Liked recent items by their caption tokens.
        content: Liked recent items by their content embeddings.
        summary: The cached VISTA summary.
    """

    identity: torch.Tensor
    liked: torch.Tensor | None
    disliked: torch.Tensor | None
    profile: torch.Tensor | None
    content: torch.Tensor | None
    summary: torch.Tensor | None

    def take(self, rows_P: torch.Tensor) -> "User":
        """The given rows."""
        return User._make(None if v is None else v[rows_P] for v in self)

    def known(self) -> list[torch.Tensor]:
        """The vectors that the network reads."""
        return [v for v in self if v is not None]


class Catalogue(NamedTuple):
    """Item vectors of the whole catalogue, row 0 the unknown item: each (I + 1, D), or None if not read."""

    identity: torch.Tensor | None
    tokens: torch.Tensor | None
    content: torch.Tensor | None


def mlp(*sizes: int, dropout: float) -> nn.Sequential:
    """Linear layers with ReLU and dropout after each."""
    layers: list[nn.Module] = []
    for size_in, size_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(size_in, size_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def pooled(
    vectors_ID: torch.Tensor | None, item_BL: torch.Tensor, weight_BKL: torch.Tensor
) -> tuple[torch.Tensor, ...] | None:
    """Weighted sums of item vectors, one (B, D) for each of K weights; None without vectors."""
    if vectors_ID is None:
        return None
    # Looked up as an embedding: the gradient of plain indexing sorts.
    vectors_BLD = nn.functional.embedding(item_BL, vectors_ID)
    return (weight_BKL.to(vectors_BLD.dtype) @ vectors_BLD).unbind(1)


class ContentProjection(nn.Module):
    """Frozen embeddings of content as vectors of the network's width, of the size of a `TokenBag`'s.

    Args:
        width_in: E.
        width: D.
    """

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.linear = nn.Linear(width_in, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Vectors (..., D) of embeddings (..., E). An embedding of zeros is none and gives zeros."""
        present = (embedding != 0).any(-1, keepdim=True)
        projected = self.norm(self.linear(embedding.to(self.linear.weight.dtype)))
        return projected * present / projected.shape[-1] ** 0.5


class DLRM(nn.Module):
    """The ranker.

    Args:
        config: Constructor arguments.
    """

    seen_I: torch.Tensor
    catalogue_IT: torch.Tensor
    content_IE: torch.Tensor
    cross_mean_C: torch.Tensor
    cross_scale_C: torch.Tensor
    token_V: torch.Tensor
    idf_V: torch.Tensor

    def __init__(self, config: DLRMConfig):
        super().__init__()
        self.config = c = config
        self.users = nn.Embedding(c.num_users + 1, c.width)
        nn.init.normal_(self.users.weight, std=0.02)
        self.items = nn.Embedding(c.num_items + 1, c.width) if c.item_ids else None
        if self.items is not None:
            nn.init.normal_(self.items.weight, std=0.1)
        self.bottom = mlp(c.num_dense + c.num_crosses, c.hidden, c.width, dropout=c.dropout)
        self.bag = TokenBag(c.token_buckets, c.width, c.token_dropout) if c.num_tokens else None
        self.content = ContentProjection(c.content_width, c.width) if c.content_width else None
        self.register_buffer("seen_I", torch.zeros(c.num_items + 1, dtype=torch.bool))
        self.register_buffer("catalogue_IT", torch.zeros(c.num_items + 1, c.num_tokens, dtype=torch.int64))
        if c.content_width:
            self.register_buffer("content_IE", torch.zeros(c.num_items + 1, c.content_width))
        if c.num_crosses:
            self.register_buffer("token_V", torch.zeros(c.vocabulary, dtype=torch.int64))
            self.register_buffer("idf_V", torch.ones(c.vocabulary))
            self.register_buffer("cross_mean_C", torch.zeros(c.num_crosses))
            self.register_buffer("cross_scale_C", torch.ones(c.num_crosses))
        if c.summary_tokens:
            self.keys = nn.Linear(c.summary_width, c.width)
            self.values = nn.Linear(c.summary_width, c.width)
            self.query = nn.Linear(c.width, c.width)
            self.pooling_query = nn.Parameter(torch.zeros(c.width))
            self.no_summary = nn.Parameter(torch.zeros(c.width))
        # Dense features and the item's vectors beside the user's.
        num_user = 1 + 2 * c.item_ids + bool(c.num_tokens) + bool(c.content_width) + bool(c.summary_tokens)
        num_vectors = 1 + c.item_ids + bool(c.num_tokens) + bool(c.content_width) + num_user
        self.top = mlp(c.width + num_vectors * (num_vectors - 1) // 2, c.hidden, c.hidden // 2, dropout=c.dropout)
        self.like = nn.Linear(c.hidden // 2, 1)
        self.drop = nn.Dropout(c.dropout)
        self.interest_user = nn.Linear(num_user * c.width, c.width)
        self.interest_bias = nn.Embedding(c.num_items + 1, 1) if c.item_ids else None
        if self.interest_bias is not None:
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
            needed_X: The items whose content will be looked up; in a large catalogue the others' are left at zero.
                None: all of them.
        """
        return Catalogue(
            None if self.items is None else self.items.weight,
            None if self.bag is None else self._of_items(self.bag, self.catalogue_IT, needed_X),
            None if self.content is None else self._of_items(self.content, self.content_IE, needed_X),
        )

    def _of_items(self, block: nn.Module, source: torch.Tensor, needed_X: torch.Tensor | None) -> torch.Tensor:
        if needed_X is None or len(source) <= ITEMS_AT_ONCE:
            return torch.cat([block(part) for part in source.split(ITEMS_AT_ONCE)])
        made_XD = block(source[needed_X])
        return made_XD.new_zeros(len(source), made_XD.shape[1]).index_put((needed_X,), made_XD)

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
        known_BL = torch.where(self.seen_I[batch.recent_BL], batch.recent_BL, 0)
        liked_B1L = weight_B2L[:, :1]
        parts = (
            (self.users(user_B),),
            pooled(catalogue.identity, known_BL, weight_B2L) or (None, None),
            pooled(catalogue.tokens, batch.recent_BL, liked_B1L) or (None,),
            pooled(catalogue.content, batch.recent_BL, liked_B1L) or (None,),
            (self._attend(batch, self.pooling_query) if c.summary_tokens else None,),
        )
        return User._make(itertools.chain(*parts))

    def _attend(self, batch: Batch, query: torch.Tensor) -> torch.Tensor:
        """Attention over the cached summary tokens, by the target item (B, D) or by a learned query (D)."""
        summary_BKW = batch.summary_BKW.to(query.dtype) * batch.scales_BK[..., None]
        keys_BKD, values_BKD = self.keys(summary_BKW), self.values(summary_BKW)
        weights_BK = torch.softmax((keys_BKD * query.unsqueeze(-2)).sum(-1) / query.shape[-1] ** 0.5, -1)
        attended_BD = (weights_BK[..., None] * values_BKD).sum(1)
        absent_B1 = (batch.scales_BK == 0).all(1, keepdim=True)
        return torch.where(absent_B1, self.no_summary, attended_BD)

    def _numbers(self, batch: Batch) -> torch.Tensor:
        """Dense features and standardised crosses, (B, F + C)."""
        if not self.config.num_crosses:
            return batch.dense_BF
        crosses_BC = (batch.crosses_BC - self.cross_mean_C) / self.cross_scale_C
        return torch.cat([batch.dense_BF, crosses_BC.clamp(-8, 8)], 1)

    def like_logit(self, batch: Batch, user: User, catalogue: Catalogue) -> torch.Tensor:
        """Logit of P(like | the user chose to rate the item), (B,)."""
        dense_BD = self.bottom(self._numbers(batch))
        item_BD = None if self.items is None else self.items(self._known(batch.item_B))
        tokens_BD = content_BD = None
        if self.bag is not None:
            # A request may bring the tokens of an item that is newer than the ranker; training knows every item.
            assert catalogue.tokens is not None
            own = nn.functional.embedding(batch.item_B, catalogue.tokens) if self.training else None
            tokens_BD = self.bag(batch.tokens_BT) if own is None else own
        if catalogue.content is not None:
            content_BD = nn.functional.embedding(batch.item_B, catalogue.content)
        # Kept weights know this order.
        read = (item_BD, user.identity, user.liked, user.disliked, tokens_BD, user.profile, content_BD, user.content)
        others = [v for v in read if v is not None]
        if self.config.summary_tokens:
            target = [v for v in (item_BD, tokens_BD, content_BD) if v is not None]
            target_BD = torch.stack(target).sum(0) if target else torch.zeros_like(dense_BD)
            others.append(self._attend(batch, self.query(target_BD)))
        all_BVD = torch.cat([dense_BD[:, None], self.drop(torch.stack(others, 1))], 1)
        dots_BVV = all_BVD @ all_BVD.transpose(1, 2)
        above = torch.triu_indices(all_BVD.shape[1], all_BVD.shape[1], 1, device=dots_BVV.device)
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
        # Content of a whole large catalogue, with its gradients, would not fit.
        needed = [batch.recent_BL.flatten(), batch.item_B, item_S]
        catalogue = self.catalogue(torch.unique(torch.cat(needed)))
        user = self.user(batch, catalogue)
        logit_B = self.like_logit(batch, user, catalogue)
        return logit_B, self.interest_logits(user.take(positive_P), catalogue, item_S)

    def interest_vector(self, user: User) -> torch.Tensor:
        """The user's side of the interest head, (B, D)."""
        return self.interest_user(self.drop(torch.cat(user.known(), 1)))

    def interest_logits(self, user: User, catalogue: Catalogue, item_S: torch.Tensor) -> torch.Tensor:
        """Scores of items for each user, (B, S): any item, whether the user would ever have seen it or not.

        Items without ID and content are all the same: their scores are equal.

        Args:
            user: The users.
            catalogue: Item vectors.
            item_S: Catalogue indices of the items.
        """
        known_S = self._known(item_S)
        rows = ((catalogue.identity, known_S), (catalogue.tokens, item_S), (catalogue.content, item_S))
        parts = [vectors_ID[rows_S] for vectors_ID, rows_S in rows if vectors_ID is not None]
        user_BD = self.interest_vector(user)
        if not parts:
            return user_BD.sum(1, keepdim=True) * user_BD.new_zeros(len(item_S))
        logits_BS = user_BD @ torch.stack(parts).sum(0).T
        return logits_BS if self.interest_bias is None else logits_BS + self.interest_bias(known_S)[:, 0]
