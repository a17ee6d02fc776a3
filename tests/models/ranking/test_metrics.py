import numpy as np
import pytest
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

from models.ranking.metrics import auc, calibration_error, entropy, equal_mass_bins, gain, hit, log_losses


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, 500)
    # Rounded, so that there are ties.
    score = np.clip(0.3 * label + rng.random(500) * 0.7, 0.01, 0.99).round(2)
    return score, label, rng.integers(0, 4, (3, 500)).astype(float)


def test_auc_equals_sklearn_with_ties_and_weights(scores):
    score, label, weight = scores
    assert auc(score, label)[0] == pytest.approx(roc_auc_score(label, score), abs=1e-12)
    ours = auc(score, label, weight)
    theirs = [roc_auc_score(label, score, sample_weight=w) for w in weight]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_auc_needs_both_classes_and_a_constant_score_is_worth_half():
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([1, 1]))[0])
    assert np.isnan(auc(np.zeros(0), np.zeros(0))[0])
    assert auc(np.full(10, 0.3), np.arange(10) % 2)[0] == 0.5


def test_log_loss_equals_sklearn(scores):
    score, label, _ = scores
    assert log_losses(score, label).mean() == pytest.approx(log_loss(label, score))
    assert np.isfinite(log_losses(np.array([0.0, 1.0]), np.array([1, 0]))).all()


def test_predicting_the_base_rate_has_normalised_entropy_one():
    label = np.array([1] * 30 + [0] * 70)
    assert log_losses(np.full(100, 0.3), label).mean() / entropy(0.3) == pytest.approx(1.0)
    assert np.isnan(entropy(np.array([0.0, 1.0]))).all()


def test_calibration_error_by_hand():
    p, label = np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 1, 1, 1])
    # Two bins: |0.4 - 1| = 0.6 and |1.6 - 2| = 0.4 over four examples.
    assert calibration_error(p, label, np.array([0, 0, 1, 1])) == pytest.approx(0.25)


def test_bins_hold_equally_many():
    sizes = np.bincount(equal_mass_bins(np.random.default_rng(0).random(1500), 15))
    assert len(sizes) == 15 and sizes.max() - sizes.min() <= 1
    assert len(np.unique(equal_mass_bins(np.full(100, 0.5)))) == 1


@pytest.mark.parametrize("rank", [1, 2, 10, 11])
def test_gain_of_one_target_equals_sklearn(rank):
    relevance, score = np.zeros((1, 20)), -np.arange(20.0)[None]
    relevance[0, rank - 1] = 1
    assert gain(np.array([rank]))[0] == pytest.approx(ndcg_score(relevance, score, k=10))
    assert hit(np.array([rank]))[0] == (rank <= 10)
