"""Quasi-linear attention against its definition, written as loops."""

import pytest
import torch
import torch.nn.functional as F

from models.attention import LinearState, QuasiLinearBlock, SoftmaxBlock, linear_state, read_state


def brute_force(q, k, v, valid):
    batch, heads, num, width = q.shape
    out = torch.zeros_like(v)
    for b in range(batch):
        for h in range(heads):
            state, count = torch.zeros(width, width, dtype=q.dtype), 0
            for j in range(num):
                if valid[b, j]:
                    state = state + torch.outer(F.silu(k[b, h, j]), v[b, h, j])
                    count += 1
            for i in range(num):
                out[b, h, i] = F.silu(q[b, h, i]) @ F.silu(state / max(count, 1))
    return out


@pytest.fixture
def heads():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 7, 4, dtype=torch.float64).unbind(0)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    return q, k, v, valid


def test_quasi_linear_attention_is_its_double_loop(heads):
    q, k, v, valid = heads
    torch.testing.assert_close(read_state(q, linear_state(k, v, valid)), brute_force(q, k, v, valid))


def test_states_of_two_parts_add_up(heads):
    q, k, v, valid = heads
    whole = linear_state(k, v, valid)
    a = linear_state(k[:, :, :3], v[:, :, :3], valid[:, :3])
    b = linear_state(k[:, :, 3:], v[:, :, 3:], valid[:, 3:])
    added = LinearState(a.sum_BHEE + b.sum_BHEE, a.count_B + b.count_B)
    torch.testing.assert_close(read_state(q, added), read_state(q, whole))


def test_padding_changes_nothing_in_a_block():
    torch.manual_seed(0)
    block, x = QuasiLinearBlock(8, 2, 16), torch.randn(2, 5, 8)
    padded = torch.cat([x, 100 * torch.randn(2, 3, 8)], 1)
    valid = torch.arange(8).expand(2, 8) < 5
    torch.testing.assert_close(block(padded, valid)[:, :5], block(x, valid[:, :5]))


def test_causal_block_does_not_see_the_future():
    torch.manual_seed(0)
    block, x = SoftmaxBlock(8, 2, 16), torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    torch.testing.assert_close(block(x, causal=True)[:, :4], block(changed, causal=True)[:, :4])
    assert not torch.allclose(block(x, causal=True)[:, 4:], block(changed, causal=True)[:, 4:])
