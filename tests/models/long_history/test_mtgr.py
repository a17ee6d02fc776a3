"""MTGR against one masked pass with a mask made by loops; what is static knows nothing of the real-time part."""

import pytest
import torch
import torch.nn.functional as F

from models.long_history.inputs import Items
from models.long_history.mtgr import CANDIDATE, REAL_TIME, SEQUENCE, USER, Mtgr, MtgrConfig
from models.long_history.parts import newest_events, split_newest
from tests.models.long_history.tiny import SIZES, candidates, histories, one_candidate

TINY = SIZES | {"width": 16, "dropout": 0.0, "item_dropout": 0.0, "embedding_std": 1.0}
LENGTHS = [9, 0, 3, 1, 17]


def build(**changes):
    torch.manual_seed(0)
    sizes = {"sequence_events": 8, "realtime_events": 4, "num_crosses": 3}
    model = Mtgr(MtgrConfig(**TINY | sizes | changes)).eval()
    for name, parameter in model.named_parameters():  # domains that differ
        if name.endswith(("scale", "shift")):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def tied(history):
    """The same events, with two ties among the newest of each user."""
    times_BL = history.times_BL.clone()
    for row, length in enumerate(history.lengths_B.tolist()):
        if length >= 4:
            times_BL[row, length - 2] = times_BL[row, length - 1]
    return history._replace(times_BL=times_BL)


def joint(model, history, items, row):
    """Logits of a row's candidates from one pass over user, sequence, real-time and candidate tokens."""
    older, newest = split_newest(newest_events(history, 12), 4)
    num_older, num_newest = int(older.lengths_B[row]), int(newest.lengths_B[row])
    x = torch.cat(
        [
            model._user_tokens(older)[row],
            model._event_tokens(older)[row, :num_older],
            model._event_tokens(newest)[row, :num_newest],
            model.candidate_tokens(items)[row],
        ]
    )
    num = items.ids.shape[1]
    domains = [USER] * 2 + [SEQUENCE] * num_older + [REAL_TIME] * num_newest + [CANDIDATE] * num
    times = [None] * (2 + num_older) + newest.times_BL[row, :num_newest].tolist() + [None] * num
    mask_NN = torch.zeros(len(x), len(x))
    for i, mine in enumerate(domains):
        for j, other in enumerate(domains):
            static = other in (USER, SEQUENCE)
            before = other == REAL_TIME and (mine == CANDIDATE or (mine == REAL_TIME and times[j] < times[i]))
            mask_NN[i, j] = i == j or static or before

    def norm(layer, x):
        normal = F.layer_norm(x, (16,))
        return torch.stack([layer.scale[d] * row + layer.shift[d] for d, row in zip(domains, normal, strict=True)])

    for layer in model.layers:
        u, v, q, k = F.silu(layer.gate_value_query_key(norm(layer.norm, x))).split(16, dim=-1)
        heads = []
        for part in (slice(0, 8), slice(8, 16)):
            weights_NN = F.silu(q[:, part] @ k[:, part].T) * mask_NN / mask_NN.sum(1, keepdim=True)
            heads.append(weights_NN @ v[:, part])
        x = x + layer.output(norm(layer.mix_norm, torch.cat(heads, 1) * u))
    return model.head(x[-num:]).squeeze(-1) + model.bias(items.ids[row]).squeeze(-1)


@pytest.mark.parametrize("micro_batch", [1, 2, 64])
def test_kept_keys_in_micro_batches_give_the_logits_of_one_masked_pass(micro_batch):
    model, history = build(micro_batch=micro_batch), tied(histories(LENGTHS))
    items = candidates(5, 5, num_crosses=3)
    with torch.no_grad():
        expected = torch.stack([joint(model, history, items, row) for row in range(5)])
        alone = torch.cat([model(history, one_candidate(items, c)).logits_BC for c in range(5)], 1)
        together = model.score(model.encode_history(history), items)
    torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_the_static_part_may_be_kept_while_new_events_come():
    model, history, items = build(), histories([9, 12]), candidates(2, 5, num_crosses=3)
    older, newest = split_newest(history, 4)
    with torch.no_grad():
        kept = model.encode_static(older)
        torch.testing.assert_close(model.score(model.extend(kept, newest), items), model(history, items).logits_BC)


def test_a_real_time_event_is_seen_only_by_what_comes_later():
    """Keys of the second layer tell whom a changed event reached: tokens with its time or an earlier one stay."""
    model, history = build(), tied(histories([12]))
    changed = history._replace(items=Items((history.items.ids + (torch.arange(12) == 10)) % 50, history.items.codes))
    with torch.no_grad():
        before, after = (model.encode_history(h).keys_BYHNE[0, 1] for h in (history, changed))
    touched = (before - after).abs().amax((0, 2)) > 1e-6
    # Two user tokens and eight of the sequence; then the real-time ones, of which the last two are at one time.
    assert touched.tolist() == [False] * 12 + [True, False]


def test_an_earlier_real_time_event_reaches_the_later_ones():
    model, history = build(), tied(histories([12]))
    changed = history._replace(items=Items((history.items.ids + (torch.arange(12) == 8)) % 50, history.items.codes))
    with torch.no_grad():
        before, after = (model.encode_history(h).keys_BYHNE[0, 1] for h in (history, changed))
    assert ((before - after).abs().amax((0, 2)) > 1e-6).tolist() == [False] * 10 + [True] * 4


def test_crosses_matter_and_none_counts_as_zeros():
    model, history, items = build(), histories([9]), candidates(1, 5, num_crosses=3)
    with torch.no_grad():
        given, zeros, none = (
            model(history, items._replace(crosses=crosses)).logits_BC
            for crosses in (items.crosses, torch.zeros(1, 5, 3), None)
        )
    torch.testing.assert_close(zeros, none)
    assert (given - none).abs().min() > 1e-4


def test_other_crosses_than_the_models_are_refused():
    with pytest.raises(ValueError, match="2 crosses, the model was built for 3"):
        build()(histories([3]), candidates(1, 5, num_crosses=2))


def test_events_before_the_static_part_are_not_seen():
    model, long, items = build(), histories([40]), candidates(1, 5, num_crosses=3)
    with torch.no_grad():
        torch.testing.assert_close(model(long, items).logits_BC, model(newest_events(long, 12), items).logits_BC)


@pytest.mark.parametrize("length", [1, 100_000])
def test_gradients_are_finite(length):
    model = build(width=8, sequence_events=500).train()
    model(histories([length]), candidates(1, 5, num_crosses=3)).logits_BC.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_only_the_crosses_tell_is_learned():
    model, history = build(dropout=0.0).train(), histories([9] * 32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(60):
        items = candidates(32, 5, seed=step, num_crosses=3)
        logits_BC = model(history, items).logits_BC
        loss = F.binary_cross_entropy_with_logits(logits_BC, (items.crosses[..., 1] > 0).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.3
