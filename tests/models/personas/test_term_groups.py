import dataclasses

import numpy as np
import polars as pl
import pytest
import scipy.sparse as sp

from models.personas import term_groups
from models.personas.interests import InterestConfig
from models.personas.salient_terms import TermConfig
from models.personas.term_groups import find_term_interests, group_likes

CONFIG = InterestConfig(half_life=1e9, grouping="salient_terms", terms=TermConfig(threshold=0.5))
TERMS = pl.DataFrame(
    [
        *[(f"w{n}", t, 0.6 if t == "war" else 0.8) for n in range(4) for t in ("war", "war history")],
        *[(f"m{n}", "music", 1.0) for n in range(3)],
    ],
    schema=["item_id", "term", "weight"],
    orient="row",
)


def history(*rows):
    """Rows of (user, item, cluster, liked) in the order of time."""
    return pl.DataFrame(
        [
            {
                "user_id": u,
                "item_id": i,
                "position": n,
                "liked": bool(liked),
                "value": None,
                "cluster": c,
                "label": f"cluster {c}",
                "title": i.upper(),
            }
            for n, (u, i, c, liked) in enumerate(rows)
        ],
        schema_overrides={"value": pl.Float64},
    )


def one_by_one(vectors, threshold):
    """The published walk, in the space of terms, one item after the other."""
    centroids, groups = [], []
    for vector in vectors:
        cosines = [
            float(vector @ c) / max(np.linalg.norm(vector) * np.linalg.norm(c), 1e-9) if vector.any() else 0.0
            for c in centroids
        ]
        best = int(np.argmax(cosines)) if cosines else -1
        if best >= 0 and cosines[best] >= threshold:
            centroids[best] = centroids[best] + vector
            groups.append(best)
        else:
            centroids.append(vector.copy())
            groups.append(len(centroids) - 1)
    return groups


def test_all_users_at_once_give_what_a_walk_through_each_history_gives(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = np.array([7, 1, 23, 0, 12, 23])
    dense = rng.random((lengths.sum(), 30)) * (rng.random((lengths.sum(), 30)) < 0.15)
    dense[[0, 9, 30]] = 0.0  # items without terms
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
    expected = np.concatenate([one_by_one(part, 0.3) for part in np.split(dense, np.cumsum(lengths)[:-1])])
    found = group_likes(sp.csr_matrix(dense.astype(np.float32)), lengths, 0.3)
    assert found.tolist() == expected.astype(int).tolist()
    monkeypatch.setattr(term_groups, "BLOCK_VALUES", 600)
    assert group_likes(sp.csr_matrix(dense.astype(np.float32)), lengths, 0.3).tolist() == found.tolist()


def test_groups_become_interests_with_the_cluster_of_most_members():
    rows = [("u", "w0", 5, 1), ("u", "m0", 8, 1), ("u", "w1", 5, 1), ("u", "w2", 6, 1), ("u", "m1", 8, 1)]
    found = find_term_interests(history(*rows), TERMS, CONFIG).to_dicts()
    assert [(f["cluster"], f["label"], f["share"]) for f in found] == [
        (5, "war history", pytest.approx(0.6)),
        (8, "music", pytest.approx(0.4)),
    ]
    assert set(found[0]["evidence_item_ids"]) == {"w0", "w1", "w2"} and set(found[1]["evidence_titles"]) == {"M0", "M1"}


def test_negative_feedback_and_small_groups_are_left_out():
    rows = [("u", "w0", 5, 1), ("u", "w1", 5, 0), ("u", "m0", 8, 1), ("u", "m1", 8, 1), ("u", "m2", 8, 1)]
    found = find_term_interests(history(*rows), TERMS, CONFIG)
    assert found["cluster"].to_list() == [8], "one liked item is no interest, a disliked one is not counted"
    large = dataclasses.replace(CONFIG, min_items=4)
    assert find_term_interests(history(*rows), TERMS, large).is_empty()
    assert find_term_interests(history(*rows).clear(), TERMS, CONFIG).is_empty()


def test_users_do_not_touch_each_other_and_a_cluster_comes_once():
    mine = [("u", "w0", 5, 1), ("u", "w1", 5, 1), ("u", "m0", 5, 1), ("u", "m1", 5, 1), ("u", "m2", 5, 1)]
    other = [("v", "w2", 6, 1), ("v", "m0", 8, 1), ("v", "w3", 6, 1)]
    alone = find_term_interests(history(*mine), TERMS, CONFIG)
    assert alone["label"].to_list() == ["music"], "both groups lie in cluster 5: the stronger one stands"
    both = find_term_interests(history(*other, *mine), TERMS, CONFIG)
    assert both.filter(pl.col("user_id") == "u").equals(alone)
    assert both.filter(pl.col("user_id") == "v")["cluster"].to_list() == [6]


def test_what_has_no_terms_keeps_the_clusters_label():
    same = TERMS.clear()
    rows = [("u", "x", 5, 1), ("u", "y", 5, 1)]
    assert find_term_interests(history(*rows), same, CONFIG).is_empty(), "nothing shared, so two groups of one"
    lone = dataclasses.replace(CONFIG, min_items=1)
    assert find_term_interests(history(*rows), same, lone)["label"].to_list() == ["cluster 5"]
