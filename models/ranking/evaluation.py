"""The evaluation that is the same for every candidate: metrics with user-level intervals, over slices, and in pairs.

Shape letters: N examples of the test split, U users, R resamples.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from models.ranking.bootstrap import interval, ratio, resampled_auc, resampled_calibration, user_weights
from models.ranking.metrics import auc, calibration_error, entropy, equal_mass_bins, gain, hit, log_losses

ALL = "all"
SLICES = ("new_items", "tail_items", "short_histories", "long_histories", "new_users", "known_users")
AUC, LOG_LOSS, ENTROPY, ECE = "auc", "logloss", "normalized_entropy", "ece"
HIT_RATE, NDCG = "hr_at_10", "ndcg_at_10"
METRICS = (AUC, LOG_LOSS, ENTROPY, ECE, HIT_RATE, NDCG)
RANK_METRICS = (HIT_RATE, NDCG)
CLASS_METRICS = (AUC, ENTROPY)
HIGHER_IS_BETTER = {AUC: True, LOG_LOSS: False, ENTROPY: False, ECE: False, HIT_RATE: True, NDCG: True}


class Scored(NamedTuple):
    """A candidate's scores of the test split.

    Attributes:
        user_N: User of each example, as an integer from 0.
        label_N: 1 liked, 0 not.
        probability_N: Calibrated P(like).
        rank_N: Rank among the whole catalogue; 0 where the example is no target.
    """

    user_N: np.ndarray
    label_N: np.ndarray
    probability_N: np.ndarray
    rank_N: np.ndarray


class Row(NamedTuple):
    """One figure: a metric on a slice, or (``baseline`` not empty) its paired difference to a candidate."""

    slice: str
    metric: str
    baseline: str
    value: float
    low: float
    high: float
    num_examples: int
    num_users: int


@dataclasses.dataclass(frozen=True)
class Rules:
    """How figures are made.

    Attributes:
        resamples: Bootstrap resamples of users.
        seed: Seed of the draws. The same for all candidates, so that differences are paired.
        min_examples: A slice with fewer examples (for ranks: targets) is left out.
        min_class: As `min_examples`, for likes and for non-likes each.
        min_users: As `min_examples`, for users.
        metrics: What is measured.
    """

    resamples: int = 1000
    seed: int = 0
    min_examples: int = 50
    min_class: int = 10
    min_users: int = 10
    metrics: tuple[str, ...] = METRICS


class Estimate(NamedTuple):
    """A metric on a slice with its resampled values.

    Attributes:
        value: The metric.
        draws_R: Its value in each resample of users.
        num_examples: Examples, or targets for the metrics of ranks.
        num_users: Their users.
    """

    value: float
    draws_R: np.ndarray
    num_examples: int
    num_users: int


Estimates = dict[tuple[str, str], Estimate]


def _reason(x: Scored, rows: np.ndarray, metric: str, rules: Rules, whole: bool) -> str:
    """Why a metric can't be told on these rows; empty if it can."""
    if not len(rows):
        return "no examples"
    likes, num_users = int(x.label_N[rows].sum()), len(np.unique(x.user_N[rows]))
    if metric in CLASS_METRICS and likes in (0, len(rows)):
        return f"only one class among {len(rows)} examples"
    if whole:
        return ""
    if len(rows) < rules.min_examples or num_users < rules.min_users:
        return f"only {len(rows)} examples of {num_users} users"
    if metric in CLASS_METRICS and min(likes, len(rows) - likes) < rules.min_class:
        return f"only {likes} likes among {len(rows)} examples"
    return ""


def _draws(x: Scored, rows: np.ndarray, metric: str, weight_RU: np.ndarray) -> tuple[float, np.ndarray]:
    """A metric's value and its resampled values."""
    user, label, p, rank = (a[rows] for a in x)
    if metric == AUC:
        return float(auc(p, label)[0]), resampled_auc(p, label, user, weight_RU)
    if metric == ECE:
        bins = equal_mass_bins(p)
        return calibration_error(p, label, bins), resampled_calibration(p - label, bins, user, weight_RU)
    each = {HIT_RATE: hit, NDCG: gain}[metric](rank) if metric in RANK_METRICS else log_losses(p, label)
    value, draws_R = float(each.mean()), _mean_draws(user, each, weight_RU)
    if metric == ENTROPY:
        # He et al. 2014: over the entropy of the rate of these very examples, which a resample changes, too.
        value, draws_R = value / float(entropy(label.mean())), draws_R / entropy(_mean_draws(user, label, weight_RU))
    return value, draws_R


def _mean_draws(user_N: np.ndarray, value_N: np.ndarray, weight_RU: np.ndarray) -> np.ndarray:
    """The mean of a value in each resample of users, (R,)."""
    num_users = weight_RU.shape[1]
    sums_U, sizes_U = (np.bincount(user_N, w, minlength=num_users) for w in (value_N, None))
    return ratio(sums_U, sizes_U, weight_RU)


def estimate(x: Scored, slices: Mapping[str, np.ndarray], rules: Rules) -> tuple[Estimates, list[str]]:
    """Every metric on the whole test split and on each slice, resampled.

    Args:
        x: Scores.
        slices: Mask of the examples in each slice, by name.
        rules: How figures are made.

    Returns:
        Estimates by slice and metric, and one sentence for each that was left out and why.
    """
    weight_RU = user_weights(int(x.user_N.max(initial=-1)) + 1, rules.resamples, rules.seed)
    found: Estimates = {}
    left_out = []
    for name, mask in {ALL: np.ones(len(x.user_N), bool), **slices}.items():
        for metric in rules.metrics:
            rows = np.flatnonzero(mask & (x.rank_N > 0) if metric in RANK_METRICS else mask)
            reason = _reason(x, rows, metric, rules, name == ALL)
            if reason:
                left_out.append(f"{name}/{metric} is left out: {reason}.")
                continue
            value, draws_R = _draws(x, rows, metric, weight_RU)
            found[name, metric] = Estimate(value, draws_R, len(rows), len(np.unique(x.user_N[rows])))
    return found, left_out


def figures(found: Estimates) -> list[Row]:
    """Metrics with their intervals."""
    return [
        Row(name, metric, "", *interval(e.value, e.draws_R), e.num_examples, e.num_users)
        for (name, metric), e in found.items()
    ]


def differences(ours: Estimates, theirs: Estimates, baseline: str) -> list[Row]:
    """Paired differences ``ours - theirs``: both were resampled with the same users.

    Args:
        ours: Estimates of a candidate.
        theirs: Estimates of the baseline, on the same examples in the same order and by the same rules.
        baseline: The baseline's name.
    """
    return [
        Row(
            *key,
            baseline,
            *interval(e.value - theirs[key].value, e.draws_R - theirs[key].draws_R),
            e.num_examples,
            e.num_users,
        )
        for key, e in ours.items()
        if key in theirs
    ]


def excludes_zero(row: Row) -> bool:
    """Whether a difference's interval lies on one side of zero."""
    return row.low > 0 or row.high < 0


def verdict(row: Row, candidate: str) -> str:
    """One honest sentence about a paired difference."""
    better = (row.value > 0) == HIGHER_IS_BETTER[row.metric]
    size = f"{row.value:+.4f} [{row.low:+.4f}, {row.high:+.4f}] {row.metric}"
    if not excludes_zero(row):
        return f"{candidate} against {row.baseline}: {size}: covers zero, so no difference is shown."
    return f"{candidate} is {'better' if better else 'worse'} than {row.baseline}: {size}."


def slices_of(
    item_N: np.ndarray, position_N: np.ndarray, train_count_I: np.ndarray, known_user_N: np.ndarray
) -> dict[str, np.ndarray]:
    """The slices of the test split.

    Args:
        item_N: Catalogue index of each example's item, from 1; 0 unknown.
        position_N: Place of the example in its user's history.
        train_count_I: Events of each catalogue item in the training period; row 0 unused.
        known_user_N: Whether the user has events in the training period.

    Returns:
        Masks: items without events in the training period; the less popular half of the others; histories shorter
        than the median, and the rest; users without events in the training period, and the rest.
    """
    new = (train_count_I[item_N] == 0) | (item_N == 0)
    counts = train_count_I[1:][train_count_I[1:] > 0]
    tail = ~new & (train_count_I[item_N] <= (np.median(counts) if len(counts) else 0))
    short = position_N < np.median(position_N) if len(position_N) else np.zeros(0, bool)
    return dict(zip(SLICES, (new, tail, short, ~short, ~known_user_N, known_user_N), strict=True))
