"""Causal quasi-linear attention: a memory of fixed size that new events extend, exactly, at any time.

A head remembers the weighted mean of phi(k) v^T over all events so far. The weight of an event halves with every
``half-life`` of events after it, or never. All powers are of numbers of events between two others, so that none
overflows, however long the history is.

Shapes: B users, L events, H heads, E width of a head, D width (H x E), G chunks, C events of a chunk.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import QuasiLinearBlock, split_heads

CHUNK = 32
"""Events whose attention among each other is a matrix; what came before them is read from the memory."""
NEXT_HEAD = 8.0
"""How many times as long each head remembers as the one before."""


def decay_rates(heads: int, half_life: float) -> Tensor:
    """Rate of forgetting of each head, H, per event: the first has this half-life, the last never forgets.

    Args:
        heads: Heads.
        half_life: Events after which the first head has forgotten half; 0: no head forgets.
    """
    if half_life <= 0:
        return torch.zeros(heads, dtype=torch.float64)
    rates = math.log(2) / (half_life * NEXT_HEAD ** torch.arange(heads, dtype=torch.float64))
    rates[-1] = 0
    return rates


def total_weight(counts: Tensor, rates_H: Tensor) -> Tensor:
    """Weights of so many events summed up, (... x H), float64: the number of events where nothing is forgotten."""
    rates_H = rates_H.double()
    forgetful_H = rates_H > 0
    safe_H = torch.where(forgetful_H, rates_H, 1)
    counts = counts[..., None].double()
    return torch.where(forgetful_H, torch.expm1(-safe_H * counts) / torch.expm1(-safe_H), counts)


def extend_mean(
    k_BHLE: Tensor, v_BHLE: Tensor, lengths_B: Tensor, rates_H: Tensor, mean_BHEE: Tensor, count_B: Tensor
) -> Tensor:
    """The memory after these events, B x H x E x E.

    Args:
        k_BHLE: phi of the keys, 0 in the padding.
        v_BHLE: Values.
        lengths_B: How many of them are events.
        rates_H: Rates of forgetting.
        mean_BHEE: The memory before.
        count_B: Events that it has seen.
    """
    after_BL = (lengths_B[:, None] - 1 - torch.arange(k_BHLE.shape[2], device=k_BHLE.device)).clamp(min=0)
    total_BH = total_weight(count_B + lengths_B, rates_H).clamp(min=1)
    weights_BHL = torch.exp(-rates_H[:, None] * after_BL[:, None]) / total_BH[..., None]
    share_BH = total_weight(lengths_B, rates_H) / total_BH
    new_BHEE = (k_BHLE * weights_BHL[..., None].to(k_BHLE.dtype)).transpose(-1, -2) @ v_BHLE
    # As a correction: a mean scaled by the rounded share of old events drifts 80 times as far in a million steps.
    return mean_BHEE + (new_BHEE - mean_BHEE * share_BH[..., None, None].to(mean_BHEE.dtype))


def causal_read(
    q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, rates_H: Tensor, mean_BHEE: Tensor, count_B: Tensor
) -> Tensor:
    """What every event reads of the memory that ends with itself, phi(q) mean; B x H x L x E. Linear in L.

    Args:
        q_BHLE: phi of the queries.
        k_BHLE: phi of the keys, 0 in the padding, which is at the end.
        v_BHLE: Values.
        rates_H: Rates of forgetting.
        mean_BHEE: The memory before these events.
        count_B: Events that it has seen.
    """
    length, dtype, device = q_BHLE.shape[2], q_BHLE.dtype, q_BHLE.device
    size = min(CHUNK, length)
    padding = -length % size
    seen_BL = count_B[:, None] + torch.arange(1, length + 1, device=device)
    total_BHL = total_weight(seen_BL, rates_H).transpose(1, 2)
    q_BHLE = q_BHLE / total_BHL[..., None].to(dtype)
    q, k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, size)) for x in (q_BHLE, k_BHLE, v_BHLE))
    places_C, chunks_G = torch.arange(size, device=device), torch.arange(q.shape[2], device=device)
    rates_H11 = rates_H[:, None, None]
    apart_CC = places_C[:, None] - places_C
    within_HCC = (torch.exp(-rates_H11 * apart_CC.clamp(min=0)) * (apart_CC >= 0)).to(dtype)
    read = ((q @ k.transpose(-1, -2)) * within_HCC[:, None]) @ v
    # The sum of each chunk, those of all chunks before each chunk, and the memory from before the first.
    to_end_HC = torch.exp(-rates_H[:, None] * (size - 1 - places_C)).to(dtype)
    sums_BHGEE = (k * to_end_HC[:, None, :, None]).transpose(-1, -2) @ v
    between_GG = size * (chunks_G[:, None] - 1 - chunks_G)
    before_HGG = (torch.exp(-rates_H11 * between_GG.clamp(min=0)) * (between_GG >= 0)).to(dtype)
    started_BHG = torch.exp(-rates_H[:, None] * size * chunks_G) * total_weight(count_B, rates_H)[..., None]
    before_BHGEE = (before_HGG @ sums_BHGEE.flatten(-2)).unflatten(-1, sums_BHGEE.shape[-2:])
    before_BHGEE = before_BHGEE + started_BHG[..., None, None].to(dtype) * mean_BHEE[:, :, None]
    since_HC = torch.exp(-rates_H[:, None] * (places_C + 1)).to(dtype)
    read = read + (q @ before_BHGEE) * since_HC[:, None, :, None]
    return read.flatten(2, 3)[:, :, :length]


class CausalLinearBlock(QuasiLinearBlock):
    """QLU + SGLU of which an event reads what came up to itself, without the outer phi, and others the whole memory.

    The outer phi is of a whole state, so that causal attention with it would need the state of every event. Without
    it, events of a chunk attend to each other by a masked product. Readers that stand after all events keep it.
    """

    rates_H: Tensor

    def __init__(self, width: int, heads: int, hidden: int, half_life: float):
        super().__init__(width, heads, hidden)
        self.register_buffer("rates_H", decay_rates(heads, half_life), persistent=False)

    def advance(
        self, x_BLD: Tensor, valid_BL: Tensor, mean_BHEE: Tensor, count_B: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """The events after this block, and its memory after the events.

        Args:
            x_BLD: Events.
            valid_BL: Which are no padding, which is at the end.
            mean_BHEE: The memory before them.
            count_B: Events that it has seen.
            last: Whether nobody reads the events after this block; they are given back as they are then.
        """
        width = x_BLD.shape[-1]
        weight = self.query_key_value.weight[width if last else 0 :]
        *q, k, v = (split_heads(p, self.heads) for p in F.linear(self.norm(x_BLD), weight).split(width, dim=-1))
        with torch.autocast(x_BLD.device.type, enabled=False):
            # Sums over a lifetime are not for half precision.
            k = F.silu(k.to(mean_BHEE.dtype)) * valid_BL[:, None, :, None]
            v = v.to(mean_BHEE.dtype)
            after_BHEE = extend_mean(k, v, valid_BL.sum(-1), self.rates_H, mean_BHEE, count_B)
            if last:
                return x_BLD, after_BHEE
            read = causal_read(F.silu(q[0].to(mean_BHEE.dtype)), k, v, self.rates_H, mean_BHEE, count_B)
        return self.mixed(x_BLD, read), after_BHEE

    def look(self, x_BND: Tensor, mean_BHEE: Tensor) -> Tensor:
        """Tokens that read the whole memory and write nothing; same shape."""
        width = x_BND.shape[-1]
        q = split_heads(F.linear(self.norm(x_BND), self.query_key_value.weight[:width]), self.heads)
        return self.mixed(x_BND, F.silu(q) @ F.silu(mean_BHEE).to(q.dtype))
