"""Models that foretell the next item learn what is there to learn, each within a few steps."""

import pytest
import torch
import torch.nn.functional as F

from models.long_history.families import FAMILIES
from models.long_history.inputs import History, Items
from models.long_history.interface import NextItemModel

NUM_ITEMS = 20
NEXT_ITEM = [name for name, family in FAMILIES.items() if issubclass(family.model, NextItemModel)]


def walks(generator, rows=32, length=12):
    """Users who walk in a circle of items, some by one, some by two: one event does not tell what follows."""
    start = torch.randint(0, NUM_ITEMS, (rows, 1), generator=generator)
    step = torch.randint(1, 3, (rows, 1), generator=generator)
    ids_BL = 1 + (start + step * torch.arange(length)) % NUM_ITEMS
    zeros_BL = torch.zeros_like(ids_BL)
    times_BL = 100 * torch.arange(length).expand(rows, -1)
    lengths_B = torch.full((rows,), length)
    return History(Items(ids_BL, zeros_BL[..., None]), zeros_BL, zeros_BL, zeros_BL, times_BL, lengths_B)


def test_there_are_such_models():
    assert {"sasrec", "hstu"} <= set(NEXT_ITEM)


@pytest.mark.parametrize("family", NEXT_ITEM)
def test_the_next_item_is_learned_from_more_than_the_last(family):
    torch.manual_seed(0)
    sizes = {"num_items": NUM_ITEMS + 1, "num_codes": 1, "num_actions": 1, "num_values": 1}
    model = FAMILIES[family].build(**sizes, width=16, dropout=0.0, item_dropout=0.0).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    everything = Items(torch.arange(NUM_ITEMS + 1), torch.zeros(NUM_ITEMS + 1, 1, dtype=torch.int64))
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        history = walks(generator)
        logits_BLI = model.states(history)[:, 1:-1] @ model.item_vectors(everything).T
        loss = F.cross_entropy(logits_BLI.flatten(0, 1), history.items.ids[:, 2:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        history = walks(generator)
        found_BL = (model.eval().states(history)[:, 1:-1] @ model.item_vectors(everything).T).argmax(-1)
    # One who knew the last item alone would be right half of the time.
    assert (found_BL == history.items.ids[:, 2:]).float().mean() > 0.95
