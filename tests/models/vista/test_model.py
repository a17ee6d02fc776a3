"""What VISTA holds beside the laws of all models of long histories: its decoder, long gradients, one golden loss."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from models.long_history.inputs import Items, log_bucket
from models.vista.model import Vista, VistaConfig
from tests.models.long_history.tiny import SIZES, candidates, histories

TINY = VistaConfig(
    **SIZES,
    num_seeds=4,
    width=16,
    dropout=0.0,
    item_dropout=0.0,
    target_layers=2,
)


def vista(**changes):
    torch.manual_seed(0)
    return Vista(dataclasses.replace(TINY, **changes)).eval()


def test_a_summary_has_one_token_a_seed():
    assert vista().encode_history(histories([9, 0, 3])).shape == (3, 4, 16)


def test_order_of_events_matters():
    model, history = vista(), histories([6])
    turned = history._replace(items=Items(history.items.ids.flip(1), history.items.codes.flip(1)))
    assert not torch.allclose(model.encode_history(history), model.encode_history(turned))


@pytest.mark.parametrize("length", [0, 1, 2, 5000])
def test_gradients_are_finite(length):
    model = vista().train()
    output = model(histories([length]), candidates(1, 3))
    (output.logits_BC.sum() + output.auxiliary).backward()
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
