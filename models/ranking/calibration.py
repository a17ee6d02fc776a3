"""Platt scaling: two numbers, fitted on validation data, that turn log-odds into probabilities."""

from typing import NamedTuple

import numpy as np

from models.ranking.metrics import probability

MIN_SLOPE = 1e-3
RIDGE = 1e-3


class Platt(NamedTuple):
    """``P(like) = sigmoid(slope * logit + offset)`` (Platt 1999)."""

    slope: float
    offset: float

    def __call__(self, logit_N: np.ndarray) -> np.ndarray:
        """Probabilities of log-odds."""
        return probability(self.slope * logit_N + self.offset)


def fit_platt(logit_N: np.ndarray, label_N: np.ndarray, steps: int = 50) -> Platt:
    """Fits by Newton's method, with Platt's smoothed targets.

    The slope is kept positive, so that calibration never changes an order. Without examples of both classes nothing
    can be fitted, and the log-odds stand as they are.
    """
    positive, num = float(label_N.sum()), len(label_N)
    if num == 0 or positive == 0 or positive == num:
        return Platt(1.0, 0.0)
    target = np.where(label_N > 0, (positive + 1) / (positive + 2), 1 / (num - positive + 2))
    # Standardised, so that Newton's steps are of one scale whatever the log-odds are.
    mean, scale = float(logit_N.mean()), float(logit_N.std()) or 1.0
    design = np.stack([(logit_N - mean) / scale, np.ones(num)], 1)

    def loss(theta: np.ndarray) -> float:
        z = design @ theta
        return float((np.logaddexp(0, z) - target * z).sum() + 0.5 * RIDGE * theta[0] ** 2)

    theta = np.array([0.0, np.log(positive / (num - positive))])
    for _ in range(steps):
        p = probability(design @ theta)
        slope = design.T @ (p - target) + [RIDGE * theta[0], 0.0]
        curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag([RIDGE, 0.0]) + 1e-9 * np.eye(2)
        move, before = np.linalg.solve(curvature, slope), loss(theta)
        # Lin, Lin and Weng (2007): a full step may overshoot.
        while loss(theta - move) > before and np.abs(move).max() > 1e-9:
            move = move / 2
        theta = theta - move
        if np.abs(move).max() < 1e-9:
            break
    fitted = float(theta[0]) / scale
    if fitted <= MIN_SLOPE:
        return Platt(MIN_SLOPE, float(np.log(positive / (num - positive))) - MIN_SLOPE * mean)
    return Platt(fitted, float(theta[1]) - fitted * mean)
