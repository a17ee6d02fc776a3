"""Attention blocks that model families share: quasi-linear (VISTA, stage 1) and softmax.

Shapes: B batch, N tokens, M keys, H heads, E width of a head, D width (H x E).
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


class LinearState(NamedTuple):
    """What quasi-linear attention remembers of its sources. Additive: states of two parts of a history sum up.

    Attributes:
        sum_BHEE: Sum over sources of phi(k) v^T.
        count_B: Number of sources.
    """

    sum_BHEE: Tensor
    count_B: Tensor


def linear_state(k_BHNE: Tensor, v_BHNE: Tensor, valid_BN: Tensor) -> LinearState:
    """Sums phi(k) v^T over the valid sources; phi = SiLU. Linear in N (VISTA, arXiv 2510.22049, 3.2.2)."""
    k_BHNE = F.silu(k_BHNE) * valid_BN[:, None, :, None].to(k_BHNE.dtype)
    return LinearState(k_BHNE.transpose(-1, -2) @ v_BHNE, valid_BN.sum(-1))


def read_state(q_BHNE: Tensor, state: LinearState) -> Tensor:
    """Quasi-linear attention O = phi(Q) phi(state / count), shape B x H x N x E.

    The paper removes row normalisation and mentions a factor 1/N (appendix B). It stands inside of the outer phi
    here, which keeps the argument of phi bounded however long the history is; the state stays additive.
    """
    mean_BHEE = state.sum_BHEE / state.count_B.clamp(min=1)[:, None, None, None].to(state.sum_BHEE.dtype)
    return F.silu(q_BHNE) @ F.silu(mean_BHEE)


def split_heads(x_BND: Tensor, heads: int) -> Tensor:
    """B x N x D to B x H x N x E."""
    return x_BND.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x_BHNE: Tensor) -> Tensor:
    """B x H x N x E to B x N x D."""
    return x_BHNE.transpose(1, 2).flatten(-2)


class GatedLinearUnit(nn.Module):
    """SGLU of TransNormerLLM, [(x W_v) * (x W_u)] W_o, without an activation."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.value_gate = nn.Linear(width, 2 * hidden, bias=False)
        self.output = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Mixes channels; same shape."""
        value, gate = self.value_gate(x_BND).chunk(2, dim=-1)
        return self.output(value * gate)


class QuasiLinearBlock(nn.Module):
    """QLU + SGLU: every token reads a state that all valid tokens wrote (bidirectional), in time linear in N.

    Norms are RMSNorm: before each of the two parts, and on each head's output, where TransNormerLLM has one too
    in place of row normalisation.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.head_norm = nn.RMSNorm(width // heads)
        self.output = nn.Linear(width, width, bias=False)
        self.mix_norm = nn.RMSNorm(width)
        self.mix = GatedLinearUnit(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, valid_BN: Tensor) -> Tensor:
        """Attends and mixes; same shape. Invalid tokens write nothing."""
        q, k, v = (split_heads(p, self.heads) for p in self.query_key_value(self.norm(x_BND)).chunk(3, dim=-1))
        return self.mixed(x_BND, read_state(q, linear_state(k, v, valid_BN)))

    def written(self, x_BND: Tensor, valid_BN: Tensor) -> LinearState:
        """What these tokens write; `forward` in two steps, with `given`, where not all tokens are there at once."""
        width = x_BND.shape[-1]
        k, v = F.linear(self.norm(x_BND), self.query_key_value.weight[width:]).chunk(2, dim=-1)
        return linear_state(split_heads(k, self.heads), split_heads(v, self.heads), valid_BN)

    def given(self, x_BND: Tensor, state: LinearState) -> Tensor:
        """The tokens after this block, given what all tokens have written."""
        width = x_BND.shape[-1]
        q = F.linear(self.norm(x_BND), self.query_key_value.weight[:width])
        return self.mixed(x_BND, read_state(split_heads(q, self.heads), state))

    def mixed(self, x_BND: Tensor, read_BHNE: Tensor) -> Tensor:
        """The tokens with what they have read, and their channels mixed."""
        x_BND = x_BND + self.dropout(self.output(merge_heads(self.head_norm(read_BHNE))))
        return x_BND + self.dropout(self.mix(self.mix_norm(x_BND)))


class SoftmaxBlock(nn.Module):
    """The standard pre-norm transformer block, over PyTorch's fused attention."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.mix_norm = nn.RMSNorm(width)
        self.mix = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BND: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attends and mixes; same shape.

        Args:
            x_BND: Tokens.
            mask: True where a token may look; broadcasts to B x H x N x N. Every row needs one True.
            causal: Look at oneself and earlier tokens only (without ``mask``).
        """
        q, k, v = (split_heads(p, self.heads) for p in self.query_key_value(self.norm(x_BND)).chunk(3, dim=-1))
        read_BHNE = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x_BND = x_BND + self.dropout(self.output(merge_heads(read_BHNE)))
        return x_BND + self.dropout(self.mix(self.mix_norm(x_BND)))
