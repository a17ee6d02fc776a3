"""SASRec: states see the past alone, positions count within a piece, one set of vectors for input and output."""

import pytest
import torch

from models.long_history.inputs import History
from models.long_history.sasrec import Sasrec, SasrecConfig
from tests.models.long_history.tiny import SIZES, candidates, first_events, histories

TINY = SIZES | {"width": 16, "dropout": 0.0, "item_dropout": 0.0, "embedding_std": 1.0}


def build(**changes):
    torch.manual_seed(0)
    return Sasrec(SasrecConfig(**TINY | {"max_positions": 12} | changes)).eval()


def newest(history, num):
    """Each history's last events, cut by a loop."""
    rows = []
    for row, length in enumerate(history.lengths_B.tolist()):
        kept = slice(max(length - num, 0), max(length, 1))
        items = type(history.items)(history.items.ids[row : row + 1, kept], history.items.codes[row : row + 1, kept])
        columns = (column[row : row + 1, kept] for column in history[1:5])
        rows.append(History(items, *columns, torch.tensor([min(length, num)])))
    return rows


@pytest.mark.parametrize("token", ["item", "event"])
def test_a_state_is_the_encoding_of_what_came_up_to_it(token):
    model, history = build(token=token), histories([9, 4])
    with torch.no_grad():
        states_BLD = model.states(history)
        for seen in range(1, 10):
            encoding_BD = model.encode_history(first_events(history, seen))
            torch.testing.assert_close(states_BLD[:1, seen - 1], encoding_BD[:1])


def test_a_longer_history_keeps_the_newest_events():
    model, long = build(), histories([30, 12, 5, 0, 24])
    with torch.no_grad():
        kept = torch.cat([model.encode_history(row) for row in newest(long, 12)])
        torch.testing.assert_close(model.encode_history(long), kept)


def test_states_of_a_longer_history_are_those_of_its_pieces():
    model, long = build(), histories([30, 12, 5, 0, 24])
    with torch.no_grad():
        states_BLD = model.states(long)
        for row, length in enumerate(long.lengths_B.tolist()):
            edges = [0, *range(length % 12 or 12, length + 1, 12)] if length else [0]
            for start, stop in zip(edges, edges[1:], strict=False):
                piece = newest(first_events(long, stop), stop - start)[row]
                torch.testing.assert_close(states_BLD[row, start:stop], model.states(piece)[0])


def test_scores_are_inner_products_with_the_item_vectors():
    model, history, items = build(), histories([9, 0, 3]), candidates(3, 5)
    torch.nn.init.normal_(model.bias.weight)
    with torch.no_grad():
        vectors_BCD, encoding_BD = model.item_vectors(items), model.encode_history(history)
        expected = (vectors_BCD[..., :-1] * encoding_BD[:, None, :-1]).sum(-1) + model.bias(items.ids).squeeze(-1)
        torch.testing.assert_close(model(history, items).logits_BC, expected)


def test_a_user_without_events_gets_the_biases_at_first():
    model, items = build(), candidates(1, 5)
    torch.nn.init.normal_(model.bias.weight)
    with torch.no_grad():
        torch.testing.assert_close(model(histories([0]), items).logits_BC, model.bias(items.ids).squeeze(-1))


@pytest.mark.parametrize("length", [1, 100_000])
def test_gradients_of_the_full_cross_entropy_are_finite(length):
    model, history = build(max_positions=100, width=8, layers=1).train(), histories([length])
    everything = candidates(1, 50)
    logits_BLI = model.states(history)[:, :-1] @ model.item_vectors(everything).transpose(1, 2)
    if length > 1:
        loss = torch.nn.functional.cross_entropy(logits_BLI.flatten(0, 1), history.items.ids[0, 1:])
    else:
        loss = model(history, everything).logits_BC.square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
