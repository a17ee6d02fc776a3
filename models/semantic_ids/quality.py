"""How good semantic IDs are, and when they have collapsed.

Full utilisation does not mean few collisions (`spec/generative.md`, section 2.2), so entropy and group sizes are
reported too.

Shape letters: N items, D embedding, L levels.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from models.semantic_ids.quantiser import Quantiser

NOTHING_LEFT = 0.01


@dataclasses.dataclass(frozen=True)
class LevelQuality:
    """One level of the codebooks on a catalogue.

    Attributes:
        width: Codes that were planned.
        used: Codes that some item carries.
        utilisation: ``used / width``.
        entropy: Of the level's codes, in nats.
        entropy_ratio: Entropy over the largest that is possible, ``log(min(width, items))``; 1 is even.
        error: Squared reconstruction error of this level and those above, over the variance of the embeddings.
    """

    width: int
    used: int
    utilisation: float
    entropy: float
    entropy_ratio: float
    error: float


@dataclasses.dataclass(frozen=True)
class Quality:
    """Semantic IDs of a catalogue.

    Attributes:
        items: Number of items.
        levels: Each level.
        unique_rate: Distinct code sequences over items.
        collided: Items that share their codes with another.
        largest_group: Largest number of items with the same codes.
    """

    items: int
    levels: tuple[LevelQuality, ...]
    unique_rate: float
    collided: int
    largest_group: int

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "Quality":
        """The value that `dataclasses.asdict` made a dictionary of."""
        return cls(**plain | {"levels": tuple(LevelQuality(**level) for level in plain["levels"])})


@dataclasses.dataclass(frozen=True)
class CollapseBounds:
    """What semantic IDs must reach to be published.

    Attributes:
        min_unique_rate: Least share of distinct code sequences.
        min_entropy_ratio: Least entropy ratio of every level.
        max_group_share: Largest share of the catalogue that may carry the same codes.
        group_free: Groups up to this size are always allowed (re-releases, one title in two languages).
    """

    min_unique_rate: float = 0.7
    min_entropy_ratio: float = 0.5
    max_group_share: float = 0.02
    group_free: int = 5


def measure(quantiser: Quantiser, x_ND: np.ndarray, codes_NL: np.ndarray, planned: Sequence[int]) -> Quality:
    """Measures codes against the embeddings that they stand for.

    Args:
        quantiser: What made the codes.
        x_ND: Embeddings.
        codes_NL: Their codes.
        planned: Planned width of each level.
    """
    num_items = len(x_ND)
    variance = float(((x_ND - x_ND.mean(0)) ** 2).sum())
    levels = []
    for level, width in enumerate(planned):
        count = np.bincount(codes_NL[:, level])
        share = count[count > 0] / num_items
        entropy = float(-(share * np.log(share)).sum())
        largest = np.log(min(width, num_items))
        error = float(((x_ND - quantiser.decode(codes_NL, levels=level + 1)) ** 2).sum())
        levels.append(
            LevelQuality(
                width=int(width),
                used=len(share),
                utilisation=len(share) / width,
                entropy=abs(entropy),
                entropy_ratio=abs(entropy) / float(largest) if largest > 0 else 1.0,
                error=error / variance if variance > 1e-9 * num_items else 0.0,
            )
        )
    _, group = np.unique(codes_NL, axis=0, return_counts=True)
    return Quality(
        items=num_items,
        levels=tuple(levels),
        unique_rate=len(group) / num_items,
        collided=int(group[group > 1].sum()),
        largest_group=int(group.max()),
    )


def collapse_reasons(quality: Quality, bounds: CollapseBounds) -> list[str]:
    """Why the semantic IDs may not be published; empty if they may.

    Returns:
        One sentence a reason, with what was observed and its threshold.
    """
    reasons: list[str] = []
    if quality.items <= bounds.group_free:
        return reasons
    if quality.unique_rate < bounds.min_unique_rate:
        reasons.append(
            f"Only {quality.unique_rate:.1%} of the items have codes of their own "
            f"(threshold {bounds.min_unique_rate:.0%})."
        )
    left = 1.0
    for i, level in enumerate(quality.levels):
        # A tiny catalogue is told apart by its first level: deeper ones have nothing left to say.
        if level.entropy_ratio < bounds.min_entropy_ratio and left > NOTHING_LEFT:
            reasons.append(
                f"Level {i} has {level.entropy_ratio:.0%} of its possible entropy (threshold "
                f"{bounds.min_entropy_ratio:.0%}), with {level.used} of {level.width} codes in use."
            )
        left = level.error
    allowed = max(bounds.group_free, bounds.max_group_share * quality.items)
    if quality.largest_group > allowed:
        reasons.append(f"{quality.largest_group} items share one code sequence (threshold {allowed:.0f}).")
    return reasons
