"""Metrics of rankers over long histories with draws over users: next-item ranks, and clicks.

Shapes: N examples, U users, R resamples.
"""

import numpy as np

from models.ranking.bootstrap import ratio, resampled_auc, user_weights
from models.ranking.evaluation import ALL, AUC, ENTROPY, HIT_RATE, LOG_LOSS, NDCG, Estimate, Estimates
from models.ranking.metrics import auc, entropy, gain, hit, log_losses, probability

HIT_RATE_50, HIT_RATE_200 = "hr_at_50", "hr_at_200"
GROUP_AUC, REQUEST_AUC = "group_auc", "request_auc"
NEXT_ITEM_METRICS = (HIT_RATE, NDCG, HIT_RATE_50, HIT_RATE_200)
CLICK_METRICS = (AUC, ENTROPY, GROUP_AUC, REQUEST_AUC, LOG_LOSS)
LOWER_IS_BETTER = (ENTROPY, LOG_LOSS)


def rank_metrics(rank_N: np.ndarray) -> dict[str, np.ndarray]:
    """Each target's share in each metric; ranks count from 1."""
    return {
        HIT_RATE: hit(rank_N, 10),
        NDCG: gain(rank_N, 10),
        HIT_RATE_50: hit(rank_N, 50),
        HIT_RATE_200: hit(rank_N, 200),
    }


def rank_estimates(user_N: np.ndarray, rank_N: np.ndarray, resamples: int, seed: int = 0) -> Estimates:
    """Estimates of the metrics of ranks.

    Args:
        user_N: User of each target, from 0.
        rank_N: Its rank; 0: it may not be ranked, since the user had the item before, and is left out.
        resamples: Resamples of users.
        seed: Seed of the draws; the same for all models, so that differences are paired.
    """
    weight_RU = user_weights(int(user_N.max(initial=-1)) + 1, resamples, seed)
    ranked = rank_N > 0
    users, num = user_N[ranked], len(np.unique(user_N[ranked]))
    return {
        (ALL, name): Estimate(float(each.mean()) if len(each) else 0.0, _mean(users, each, weight_RU), len(each), num)
        for name, each in rank_metrics(rank_N[ranked]).items()
    }


def group_auc(score_N: np.ndarray, label_N: np.ndarray, group_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each group's AUC and number of examples, both 0 for groups without both classes (GAUC weighs by examples).

    Args:
        score_N: Scores.
        label_N: 0 or 1.
        group_N: Groups, from 0; users, as a rule.
    """
    num_groups = int(group_N.max(initial=-1)) + 1
    order = np.lexsort((score_N, group_N))
    score, label, group = score_N[order], label_N[order].astype(np.float64), group_N[order]
    # Mean rank within ties of a group, from the sorted order: AUC is a rank sum (Mann and Whitney 1947).
    place = np.arange(len(score), dtype=np.float64)
    new = np.ones(len(score), bool)
    new[1:] = (np.diff(group) != 0) | (np.diff(score) != 0)
    run = np.cumsum(new) - 1
    mean_place = np.bincount(run, place)[run] / np.bincount(run)[run] if len(score) else place
    sizes, likes = (np.bincount(group, w, minlength=num_groups) for w in (None, label))
    first = np.cumsum(sizes) - sizes
    ranks = np.bincount(group, label * (mean_place - first[group]), minlength=num_groups)
    pairs = likes * (sizes - likes)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (ranks - likes * (likes - 1) / 2) / pairs
    both = pairs > 0
    return np.where(both, value, 0.0), np.where(both, sizes, 0)


def click_estimates(
    user_N: np.ndarray,
    label_N: np.ndarray,
    logit_N: np.ndarray,
    resamples: int,
    seed: int = 0,
    *,
    request_N: np.ndarray,
) -> Estimates:
    """Estimates of AUC, normalised entropy (log loss over that of the base rate), two AUCs of groups, and log loss.

    Logits are taken as they are: nothing is calibrated. Group AUC compares what a user met at any two moments, so that
    what changes between them, e.g. a model's notion of how much the user likes at all, counts as if it were about
    items. Request AUC compares candidates that were scored against one history, as a ranker's candidates are; it is
    left out where no request has both labels.

    Args:
        user_N: User of each example, from 0.
        label_N: 0 or 1.
        logit_N: Logits.
        resamples: Resamples of users.
        request_N: What candidates share that are scored against one history of a user: any number.
        seed: As for `rank_estimates`.
    """
    weight_RU = user_weights(int(user_N.max(initial=-1)) + 1, resamples, seed)
    num, num_users = len(label_N), len(np.unique(user_N))
    losses = log_losses(probability(logit_N.astype(np.float64)), label_N)
    loss_R, rate_R = (_mean(user_N, x, weight_RU) for x in (losses, label_N.astype(np.float64)))
    groups = {GROUP_AUC: user_N, REQUEST_AUC: np.unique(request_N, return_inverse=True)[1]}
    within = {name: _within(logit_N, label_N, group_N, user_N, weight_RU) for name, group_N in groups.items()}
    whole = {
        AUC: (float(auc(logit_N, label_N)[0]), resampled_auc(logit_N, label_N, user_N, weight_RU)),
        ENTROPY: (float(losses.mean() / entropy(label_N.mean())), loss_R / entropy(rate_R)),
        LOG_LOSS: (float(losses.mean()), loss_R),
    }
    found = {(ALL, name): Estimate(value, draws, num, num_users) for name, (value, draws) in whole.items()}
    return found | {(ALL, name): each for name, each in within.items() if each is not None}


def _within(
    score_N: np.ndarray, label_N: np.ndarray, group_N: np.ndarray, user_N: np.ndarray, weight_RU: np.ndarray
) -> Estimate | None:
    """AUC within groups, each of one user, weighed by their examples; None if no group has both labels."""
    auc_G, size_G = group_auc(score_N, label_N, group_N)
    if not size_G.any():
        return None
    owner_G = np.zeros(len(size_G), np.int64)
    owner_G[group_N] = user_N
    sums_U, sizes_U = (np.bincount(owner_G, w, minlength=weight_RU.shape[1]) for w in (auc_G * size_G, size_G))
    value, draws_R = float(sums_U.sum() / sizes_U.sum()), ratio(sums_U, sizes_U, weight_RU)
    return Estimate(value, draws_R, int(sizes_U.sum()), int((sizes_U > 0).sum()))


def _mean(user_N: np.ndarray, value_N: np.ndarray, weight_RU: np.ndarray) -> np.ndarray:
    """The mean of a value in each resample of users, (R,)."""
    sums, sizes = (np.bincount(user_N, w, minlength=weight_RU.shape[1]) for w in (value_N, None))
    return ratio(sums, sizes, weight_RU)
