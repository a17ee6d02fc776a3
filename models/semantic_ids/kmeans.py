"""k-means for codebooks: few, dense matrix products on one thread, the same result on every run.

The start is greedy k-means++ (Arthur and Vassilvitskii 2007) on a sample, whose distances all come from one Gram
matrix, so that it costs less than one Lloyd step. Lloyd steps (1982) are matrix products in float32 and end when the
error hardly falls any more. With a capacity, points are handed out by deferred acceptance (Gale and Shapley 1962), so
that no code takes more than its share (balanced k-means of OneRec, arXiv 2502.18965, algorithm 1, whose greedy order
of codes is arbitrary).

Shape letters: N points, R components, K codes, S sampled points.
"""

import math

import numpy as np

CHUNK = 2048
# Points of the start, for each code.
START_POINTS = 8
LARGEST_START = 8192
# Of the starts in turn; see `start_centroids`.
NUM_NEAR = (4, 2, 1)


def nearest(points_NR: np.ndarray, centroids_KR: np.ndarray) -> np.ndarray:
    """Index of the nearest centroid, shape (N,), int32; the lowest one among equals.

    In float64, so that the code of a point does not depend on which points are asked with it.
    """
    centroids_KR = centroids_KR.astype(np.float64)
    half_K = (centroids_KR**2).sum(1) / 2
    found = [(half_K - points_NR[i : i + CHUNK] @ centroids_KR.T).argmin(1) for i in range(0, len(points_NR), CHUNK)]
    return np.concatenate(found).astype(np.int32) if found else np.zeros(0, np.int32)


def nearest_first(points_NR: np.ndarray, centroids_KR: np.ndarray, num: int) -> np.ndarray:
    """Indices of the ``num`` nearest centroids (fewer where there are fewer), nearest first, shape (N, num), int32."""
    centroids_KR = centroids_KR.astype(np.float64)
    half_K = (centroids_KR**2).sum(1) / 2
    found = [
        np.argsort(half_K - points_NR[i : i + CHUNK] @ centroids_KR.T, axis=1, kind="stable")[:, :num]
        for i in range(0, len(points_NR), CHUNK)
    ]
    return np.concatenate(found).astype(np.int32) if found else np.zeros((0, min(num, len(half_K))), np.int32)


def start_centroids(points_NR: np.ndarray, width: int, rng: np.random.Generator, num_near: int) -> np.ndarray:
    """Centroids to start from: greedy k-means++ on a sample of the points, shape (K, R).

    Args:
        points_NR: Points.
        width: Codes.
        rng: Random numbers.
        num_near: Sampled points that a start is the mean of: the chosen one and those nearest to it. One suits points
            in groups. It fails on the residuals of deep levels, which lie about alike far from each other in all
            directions: each start would keep no point but itself, and one near the origin would take all the rest
            (MovieLens-100K, third level: 1,595 of 1,682 items in one code).
    """
    size = min(len(points_NR), START_POINTS * width, max(LARGEST_START, width))
    sample_SR = points_NR[rng.permutation(len(points_NR))[:size]]
    gram_SS = sample_SR @ sample_SR.T
    square_S = np.diag(gram_SS).copy()
    trials = 2 + int(math.log(width))
    chosen = [int(rng.integers(size))]
    distance_S = np.maximum(square_S + square_S[chosen[0]] - 2 * gram_SS[chosen[0]], 0)
    while len(chosen) < width:
        mass_S = np.cumsum(distance_S, dtype=np.float64)
        if mass_S[-1] <= 0:  # fewer different points than codes
            return sample_SR[chosen]
        drawn_T = np.minimum(np.searchsorted(mass_S, rng.random(trials) * mass_S[-1]), size - 1)
        left_TS = np.minimum(distance_S, square_S + square_S[drawn_T][:, None] - 2 * gram_SS[drawn_T])
        best = int(left_TS.sum(1).argmin())
        distance_S = np.maximum(left_TS[best], 0)
        chosen.append(int(drawn_T[best]))
    near_KS = np.argsort(square_S - 2 * gram_SS[chosen], axis=1, kind="stable")
    return sample_SR[near_KS[:, : max(min(num_near, size // width), 1)]].mean(1)


def _scores(points_NR: np.ndarray, centroids_KR: np.ndarray) -> np.ndarray:
    """``x . c - |c|^2 / 2``: largest for the nearest centroid."""
    return points_NR @ centroids_KR.T - (centroids_KR**2).sum(1) / 2


def _assign(points_NR: np.ndarray, centroids_KR: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code of each point, and its score."""
    code_N, score_N = np.empty(len(points_NR), np.int32), np.empty(len(points_NR), np.float32)
    for at in range(0, len(points_NR), CHUNK):
        rows = slice(at, at + CHUNK)
        score_BK = _scores(points_NR[rows], centroids_KR)
        code_N[rows] = score_BK.argmax(1)
        score_N[rows] = np.take_along_axis(score_BK, code_N[rows, None], 1)[:, 0]
    return code_N, score_N


def assign_within(score_NK: np.ndarray, capacity: int) -> np.ndarray:
    """Hands points out to codes that take at most ``capacity`` each, by deferred acceptance.

    Every point asks the code that it scores best with; a code keeps the best-scoring of those who asked and refuses
    the rest, who ask on. The result is stable: no point scores better with another code that has room, or that keeps
    a point which scores lower there.

    Args:
        score_NK: The higher, the better.
        capacity: Most points of a code.

    Returns:
        Code of each point, int32.

    Raises:
        ValueError: If the codes have no room for all points.
    """
    num_points, width = score_NK.shape
    if capacity * width < num_points:
        raise ValueError(f"{width} codes of at most {capacity} points have no room for {num_points}: raise `balance`.")
    wish_NK = np.argsort(-score_NK, axis=1, kind="stable")
    asked_N, code_N = np.zeros(num_points, np.int64), np.full(num_points, -1)
    free_F = np.arange(num_points)
    while len(free_F):
        code_N[free_F] = wish_NK[free_F, asked_N[free_F]]
        asked_N[free_F] += 1
        score_N = np.take_along_axis(score_NK, code_N[:, None], 1)[:, 0]
        order_N = np.lexsort((-score_N, code_N))
        start_K = np.searchsorted(code_N[order_N], np.arange(width))
        rank_N = np.arange(num_points) - start_K[code_N[order_N]]
        free_F = order_N[rank_N >= capacity]
    return code_N.astype(np.int32)


def _means(points_NR: np.ndarray, code_N: np.ndarray, centroids_KR: np.ndarray) -> np.ndarray:
    """Mean of each code's points; codes without any move to the points that lie farthest from their centroid."""
    from scipy.sparse import csr_matrix

    num_points, width = len(points_NR), len(centroids_KR)
    ones_N, starts = np.ones(num_points, np.float32), np.arange(num_points + 1)
    count_K = np.bincount(code_N, minlength=width)
    sum_KR = csr_matrix((ones_N, code_N, starts), shape=(num_points, width)).T @ points_NR
    mean_KR = (sum_KR / np.maximum(count_K, 1)[:, None]).astype(np.float32)
    if len(empty := np.flatnonzero(count_K == 0)):
        distance_N = ((points_NR - centroids_KR[code_N]) ** 2).sum(1)
        farthest = np.argsort(-distance_N, kind="stable")[: len(empty)]
        mean_KR[empty[: len(farthest)]] = points_NR[farthest]
    return mean_KR


def fit_kmeans(
    points_NR: np.ndarray,
    width: int,
    *,
    seed: int,
    num_restarts: int = 1,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
    points_per_code: int = 256,
    balance: float = 0.0,
) -> np.ndarray:
    """Centroids of k-means.

    Args:
        points_NR: Points.
        width: Codes.
        seed: Seed of sample and starts.
        num_restarts: Starts; the one with the least error is kept.
        max_iterations: Lloyd steps of a start.
        tolerance: A start ends when a step lowers its error by less than this share.
        points_per_code: More points than so many for each code are sampled down.
        balance: Most points of a code, in even shares (1: all codes alike); 0 sets no limit.

    Returns:
        Centroids of shape (K, R), float32; fewer than ``width`` where there are fewer distinct points.
    """
    rng = np.random.default_rng(seed)
    width = min(width, len(points_NR))
    if len(points_NR) > points_per_code * width:
        points_NR = points_NR[np.sort(rng.choice(len(points_NR), points_per_code * width, replace=False))]
    # Far from the origin, differences of squares would lose what a step gains.
    mean_R = points_NR.mean(0, dtype=np.float64).astype(np.float32)
    points_NR = np.ascontiguousarray(points_NR, np.float32) - mean_R
    square = float((points_NR.astype(np.float64) ** 2).sum())
    best_KR, least = points_NR[:1], math.inf
    for turn in range(num_restarts):
        centroids_KR = start_centroids(points_NR, width, rng, NUM_NEAR[turn % len(NUM_NEAR)])
        before = math.inf
        for _ in range(max_iterations):
            code_N, score_N = _assign(points_NR, centroids_KR)
            error = square - 2 * float(score_N.sum(dtype=np.float64))
            if before - error <= tolerance * error:
                break
            if balance:
                capacity = math.ceil(balance * len(points_NR) / len(centroids_KR))
                code_N = assign_within(_scores(points_NR, centroids_KR), capacity)
            before, centroids_KR = error, _means(points_NR, code_N, centroids_KR)
        if error < least:
            best_KR, least = centroids_KR, error
    return best_KR[np.unique(nearest(points_NR, best_KR))] + mean_R
