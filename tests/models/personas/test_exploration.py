import numpy as np
import polars as pl
import pytest

from models.personas.exploration import ExplorationConfig, find_candidates, relatedness

WIDE = ExplorationConfig(lower_quantile=0.0, upper_quantile=1.0)


def clusters(angles, items=9):
    centroids = [[float(np.cos(a)), float(np.sin(a))] for a in angles]
    return pl.DataFrame(
        {
            "cluster": range(len(angles)),
            "label": [f"c{i}" for i in range(len(angles))],
            "items": items if isinstance(items, list) else [items] * len(angles),
            "centroid": centroids,
        }
    )


def test_pairs_lie_within_the_band_nearest_first():
    angles = [0.0, 0.02, 0.4, 0.6, 3.0]
    found = relatedness(clusters(angles), ExplorationConfig(lower_quantile=0.4, upper_quantile=0.9))
    of_first = found.filter(pl.col("anchor_cluster") == 0)
    assert of_first["cluster"].to_list() == [2, 3], "1 says the same in other words, 4 is unrelated"
    assert of_first["similarity"].to_list() == pytest.approx([np.cos(0.4), np.cos(0.6)])


def test_a_cluster_of_few_items_is_not_worth_exploring():
    found = relatedness(clusters([0.0, 0.3, 0.5], items=[9, 2, 9]), WIDE)
    assert 1 not in found["cluster"].to_list() and 1 in found["anchor_cluster"].to_list()


@pytest.mark.parametrize("angles", [[], [0.0]])
def test_too_few_clusters_give_no_pairs(angles):
    assert relatedness(clusters(angles), WIDE).is_empty()


def test_candidates_are_novel_for_each_anchor_of_each_user():
    related = relatedness(clusters([0.0, 0.2, 0.5, 0.9, 1.4]), WIDE)
    interests = pl.DataFrame(
        {"user_id": ["u", "u", "u", "v"], "cluster": [0, 4, 1, 2]}, schema_overrides={"cluster": pl.Int32}
    )
    touched = pl.DataFrame(
        {"user_id": ["u", "u", "u", "u", "v"], "cluster": [0, 1, 4, 2, 2]}, schema_overrides={"cluster": pl.Int32}
    )
    found = find_candidates(interests, touched, related, ExplorationConfig(num_anchors=2, num_candidates=2))
    rows = found.select("user_id", "anchor_cluster", "cluster").rows()
    assert rows == [("u", 4, 3), ("v", 2, 1), ("v", 2, 3)], "3 is nearer to 4 than to 0"


def test_who_has_touched_everything_gets_nothing():
    related = relatedness(clusters([0.0, 0.2]), WIDE)
    one = pl.DataFrame({"user_id": ["u", "u"], "cluster": [0, 1]}, schema_overrides={"cluster": pl.Int32})
    assert find_candidates(one, one, related, WIDE).is_empty()


def test_an_interest_without_anything_novel_leaves_its_place_to_the_next():
    related = relatedness(
        clusters([0.0, 0.1, 1.0, 1.1, 2.0, 2.1]), ExplorationConfig(lower_quantile=0.8, upper_quantile=1.0)
    )
    interests = pl.DataFrame({"user_id": ["u"] * 3, "cluster": [0, 2, 4]}, schema_overrides={"cluster": pl.Int32})
    touched = pl.DataFrame({"user_id": ["u"] * 4, "cluster": [0, 1, 2, 4]}, schema_overrides={"cluster": pl.Int32})
    found = find_candidates(interests, touched, related, ExplorationConfig(num_anchors=2))
    assert found.select("anchor_cluster", "cluster").rows() == [(2, 3), (4, 5)]
