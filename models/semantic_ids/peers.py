"""Peers: plain residual k-means on embeddings as they are, with the k-means of somebody else.

Shape letters: N items, D embedding, K codes of a level.
"""

from collections.abc import Callable

import numpy as np

from models.semantic_ids.kmeans import nearest
from models.semantic_ids.residual_kmeans import ResidualKMeans
from models.semantic_ids.transform import Whitening

Clustering = Callable[[np.ndarray, int, int], np.ndarray]
"""From points (N, D), a number of codes and a seed to centroids (K, D)."""


def scikit_learn(points_ND: np.ndarray, width: int, seed: int) -> np.ndarray:
    """Centroids of scikit-learn's `KMeans` as it comes: one k-means++ start."""
    from sklearn.cluster import KMeans

    return KMeans(width, n_init=1, random_state=seed).fit(points_ND).cluster_centers_


def plain_residual_kmeans(
    x_ND: np.ndarray, widths: tuple[int, ...], cluster: Clustering, *, seed: int = 0
) -> ResidualKMeans:
    """Fits level by level on what the levels above left over: no whitening, no directions, no gains.

    Args:
        x_ND: Embeddings.
        widths: Codes of each level.
        cluster: The k-means.
        seed: Seed.
    """
    dimension = x_ND.shape[1]
    eye_DD = np.eye(dimension, dtype=np.float32)
    residual_ND, centroids = x_ND.astype(np.float32), []
    for level, width in enumerate(widths):
        found_KD = cluster(residual_ND, min(width, len(x_ND)), seed + level).astype(np.float32)
        residual_ND = residual_ND - found_KD[nearest(residual_ND, found_KD)]
        centroids.append(found_KD)
    same = Whitening(np.zeros(dimension, np.float32), eye_DD, eye_DD)
    return ResidualKMeans(same, tuple(centroids), (1.0,) * len(widths), unit_residuals=False)
