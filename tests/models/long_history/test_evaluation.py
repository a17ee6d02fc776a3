"""Metrics against loops over users."""

import numpy as np
import pytest

from models.long_history.evaluation import click_estimates, group_auc, rank_estimates
from models.ranking.metrics import auc


def test_group_auc_is_the_mean_of_users_aucs_by_their_examples():
    rng = np.random.default_rng(0)
    user, label = rng.integers(0, 9, 200), rng.integers(0, 2, 200)
    score = rng.integers(0, 6, 200) + label  # with ties
    label[user == 3] = 1
    values, sizes = group_auc(score, label, user)
    for u in range(9):
        mine = user == u
        expected = auc(score[mine], label[mine])[0]
        assert (values[u], sizes[u]) == ((0, 0) if u == 3 else (pytest.approx(expected), mine.sum()))
    estimates = click_estimates(user, label, score.astype(np.float32), 200, request_N=np.arange(200))
    assert ("all", "request_auc") not in estimates  # nobody is compared with anything
    found = estimates["all", "group_auc"]
    assert found.value == pytest.approx((values * sizes).sum() / sizes.sum())
    assert np.quantile(found.draws_R, 0.025) < found.value < np.quantile(found.draws_R, 0.975)


def test_request_auc_compares_what_was_scored_against_one_history():
    rng = np.random.default_rng(0)
    request = np.repeat(np.arange(60) * 7, 5)
    user, label = request // 70, rng.integers(0, 2, 300)
    # Within a request the score is of use; a level that drifts from one to the next drowns it for the user.
    score = label + rng.normal(size=300) + 20 * rng.normal(size=421)[request]
    estimates = click_estimates(user, label, score.astype(np.float32), 200, request_N=request)
    pairs = [
        (auc(score[mine], label[mine])[0], mine.sum())
        for r in np.unique(request)
        if 0 < label[mine := request == r].mean() < 1
    ]
    found = estimates["all", "request_auc"]
    values, sizes = np.transpose(pairs)
    assert found.value == pytest.approx((values * sizes).sum() / sizes.sum()) and found.num_examples == sizes.sum()
    assert found.value > 0.7 > 0.6 > estimates["all", "group_auc"].value
    assert np.quantile(found.draws_R, 0.025) < found.value < np.quantile(found.draws_R, 0.975)


def test_a_model_that_knows_the_base_rate_alone_has_a_normalised_entropy_of_one():
    label = np.array([1, 0, 0, 0] * 5)
    logit, request = np.full(20, np.log(0.25 / 0.75)), np.arange(20) % 4
    found = click_estimates(request, label, logit, resamples=10, request_N=request)
    assert found["all", "normalized_entropy"].value == pytest.approx(1)
    assert found["all", "auc"].value == 0.5


def test_ranks_give_hits_and_gains_and_targets_that_may_not_be_ranked_are_left_out():
    found = rank_estimates(np.arange(5), np.array([1, 10, 11, 200, 0]), resamples=50)
    assert [found["all", f"hr_at_{k}"].value for k in (10, 50, 200)] == [0.5, 0.75, 1.0]
    assert found["all", "ndcg_at_10"].value == pytest.approx((1 + 1 / np.log2(11)) / 4)
    assert found["all", "hr_at_10"].num_examples == 4
