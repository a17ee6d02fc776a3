import numpy as np
import pytest

from models.ranking import full_ranking
from models.ranking.full_ranking import Exclusions, Histories, full_ranks

NONE = Exclusions(np.zeros(3, int), np.zeros(0, int))


def ranks(scores, target, excluded=NONE, available=None):
    scores = np.array(scores, float)
    return full_ranks(
        lambda rows: scores[rows],
        np.array(target),
        excluded,
        None if available is None else lambda rows: np.array(available)[rows],
        scores.shape[1],
    ).tolist()


def test_rank_counts_better_items_and_ties_count_against_the_target():
    assert ranks([[3, 2, 1], [1, 1, 1]], [1, 0]) == [2, 3]


def test_scores_that_are_no_numbers_are_refused_and_the_smallest_is_a_number():
    with pytest.raises(ValueError, match="no numbers, which have no rank"):
        ranks([[3, float("nan"), 1], [1, 1, 1]], [0, 0])
    assert ranks([[3, -np.inf, 1], [1, 1, 1]], [0, 0]) == [1, 3]


def test_history_is_not_ranked_and_neither_is_a_target_within_it():
    excluded = Exclusions(np.array([0, 1, 3]), np.array([0, 1, 2]))
    assert ranks([[3, 2, 1], [1, 2, 3]], [1, 1], excluded) == [1, 0]


def test_items_that_did_not_exist_yet_are_not_ranked():
    available = [[False, True, True], [False, True, True]]
    assert ranks([[3, 2, 1], [3, 2, 1]], [2, 0], available=available) == [2, 0]


def test_unknown_targets_have_no_rank():
    assert ranks([[3, 2, 1], [3, 2, 1]], [-1, 2]) == [0, 3]


def test_batches_do_not_change_ranks(monkeypatch):
    rng = np.random.default_rng(0)
    scores, target = rng.random((50, 20)).round(1), rng.integers(0, 20, 50)
    lengths = rng.integers(0, 5, 50)
    excluded = Exclusions(
        np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([rng.choice(20, n, replace=False) for n in lengths])
    )
    whole = ranks(scores, target, excluded)
    monkeypatch.setattr(full_ranking, "SCORES_AT_ONCE", 140)
    assert ranks(scores, target, excluded) == whole


def test_the_history_before_a_moment_equals_a_plain_loop():
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(6), 12)
    position = np.tile(np.arange(12), 6)
    # Few items, so that users come back to some.
    item = rng.integers(0, 8, len(user))
    order = rng.permutation(len(user))
    found = Histories(user[order], item[order], position[order]).before(user, position)
    for n in range(len(user)):
        mine = found.item_X[found.indptr_N[n] : found.indptr_N[n + 1]]
        wanted = {item[k] for k in range(len(user)) if user[k] == user[n] and position[k] < position[n]}
        assert len(mine) == len(set(mine)) and set(mine) == wanted
