"""Quantisation inside of a network: a level of codes that revives its dead ones, and the gradients past a choice.

Shape letters: B rows, R latent, K codes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F

from models.semantic_ids.rqvae_config import Gradient

SMALLEST_NORM = 1e-6


class Quantised(NamedTuple):
    """One level's answer.

    Attributes:
        vector_BR: The chosen codes' vectors, without a gradient.
        code_B: The chosen codes.
        loss: ``|sg[r] - e|^2 + beta |r - sg[e]|^2``, a mean over rows: the only gradient to the codes.
    """

    vector_BR: torch.Tensor
    code_B: torch.Tensor
    loss: torch.Tensor


def straight_through(r_BR: torch.Tensor, e_BR: torch.Tensor) -> torch.Tensor:
    """``e``, with the gradient of ``r`` (van den Oord et al., arXiv 1711.00937, section 3.2)."""
    return r_BR + (e_BR - r_BR).detach()


def rotation(r_BR: torch.Tensor, e_BR: torch.Tensor) -> torch.Tensor:
    """``e``, with the gradient of the rotation and scaling that carries ``r`` to it.

    ``e = |e|/|r| (r - 2 w (w . r) + 2 u_e (u_r . r))`` with ``u_r``, ``u_e`` the directions of ``r`` and ``e``, ``w``
    that of their sum, all held constant: unlike a copied gradient, it keeps the angle between gradient and code (Fifty
    et al., "Restructuring vector quantization with the rotation trick", arXiv 2410.06424, section 4.2). Where ``r`` or
    ``e`` is about zero, or both are opposite, no rotation is defined and the gradient is copied.
    """
    norm_r_B1, norm_e_B1 = r_BR.norm(dim=1, keepdim=True), e_BR.norm(dim=1, keepdim=True)
    u_r_BR = (r_BR / norm_r_B1.clamp_min(SMALLEST_NORM)).detach()
    u_e_BR = (e_BR / norm_e_B1.clamp_min(SMALLEST_NORM)).detach()
    both_BR = u_r_BR + u_e_BR
    w_BR = F.normalize(both_BR, dim=1, eps=SMALLEST_NORM)
    scale_B1 = (norm_e_B1 / norm_r_B1.clamp_min(SMALLEST_NORM)).detach()
    turned_BR = r_BR - 2 * w_BR * (w_BR * r_BR).sum(1, keepdim=True) + 2 * u_e_BR * (u_r_BR * r_BR).sum(1, keepdim=True)
    defined_B1 = torch.minimum(torch.minimum(norm_r_B1, norm_e_B1), both_BR.norm(dim=1, keepdim=True)) > SMALLEST_NORM
    return torch.where(defined_B1, scale_B1 * turned_BR, straight_through(r_BR, e_BR))


GRADIENTS: dict[Gradient, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "straight_through": straight_through,
    "rotation": rotation,
}


class CodeLevel(torch.nn.Module):
    """A codebook that learns from what it quantises.

    Args:
        width: Codes.
        dimension: Latent width.
        commitment: ``beta`` of the loss (TIGER, arXiv 2305.05065, section 3.1: 0.25).
        revive_after: Training batches without a row after which a code is dead and moves to a row of the batch; 0
            never revives.
    """

    def __init__(self, width: int, dimension: int, *, commitment: float, revive_after: int):
        super().__init__()
        self.codes_KR = torch.nn.Parameter(torch.randn(width, dimension) / dimension**0.5)
        # A buffer, so that a resumed training revives what an uninterrupted one would.
        self.register_buffer("idle_K", torch.zeros(width, dtype=torch.int64))
        self.idle_K: torch.Tensor
        self.commitment, self.revive_after = commitment, revive_after

    def nearest(self, r_BR: torch.Tensor) -> torch.Tensor:
        """The nearest code of each row, shape (B,)."""
        return (r_BR @ self.codes_KR.T - self.codes_KR.square().sum(1) / 2).argmax(1)

    def forward(self, r_BR: torch.Tensor) -> Quantised:
        """Quantises; in training mode also revives dead codes and counts who was idle."""
        if self.training and self.revive_after:
            self._revive(r_BR.detach())
        code_B = self.nearest(r_BR.detach())
        if self.training:
            self._count(code_B)
        e_BR = self.codes_KR[code_B]
        loss = (r_BR.detach() - e_BR).square().sum(1).mean() + self.commitment * (r_BR - e_BR.detach()).square().sum(
            1
        ).mean()
        return Quantised(e_BR.detach(), code_B, loss)

    @torch.no_grad()
    def _revive(self, r_BR: torch.Tensor) -> None:
        """Moves dead codes to rows of this batch, drawn in proportion to their distance from the nearest code."""
        dead_K = torch.nonzero(self.idle_K >= self.revive_after).flatten()
        if not len(dead_K):
            return
        distance_B = (r_BR - self.codes_KR[self.nearest(r_BR)]).square().sum(1).float()
        # Where every row is a code already, any row will do: a rank that stopped here would leave the others waiting.
        weight_B = distance_B if bool(distance_B.sum() > 0) else torch.ones_like(distance_B)
        rows = torch.multinomial(weight_B, len(dead_K), replacement=True)
        fresh_FR = r_BR[rows].to(self.codes_KR.dtype)
        if dist.is_initialized():
            dist.broadcast(fresh_FR, src=0)
        self.codes_KR[dead_K] = fresh_FR
        self.idle_K[dead_K] = 0

    @torch.no_grad()
    def _count(self, code_B: torch.Tensor) -> None:
        used_K = torch.bincount(code_B, minlength=len(self.idle_K))
        if dist.is_initialized():
            dist.all_reduce(used_K)
        self.idle_K.add_(1)
        self.idle_K[used_K > 0] = 0
