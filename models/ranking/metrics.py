"""Metrics of rankers, each with a form that takes weights, so that a bootstrap is one matrix product.

Shape letters: N examples, U users, R resamples, G groups of equal scores, E bins.
"""

import numpy as np

NUM_BINS = 15
TOP_K = 10


def probability(logit: np.ndarray) -> np.ndarray:
    """Sigmoid."""
    return 1.0 / (1.0 + np.exp(-np.clip(logit, -60, 60)))


def auc(score_N: np.ndarray, label_N: np.ndarray, weight_RN: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve, ties counted half; one value a row of weights, (R,). NaN without both classes.

    A weighted AUC is the chance that a positive, drawn by weight, scores above a negative.
    """
    order = np.argsort(score_N, kind="stable")
    score, label = score_N[order], label_N[order].astype(np.float64)
    weight_RN = np.ones((1, len(score))) if weight_RN is None else weight_RN[:, order]
    if not len(score):
        return np.full(len(weight_RN), np.nan)
    starts = np.flatnonzero(np.concatenate([[True], np.diff(score) != 0]))
    positive_RG = np.add.reduceat(weight_RN * label, starts, axis=1)
    negative_RG = np.add.reduceat(weight_RN * (1 - label), starts, axis=1)
    below_RG = np.cumsum(negative_RG, 1) - negative_RG / 2
    pairs_R = positive_RG.sum(1) * negative_RG.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(pairs_R > 0, (positive_RG * below_RG).sum(1) / pairs_R, np.nan)


def log_losses(p_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Log loss of each example, in nats."""
    p = np.clip(p_N, 1e-7, 1 - 1e-7)
    return -np.where(label_N > 0, np.log(p), np.log1p(-p))


def entropy(rate: np.ndarray | float) -> np.ndarray:
    """Entropy of coins in nats: the log loss of a model that knows the base rate only. NaN without both classes."""
    rate = np.asarray(rate, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -rate * np.log(rate) - (1 - rate) * np.log1p(-rate)


def equal_mass_bins(p_N: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Bin of each example so that bins hold equally many; equal probabilities share one."""
    edges = np.quantile(p_N, np.linspace(0, 1, num_bins + 1)[1:-1]) if len(p_N) else np.zeros(0)
    return np.searchsorted(edges, p_N, side="left")


def calibration_error(p_N: np.ndarray, label_N: np.ndarray, bin_N: np.ndarray) -> float:
    """Expected calibration error over given bins (Naeini et al. 2015): mean gap of score and likes."""
    gaps = np.bincount(bin_N, p_N - label_N)
    return float(np.abs(gaps).sum() / max(len(p_N), 1))


def hit(rank_N: np.ndarray, k: int = TOP_K) -> np.ndarray:
    """1 where the target is among the first ``k`` (ranks count from 1)."""
    return (rank_N <= k).astype(np.float64)


def gain(rank_N: np.ndarray, k: int = TOP_K) -> np.ndarray:
    """NDCG@k of one target: ``1 / log2(rank + 1)`` where it is among the first ``k``, else 0."""
    return np.where(rank_N <= k, 1.0 / np.log2(rank_N + 1.0), 0.0)
