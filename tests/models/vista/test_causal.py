"""What causal VISTA holds beside the laws of incremental models: states that are stored, long histories, causality."""

import dataclasses

import pytest
import torch

from models.long_history.inputs import Items
from models.vista import causal
from models.vista.causal import CausalVista, CausalVistaConfig
from models.vista.states import pack, unpack
from tests.models.long_history.tiny import SIZES, candidates, histories

TINY = CausalVistaConfig(**SIZES, num_seeds=4, width=16, dropout=0.0, item_dropout=0.0, target_layers=2)


def vista(**changes):
    torch.manual_seed(0)
    return CausalVista(dataclasses.replace(TINY, **changes)).eval()


@pytest.mark.parametrize("half_life", [0.0, 16.0])
def test_order_of_events_matters(half_life):
    model, history = vista(half_life=half_life), histories([6])
    turned = history._replace(items=Items(history.items.ids.flip(1), history.items.codes.flip(1)))
    assert not torch.allclose(model.encode_history(history), model.encode_history(turned), rtol=1e-3, atol=1e-3)


def test_stored_states_come_back_to_the_bit():
    model = vista()
    with torch.no_grad():
        state = model.extend(model.empty_state(3), histories([9, 0, 3]))
    packed = pack(state).to_pylist()
    # A matrix a layer and head in single precision, and a count.
    assert {len(row) for row in packed} == {TINY.layers * TINY.width * (TINY.width // TINY.heads) * 4 + 8}
    back = unpack(model, packed)
    assert back.count_B.tolist() == [9, 0, 3] and back.count_B.dtype == torch.int64
    assert torch.equal(back.means_BNHEE, state.means_BNHEE) and back.means_BNHEE.dtype == torch.float32


def test_a_state_of_another_network_is_refused():
    with pytest.raises(ValueError, match="is not of this model.*computes all of them anew"):
        unpack(vista(), [bytes(28), bytes(28)])


def test_a_network_in_half_precision_remembers_in_single():
    history = histories([70, 9])
    with torch.no_grad():
        exact, model = vista().encode_history(history), vista().to(torch.bfloat16)
        state = model.extend(model.empty_state(2), history)
        summary = model.read(state)
    assert state.means_BNHEE.dtype == torch.float32 and summary.dtype == torch.bfloat16
    torch.testing.assert_close(summary.float(), exact, atol=0.1, rtol=0.1)


def test_softmax_is_refused():
    with pytest.raises(ValueError, match="set attention to quasi_linear"):
        vista(attention="softmax")


def test_long_histories_are_worked_through_in_parts(monkeypatch):
    model, history = vista(), histories([100, 7])
    with torch.no_grad():
        whole = model.encode_history(history)
        monkeypatch.setattr(causal, "PART", 16)
        torch.testing.assert_close(model.encode_history(history), whole)


def test_gradients_of_parts_are_those_of_the_whole(monkeypatch):
    def gradients():
        model = vista().train()
        output = model(histories([40, 7]), candidates(2, 3))
        (output.logits_BC.square().sum() + output.auxiliary).backward()
        return [p.grad for p in model.parameters()]

    whole = gradients()
    monkeypatch.setattr(causal, "PART", 16)
    torch.testing.assert_close(gradients(), whole)


@pytest.mark.parametrize("length", [0, 1, 100_000])
def test_gradients_are_finite(length):
    model = vista(width=8).train()
    output = model(histories([length]), candidates(1, 3))
    (output.logits_BC.sum() + output.auxiliary).backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found and all(torch.isfinite(g).all() for g in found)
    assert model.summarizer.seeds_KD.grad.abs().sum() > 0
