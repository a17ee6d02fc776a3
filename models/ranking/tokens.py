"""Caption tokens as one vector: an embedding bag with two hashes and learned weights.

Shape letters: T tokens, D width.
"""

import torch
from torch import nn

PRIME = 2**31 - 1
HASHES = ((1_103_515_245, 12_345), (69_069, 362_437))
WEIGHT_HASH = (1_664_525, 1_013_904_223)


class TokenBag(nn.Module):
    """Weighted sum of token embeddings, normalised.

    Two tokens that collide under one hash are told apart by the other (Svenstrup et al. 2017, arXiv 1709.03933).

    Args:
        buckets: Rows of the table, shared by both hashes.
        width: D.
        dropout: Share of tokens that are left out in training.
    """

    def __init__(self, buckets: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.buckets = buckets
        self.table = nn.Embedding(buckets, width)
        self.weight = nn.Embedding(buckets, 1)
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.table.weight, std=0.1)
        nn.init.zeros_(self.weight.weight)

    def _bucket(self, token: torch.Tensor, a: int, b: int) -> torch.Tensor:
        return (token * a + b) % PRIME % self.buckets

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Vectors (..., D) of sets of tokens (..., T). 0 is no token; a set without tokens gives zeros."""
        present = tokens > 0
        if self.training and self.dropout:
            present = present & (torch.rand(tokens.shape, device=tokens.device) >= self.dropout)
        weights = nn.functional.softplus(self.weight(self._bucket(tokens, *WEIGHT_HASH))[..., 0] + 0.5413) * present
        rows = torch.cat([self._bucket(tokens, a, b) for a, b in HASHES], -1)
        # Summed as it is looked up: the vectors of single tokens are never all in memory.
        bag = nn.functional.embedding_bag(
            rows.flatten(0, -2),
            self.table.weight,
            per_sample_weights=torch.cat([weights] * len(HASHES), -1).flatten(0, -2),
            mode="sum",
        ).unflatten(0, tokens.shape[:-1])
        return self.norm(bag) * present.any(-1, keepdim=True) / bag.shape[-1] ** 0.5
