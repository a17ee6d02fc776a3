"""From a persona to items: one interest and one exploration restrict what the user's own vector may find.

Google's persona system (arXiv 2606.12198, section 2.5) serves it so: the user's vector stays the query, and the persona
restricts the nearest neighbours to items that are related in meaning; for each request one summarised and one
exploration interest are drawn uniformly at random, so that all of them get their turn between two refreshes. How a text
becomes a set of items it does not say. The rule here: the text is encoded, or the centroid of its cluster stands for
it; the clusters nearest to that vector are taken, at most `num_clusters` and none that is further from the nearest one
than `max_gap`; their items are the candidates. Exploration has a share of the budget of its own; what a source cannot
fill the other one fills, and what both cannot, the unrestricted neighbours: every budget is spent.

Shape letters: Q requests, C clusters, N items, D embedding.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Knobs of the rule.

    Attributes:
        budget: Items of a request.
        exploration_share: Part of the budget that is the exploration's.
        num_clusters: Most clusters of one text.
        max_gap: Clusters whose cosine to the text is this much below the nearest one's are not taken.
    """

    budget: int = 50
    exploration_share: float = 0.3
    num_clusters: int = 4
    max_gap: float = 0.15


def draw(offered_QC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the offered columns of each row, uniformly, (Q,); -1 where nothing is offered."""
    drawn_Q = np.where(offered_QC, rng.random(offered_QC.shape), -1.0).argmax(1)
    return np.where(offered_QC.any(1), drawn_Q, -1)


def near_clusters(text_QD: np.ndarray, centroid_CD: np.ndarray, config: RetrievalConfig) -> np.ndarray:
    """The clusters that stand for each text, (Q, C); a text of zeros has none.

    Args:
        text_QD: Unit vectors of texts, or of centroids that stand for them.
        centroid_CD: Unit vectors of all clusters.
        config: Knobs.
    """
    cosine_QC = text_QD @ centroid_CD.T
    most = min(config.num_clusters, len(centroid_CD))
    # Ties go to the lower number, so that there are never more than were asked for.
    place_QC = np.argsort(np.argsort(-cosine_QC, axis=1, kind="stable"), axis=1)
    near_QC = (place_QC < most) & (cosine_QC >= cosine_QC.max(1, keepdims=True) - config.max_gap)
    return near_QC & (np.abs(text_QD).sum(1, keepdims=True) > 0)


def _first(allowed_QN: np.ndarray, number_Q: np.ndarray) -> np.ndarray:
    """The first allowed items of each row, as many as asked for or as there are, (Q, N)."""
    return allowed_QN & (np.cumsum(allowed_QN, axis=1) <= number_Q[:, None])


def retrieve(known_QN: np.ndarray, explored_QN: np.ndarray, open_QN: np.ndarray, config: RetrievalConfig) -> np.ndarray:
    """The items of each request, (Q, N).

    Columns are the items in the order of their nearness to the user's vector, for each row its own: so the order is
    made once a user, however many requests there are.

    Args:
        known_QN: Items of the summarised interest's clusters.
        explored_QN: Items of the exploration's clusters.
        open_QN: Items that may be shown at all: those that the user has not met.
        config: Knobs.
    """
    offered_QN = explored_QN & open_QN
    share_Q = np.where(offered_QN.any(1), round(config.exploration_share * config.budget), 0)
    taken_QN = _first(offered_QN, share_Q)
    whole_Q = np.full(len(open_QN), config.budget)
    for allowed_QN, most_Q in (
        (known_QN, whole_Q - share_Q),
        (known_QN | explored_QN, whole_Q),
        (np.True_, whole_Q),
    ):
        left_Q = np.minimum(most_Q, whole_Q - taken_QN.sum(1))
        taken_QN |= _first(open_QN & allowed_QN & ~taken_QN, left_Q)
    return taken_QN
