"""Causal quasi-linear attention against its definition, written as loops; and what a million events do to it."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.causal_attention import (
    CHUNK,
    CausalLinearBlock,
    causal_read,
    decay_rates,
    extend_mean,
    total_weight,
    weigh,
)

FORGETFUL, FAITHFUL = decay_rates(3, 4.0), decay_rates(3, 0.0)
both_rates = pytest.mark.parametrize("rates", [FORGETFUL, FAITHFUL], ids=["decay", "no-decay"])


def drawn(length, lengths, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, len(lengths), 3, length, 4, dtype=dtype).unbind(0)
    valid = torch.arange(length) < torch.tensor(lengths)[:, None]
    return F.silu(q), F.silu(k) * valid[:, None, :, None], v, torch.tensor(lengths)


def brute_force(q, k, v, lengths, rates):
    read, means = torch.zeros_like(v), torch.zeros(*q.shape[:2], 4, 4, dtype=q.dtype)
    for b in range(len(lengths)):
        for h in range(3):
            for i in range(lengths[b]):
                mean, total = torch.zeros(4, 4, dtype=q.dtype), 0.0
                for j in range(i + 1):
                    weight = math.exp(-float(rates[h]) * (i - j))
                    mean, total = mean + weight * torch.outer(k[b, h, j], v[b, h, j]), total + weight
                means[b, h] = mean / total
                read[b, h, i] = q[b, h, i] @ means[b, h]
    return read, means


def read_of(q, k, v, rates, mean, count):
    lengths = torch.full((len(q),), q.shape[2])
    return causal_read(q, k, v, weigh(rates, count, lengths, q.shape[2], q.dtype), mean)


def mean_of(k, v, lengths, rates, mean, count):
    return extend_mean(k, v, weigh(rates, count, lengths, k.shape[2], k.dtype), mean)


def empty(batch, dtype=torch.float64):
    return torch.zeros(batch, 3, 4, 4, dtype=dtype), torch.zeros(batch, dtype=torch.int64)


@both_rates
@pytest.mark.parametrize("length", [1, CHUNK - 1, 2 * CHUNK + 3])
def test_chunks_give_what_the_double_loop_gives(rates, length):
    lengths = [length, length // 2]
    q, k, v, lengths_B = drawn(length, lengths)
    read, means = brute_force(q, k, v, lengths, rates)
    ours = read_of(q, k, v, rates, *empty(2))
    for b, num in enumerate(lengths):
        torch.testing.assert_close(ours[b, :, :num], read[b, :, :num])
    torch.testing.assert_close(mean_of(k, v, lengths_B, rates, *empty(2)), means)


@both_rates
@pytest.mark.parametrize("cut", [1, 5, CHUNK, 70])
def test_a_continued_history_reads_what_the_whole_one_reads(rates, cut):
    q, k, v, lengths_B = drawn(71, [71, 71])
    mean, count = empty(2)
    whole, end = read_of(q, k, v, rates, mean, count), mean_of(k, v, lengths_B, rates, mean, count)
    (q1, q2), (k1, k2), (v1, v2) = (x.split([cut, 71 - cut], 2) for x in (q, k, v))
    first = mean_of(k1, v1, torch.tensor([cut, cut]), rates, mean, count)
    torch.testing.assert_close(read_of(q2, k2, v2, rates, first, count + cut), whole[:, :, cut:])
    torch.testing.assert_close(mean_of(k2, v2, lengths_B - cut, rates, first, count + cut), end)


@both_rates
def test_no_events_leave_the_memory_as_it_is_to_the_bit(rates):
    mean, count = torch.randn(2, 3, 4, 4), torch.tensor([999_983, 7])
    _, k, v, nothing = drawn(5, [0, 0], dtype=torch.float32)
    assert torch.equal(mean_of(k, v, nothing, rates, mean, count), mean)


def test_heads_forget_at_different_rates_and_the_last_never():
    rates = decay_rates(3, 4.0)
    assert torch.exp(-4 * rates).tolist() == pytest.approx([0.5, 0.5 ** (1 / 8), 1.0])
    assert decay_rates(1, 4.0).tolist() == [0.0] and not decay_rates(2, 0.0).any()
    halves = total_weight(torch.tensor([0, 1, 2, 10**6]), torch.tensor([math.log(2), 0.0]))
    torch.testing.assert_close(halves.T, torch.tensor([[0, 1, 1.5, 2], [0, 1, 2, 10**6]], dtype=torch.float64))


@both_rates
def test_size_of_parts_does_not_matter_over_a_hundred_thousand_events(rates):
    """Float32 in many parts, and in few, beside one weighted sum in float64."""
    _, k, v, _ = drawn(100_000, [100_000])
    after = torch.arange(99_999, -1, -1, dtype=torch.float64)
    weights = torch.exp(-rates[:, None] * after)[..., None]
    truth = (k * weights).mT @ v / weights.sum(1, keepdim=True)
    for size in (500, 4_000):
        mean, count = empty(1, torch.float32)
        for some_k, some_v in zip(k.float().split(size, 2), v.float().split(size, 2), strict=True):
            mean, count = mean_of(some_k, some_v, torch.tensor([size]), rates, mean, count), count + size
        assert (mean - truth).abs().max() < 1e-4 * truth.abs().mean()


@both_rates
def test_a_memory_of_a_million_events_is_continued_without_overflow(rates):
    mean, count = torch.randn(1, 3, 4, 4), torch.tensor([10**6])
    q, k, v, lengths = drawn(100, [100], dtype=torch.float32)
    read, after = read_of(q, k, v, rates, mean, count), mean_of(k, v, lengths, rates, mean, count)
    assert torch.isfinite(read).all() and torch.isfinite(after).all()
    torch.testing.assert_close(after[:, 2], (mean[:, 2] * 10**6 + k[:, 2].mT @ v[:, 2]) / (10**6 + 100))


def test_half_precision_does_not_reach_the_memory():
    torch.manual_seed(0)
    block, x, (mean, count) = CausalLinearBlock(12, 3, 24), torch.randn(2, 9, 12), empty(2, torch.float32)
    valid = torch.ones(2, 9, dtype=torch.bool)
    weights = weigh(FORGETFUL, count, valid.sum(-1), 9, torch.float32)
    _, exact = block.advance(x, valid, weights, mean, last=False)
    with torch.autocast("cpu", torch.bfloat16):
        _, rounded = block.advance(x, valid, weights, mean, last=False)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.05)
