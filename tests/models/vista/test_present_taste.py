"""Behaviour: heads that forget let causal VISTA tell what a user likes now from what the user liked for long."""

import torch
import torch.nn.functional as F

from models.long_history.inputs import History, Items
from models.ranking.metrics import auc
from models.vista.causal import CausalVista, CausalVistaConfig

EVENTS, NOW, KINDS = 48, 16, 4


def drawn(generator, users, shuffled=False):
    """Half of the newest events are of the kind that is liked, half of the older ones of another that was."""
    ids = torch.randint(4, 20, (users, EVENTS), generator=generator)
    liked, before = (torch.randint(1, 1 + KINDS, (users, 1), generator=generator) for _ in range(2))
    telling = torch.rand(users, EVENTS, generator=generator) < 0.5
    kind = torch.where(torch.arange(EVENTS) >= EVENTS - NOW, liked, before)
    ids = torch.where(telling, ids % 4 + 4 * kind, ids)
    if shuffled:
        ids = ids[:, torch.randperm(EVENTS, generator=generator)]
    candidates = torch.randint(4, 20, (users, 8), generator=generator)
    none = torch.zeros_like(ids)
    history = History(Items(ids, none[..., None]), none, none, none, none, torch.full((users,), EVENTS))
    return history, Items(candidates, torch.zeros_like(candidates)[..., None]), (candidates // 4 == liked).float()


def test_the_present_taste_is_learned_from_the_order_of_events():
    torch.manual_seed(0)
    model = CausalVista(
        CausalVistaConfig(
            num_items=20,
            num_codes=1,
            num_actions=1,
            num_values=1,
            width=16,
            num_seeds=8,
            dropout=0.0,
            item_dropout=0.0,
            embedding_std=1.0,
            reconstruction_weight=0.0,
            half_life=16.0,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(160):
        history, candidates, labels = drawn(generator, 64)
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(model(history, candidates).logits_BC, labels).backward()
        optimizer.step()

    def found(shuffled):
        history, candidates, labels = drawn(torch.Generator().manual_seed(2), 300, shuffled)
        with torch.no_grad():
            logits = model.eval()(history, candidates).logits_BC
        return float(auc(logits.flatten().numpy(), labels.flatten().numpy())[0])

    in_order = found(shuffled=False)
    assert in_order > 0.8
    assert in_order > found(shuffled=True) + 0.1
