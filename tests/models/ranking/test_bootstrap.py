import numpy as np
import pytest

from models.ranking.bootstrap import interval, ratio, resampled_auc, resampled_calibration, user_weights
from models.ranking.metrics import auc, calibration_error


def data(num_users=40, each=6, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), each)
    label = rng.integers(0, 2, len(user))
    return user, label, 0.5 * label + rng.random(len(user))


def test_weights_draw_as_many_users_as_there_are_and_are_reproducible():
    weights = user_weights(30, 200, seed=1)
    assert (weights.sum(1) == 30).all()
    assert np.array_equal(weights, user_weights(30, 200, seed=1))
    assert not np.array_equal(weights, user_weights(30, 200, seed=2))


def test_a_weighted_auc_is_the_auc_of_the_users_drawn():
    user, label, score = data()
    weights = user_weights(40, 5, seed=0)
    found = resampled_auc(score, label, user, weights)
    for r in range(5):
        rows = np.concatenate([np.flatnonzero(user == u) for u in range(40) for _ in range(int(weights[r, u]))])
        assert found[r] == pytest.approx(auc(score[rows], label[rows])[0], abs=1e-6)


def test_ratio_and_calibration_are_those_of_the_users_drawn():
    user, label, score = data()
    p, bins, weights = score / 1.5, (score > 0.7).astype(int), user_weights(40, 4, seed=0)
    means = ratio(np.bincount(user, p), np.bincount(user), weights)
    gaps = resampled_calibration(p - label, bins, user, weights)
    for r in range(4):
        rows = np.concatenate([np.flatnonzero(user == u) for u in range(40) for _ in range(int(weights[r, u]))])
        assert means[r] == pytest.approx(p[rows].mean(), rel=1e-5)
        assert gaps[r] == pytest.approx(calibration_error(p[rows], label[rows], bins[rows]), rel=1e-5)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        # Users differ: resampling examples instead of users would be far too sure of itself.
        users = rng.normal(0.0, 1.0, 60)
        values = np.repeat(users, 5) + rng.normal(0, 0.1, 300)
        user = np.repeat(np.arange(60), 5)
        draws = ratio(np.bincount(user, values), np.bincount(user), user_weights(60, 300, seed=trial))
        found = interval(values.mean(), draws)
        covered += found.low <= 0.0 <= found.high
    assert 0.87 <= covered / 200 <= 0.99


def test_nothing_to_resample_gives_the_value_alone():
    assert interval(0.5, np.array([np.nan, np.nan])) == (0.5, 0.5, 0.5)
    assert np.isnan(ratio(np.zeros(3), np.zeros(3), user_weights(3, 2, 0))).all()
