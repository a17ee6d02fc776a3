"""Losses of next-item models: in parts as whole, drawn items as a stand-in for all."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from models.long_history.families import FAMILIES
from models.long_history.inputs import Items
from models.long_history.objectives import BlockBatch, NextItemBatch, NextItemLoss, block_cross_entropy, cross_entropy
from tests.models.long_history.tiny import LEVELS, SIZES, histories


def items_of(ids):
    return Items(ids, torch.zeros(*ids.shape, LEVELS, dtype=torch.long))


def block(logits_ids, targets, real, correction):
    return BlockBatch(None, items_of(logits_ids), targets, real, correction)


def test_parts_give_the_loss_and_the_gradients_of_the_whole():
    torch.manual_seed(0)
    states, vectors = torch.randn(23, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    targets, correction = torch.randint(0, 9, (23,)), torch.randn(9)
    whole = F.cross_entropy(states @ vectors.T - correction, targets)
    parts = cross_entropy(states, vectors, targets, correction, at_once=5 * 9)
    torch.testing.assert_close(parts, whole)
    for one, other in zip(
        torch.autograd.grad(parts, (states, vectors)), torch.autograd.grad(whole, (states, vectors)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_against_all_items_it_is_the_softmax():
    logits, targets = torch.randn(2, 7), torch.tensor([[3, 5], [0, 0]])
    real = torch.tensor([[True, True], [True, False]])
    found = block_cross_entropy(logits, block(torch.arange(7).expand(2, 7), targets, real, 0.0))
    expected = F.cross_entropy(logits[[0, 0, 1]], torch.tensor([3, 5, 0]))
    torch.testing.assert_close(found, expected)


def test_drawn_items_estimate_the_softmax_and_a_drawn_target_does_not_count_against_itself():
    torch.manual_seed(0)
    logits_I, num = torch.randn(40), 20_000
    drawn = torch.randint(0, 40, (1, num))
    ids = torch.cat([torch.tensor([[7]]), drawn], 1)
    at, real = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    correction = float(torch.log(torch.tensor(40 / num)))
    found = block_cross_entropy(logits_I[ids], block(ids, at, real, correction))
    assert float(found) == pytest.approx(float(F.cross_entropy(logits_I[None], torch.tensor([7]))), abs=0.02)
    alone = torch.tensor([[7, 7, 7]])
    assert float(block_cross_entropy(logits_I[alone], block(alone, at, real, -1.0))) == 0


# What only `score` and `encode_history` reach, which next-item training by states does not call.
UNREACHED = {"sasrec": {"start_D"}, "hstu": {"candidate_D", "head"}}


@pytest.mark.parametrize("family", UNREACHED)
def test_data_parallel_steps_do_not_wait_for_what_states_do_not_use(family, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        # As `ray_jobs.training_network` has it.
        model = DistributedDataParallel(
            NextItemLoss(FAMILIES[family].build(**SIZES, width=8)), find_unused_parameters=True
        )
        batch = NextItemBatch(
            histories([5, 2]), items_of(torch.arange(1, 50)), torch.zeros(49), torch.randint(0, 49, (7,))
        )
        for _ in range(3):
            loss, _ = model(batch)
            loss.backward()
        lacking = {name.split(".")[0] for name, p in model.module.network.named_parameters() if p.grad is None}
        assert torch.isfinite(loss) and lacking == UNREACHED[family]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("family", ["sasrec", "vista"])
def test_one_call_is_one_step_and_reaches_the_network(family):
    torch.manual_seed(0)
    model = NextItemLoss(FAMILIES[family].build(**SIZES, width=8))
    history = histories([5, 2])
    choices = torch.arange(1, 50)
    if family == "sasrec":
        batch = NextItemBatch(history, items_of(choices), torch.zeros(49), torch.randint(0, 49, (7,)))
    else:
        real = torch.tensor([[True, True], [True, False]])
        targets = torch.randint(0, 49, (2, 2))
        batch = BlockBatch(history, items_of(choices.expand(2, 49)), targets, real, 0.0)
    loss, auxiliary = model(batch)
    (loss + auxiliary).backward()
    assert torch.isfinite(loss) and any(
        p.grad.abs().sum() > 0 for p in model.network.parameters() if p.grad is not None
    )
