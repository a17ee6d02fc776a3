"""HSTU against loops over rows and keys; M-FALCON: one masked pass = separate passes = kept keys in micro-batches."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.long_history.hstu import Hstu, HstuConfig
from models.long_history.pointwise import CausalTiles, time_buckets
from tests.models.long_history.tiny import SIZES, candidates, first_events, histories, one_candidate

TINY = SIZES | {"width": 16, "dropout": 0.0, "item_dropout": 0.0, "embedding_std": 1.0, "max_distance": 7}
LENGTHS = [9, 0, 3, 1, 17]


def build(**changes):
    torch.manual_seed(0)
    model = Hstu(HstuConfig(**TINY | changes)).eval()
    for layer in model.layers:  # biases that matter
        torch.nn.init.normal_(layer.bias.position)
        torch.nn.init.normal_(layer.bias.time)
    return model


def bucket(seconds):
    return min(int(math.log(max(abs(seconds), 1)) / 0.301), 127)


def dense(model, tokens_ND, places, times, mask_NN):
    """All layers over one row of tokens by the equations of the paper, with a matrix of biases made by loops."""
    x, width = tokens_ND, tokens_ND.shape[-1]
    pairs = [(i, j) for i in range(len(x)) for j in range(len(x))]
    for layer in model.layers:
        distances = [min(abs(places[i] - places[j]), len(layer.bias.position) - 1) for i, j in pairs]
        buckets = [bucket(times[i] - times[j]) for i, j in pairs]
        bias_NN = (layer.bias.position[distances] + layer.bias.time[buckets]).view(len(x), len(x))
        u, v, q, k = F.silu(layer.gate_value_query_key(F.layer_norm(x, (width,)))).split(width, dim=-1)
        heads = []
        for h in range(model.config.heads):
            part = slice(h * width // model.config.heads, (h + 1) * width // model.config.heads)
            attention_NN = F.silu(q[:, part] @ k[:, part].T + bias_NN) * mask_NN / mask_NN.sum(1, keepdim=True)
            heads.append(attention_NN @ v[:, part])
        x = x + layer.output(F.layer_norm(torch.cat(heads, 1), (width,)) * u)
    return x


def joint(model, history, items, row):
    """Logits of a row's candidates from one masked pass over its events and all candidates."""
    length, num = int(history.lengths_B[row]), items.ids.shape[1]
    events_LD = model.events(history, model.items(history.items))[row, :length]
    tokens_ND = torch.cat([events_LD, model.items(items)[row] + model.candidate_D])
    times = history.times_BL[row, :length].tolist()
    mask_NN = torch.ones(len(tokens_ND), len(tokens_ND)).tril()
    mask_NN[length:, length:] = torch.eye(num)
    x_ND = dense(model, tokens_ND, [*range(length)] + [length] * num, times + (times[-1:] or [0]) * num, mask_NN)
    return model.head(x_ND[length:]).squeeze(-1) + model.bias(items.ids[row]).squeeze(-1)


@pytest.mark.parametrize("micro_batch", [1, 2, 5, 64])
def test_kept_keys_in_micro_batches_give_the_logits_of_one_masked_pass(micro_batch):
    model, history, items = build(micro_batch=micro_batch, tile=4), histories(LENGTHS), candidates(5, 5)
    with torch.no_grad():
        expected = torch.stack([joint(model, history, items, row) for row in range(5)])
        torch.testing.assert_close(model.score(model.encode_history(history), items), expected, atol=1e-4, rtol=1e-4)


def test_one_masked_pass_gives_the_logits_of_a_pass_for_each_candidate():
    model, history, items = build(), histories(LENGTHS), candidates(5, 5)
    with torch.no_grad():
        for row in range(5):
            together = joint(model, history, items, row)
            alone = [joint(model, history, one_candidate(items, place), row) for place in range(5)]
            torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("tile", [1, 4, 64])
def test_states_are_those_of_the_dense_matrix(tile):
    model, history = build(tile=tile), histories(LENGTHS)
    with torch.no_grad():
        states_BLD = model.states(history)
        for row, length in enumerate(LENGTHS):
            tokens_LD = model.events(history, model.items(history.items))[row, :length]
            times, mask_LL = history.times_BL[row, :length].tolist(), torch.ones(length, length).tril()
            x_LD = dense(model, tokens_LD, [*range(length)], times, mask_LL) if length else tokens_LD
            expected = F.layer_norm(x_LD, (16,))
            torch.testing.assert_close(states_BLD[row, :length, :-1], expected, atol=1e-4, rtol=1e-4)


def test_a_state_does_not_know_what_follows_nor_when():
    model, history = build(), histories([9, 9])
    later = history._replace(times_BL=torch.cat([history.times_BL[:, :5], history.times_BL[:, 5:] + 10**6], 1))
    with torch.no_grad():
        states_BLD = model.states(history)
        torch.testing.assert_close(model.states(first_events(history, 5)), states_BLD[:, :5])
        torch.testing.assert_close(model.states(later)[:, :5], states_BLD[:, :5])
        assert (model.states(later) - states_BLD)[:, 5:].abs().max() > 1e-3


def test_gradients_do_not_depend_on_the_tiles():
    found = []
    for tile in (3, 64):
        model = build(tile=tile)
        (
            model.states(histories(LENGTHS)).sum() + model(histories(LENGTHS), candidates(5, 3)).logits_BC.sum()
        ).backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_time_buckets_are_those_of_the_formula():
    seconds = [*range(200), 3_599, 3_600, 86_400, 31_536_000, 2**31 - 1]
    found = time_buckets(torch.tensor(seconds, dtype=torch.int32), torch.tensor(0, dtype=torch.int32))
    assert found.tolist() == [bucket(s) for s in seconds]


def test_tiles_cover_the_past_and_are_small():
    times_BN = torch.tensor([[-(10**6) + i for i in range(40)]], dtype=torch.int32)
    seen = torch.zeros(40, 40, dtype=torch.int64)
    buckets = torch.zeros(40, 40, dtype=torch.int32)
    for tile in CausalTiles(times_BN, 8):
        (first, end), (start, stop) = tile.rows, tile.keys
        assert end - first <= 8 and stop - start <= 8
        seen[first:end, start:stop] += 1
        buckets[first:end, start:stop] = tile.buckets[0]
    assert seen.max() == 1 and (seen.tril() == torch.ones(40, 40).tril()).all()
    assert buckets.tril().tolist() == [[bucket(i - j) if j <= i else 0 for j in range(40)] for i in range(40)]


@pytest.mark.parametrize("length", [1, 1_200])
def test_gradients_are_finite(length):
    model, history = build(width=8).train(), histories([length])
    (model.states(history).square().mean() + model(history, candidates(1, 5)).logits_BC.square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_long_history_is_the_same_in_small_and_large_tiles():
    history, items = histories([1_500]), candidates(1, 5)
    with torch.no_grad():
        small, large = (build(width=8, tile=tile, max_distance=300)(history, items).logits_BC for tile in (64, 1_500))
    torch.testing.assert_close(small, large, atol=1e-4, rtol=1e-4)


def test_a_history_of_100_000_events_is_scored():
    model, items = build(width=8, layers=1), candidates(1, 5)
    with torch.no_grad():
        encoding = model.encode_history(histories([100_000]))
        assert encoding.keys_BYHLE.shape == (1, 1, 2, 100_000, 4)
        assert torch.isfinite(model.score(encoding, items)).all()
