"""Knobs of the RQ-VAE, apart from its network, so that whoever only names them needs no torch."""

import dataclasses
from typing import Literal, get_args

from models.semantic_ids.spec import QuantiserConfig

Gradient = Literal["straight_through", "rotation"]


@dataclasses.dataclass(frozen=True)
class RqVaeConfig(QuantiserConfig):
    """Knobs of the quantiser, beside those of every quantiser.

    Attributes:
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        latent: Width of what is quantised.
        commitment: Weight ``beta`` of the commitment loss.
        gradient: ``straight_through`` or ``rotation``: how the gradient passes the choice of a code.
        revive_after: Batches without a row after which a code is dead and moves to where rows are; 0 never.
        start_items: Items whose residuals the codebooks start from, by k-means.
    """

    hidden: tuple[int, ...] = (256, 128)
    latent: int = 64
    commitment: float = 0.25
    gradient: Gradient = "rotation"
    revive_after: int = 20
    start_items: int = 65_536

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gradient not in get_args(Gradient):
            raise ValueError(f"gradient is {' or '.join(get_args(Gradient))}, not {self.gradient!r}.")
