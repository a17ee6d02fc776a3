"""Partial whitening: the linear map that evens out an embedding space before it is quantised.

Text embeddings are anisotropic: a few directions hold most of the variance, and residual k-means on the raw vectors
spends its codes there (35 % of ID sequences lost on Amazon Beauty; `spec/generative.md`, section 2.2). Full whitening
goes too far the other way: every direction of noise weighs as much as what tells genres apart. Half of it keeps the
coarse clusters coherent and the codes spread.

Shape letters: N items, D embedding, R components.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

# Directions with less than this share of the largest variance hold rounding noise only.
SMALLEST_VARIANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Whitening:
    """``z = (x - mean) @ forward``, and back by ``x = z @ backward + mean``.

    Attributes:
        mean_D: Mean of the fitted vectors.
        forward_DR: Principal directions, each divided by ``std ** strength``.
        backward_RD: Pseudo-inverse of ``forward_DR``.
    """

    mean_D: np.ndarray
    forward_DR: np.ndarray
    backward_RD: np.ndarray

    def apply(self, x_ND: np.ndarray) -> np.ndarray:
        """Vectors in the quantiser's space, shape (N, R)."""
        return (x_ND.astype(np.float64) - self.mean_D) @ self.forward_DR

    def invert(self, z_NR: np.ndarray) -> np.ndarray:
        """Vectors in the embedding space, shape (N, D)."""
        return z_NR @ self.backward_RD + self.mean_D

    def arrays(self) -> dict[str, np.ndarray]:
        """What `from_arrays` takes."""
        return {f"whitening.{f.name}": getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Whitening":
        """The transform that `arrays` described; other names are left alone."""
        return cls(**{f.name: arrays[f"whitening.{f.name}"] for f in dataclasses.fields(cls)})


def fit_whitening(x_ND: np.ndarray, *, strength: float, components: int) -> Whitening:
    """Fits the transform.

    Args:
        x_ND: Vectors.
        strength: 0 only centres and rotates, 1 whitens fully (every direction gets unit variance).
        components: Largest number of principal directions kept.

    Returns:
        The transform, its arrays rounded to float32, so that it is the same after being saved.
    """
    x_ND = x_ND.astype(np.float64)
    mean_D = x_ND.mean(0)
    covariance_DD = (x_ND - mean_D).T @ (x_ND - mean_D) / len(x_ND)
    variance_D, direction_DD = np.linalg.eigh(covariance_DD)
    order = np.argsort(variance_D)[::-1]
    variance_D, direction_DD = variance_D[order], direction_DD[:, order]
    # Eigenvectors come with either sign; the largest entry decides, so that machines agree.
    heaviest = np.abs(direction_DD).argmax(0)
    direction_DD *= np.sign(direction_DD[heaviest, np.arange(direction_DD.shape[1])])
    floor = max(SMALLEST_VARIANCE * variance_D[0], np.finfo(np.float32).tiny)
    num_kept = max(1, min(components, int((variance_D > floor).sum())))
    scale_R = np.maximum(variance_D[:num_kept], floor) ** (strength / 2)
    kept_DR = direction_DD[:, :num_kept]
    return Whitening(*(a.astype(np.float32) for a in (mean_D, kept_DR / scale_R, (kept_DR * scale_R).T)))
