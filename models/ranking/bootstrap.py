"""Intervals by resampling users: examples of one user are not independent, so users are drawn, not examples.

Shape letters: N examples, U users, R resamples, E bins.
"""

from typing import NamedTuple

import numpy as np

from models.ranking.metrics import auc

WEIGHTS_AT_ONCE = 4_000_000


class Interval(NamedTuple):
    """A value with its bootstrap interval (percentiles; Efron 1979)."""

    value: float
    low: float
    high: float


def user_weights(num_users: int, resamples: int, seed: int) -> np.ndarray:
    """How often each user is drawn in each resample, (R, U): multinomial, so every row sums to U."""
    if not num_users:
        return np.zeros((resamples, 0), np.float32)
    rng, share_U = np.random.default_rng(seed), np.full(num_users, 1.0 / num_users)
    weight_RU = np.empty((resamples, num_users), np.float32)
    # One at a time: all at once are integers of three times the size before they are cast.
    for resample in range(resamples):
        weight_RU[resample] = rng.multinomial(num_users, share_U)
    return weight_RU


def ratio(numerator_U: np.ndarray, denominator_U: np.ndarray, weight_RU: np.ndarray) -> np.ndarray:
    """Resampled ratio of sums over users, (R,); NaN where nobody with examples was drawn."""
    below = weight_RU @ denominator_U
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, weight_RU @ numerator_U / below, np.nan)


def resampled_auc(score_N: np.ndarray, label_N: np.ndarray, user_N: np.ndarray, weight_RU: np.ndarray) -> np.ndarray:
    """AUC of each resample, (R,), a few resamples at a time so that memory stays bounded."""
    order = np.argsort(score_N, kind="stable")
    score_N, label_N, user_N = score_N[order], label_N[order], user_N[order]
    step = max(1, WEIGHTS_AT_ONCE // max(len(score_N), 1))
    parts = [
        auc(score_N, label_N, weight_RU[start : start + step][:, user_N]) for start in range(0, len(weight_RU), step)
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def resampled_calibration(
    gap_N: np.ndarray, bin_N: np.ndarray, user_N: np.ndarray, weight_RU: np.ndarray
) -> np.ndarray:
    """Expected calibration error of each resample over fixed bins, (R,).

    Args:
        gap_N: Probability minus label.
        bin_N: Bin of each example.
        user_N: User of each example.
        weight_RU: Draws.
    """
    num_users, num_bins = weight_RU.shape[1], int(bin_N.max(initial=0)) + 1
    cell = user_N * num_bins + bin_N
    gaps_UE = np.bincount(cell, gap_N, minlength=num_users * num_bins).reshape(num_users, num_bins)
    sizes_U = np.bincount(user_N, minlength=num_users)
    return np.abs(weight_RU @ gaps_UE).sum(1) / np.maximum(weight_RU @ sizes_U, 1)


def interval(value: float, resampled_R: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval around a value; the value alone where nothing could be resampled."""
    kept = resampled_R[np.isfinite(resampled_R)]
    if not len(kept):
        return Interval(value, value, value)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))
