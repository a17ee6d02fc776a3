"""Models with target attention: what they find is what a brute-force search finds, and chunks change nothing."""

import math

import pytest
import torch

from models.long_history import target_attention
from models.long_history.din import ActivationUnit, Dice, DinConfig
from models.long_history.families import FAMILIES
from models.long_history.inputs import Items
from models.long_history.target_attention import masked_softmax, take_events
from tests.models.long_history.tiny import SIZES, candidates, histories, one_candidate

TINY = SIZES | {"width": 16, "heads": 2, "dropout": 0.0, "item_dropout": 0.0, "embedding_std": 1.0}
VARIANTS = [("din", {}), ("din", {"softmax": True}), ("sim", {}), ("sim", {"search": "hard"}), ("twin", {})]
every_variant = pytest.mark.parametrize(("family", "changes"), VARIANTS)


def build(family, **changes):
    torch.manual_seed(0)
    return FAMILIES[family].build(**TINY | changes).eval()


@pytest.fixture(autouse=True)
def without_gradients(request):
    with torch.set_grad_enabled("gradients" in request.node.name):
        yield


def test_the_activation_unit_is_a_network_over_four_parts_of_each_pair():
    unit = ActivationUnit(DinConfig(**TINY, unit_width=6, layers=2))
    q, k = torch.randn(2, 3, 16), torch.randn(2, 5, 16)
    q4, k4 = q[:, :, None].expand(-1, -1, 5, -1), k[:, None].expand(-1, 3, -1, -1)
    x = unit.activations[0](unit.entry(torch.cat([q4, k4, q4 - k4, q4 * k4], -1)))
    expected = unit.output(unit.activations[1](unit.hidden[0](x))).squeeze(-1)
    torch.testing.assert_close(unit(q, k, torch.ones(2, 5, dtype=torch.bool)), expected)


def test_din_sums_what_it_weighs_unless_asked_for_a_softmax():
    def mass(softmax):
        model = build("din", softmax=softmax)
        encoding, items = model.encode_history(histories([9])), candidates(1, 4)
        ones = encoding._replace(tokens_BLD=torch.ones_like(encoding.tokens_BLD))
        return model._read(ones, model.norm(model.items(items)))[..., 0]

    assert not torch.allclose(mass(False), torch.ones(1, 4))
    torch.testing.assert_close(mass(True), torch.ones(1, 4))


def test_dice_learns_from_real_events_alone():
    dice, valid = Dice(2, momentum=1.0).train(), torch.tensor([[True, True, False]])
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 2.0]], [[100.0, 100.0]]]])
    found = dice(x, valid)
    assert dice.mean_U.tolist() == [2.0, 2.0] and dice.variance_U.tolist() == [1.0, 0.0]
    assert float(found[0, 0, 0, 0]) == pytest.approx(1 / (1 + math.e), abs=1e-5)
    torch.testing.assert_close(dice.eval()(x, valid), found)


@pytest.mark.parametrize("lengths", [[12, 5, 2, 0]])
def test_a_soft_search_finds_the_largest_inner_products(lengths):
    model, history, items = build("sim", found_events=3), histories(lengths), candidates(4, 5)
    tokens = model.events(history, model.items(history.items))
    queries = model.search.candidate(model.item_norm(model.items(items)))
    found = model.found(model.encode_history(history), queries)
    for user, length in enumerate(lengths):
        for candidate in range(5):
            scores = [float(queries[user, candidate] @ model.search.event(tokens[user, at])) for at in range(length)]
            best = sorted(range(length), key=lambda at: -scores[at])[:3]
            assert [at for at in found[user, candidate].tolist() if at >= 0] == best


@pytest.mark.parametrize("lengths", [[40, 5, 2, 0]])
def test_a_hard_search_finds_the_newest_of_the_category_else_the_newest(lengths):
    model, history, items = build("sim", search="hard", found_events=3), histories(lengths), candidates(4, 9)
    found = model.found(model.encode_history(history), items.codes[..., 0])
    fallbacks = 0
    for user, length in enumerate(lengths):
        of = history.items.codes[user, :length, 0].tolist()
        for candidate, category in enumerate(items.codes[user, :, 0].tolist()):
            same = [at for at in range(length) if of[at] == category != 0]
            fallbacks += not same
            best = (same or list(range(length)))[::-1][:3]
            assert [at for at in found[user, candidate].tolist() if at >= 0] == best
    assert 9 < fallbacks < 36


def test_without_semantic_ids_a_hard_search_finds_the_newest():
    model, history = build("sim", search="hard", found_events=2), histories([5])
    bare = history._replace(items=Items(history.items.ids, history.items.codes[..., :0]))
    items = Items(torch.tensor([[1, 2]]), torch.zeros(1, 2, 0, dtype=torch.long))
    found = model.found(model.encode_history(bare), model.search.queries(items, None))
    assert found.tolist() == [[[4, 3], [4, 3]]]


@pytest.mark.parametrize("found", [3, 12, 50])
def test_each_head_of_twin_attends_to_its_largest_scores(found):
    model, history, items = build("twin", found_events=found), histories([12, 2, 0]), candidates(3, 4)
    encoding = model.encode_history(history)
    queries = model.query(model.item_norm(model.items(items)))
    read, scores = model._read(encoding, queries), model.scores(encoding, queries)
    for user, length in enumerate([12, 2, 0]):
        for candidate in range(4):
            for head in range(2):
                mine = scores[user, head, candidate, :length]
                best = mine.argsort(descending=True)[:found]
                values = encoding.values_BLD[user, best, 8 * head : 8 * head + 8]
                expected = mine[best].softmax(0) @ values
                torch.testing.assert_close(read[user, candidate, 8 * head : 8 * head + 8], expected)


def test_sim_that_finds_all_attends_to_all():
    model, history, items = build("sim", found_events=12), histories([12, 2, 0]), candidates(3, 4)
    encoding, candidates_BCD = model.encode_history(history), model.item_norm(model.items(items))
    keys, values = (x.unflatten(-1, (2, 8)).transpose(1, 2) for x in encoding.keys_values_BLD.chunk(2, -1))
    queries = model.query(candidates_BCD).unflatten(-1, (2, 8)).transpose(1, 2)
    weights = masked_softmax(queries @ keys.transpose(-1, -2) / 8**0.5, history.valid_BL[:, None, None])
    read = model.output((weights @ values).transpose(1, 2).flatten(-2))
    expected = model.head(candidates_BCD, read, items.ids)
    torch.testing.assert_close(model.score(encoding, items), expected)
    more = build("sim", found_events=99)
    torch.testing.assert_close(more.score(more.encode_history(history), items), expected)


def test_the_loss_of_the_search_is_linear_in_the_history_and_says_what_pairs_say():
    model, history, items = build("sim"), histories([7, 0]), candidates(2, 3)
    tokens, targets = model.events(history, model.items(history.items)), model.item_norm(model.items(items))
    found = model.search.logits(items, targets, tokens, history.valid_BL)
    scores = model.search.candidate(targets[0]) @ model.search.event(tokens[0, :7]).T
    expected = model.search.head(targets[:1], (scores @ tokens[0, :7] / 7)[None], items.ids[:1])
    torch.testing.assert_close(found[:1], expected)
    torch.testing.assert_close(found[1:], model.search.head(targets[1:], torch.zeros(1, 3, 16), items.ids[1:]))


def test_the_search_has_a_loss_in_training_alone():
    history, items = histories([7, 3]), candidates(2, 3)
    assert float(build("sim").train()(history, items).auxiliary) > 0
    assert float(build("sim")(history, items).auxiliary) == 0
    assert float(build("sim", search="hard").train()(history, items).auxiliary) == 0


@every_variant
@pytest.mark.parametrize("budget", [1, 2_000])
def test_chunks_of_candidates_change_nothing(family, changes, budget, monkeypatch):
    model, history, items = build(family, **changes), histories([9, 4]), candidates(2, 7)
    whole = model(history, items).logits_BC
    monkeypatch.setattr(target_attention, "BUDGET", budget)
    torch.testing.assert_close(model(history, items).logits_BC, whole)


@every_variant
def test_gradients_are_finite_over_a_long_history(family, changes):
    model = build(family, **changes).train()
    output = model(histories([100_000]), candidates(1, 1))
    (output.logits_BC.sum() + output.auxiliary).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.items.own.weight.grad.abs().sum() > 0


@every_variant
def test_many_candidates_against_a_long_history(family, changes):
    model, history, items = build(family, **changes), histories([100_000]), candidates(1, 6)
    encoding = model.encode_history(history)
    logits = model.score(encoding, items)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[:, 4:5], model.score(encoding, one_candidate(items, 4)))


def test_taking_events_by_their_places():
    events, places = torch.arange(24.0).reshape(2, 3, 4), torch.tensor([[[2, 0]], [[1, 1]]])
    assert take_events(events, places)[:, 0, :, 0].tolist() == [[8.0, 0.0], [16.0, 16.0]]


def test_a_softmax_over_nothing_is_nothing():
    scores, mask = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[False, False], [True, False]])
    assert masked_softmax(scores, mask).tolist() == [[0.0, 0.0], [1.0, 0.0]]
