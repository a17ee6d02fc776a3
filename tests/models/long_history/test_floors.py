"""Floors of likes against what they are by definition; finite whatever the data are like."""

import numpy as np
import pytest

from models.long_history.floors import Asked, like_logits, signs_of
from models.long_history.histories import Events
from models.ranking import floors
from models.ranking.floors import FLOORS, SMOOTHING

# Two users; the second has liked nothing but item 2. Items and values are of no concern here.
NONE = np.zeros(6, np.int64)
EVENTS = Events(np.array([0, 4, 6]), np.array([1, 2, 3, 9, 1, 2]), np.array([1, 2, 3, 1, 1, 2]), NONE, NONE, NONE)
USERS, TIMES = np.array([0, 0, 0, 1, 1]), np.array([1, 2, 3, 1, 2])
ITEMS, LABELS = np.array([1, 2, 3, 1, 2]), np.array([1.0, 1.0, 0.0, 0.0, 1.0])


def fitted(name, items=ITEMS, labels=LABELS, users=USERS, num_items=9):
    return FLOORS[name].fit(floors.Events(users, items, labels, np.ones(len(items), bool)), num_items)


def asked(items, stop):
    num = len(items)
    return Asked(np.array(items, np.int64), np.zeros(num, np.int64), np.broadcast_to(stop, num))


def signs():
    return signs_of(EVENTS, USERS, TIMES, ITEMS, LABELS)


def test_events_carry_the_labels_of_their_examples_and_no_others():
    # The fourth event is of item 1, as the first, but nobody labelled it.
    assert signs().tolist() == [1, 1, -1, 0, -1, 1]
    assert not signs_of(EVENTS, *(column[:0] for column in (USERS, TIMES, ITEMS, LABELS))).any()


def test_popularity_is_the_log_odds_of_an_items_smoothed_share_of_likes():
    rates = (np.array([1, 2, 0]) + SMOOTHING * 0.6) / (np.array([2, 2, 1]) + SMOOTHING)
    found = like_logits(fitted("popularity"), EVENTS, signs(), asked([1, 2, 3], 3))
    np.testing.assert_allclose(found, np.log(rates / (1 - rates)), rtol=1e-6)


def test_neighbours_say_what_was_thought_of_similar_items():
    knn = fitted("item_knn")
    # Item 2 was liked by both, item 1 by the first: their cosine is 1 / sqrt(2). Before item 2, item 1 was liked.
    similar, rate = 1 / np.sqrt(2), (2 + SMOOTHING * 0.6) / (2 + SMOOTHING)
    share = (similar + rate) / (similar + 1)
    found = like_logits(knn, EVENTS, signs(), asked([2], 1))
    assert found[0] == pytest.approx(np.log(share / (1 - share)), rel=1e-5)
    disliked = like_logits(knn, EVENTS, -signs(), asked([2], 1))
    assert disliked[0] < like_logits(knn, EVENTS, signs(), asked([2], 0))[0] < found[0]


def test_the_chain_knows_the_last_event_alone():
    chain = fitted("markov_chain")
    before = like_logits(chain, EVENTS, signs(), asked([2, 2, 2], [0, 1, 2]))
    # From 1 to 2 went both, and liked it.
    assert before[1] > before[0] == before[2]


@pytest.mark.parametrize("name", FLOORS)
def test_data_of_one_class_or_none_give_finite_logits(name):
    for num, label in ((3, 1.0), (3, 0.0), (0, 0.0)):
        items, nobody = np.zeros(num, np.int64), np.zeros(num, np.int64)
        floor = fitted(name, items, np.full(num, label), nobody, num_items=9)
        found = like_logits(floor, EVENTS, signs(), asked([0, 0], 2))
        assert np.isfinite(found).all()
        assert {1.0: found.min() > 10, 0.0: found.max() < -10}[label] or num == 0
    assert like_logits(floor, EVENTS, signs(), asked([], 0)).shape == (0,)
