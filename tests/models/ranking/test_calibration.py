import numpy as np
import pytest

from models.ranking.calibration import fit_platt
from models.ranking.metrics import calibration_error, equal_mass_bins, probability


def test_recovers_the_scale_of_the_log_odds():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=20_000)
    label = (rng.random(20_000) < probability(truth)).astype(float)
    found = fit_platt(4 * truth + 2, label)
    assert found.slope == pytest.approx(0.25, abs=0.02) and found.offset == pytest.approx(-0.5, abs=0.05)
    p = found(4 * truth + 2)
    assert calibration_error(p, label, equal_mass_bins(p)) < 0.02


def test_never_turns_an_order_around():
    rng = np.random.default_rng(0)
    logit = rng.normal(size=500)
    label = (rng.random(500) < probability(-2 * logit)).astype(float)
    found = fit_platt(logit, label)
    assert found.slope > 0
    assert found(logit).mean() == pytest.approx(label.mean(), abs=0.05)


@pytest.mark.parametrize("label", [[], [1, 1], [0, 0]])
def test_leaves_log_odds_alone_without_both_classes(label):
    assert fit_platt(np.zeros(len(label)), np.array(label, float)) == (1.0, 0.0)
