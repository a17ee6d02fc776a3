"""Knobs of the RQ-VAE, apart from its network, so that whoever only names them needs no torch."""

import dataclasses
from typing import Literal, get_args

from models.semantic_ids.spec import widths_for

Gradient = Literal["straight_through", "rotation"]


@dataclasses.dataclass(frozen=True)
class RqVaeConfig:
    """Knobs of the quantiser.

    Attributes:
        levels: Number of levels.
        widths: Codes of each level; chosen for the catalogue by `widths_for` when empty.
        max_width: Largest width that the rule chooses.
        components: Largest number of principal directions that are encoded.
        whitening: Strength of the whitening before the encoder, 0 to 1.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        latent: Width of what is quantised.
        commitment: Weight ``beta`` of the commitment loss.
        gradient: ``straight_through`` or ``rotation``: how the gradient passes the choice of a code.
        revive_after: Batches without a row after which a code is dead and moves to where rows are; 0 never.
        start_items: Items whose residuals the codebooks start from, by k-means.
    """

    levels: int = 3
    widths: tuple[int, ...] = ()
    max_width: int = 1024
    components: int = 128
    whitening: float = 0.5
    hidden: tuple[int, ...] = (256, 128)
    latent: int = 64
    commitment: float = 0.25
    gradient: Gradient = "rotation"
    revive_after: int = 20
    start_items: int = 65_536

    def __post_init__(self) -> None:
        if self.widths and len(self.widths) != self.levels:
            raise ValueError(f"widths {self.widths} do not name one width for each of the {self.levels} levels.")
        if not 0 <= self.whitening <= 1:
            raise ValueError(f"whitening is a strength from 0 to 1, not {self.whitening}.")
        if self.gradient not in get_args(Gradient):
            raise ValueError(f"gradient is {' or '.join(get_args(Gradient))}, not {self.gradient!r}.")

    def planned_widths(self, num_items: int) -> tuple[int, ...]:
        """Width of each level for a catalogue of ``num_items``."""
        return tuple(self.widths) or widths_for(num_items, levels=self.levels, max_width=self.max_width)
