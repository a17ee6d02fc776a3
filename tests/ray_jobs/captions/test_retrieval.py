"""Whether captions tell items apart: how trials are drawn, places, and what is made of them."""

import numpy as np
import polars as pl
import pytest

from ray_jobs.captions.retrieval import Trial, discrimination, rank_of_first, retrieval, trials


def categories(*lists):
    return pl.Series("categories", list(lists), dtype=pl.List(pl.String))


def test_candidates_share_the_smallest_category_that_is_large_enough():
    rows = [["film", "drama"] if i % 2 else ["film", "war"] for i in range(60)] + [["film", "rare"]] * 3
    found = trials(categories(*rows), sampled_items=500, candidates=20, seed=1)
    assert sorted(t.item for t in found) == list(range(63)) and {len(t.candidates) for t in found} == {20}
    for trial in found:
        assert trial.candidates[0] == trial.item and len(set(trial.candidates)) == 20
        assert all(trial.category in rows[c] for c in trial.candidates)
        assert trial.category == ("film" if trial.item >= 60 else rows[trial.item][1])
    assert len({row for t in found for row in t.candidates}) <= 63


def test_small_categories_have_fewer_candidates_and_a_lone_item_none():
    found = trials(categories(["a"], ["a"], ["a"], ["lone"], [], None), sampled_items=9, candidates=100, seed=1)
    assert {t.item: (t.category, sorted(t.candidates)) for t in found} == {
        **{i: ("a", [0, 1, 2]) for i in range(3)},
        4: ("", [4, 5]),
        5: ("", [4, 5]),
    }
    assert trials(categories(), sampled_items=9, candidates=100, seed=1) == []


def test_the_sample_is_bounded_and_seeded():
    rows = categories(*[["a"]] * 50)
    one, same, other = (trials(rows, sampled_items=10, candidates=5, seed=s) for s in (1, 1, 2))
    assert len(one) == 10 and one == same and one != other


@pytest.mark.parametrize("score, rank", [([3, 1, 2], 1), ([1, 3, 2], 3), ([2, 2, 2], 2), ([2, 2, 1], 1.5), ([1], 1)])
def test_ranks_take_the_middle_of_a_tie(score, rank):
    assert rank_of_first(np.array(score, float)) == rank


def places_of(captions, evidence, controls=3):
    tried = [Trial(i, "a", [i, *(j for j in range(len(captions)) if j != i)]) for i in range(len(captions))]
    found = retrieval(tried, captions, evidence, np.arange(len(captions)), controls=controls, seed=1)
    return pl.DataFrame(
        {
            "candidates": [len(captions)] * len(captions),
            "rank": [rank for rank, _ in found],
            "control_ranks": [control for _, control in found],
        }
    )


def test_captions_that_tell_items_apart_are_above_control_and_generic_ones_are_not():
    rng = np.random.default_rng(0)
    evidence = rng.normal(size=(60, 16))
    good, compared = discrimination(places_of(evidence + 0.3 * rng.normal(size=evidence.shape), evidence))
    assert good.recall_at_1 > 0.9 and good.lift_low > 0.5 and good.lift_low < good.lift < good.lift_high
    assert compared["chance"] == pytest.approx((1 / 60, 10 / 60, sum(1 / k for k in range(1, 61)) / 60))
    assert compared["other caption"][2] < 2 * compared["chance"][2] and compared["own caption"][2] == good.mrr
    noise, _ = discrimination(places_of(rng.normal(size=evidence.shape), evidence))
    assert noise.lift_low <= 0 <= noise.lift_high
    same, compared = discrimination(places_of(np.ones_like(evidence), np.ones_like(evidence)))
    assert same.lift == same.lift_low == same.lift_high == 0 and compared["own caption"][0] == 0


def test_only_what_is_shown_is_read():
    tried = [Trial(7, "a", [7, 3])]
    captions = np.zeros((8, 2))
    captions[7], captions[3] = [1, 0], [0, 1]
    ((rank, control),) = retrieval(tried, captions, np.array([[0, 1], [1, 0]]), np.array([3, 7]), controls=5, seed=1)
    assert rank == 1 and control == [2]
