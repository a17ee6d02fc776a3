"""Histories of any length from a seed, made in parts, so that none has to be whole in memory."""

from collections.abc import Iterator

import numpy as np
import torch

from models.long_history.inputs import History, Items

SIZES = {"num_items": 20_000, "num_codes": 769, "num_actions": 4, "num_values": 8}
"""Constructor arguments of a model for these histories and candidates."""
LEVELS = 3
PART = 4096
START = 1_600_000_000


def parts(length: int, seed: int = 0) -> Iterator[History]:
    """One user's history in parts of at most ``PART`` events, oldest first; the same at every call."""
    for number, start in enumerate(range(0, max(length, 1), PART)):
        yield _part(min(length - start, PART), START + 16 * start, [seed, number])


def whole(length: int, seed: int = 0) -> History:
    """The same history in one."""
    made = list(parts(length, seed))
    return History(
        Items(torch.cat([h.items.ids for h in made], 1), torch.cat([h.items.codes for h in made], 1)),
        torch.cat([h.actions_BL for h in made], 1),
        torch.cat([h.values_BL for h in made], 1),
        torch.cat([h.gaps_BL for h in made], 1),
        torch.cat([h.times_BL for h in made], 1),
        torch.tensor([length]),
    )


def candidates(count: int, seed: int = 1) -> Items:
    """Candidates of one user, 1 x C."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, SIZES["num_items"], (1, count), generator=generator)
    return Items(ids, _codes_of(ids))


def _part(length: int, start: int, seed: list[int]) -> History:
    """One part; a popular item comes often, as items do."""
    rng = np.random.default_rng(seed)
    shape = (1, max(length, 1))
    popular = np.minimum(rng.zipf(1.2, shape), SIZES["num_items"] - 1)
    ids = torch.from_numpy(popular.astype(np.int64))
    gaps = rng.integers(0, 16, shape)
    times = start + np.cumsum(gaps, axis=1)
    return History(
        Items(ids, _codes_of(ids)),
        torch.from_numpy(rng.integers(1, SIZES["num_actions"], shape)),
        torch.from_numpy(rng.integers(0, SIZES["num_values"], shape)),
        torch.from_numpy(np.log2(1.0 + gaps).astype(np.int64) + 1),
        torch.from_numpy(times),
        torch.tensor([length]),
    )


def _codes_of(ids: torch.Tensor) -> torch.Tensor:
    """Codes that are a function of the item, as those of semantic IDs are."""
    digits = torch.stack([ids % 256, ids // 7 % 256, ids // 31 % 256], -1)
    return 1 + digits + 256 * torch.arange(LEVELS)
