"""What next-item models learn: cross-entropy over the catalogue, from states or from scores of candidates.

Shapes: B users, L events, N targets, S items of the softmax, C targets of a block, D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.long_history.inputs import History, Items
from models.long_history.interface import HistoryModel, NextItemModel

LOGITS_AT_ONCE = 1 << 23
"""Logits of a part of a batch: 32 MiB in single precision."""


class NextItemBatch(NamedTuple):
    """Histories, each of whose events is followed by a target.

    Attributes:
        history: Histories.
        choices: Items of the softmax, S.
        correction_S: Log of each one's chance to be among them.
        targets_N: Place in ``choices`` of what follows each event, in the order of ``history.valid_BL``.
    """

    history: History
    choices: Items
    correction_S: Tensor
    targets_N: Tensor


class BlockBatch(NamedTuple):
    """Blocks of targets that share a history, and items to tell them from.

    Attributes:
        history: Histories.
        candidates: The targets (B x C), then as many other items for each block; or the softmax's items alone.
        targets_BC: Where each target stands among the candidates.
        real_BC: Which targets are no padding.
        correction: Added to the logits of the items that were drawn: log of how many each stands for.
    """

    history: History
    candidates: Items
    targets_BC: Tensor
    real_BC: Tensor
    correction: float


def cross_entropy(
    states_ND: Tensor, vectors_SD: Tensor, targets_N: Tensor, correction_S: Tensor, at_once: int = LOGITS_AT_ONCE
) -> Tensor:
    """Mean cross-entropy of the softmax of inner products, a part at a time.

    The logits of a part are made again in the backward pass, so that N x S of them never stand in memory.

    Args:
        states_ND: States.
        vectors_SD: Items of the softmax.
        targets_N: Place of each state's target among them.
        correction_S: Taken off each item's logits.
        at_once: Most logits of a part.
    """
    step = max(at_once // max(len(vectors_SD), 1), 1)
    if len(states_ND) <= step:
        return F.cross_entropy((states_ND @ vectors_SD.T - correction_S).float(), targets_N)

    def part(states_PD: Tensor, vectors: Tensor, targets_P: Tensor) -> Tensor:
        return F.cross_entropy((states_PD @ vectors.T - correction_S).float(), targets_P, reduction="sum")

    losses = [
        checkpoint(part, states, vectors_SD, targets, use_reentrant=False)
        for states, targets in zip(states_ND.split(step), targets_N.split(step), strict=True)
    ]
    return torch.stack(losses).sum() / len(states_ND)


def block_cross_entropy(logits_BS: Tensor, batch: BlockBatch) -> Tensor:
    """Mean cross-entropy of each target against the items that are no targets of its block, or against all.

    With drawn items, a target's own block mates are left out of its softmax, and so is an item that was drawn though
    it is the target.
    """
    logits_BS = logits_BS.float()
    own_BC = logits_BS.gather(1, batch.targets_BC)
    num_targets = batch.targets_BC.shape[1]
    if batch.correction == 0.0:
        losses_BC = torch.logsumexp(logits_BS, 1, keepdim=True) - own_BC
    else:
        ids_BS = batch.candidates.ids
        drawn_BS = logits_BS[:, num_targets:] + batch.correction
        same_BCS = ids_BS[:, :num_targets, None] == ids_BS[:, None, num_targets:]
        others_BCS = drawn_BS[:, None].masked_fill(same_BCS, -torch.inf)
        losses_BC = torch.logsumexp(torch.cat([own_BC[..., None], others_BCS], -1), -1) - own_BC
    return losses_BC[batch.real_BC].mean()


class NextItemLoss(nn.Module):
    """A network with its loss, so that one call of `forward` is one step, as data parallelism wants it."""

    def __init__(self, network: HistoryModel):
        super().__init__()
        self.network = network

    def forward(self, batch: NextItemBatch | BlockBatch) -> tuple[Tensor, Tensor]:
        """Cross-entropy, and the network's own loss."""
        if isinstance(batch, BlockBatch):
            output = self.network(batch.history, batch.candidates)
            return block_cross_entropy(output.logits_BC, batch), output.auxiliary
        assert isinstance(self.network, NextItemModel)
        states_ND = self.network.states(batch.history)[batch.history.valid_BL]
        vectors_SD = self.network.item_vectors(batch.choices)
        loss = cross_entropy(states_ND, vectors_SD, batch.targets_N, batch.correction_S)
        return loss, loss.new_zeros(())
