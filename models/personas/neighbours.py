"""The rule of `models/personas/retrieval.py` for one request: only items of the clusters in question are scored.

Shape letters: C clusters, N items, D embedding, K items of a request.
"""

from typing import NamedTuple

import numpy as np

from models.personas.retrieval import RetrievalConfig

INTEREST, EXPLORATION, EITHER, FILLED = "interest", "exploration", "either", "neighbours"


class Shown(NamedTuple):
    """The items of a request, the nearest to the query first.

    Attributes:
        item_K: Rows of the catalogue.
        source_K: What each was found by: `interest`, `exploration`, `either` (what one source could not fill, from
            both), or `neighbours` (of the unrestricted ones).
    """

    item_K: np.ndarray
    source_K: np.ndarray


class Neighbours:
    """A catalogue by clusters.

    Args:
        item_ND: Unit vectors of the items.
        cluster_N: Cluster of each, as a column from 0.
        num_clusters: Clusters.
    """

    def __init__(self, item_ND: np.ndarray, cluster_N: np.ndarray, num_clusters: int):
        self.item_ND = item_ND
        self.order_N = np.argsort(cluster_N, kind="stable")
        self.start_C = np.searchsorted(cluster_N[self.order_N], np.arange(num_clusters + 1))

    def members(self, clusters: np.ndarray) -> np.ndarray:
        """Rows of the items of some clusters, ascending."""
        parts = [self.order_N[self.start_C[c] : self.start_C[c + 1]] for c in clusters]
        return np.sort(np.concatenate(parts)) if parts else np.zeros(0, np.int64)

    def find(
        self,
        query_D: np.ndarray | None,
        known: np.ndarray,
        explored: np.ndarray,
        met: np.ndarray,
        config: RetrievalConfig,
        popular_N: np.ndarray,
    ) -> Shown:
        """The items of a request; the same as `retrieve` takes.

        Args:
            query_D: The user's vector; None: the most popular items are the nearest.
            known: Clusters of the interest.
            explored: Clusters of the exploration.
            met: Rows that are not to be shown.
            config: Knobs.
            popular_N: Likes of each item.
        """

        def score(rows: np.ndarray) -> np.ndarray:
            found = popular_N[rows] if query_D is None else self.item_ND[rows] @ query_D
            return np.asarray(found, np.float32)

        known_rows, explored_rows = (np.setdiff1d(self.members(c), met) for c in (known, explored))
        share = round(config.exploration_share * config.budget) if len(explored_rows) else 0
        taken, sources = np.zeros(0, np.int64), np.zeros(0, object)
        for rows, most, source in (
            (explored_rows, share, EXPLORATION),
            (known_rows, config.budget - share, INTEREST),
            (np.union1d(known_rows, explored_rows), config.budget, EITHER),
            (None, config.budget, FILLED),
        ):
            most = min(most, config.budget - len(taken))
            if most <= 0:
                continue
            # The whole catalogue is looked at only where the clusters do not fill the budget.
            left = np.setdiff1d(np.arange(len(self.item_ND)) if rows is None else rows, taken)
            left = np.setdiff1d(left, met) if rows is None else left
            more = left[nearest(score(left), most)]
            taken, sources = np.append(taken, more), np.append(sources, [source] * len(more))
        order = np.lexsort((taken, -score(taken)))
        return Shown(taken[order], sources[order])


def nearest(score_N: np.ndarray, most: int) -> np.ndarray:
    """Places of the highest scores, ascending; of equal ones the first."""
    if len(score_N) <= most:
        return np.arange(len(score_N))
    least = np.partition(score_N, len(score_N) - most)[len(score_N) - most]
    above = score_N > least
    ties = np.flatnonzero(score_N == least)[: most - above.sum()]
    return np.sort(np.append(np.flatnonzero(above), ties))
