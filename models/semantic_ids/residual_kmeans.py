"""Residual k-means: a vector becomes one code a level, each level quantising what the levels above left over.

After RQ-KMeans of OneRec (arXiv 2506.13695) and RK-Means of GRID (residuals normalised). Here a level clusters the
*directions* of the residuals and one gain a level brings the centroid back to scale. Without that, the few items with
large residuals draw more codes of the deep levels than their share, and codes are used less evenly.

Shape letters: N items, D embedding, R components of the quantiser's space, L levels, K codes of a level.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from threadpoolctl import threadpool_limits

from models.semantic_ids.kmeans import fit_kmeans, nearest, nearest_first
from models.semantic_ids.spec import QuantiserConfig, SemanticIdSpec, check_dimension, check_vectors
from models.semantic_ids.transform import Whitening, fit_whitening

SMALLEST_NORM = 1e-6


@dataclasses.dataclass(frozen=True)
class ResidualKMeansConfig(QuantiserConfig):
    """Knobs of the quantiser, beside those of every quantiser.

    Attributes:
        unit_residuals: Whether levels cluster directions instead of residuals as they are.
        balance: Most items of a code while a level is fitted, in even shares (1: all codes alike); 0 sets no limit.
        num_restarts: k-means++ starts of a level; the best is kept.
        max_iterations: Lloyd steps of a start.
        max_fit_items: Larger catalogues are fitted on a seeded sample of this size.
        points_per_code: A level is fitted on a seeded sample of at most so many vectors for each of its codes.
        seed: Seed of sample and starts.
    """

    unit_residuals: bool = True
    balance: float = 0.0
    num_restarts: int = 1
    max_iterations: int = 100
    max_fit_items: int = 500_000
    points_per_code: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance and self.balance < 1:
            raise ValueError(f"balance is 0 (no limit) or at least 1 (all codes alike), not {self.balance}.")


def _directions(residual_NR: np.ndarray) -> np.ndarray:
    norm_N1 = np.linalg.norm(residual_NR, axis=1, keepdims=True)
    return np.where(norm_N1 > SMALLEST_NORM, residual_NR / np.maximum(norm_N1, SMALLEST_NORM), 0.0)


@dataclasses.dataclass(frozen=True)
class ResidualKMeans:
    """A fitted quantiser. Its arrays are float32, so that it encodes the same after being saved.

    Attributes:
        whitening: From embeddings to the quantiser's space and back.
        centroids: K x R centroids of each level.
        gains: Scale of each level's centroids in the residual; 1 where levels cluster residuals as they are.
        unit_residuals: As in the config.
    """

    method: ClassVar[str] = "rq_kmeans"

    whitening: Whitening
    centroids: tuple[np.ndarray, ...]
    gains: tuple[float, ...]
    unit_residuals: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Codes of each level."""
        return tuple(len(c) for c in self.centroids)

    def spec(self, version: str) -> SemanticIdSpec:
        """The form of the semantic IDs that this quantiser gives."""
        return SemanticIdSpec(self.widths, version)

    def encode(self, x_ND: np.ndarray) -> np.ndarray:
        """Codes of vectors, also of such that the quantiser has never seen.

        Args:
            x_ND: Embeddings.

        Returns:
            Codes of shape (N, L), int32.

        Raises:
            ValueError: If the vectors have another dimension than the fitted ones.
        """
        check_dimension(x_ND, len(self.whitening.mean_D))
        residual_NR = self.whitening.apply(x_ND)
        codes = np.empty((len(x_ND), len(self.centroids)), np.int32)
        for level, (centroids_KR, gain) in enumerate(zip(self.centroids, self.gains, strict=True)):
            codes[:, level], residual_NR = self._step(residual_NR, centroids_KR, gain)
        return codes

    def last_codes(self, x_ND: np.ndarray, num: int) -> np.ndarray:
        """See `Quantiser.last_codes`."""
        codes_NL = self.encode(x_ND)
        residual_NR = self.whitening.apply(x_ND)
        for level, (centroids_KR, gain) in enumerate(zip(self.centroids[:-1], self.gains[:-1], strict=True)):
            residual_NR = residual_NR - gain * centroids_KR[codes_NL[:, level]]
        points_NR = _directions(residual_NR) if self.unit_residuals else residual_NR
        return nearest_first(points_NR, self.centroids[-1], num)

    def _step(self, residual_NR: np.ndarray, centroids_KR: np.ndarray, gain: float) -> tuple[np.ndarray, np.ndarray]:
        code_N = nearest(_directions(residual_NR) if self.unit_residuals else residual_NR, centroids_KR)
        return code_N, residual_NR - gain * centroids_KR[code_N]

    def decode(self, codes_NL: np.ndarray, *, levels: int | None = None) -> np.ndarray:
        """Vectors that the first ``levels`` codes stand for (all by default), shape (N, D)."""
        num_levels = len(self.centroids) if levels is None else levels
        z_NR = np.zeros((len(codes_NL), self.centroids[0].shape[1]))
        for level in range(num_levels):
            z_NR += self.gains[level] * self.centroids[level][codes_NL[:, level]]
        return self.whitening.invert(z_NR)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON arguments that `from_state` takes."""
        arrays = self.whitening.arrays() | {f"centroids.{i}": c for i, c in enumerate(self.centroids)}
        return arrays, {"gains": list(self.gains), "unit_residuals": self.unit_residuals}

    @classmethod
    def from_state(cls, arrays: Mapping[str, np.ndarray], arguments: Mapping[str, Any]) -> "ResidualKMeans":
        """The quantiser that `state` described."""
        centroids = tuple(arrays[f"centroids.{i}"] for i in range(len(arguments["gains"])))
        return cls(Whitening.from_arrays(arrays), centroids, tuple(arguments["gains"]), arguments["unit_residuals"])


def fit_residual_kmeans(x_ND: np.ndarray, config: ResidualKMeansConfig) -> ResidualKMeans:
    """Fits the quantiser level by level.

    The result depends on the order of the rows: give them by item id.

    Args:
        x_ND: Embeddings of the catalogue.
        config: Knobs.

    Raises:
        ValueError: If there are no vectors, or some are not finite.
    """
    check_vectors(x_ND)
    widths = config.planned_widths(len(x_ND))
    if len(x_ND) > config.max_fit_items:
        rng = np.random.default_rng(config.seed)
        x_ND = x_ND[np.sort(rng.choice(len(x_ND), config.max_fit_items, replace=False))]
    # One thread, because k-means adds up in another order on several, and the codes would not be reproducible.
    with threadpool_limits(1):
        whitening = fit_whitening(x_ND, strength=config.whitening, components=config.components)
        fitted = ResidualKMeans(whitening, (), (), config.unit_residuals)
        residual_NR = whitening.apply(x_ND)
        for level, width in enumerate(widths):
            points_NR = _directions(residual_NR) if config.unit_residuals else residual_NR
            centroids_KR = fit_kmeans(
                points_NR,
                width,
                seed=config.seed + level,
                num_restarts=config.num_restarts,
                max_iterations=config.max_iterations,
                points_per_code=config.points_per_code,
                balance=config.balance,
            )
            nearest_NR = centroids_KR[nearest(points_NR, centroids_KR)].astype(np.float64)
            # Least squares: the scale at which the level takes away most of the residual.
            energy = float((nearest_NR**2).sum())
            gain = float((residual_NR * nearest_NR).sum() / energy) if config.unit_residuals and energy else 1.0
            fitted = dataclasses.replace(
                fitted, centroids=(*fitted.centroids, centroids_KR), gains=(*fitted.gains, gain)
            )
            residual_NR = fitted._step(residual_NR, centroids_KR, gain)[1]
    return fitted
