import numpy as np

from models.personas.retrieval import RetrievalConfig, draw, near_clusters, retrieve

CONFIG = RetrievalConfig(budget=4, exploration_share=0.25)


def items(*numbers, size=10):
    mask = np.zeros((1, size), bool)
    mask[0, list(numbers)] = True
    return mask


def taken(known, explored, met=()):
    found = retrieve(items(*known), items(*explored), ~items(*met), CONFIG)
    return np.flatnonzero(found[0]).tolist()


def test_both_sources_have_their_part_of_the_budget():
    assert taken([1, 2, 3, 4, 5], [7, 8]) == [1, 2, 3, 7]
    assert taken([1, 2, 3, 4, 5], []) == [1, 2, 3, 4], "nothing to explore: the interest has it all"


def test_what_a_source_cannot_fill_the_other_fills_and_then_anything_near():
    assert taken([1, 2], [7, 8, 9]) == [1, 2, 7, 8]
    assert taken([3], [7]) == [0, 1, 3, 7], "the rest are the nearest of all"
    assert taken([], []) == [0, 1, 2, 3]


def test_what_the_user_has_met_is_never_shown():
    assert taken([1, 2, 3, 4, 5], [7, 8], met=[1, 7]) == [2, 3, 4, 8]
    assert taken([1], [7], met=range(10)) == []


def test_a_text_stands_for_few_clusters_and_none_that_is_far():
    centroids = np.eye(3)
    text = np.array([[0.9, 0.43, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    near = near_clusters(text, centroids, RetrievalConfig(num_clusters=2, max_gap=0.5))
    assert near.tolist() == [[True, True, False], [False, False, True], [False, False, False]]
    assert near_clusters(text, centroids, RetrievalConfig(num_clusters=1, max_gap=2)).sum() == 2


def test_requests_draw_every_interest_alike():
    offered = np.tile([True, False, True, True], (6000, 1))
    drawn = draw(offered, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0 and all(abs(c - 2000) < 150 for c in counts[[0, 2, 3]])
    assert draw(np.zeros((2, 3), bool), np.random.default_rng(0)).tolist() == [-1, -1]
