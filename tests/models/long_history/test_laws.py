"""Laws of every model of long histories: cached = joint, candidates apart, padding without effect, finite gradients."""

import pytest
import torch

from models.long_history.families import FAMILIES
from tests.models.long_history.tiny import SIZES, candidates, first_events, histories, one_candidate

TINY = SIZES | {"width": 16, "heads": 2, "layers": 2, "dropout": 0.0, "item_dropout": 0.0, "embedding_std": 1.0}
VARIANTS = {
    "vista-softmax": ("vista", {"attention": "softmax"}),
    "din-softmax": ("din", {"softmax": True}),
    "din-dice": ("din", {"dice": True}),
    "sim-hard": ("sim", {"search": "hard", "found_events": 3}),
    "sim-few": ("sim", {"found_events": 3}),
    "twin-few": ("twin", {"found_events": 3}),
}
CASES = {name: (name, {}) for name in FAMILIES} | VARIANTS
every_case = pytest.mark.parametrize("case", CASES)


def build(case):
    family, changes = CASES[case]
    torch.manual_seed(0)
    return FAMILIES[family].build(**TINY | changes).eval()


@every_case
def test_scores_from_a_kept_encoding_are_those_of_the_joint_pass(case):
    model, history, items = build(case), histories([9, 0, 3]), candidates(3, 5)
    with torch.no_grad():
        kept = model.score(model.encode_history(history), items)
        torch.testing.assert_close(kept, model(history, items).logits_BC)


@every_case
def test_a_candidate_does_not_see_the_others(case):
    model, history, items = build(case), histories([9, 4]), candidates(2, 5)
    with torch.no_grad():
        together = model(history, items).logits_BC
        alone = torch.cat([model(history, one_candidate(items, c)).logits_BC for c in range(5)], 1)
    torch.testing.assert_close(together, alone)


@every_case
def test_padding_changes_nothing(case):
    model, long, items = build(case), histories([9, 4]), candidates(2, 5)
    short = first_events(long, 4)
    with torch.no_grad():
        torch.testing.assert_close(model(long, items).logits_BC[1:], model(short, items).logits_BC[1:])


@every_case
def test_the_history_matters(case):
    model, items = build(case), candidates(2, 5)
    with torch.no_grad():
        one, other = (model(histories([9, 4], seed), items).logits_BC for seed in (0, 5))
    assert (one - other).abs().max() > 1e-4


@every_case
@pytest.mark.parametrize("lengths", [[1, 1], [0, 2], [40, 3]])
def test_gradients_are_finite_and_reach_every_parameter(case, lengths):
    model = build(case).train()
    output = model(histories(lengths), candidates(2, 5))
    (output.logits_BC.square().sum() + output.auxiliary).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if max(lengths) > 1:
        assert not [name for name, p in model.named_parameters() if p.grad is None]
