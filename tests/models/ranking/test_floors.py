import numpy as np
import pytest

from models.ranking.examples import ITEM_RATE, Examples
from models.ranking.floors import Events, ItemKNN, MarkovChain, Popularity, log_odds


def context(item, recent, liked, rate=None):
    n = len(item)
    dense = np.zeros((n, ITEM_RATE + 1), np.float32)
    dense[:, ITEM_RATE] = 0 if rate is None else rate
    return Examples(
        np.zeros(n, int),
        np.array(item),
        dense,
        np.array(recent),
        np.array(liked),
        np.zeros((n, 0), int),
        np.zeros((n, 0, 0), np.int8),
        np.zeros((n, 0), np.float32),
        np.zeros((n, 0), np.float32),
    )


# Users 1 and 2 like items 1 and 2, user 3 likes 3 and 4; item 5 is never liked, and one example is a sampled
# negative.
EVENTS = Events(
    np.array([1, 1, 1, 2, 2, 3, 3, 3]),
    np.array([1, 2, 5, 1, 2, 3, 4, 1]),
    np.array([1, 1, 0, 1, 1, 1, 1, 0]),
    np.array([1, 1, 1, 1, 1, 1, 1, 0], bool),
)


def test_popularity_counts_likes_and_smooths_the_rate_as_of_the_moment():
    floor = Popularity.fit(EVENTS, 6)
    assert floor.arrays["likes"].tolist() == [0, 2, 2, 1, 1, 0, 0]
    # Item 6 was never seen: it has the base rate.
    assert floor.arrays["rate"][6] == pytest.approx(6 / 8)
    x = context([1, 5], [[0], [0]], [[0], [0]], rate=[1.5, -2.0])
    assert floor.like(x).tolist() == [1.5, -2.0]
    assert floor.interest(x).tolist() == [[2, 2, 1, 1, 0, 0]] * 2


def test_item_knn_finds_what_the_same_people_like():
    floor = ItemKNN.fit(EVENTS, 6)
    assert floor.similar[1, 2] == pytest.approx(1.0) and floor.similar[1, 3] == 0 and floor.similar[1, 1] == 0
    x = context([2, 3], [[1, 0], [1, 0]], [[1, 0], [1, 0]])
    scores = floor.interest(x)
    assert scores.shape == (2, 6) and scores[0].argmax() == 1
    assert scores[0, 2] > scores[0, 4], "popularity decides between items without neighbours"
    rate = floor.arrays["rate"]
    assert floor.like(x) == pytest.approx(log_odds(np.array([(1 + rate[2]) / 2, rate[3]])))
    disliked = floor.like(context([2], [[1]], [[-1]]))
    assert disliked[0] == pytest.approx(log_odds(rate[[2]] / 2)[0])


def test_item_knn_keeps_the_nearest_only():
    rng = np.random.default_rng(0)
    events = Events(np.repeat(np.arange(30), 8), rng.integers(1, 21, 240), np.ones(240, int), np.ones(240, bool))
    whole, few = ItemKNN.fit(events, 20, neighbours=100), ItemKNN.fit(events, 20, neighbours=3)
    assert np.diff(few.similar.indptr).max() == 3
    for row in range(1, 21):
        best = np.sort(whole.similar[row].toarray()[0])[::-1][:3]
        assert np.sort(few.similar[row].toarray()[0])[::-1][:3] == pytest.approx(best)


def test_markov_chain_counts_moves_of_one_user_and_backs_off():
    floor = MarkovChain.fit(EVENTS, 6)
    assert floor.moves[1, 2] == 2 and floor.moves[2, 5] == 1 and floor.liked[2, 5] == 0
    assert floor.moves[5, 1] == 0, "from one user's last item to the next user's first is no move"
    assert floor.moves[4, 1] == 0, "a sampled negative did not happen"
    scores = floor.interest(context([2, 2], [[1], [0]], [[1], [0]]))
    assert scores[0].argmax() == 1
    likes = floor.arrays["likes"][1:]
    assert scores[1] == pytest.approx(likes / likes.sum()), "without a last item it is popularity"
    rate = floor.arrays["rate"]
    like = floor.like(context([2, 5], [[1], [2]], [[1], [1]]))
    assert like == pytest.approx(log_odds(np.array([(2 + 10 * rate[2]) / 12, 10 * rate[5] / 11])))


@pytest.mark.parametrize("floor", [Popularity, ItemKNN, MarkovChain])
def test_floors_survive_unknown_items_and_no_events(floor):
    nothing = Events(*(np.zeros(0, t) for t in (int, int, int, bool)))
    for events in (nothing, EVENTS):
        fitted = floor.fit(events, 6)
        x = context([0, 3], [[0, 0], [0, 2]], [[0, 0], [1, 1]])
        assert np.isfinite(fitted.like(x)).all() and np.isfinite(fitted.interest(x)).all()
        again = floor({k: np.array(v) for k, v in fitted.arrays.items()})
        assert np.array_equal(again.interest(x), fitted.interest(x))
