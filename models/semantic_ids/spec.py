"""The form of a semantic ID: levels, widths and collision digit, in one typed value.

Shape letters: N items, L levels.
"""

import dataclasses
import math

import numpy as np

SEPARATOR = "-"


@dataclasses.dataclass(frozen=True)
class SemanticIdSpec:
    """What every reader of semantic IDs must agree on.

    A semantic ID is ``code_1-...-code_L-digit``: one code a level, coarse to fine, and a collision digit that tells
    items of equal codes apart (TIGER, arXiv 2305.05065, section 3.1: 0 where there is no collision).

    Attributes:
        widths: Number of codes of each level.
        version: Version of the codebooks that the codes point into.
        digits: Number of collision digits that the catalogue needs; 0 while no catalogue was encoded.
    """

    widths: tuple[int, ...]
    version: str
    digits: int = 0

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"A semantic ID needs at least one level of at least one code, not widths {self.widths}.")
        object.__setattr__(self, "widths", tuple(int(w) for w in self.widths))

    @property
    def levels(self) -> int:
        """Number of levels, without the collision digit."""
        return len(self.widths)

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Number of tokens at each place of a whole semantic ID, collision digit included.

        Raises:
            ValueError: If no catalogue was encoded yet, so that nobody knows the digits.
        """
        if not self.digits:
            raise ValueError(f"Codebooks {self.version} have encoded no catalogue: materialize clusters/semantic_ids.")
        return (*self.widths, self.digits)

    @property
    def capacity(self) -> int:
        """How many different code sequences there are."""
        return math.prod(self.widths)

    def check(self, codes_NL: np.ndarray) -> np.ndarray:
        """Returns ``codes_NL`` if every code is one of its level's.

        Raises:
            ValueError: If the number of levels or a code is out of range.
        """
        if codes_NL.ndim != 2 or codes_NL.shape[1] != self.levels:
            raise ValueError(f"Codes of shape {codes_NL.shape} do not have the {self.levels} levels of {self.version}.")
        if len(codes_NL) and ((codes_NL < 0) | (codes_NL >= np.asarray(self.widths))).any():
            raise ValueError(f"A code is outside of the widths {self.widths} of codebook {self.version}.")
        return codes_NL

    def format(self, codes_NL: np.ndarray, digits_N: np.ndarray) -> list[str]:
        """The semantic IDs as text."""
        rows = np.column_stack([self.check(codes_NL), digits_N]).tolist()
        return [SEPARATOR.join(map(str, row)) for row in rows]

    def parse(self, text: str) -> tuple[tuple[int, ...], int]:
        """Codes and collision digit of one semantic ID.

        Raises:
            ValueError: If it is no semantic ID of this form.
        """
        parts = text.split(SEPARATOR)
        if len(parts) != self.levels + 1 or not all(p.isdecimal() for p in parts):
            raise ValueError(f"{text!r} is no semantic ID of {self.levels} levels and a collision digit.")
        *codes, digit = map(int, parts)
        self.check(np.array([codes]))
        return tuple(codes), digit


def widths_for(num_items: int, *, levels: int, max_width: int) -> tuple[int, ...]:
    """Widths that suit a catalogue: twice its square root at every level, as the nearest power of two.

    The coarsest codes are the clusters that people read and personas stand on: there are then a few dozen items in
    each, and even a user with a long history has not touched all of them. Three levels hold about
    ``8 * num_items ** 1.5`` code sequences: 32 codes a level for 300 items, 64 for 1,700, and for 12,000 the 256 of
    TIGER (arXiv 2305.05065).

    Args:
        num_items: Items of the catalogue.
        levels: Number of levels.
        max_width: Largest width of a level.
    """
    if levels < 1:
        raise ValueError(f"A semantic ID needs at least one level, not {levels}.")
    num_items = max(num_items, 1)
    width = 2 ** round(math.log2(2 * math.sqrt(num_items)))
    return (min(width, max_width, num_items),) * levels


@dataclasses.dataclass(frozen=True)
class QuantiserConfig:
    """Knobs that every quantiser has.

    Attributes:
        levels: Number of levels.
        widths: Codes of each level; chosen for the catalogue by `widths_for` when empty.
        max_width: Largest width that the rule chooses.
        components: Largest number of principal directions that are quantised.
        whitening: Strength of the whitening before anything else, 0 to 1.
    """

    levels: int = 3
    widths: tuple[int, ...] = ()
    max_width: int = 1024
    components: int = 256
    whitening: float = 0.25

    def __post_init__(self) -> None:
        if self.widths and len(self.widths) != self.levels:
            raise ValueError(f"widths {self.widths} do not name one width for each of the {self.levels} levels.")
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening is a strength from 0 to 1, not {self.whitening}.")

    def planned_widths(self, num_items: int) -> tuple[int, ...]:
        """Width of each level for a catalogue of ``num_items``."""
        return tuple(self.widths) or widths_for(num_items, levels=self.levels, max_width=self.max_width)


def collision_digits(codes_NL: np.ndarray, kept_N: np.ndarray | None = None) -> np.ndarray:
    """Numbers the items of equal codes from 0, in the order given; digits that items have already stay.

    Args:
        codes_NL: Codes.
        kept_N: The digit that an item has had with the same codes, -1 if it had none. Others get the lowest digits
            that are left, so that no new or vanished item moves one that stays.

    Returns:
        Digits of shape (N,), int32; (codes, digit) is unique.
    """
    if not len(codes_NL):
        return np.zeros(0, np.int32)
    _, group_N = np.unique(codes_NL, axis=0, return_inverse=True)
    group_N = group_N.reshape(-1)
    order_N = np.argsort(group_N, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(group_N[order_N]) != 0])
    sizes = np.diff(np.r_[starts, len(order_N)])
    digits_N = np.empty(len(codes_NL), np.int32)
    digits_N[order_N] = np.arange(len(order_N)) - np.repeat(starts, sizes)
    if kept_N is None or (kept_N < 0).all():
        return digits_N
    members = np.split(order_N, starts[1:])
    fixed_N = kept_N >= 0
    digits_N[fixed_N] = kept_N[fixed_N]
    for group in np.unique(group_N[~fixed_N]):
        ours = members[group]
        taken = set(digits_N[ours[fixed_N[ours]]].tolist())
        free = (digit for digit in range(len(ours) + len(taken)) if digit not in taken)
        for item in ours[~fixed_N[ours]]:
            digits_N[item] = next(free)
    return digits_N


def check_dimension(x_ND: np.ndarray, dimension: int) -> None:
    """Refuses vectors of another dimension than codebooks were fitted on.

    Raises:
        ValueError: If they are.
    """
    if x_ND.ndim != 2 or x_ND.shape[1] != dimension:
        raise ValueError(
            f"The codebooks were fitted on vectors of {dimension} dimensions, not on shape {x_ND.shape}: the text "
            "encoder has changed, so run rebuild_clusters."
        )


def check_vectors(x_ND: np.ndarray) -> None:
    """Refuses vectors that nothing can be fitted on.

    Raises:
        ValueError: If there are none, or some are not finite.
    """
    if not len(x_ND):
        raise ValueError("There are no embeddings to learn codebooks from: materialize clusters/item_embeddings first.")
    if not np.isfinite(x_ND).all():
        raise ValueError("Some item embeddings are not finite: materialize clusters/item_embeddings again.")
