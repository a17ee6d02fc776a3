"""The floor of likes: finite whatever the data are like."""

import numpy as np

from models.long_history.floors import like_logits
from models.ranking.floors import SMOOTHING


def test_an_item_has_the_log_odds_of_its_smoothed_share_of_likes():
    items, labels = np.array([0, 0, 0, 1]), np.array([1.0, 1.0, 0.0, 0.0])
    rates = (np.array([2, 0, 0]) + SMOOTHING / 2) / (np.array([3, 1, 0]) + SMOOTHING)
    np.testing.assert_allclose(like_logits(items, labels, 2), np.log(rates / (1 - rates)), rtol=1e-6)


def test_data_of_one_class_or_none_give_finite_logits():
    liked, disliked, none = (
        like_logits(np.zeros(num, np.int64), np.full(num, label), 1) for num, label in ((3, 1.0), (3, 0.0), (0, 0.0))
    )
    assert np.isfinite(liked).all() and np.isfinite(disliked).all()
    assert liked.min() > 10 and disliked.max() < -10 and (none == 0).all()
