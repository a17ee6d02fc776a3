"""Causal quasi-linear attention: a memory of fixed size that new events extend, exactly, at any time.

A head remembers the weighted mean of phi(k) v^T over all events so far. The weight of an event halves with every
``half-life`` of events after it, or never. All powers are of numbers of events between two others, so that none
overflows, however long the history is.

Shapes: B users, L events, H heads, E width of a head, D width (H x E), G chunks, C events of a chunk.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

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


class EventWeights(NamedTuple):
    """How much of whom each event reads: a function of numbers of events alone, so that layers share it.

    Attributes:
        normaliser_BHL1: One over the weights of all events up to each.
        within_HCC: Weight of each event of a chunk (second) for each (first); 0 for later ones.
        to_end_HC1: Weight of each event of a chunk at the chunk's last event.
        since_HC1: What an event leaves of the weight that something had before its chunk.
        before_HGG: What is left of each chunk (second) before the start of each (first); 0 for those not before.
        started_BHG11: Weight of the memory of older events before each chunk.
        final_BHL1: Share of each event in the memory after all.
        new_BH11: Share of all these events in the memory after them.
    """

    normaliser_BHL1: Tensor
    within_HCC: Tensor
    to_end_HC1: Tensor
    since_HC1: Tensor
    before_HGG: Tensor
    started_BHG11: Tensor
    final_BHL1: Tensor
    new_BH11: Tensor


def weigh(rates_H: Tensor, count_B: Tensor, lengths_B: Tensor, length: int, dtype: torch.dtype) -> EventWeights:
    """Weights of events that follow others.

    Args:
        rates_H: Rates of forgetting.
        count_B: Events that came before.
        lengths_B: How many follow.
        length: Places of the padded events, L.
        dtype: That of the network; weights are computed in float64.
    """
    size, device = min(CHUNK, length), rates_H.device
    places_L = torch.arange(length, device=device)
    count_B1, lengths_B1 = count_B[:, None], lengths_B[:, None]
    counts_BN = torch.cat([count_B1, lengths_B1, count_B1 + lengths_B1, count_B1 + 1 + places_L], 1)
    totals_BHN1 = total_weight(counts_BN, rates_H).to(dtype).transpose(1, 2)[..., None]
    old_BH11, new_BH11, all_BH11, up_to_BHL1 = totals_BHN1.tensor_split((1, 2, 3), dim=2)
    all_BH11 = all_BH11.clamp(min=1)
    # What is left of a weight after 0, 1, 2, ... events.
    left_HN = torch.exp(-rates_H.double()[:, None] * torch.arange(length + 1, device=device)).to(dtype)
    places_C, starts_G = places_L[:size], places_L[::size]
    apart_CC, apart_GG = places_C[:, None] - places_C, starts_G[:, None] - size - starts_G
    after_BL = lengths_B1 - 1 - places_L
    return EventWeights(
        1 / up_to_BHL1,
        left_HN[:, apart_CC.clamp(min=0)].tril(),
        left_HN[:, :size].flip(1)[..., None],
        left_HN[:, 1 : size + 1, None],
        left_HN[:, apart_GG.clamp(min=0)].tril(-1),
        (left_HN[:, :-1:size, None] * old_BH11)[..., None],
        left_HN[:, after_BL.clamp(min=0)].transpose(0, 1)[..., None] / all_BH11,
        new_BH11 / all_BH11,
    )


def extend_mean(k_BHLE: Tensor, v_BHLE: Tensor, weights: EventWeights, mean_BHEE: Tensor) -> Tensor:
    """The memory after these events, B x H x E x E.

    Args:
        k_BHLE: phi of the keys, 0 in the padding.
        v_BHLE: Values.
        weights: Of the events.
        mean_BHEE: The memory before.
    """
    new_BHEE = (k_BHLE * weights.final_BHL1).transpose(-1, -2) @ v_BHLE
    # As a correction: a mean scaled by the rounded share of old events drifts 80 times as far in a million steps.
    return mean_BHEE + (new_BHEE - mean_BHEE * weights.new_BH11)


def causal_read(q_BHLE: Tensor, k_BHLE: Tensor, v_BHLE: Tensor, weights: EventWeights, mean_BHEE: Tensor) -> Tensor:
    """What every event reads of the memory that ends with itself, phi(q) mean; B x H x L x E. Linear in L.

    Args:
        q_BHLE: phi of the queries.
        k_BHLE: phi of the keys, 0 in the padding, which is at the end.
        v_BHLE: Values.
        weights: Of the events.
        mean_BHEE: The memory before these events.
    """
    length, size = q_BHLE.shape[2], weights.within_HCC.shape[-1]
    q_BHLE = q_BHLE * weights.normaliser_BHL1
    q, k, v = (_chunks(x, size) for x in (q_BHLE, k_BHLE, v_BHLE))
    read = ((q @ k.transpose(-1, -2)) * weights.within_HCC[:, None]) @ v
    sums_BHGEE = (k * weights.to_end_HC1[:, None]).transpose(-1, -2) @ v
    before_BHGEE = (weights.before_HGG @ sums_BHGEE.flatten(-2)).unflatten(-1, sums_BHGEE.shape[-2:])
    before_BHGEE = before_BHGEE + weights.started_BHG11 * mean_BHEE[:, :, None]
    read = read + (q @ before_BHGEE) * weights.since_HC1[:, None]
    return read.flatten(2, 3)[:, :, :length]


def _chunks(x_BHLE: Tensor, size: int) -> Tensor:
    """B x H x G x C x E, the last chunk filled up by zeros."""
    missing = -x_BHLE.shape[2] % size
    return (F.pad(x_BHLE, (0, 0, 0, missing)) if missing else x_BHLE).unflatten(2, (-1, size))


def _whole_precision(device: str) -> AbstractContextManager[object]:
    """Lets autocast rest; costs nothing where it does already, as in a refresh of a few events."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class CausalLinearBlock(QuasiLinearBlock):
    """QLU + SGLU of which an event reads what came up to itself, without the outer phi, and others the whole memory.

    The outer phi is of a whole state, so that causal attention with it would need the state of every event. Without
    it, events of a chunk attend to each other by a masked product. Readers that stand after all events keep it.
    """

    def advance(
        self, x_BLD: Tensor, valid_BL: Tensor, weights: EventWeights, mean_BHEE: Tensor, last: bool
    ) -> tuple[Tensor, Tensor]:
        """The events after this block, and its memory after the events.

        Args:
            x_BLD: Events.
            valid_BL: Which are no padding, which is at the end.
            weights: Of these events.
            mean_BHEE: The memory before them.
            last: Whether nobody reads the events after this block; they are given back as they are then.
        """
        width = x_BLD.shape[-1]
        weight = self.query_key_value.weight[width if last else 0 :]
        *q, k, v = (split_heads(p, self.heads) for p in F.linear(self.norm(x_BLD), weight).split(width, dim=-1))
        # Sums over a lifetime are not for half precision.
        with _whole_precision(x_BLD.device.type):
            k = F.silu(k.to(mean_BHEE.dtype)) * valid_BL[:, None, :, None]
            v = v.to(mean_BHEE.dtype)
            after_BHEE = extend_mean(k, v, weights, mean_BHEE)
            if last:
                return x_BLD, after_BHEE
            read = causal_read(F.silu(q[0].to(mean_BHEE.dtype)), k, v, weights, mean_BHEE)
        return self.mixed(x_BLD, read.to(x_BLD.dtype)), after_BHEE

    def look(self, x_BND: Tensor, mean_BHEE: Tensor) -> Tensor:
        """Tokens that read the whole memory and write nothing; same shape."""
        width = x_BND.shape[-1]
        q = split_heads(F.linear(self.norm(x_BND), self.query_key_value.weight[:width]), self.heads)
        return self.mixed(x_BND, F.silu(q) @ F.silu(mean_BHEE).to(q.dtype))
