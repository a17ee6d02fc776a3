"""Laws of VISTA: cached = joint, candidates apart, padding without effect, finite gradients, one golden loss."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models.vista.model import History, Items, Vista, VistaConfig, log_bucket

TINY = VistaConfig(
    num_items=50,
    num_codes=13,
    num_actions=3,
    num_values=7,
    num_seeds=4,
    width=16,
    dropout=0.0,
    item_dropout=0.0,
    target_layers=2,
)


def histories(lengths, seed=0, levels=3):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(max(lengths), 1))

    def draw(high, *more):
        return torch.randint(0, high, (*shape, *more), generator=generator)

    return History(Items(draw(50), draw(13, levels)), draw(3), draw(7), draw(20), torch.tensor(lengths))


def candidates(rows, num, seed=1, levels=3):
    generator = torch.Generator().manual_seed(seed)
    return Items(
        torch.randint(0, 50, (rows, num), generator=generator),
        torch.randint(0, 13, (rows, num, levels), generator=generator),
    )


def vista(**changes):
    torch.manual_seed(0)
    return Vista(dataclasses.replace(TINY, **changes)).eval()


@pytest.mark.parametrize("attention", ["quasi_linear", "softmax"])
def test_scores_from_cached_summaries_are_those_of_the_joint_pass(attention):
    model, history, items = vista(attention=attention), histories([9, 0, 3]), candidates(3, 5)
    with torch.no_grad():
        joint = model(history, items).logits_BC
        cached = model.score(model.summarize(history), items)
    assert model.summarize(history).shape == (3, 4, 16)
    torch.testing.assert_close(cached, joint)


def test_a_candidate_does_not_see_the_others():
    model, history, items = vista(), histories([9, 4]), candidates(2, 5)
    with torch.no_grad():
        together = model(history, items).logits_BC
        alone = torch.cat(
            [model(history, Items(items.ids[:, [c]], items.codes[:, [c]])).logits_BC for c in range(5)], 1
        )
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("attention", ["quasi_linear", "softmax"])
def test_padding_changes_nothing(attention):
    model, long = vista(attention=attention), histories([9, 4])
    short = History(
        Items(long.items.ids[1:, :4], long.items.codes[1:, :4]),
        long.actions_BL[1:, :4],
        long.values_BL[1:, :4],
        long.gaps_BL[1:, :4],
        long.lengths_B[1:],
    )
    with torch.no_grad():
        torch.testing.assert_close(model.summarize(long)[1:], model.summarize(short))


def test_order_of_events_matters():
    model, history = vista(), histories([6])
    turned = history._replace(items=Items(history.items.ids.flip(1), history.items.codes.flip(1)))
    assert not torch.allclose(model.summarize(history), model.summarize(turned))


@pytest.mark.parametrize("length", [0, 1, 2, 5000])
def test_gradients_are_finite(length):
    model = vista().train()
    output = model(histories([length]), candidates(1, 3))
    (output.logits_BC.sum() + output.reconstruction).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found and all(torch.isfinite(g).all() for g in found)
    assert model.summarizer.seeds_KD.grad.abs().sum() > 0


def test_reconstruction_targets_are_constants_unless_asked_otherwise():
    def gradient_of_last_event(stop):
        model = vista(stop_gradient=stop, reconstruction_weight=1.0).train()
        tokens = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        summary = torch.zeros(1, 4, 16)
        model.decoder(summary, tokens, torch.tensor([5])).backward()
        return tokens.grad[0, -1].abs().sum()

    assert gradient_of_last_event(True) == 0
    assert gradient_of_last_event(False) > 0


def test_reconstruction_window_is_the_newest_events():
    model = vista(reconstruction_events=3).train()
    tokens = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    summary = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([8, 2])
    changed = tokens.clone()
    changed[0, :5] += 1
    changed[1, 2:] += 1
    torch.testing.assert_close(model.decoder(summary, tokens, lengths), model.decoder(summary, changed, lengths))


def test_golden_loss_of_a_tiny_model():
    model = vista()
    with torch.no_grad():
        logits = model(histories([9, 4, 1]), candidates(3, 5)).logits_BC
    labels = (torch.arange(15).reshape(3, 5) % 2).float()
    assert float(F.binary_cross_entropy_with_logits(logits, labels)) == pytest.approx(GOLDEN, abs=1e-5)


def test_width_must_fit_the_heads():
    with pytest.raises(ValueError, match="multiple of the 3 heads"):
        vista(heads=3)


def test_log_buckets():
    assert log_bucket(torch.tensor([0, 1, 2, 3, 1023, 2**62])).tolist() == [1, 2, 2, 3, 11, 63]


GOLDEN = 0.701171
