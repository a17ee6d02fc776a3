"""What every quantiser of semantic IDs offers, and how a saved one comes back."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from models.semantic_ids.residual_kmeans import ResidualKMeans
from models.semantic_ids.spec import SemanticIdSpec


@runtime_checkable
class Quantiser(Protocol):
    """A fitted quantiser: vectors to codes, coarse to fine, and back. Encoding and decoding are deterministic.

    Shape letters: N items, D embedding, R components of the quantiser's space, L levels, K codes of a level.
    """

    method: ClassVar[str]
    """Name by which configuration chooses it."""

    @property
    def centroids(self) -> tuple[np.ndarray, ...]:
        """K x R centroids of each level."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Codes of each level."""

    def spec(self, version: str) -> SemanticIdSpec:
        """The form of the semantic IDs that it gives."""

    def encode(self, x_ND: np.ndarray) -> np.ndarray:
        """Codes of vectors, also of such that it has never seen; shape (N, L), int32."""

    def last_codes(self, x_ND: np.ndarray, num: int) -> np.ndarray:
        """The ``num`` nearest codes of the last level, below the codes that `encode` gives the levels above.

        Returns:
            Codes of shape (N, num), int32, nearest first: the first is that of `encode`.
        """

    def decode(self, codes_NL: np.ndarray, *, levels: int | None = None) -> np.ndarray:
        """Vectors that the first ``levels`` codes stand for (all by default), shape (N, D)."""

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON arguments that `restored` takes."""


def restored(method: str, arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> Quantiser:
    """The quantiser that ``state`` described.

    Raises:
        ValueError: If there is no such method.
    """
    if method == ResidualKMeans.method:
        return ResidualKMeans.from_state(arrays, arguments)
    from models.semantic_ids.rqvae import RqVae

    if method == RqVae.method:
        return RqVae.from_state(arrays, arguments)
    raise ValueError(f"There is no quantiser {method!r}: these codebooks are of a newer release than this one.")
