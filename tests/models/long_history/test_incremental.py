"""Law of models that are refreshed by new events alone: any split of a history gives what the whole gives."""

import pytest
import torch
from torch.utils import _pytree as pytree

from models.long_history.families import FAMILIES
from models.long_history.inputs import History
from models.long_history.interface import IncrementalModel
from models.long_history.parts import newest_events, part
from tests.models.long_history.tiny import SIZES, candidates, first_events, histories

TINY = SIZES | {"width": 16, "heads": 2, "layers": 3, "dropout": 0.0, "item_dropout": 0.0, "embedding_std": 1.0}
CASES = {name: (name, {}) for name, family in FAMILIES.items() if issubclass(family.model, IncrementalModel)}
CASES |= {"vista_causal-forgets-nothing": ("vista_causal", {"half_life": 0.0})}
every_case = pytest.mark.parametrize("case", CASES)
LENGTHS = [90, 0, 1, 37, 64]


def build(case):
    family, changes = CASES[case]
    torch.manual_seed(0)
    return FAMILIES[family].build(**TINY | changes).eval()


def ragged_parts(history, ends_PB):
    """Cuts every user's history at places of its own: part p of user b ends at ``ends_PB[p, b]``."""
    starts_PB = torch.cat([torch.zeros_like(ends_PB[:1]), ends_PB[:-1]])
    for starts, ends in zip(starts_PB, ends_PB, strict=True):
        lengths = ends - starts
        places = (starts[:, None] + torch.arange(max(int(lengths.max()), 1))).clamp(max=history.actions_BL.shape[1] - 1)
        rows = torch.arange(len(lengths))[:, None]
        columns = pytree.tree_map_only(torch.Tensor, lambda x, at=(rows, places): x[at], history[:-1])
        yield History(*columns, lengths)


@every_case
@pytest.mark.parametrize("seed", range(4))
def test_any_split_gives_the_state_of_the_whole(case, seed):
    model, history, items = build(case), histories(LENGTHS), candidates(len(LENGTHS), 4)
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(6, len(LENGTHS), generator=generator).sort(0).values
    shares[-1] = 1
    shares[2] = shares[1]
    ends_PB = (shares * torch.tensor(LENGTHS)).round().long()
    with torch.no_grad():
        whole = model.extend(model.empty_state(len(LENGTHS)), history)
        state = model.empty_state(len(LENGTHS))
        for some in ragged_parts(history, ends_PB):
            state = model.extend(state, some)
        pytree.tree_map(torch.testing.assert_close, state, whole)
        torch.testing.assert_close(model.score(model.read(state), items), model(history, items).logits_BC)


@every_case
def test_one_event_after_the_other(case):
    model, history = build(case), histories([40, 25])
    with torch.no_grad():
        state = model.empty_state(2)
        for at in range(40):
            state = model.extend(state, part(history, at, at + 1))
        torch.testing.assert_close(model.read(state), model.encode_history(history))


@every_case
def test_no_new_events_change_nothing(case):
    model = build(case)
    with torch.no_grad():
        state = model.extend(model.empty_state(2), histories([9, 4]))
        after = model.extend(state, histories([0, 0]))
    assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(state), pytree.tree_leaves(after), strict=True))


@every_case
def test_the_size_of_a_state_does_not_know_the_history(case):
    model = build(case)
    with torch.no_grad():
        small, large = (model.extend(model.empty_state(1), histories([num])) for num in (1, 500))
    assert [x.shape for x in pytree.tree_leaves(small)] == [x.shape for x in pytree.tree_leaves(large)]


def test_parts_and_newest_events():
    history = histories([9, 2, 0])
    assert part(history, 1, 4).lengths_B.tolist() == [3, 1, 0]
    assert torch.equal(part(history, 1, 4).items.codes, history.items.codes[:, 1:4])
    last = newest_events(history, 4)
    assert last.lengths_B.tolist() == [4, 2, 0]
    assert torch.equal(last.items.codes[0], history.items.codes[0, 5:9])
    assert torch.equal(last.times_BL[1, :2], history.times_BL[1, :2])
    assert newest_events(history, 50).actions_BL.shape == history.actions_BL.shape
    assert torch.equal(newest_events(first_events(history, 2), 4).values_BL, history.values_BL[:, :2])
