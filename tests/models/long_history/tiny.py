"""Tiny random histories and candidates, for the laws of all models of long histories."""

import torch

from models.long_history.inputs import History, Items

SIZES = {"num_items": 50, "num_codes": 13, "num_actions": 3, "num_values": 7}
LEVELS = 3


def histories(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(max(lengths), 1))

    def draw(high, *more):
        return torch.randint(0, high, (*shape, *more), generator=generator)

    lengths_B = torch.tensor(lengths)
    real_BL = torch.arange(shape[1]) < lengths_B[:, None]
    items, actions_BL, values_BL, gaps_BL = Items(draw(50), draw(13, LEVELS)), draw(3), draw(7), draw(20)
    times_BL = torch.where(real_BL, 1_600_000_000 + draw(5000).cumsum(1), 0)
    return History(items, actions_BL, values_BL, gaps_BL, times_BL, lengths_B)


def candidates(rows, num, seed=1, num_crosses=0):
    generator = torch.Generator().manual_seed(seed)
    return Items(
        torch.randint(0, 50, (rows, num), generator=generator),
        torch.randint(0, 13, (rows, num, LEVELS), generator=generator),
        torch.randn((rows, num, num_crosses), generator=generator) if num_crosses else None,
    )


def one_candidate(items, place):
    return Items(*(part if part is None else part[:, [place]] for part in items))


def first_events(history, num):
    """Every history cut to at most its first ``num`` events."""
    return History(
        Items(history.items.ids[:, :num], history.items.codes[:, :num]),
        history.actions_BL[:, :num],
        history.values_BL[:, :num],
        history.gaps_BL[:, :num],
        history.times_BL[:, :num],
        history.lengths_B.clamp(max=num),
    )
