"""One request at a time finds what the rule over whole matrices finds."""

import numpy as np
import pytest

from models.personas.neighbours import EXPLORATION, FILLED, INTEREST, Neighbours, nearest
from models.personas.retrieval import RetrievalConfig, retrieve


@pytest.mark.parametrize("seed", range(60))
def test_requests_find_what_the_rule_finds(seed):
    rng = np.random.default_rng(seed)
    items, clusters = int(rng.integers(1, 80)), int(rng.integers(1, 9))
    item_ND = rng.normal(size=(items, 6)).astype(np.float32)
    cluster_N, popular_N = rng.integers(0, clusters, items), rng.integers(0, 4, items)
    config = RetrievalConfig(budget=int(rng.integers(1, 40)), exploration_share=float(rng.choice([0.0, 0.3, 1.0])))
    known, explored = (np.flatnonzero(rng.random(clusters) < 0.3) for _ in range(2))
    met = np.flatnonzero(rng.random(items) < rng.choice([0.0, 0.2, 1.0]))
    query_D = rng.normal(size=6).astype(np.float32) if seed % 2 else None
    score_N = popular_N.astype(np.float32) if query_D is None else item_ND @ query_D
    order_N = np.argsort(-score_N, kind="stable")
    open_N = ~np.isin(order_N, met)
    in_known_N, in_explored_N = (np.isin(cluster_N[order_N], c) for c in (known, explored))
    wanted = order_N[retrieve(in_known_N[None], in_explored_N[None], open_N[None], config)[0]]

    found = Neighbours(item_ND, cluster_N, clusters).find(query_D, known, explored, met, config, popular_N)
    assert found.item_K.tolist() == wanted.tolist(), "the same items in the same order"
    for source, allowed in ((INTEREST, known), (EXPLORATION, explored)):
        assert np.isin(cluster_N[found.item_K[found.source_K == source]], allowed).all()
    filled = found.item_K[found.source_K == FILLED]
    assert not np.isin(cluster_N[filled], np.union1d(known, explored)).any()


def test_equal_scores_go_to_the_first_places():
    assert nearest(np.array([1.0, 3.0, 2.0, 2.0, 2.0]), 3).tolist() == [1, 2, 3]
    assert nearest(np.array([1.0, 2.0]), 5).tolist() == [0, 1] and nearest(np.zeros(4), 2).tolist() == [0, 1]
