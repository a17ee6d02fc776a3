"""Measures of the clusters that personas name: are explorations good ones, and does everybody get the same?

Shape letters: E explorations, C clusters, U users, R resamples.
"""

from typing import NamedTuple

import numpy as np

from models.personas.measures import Resampled

HEAD = 10


class Catalogue(NamedTuple):
    """The clusters that may be explored.

    Attributes:
        similarity_CC: Cosine of any two centroids.
        items_C: Items that are as near to the centroid as a cluster's own items usually are.
        low: Lower end of the band of related clusters.
        high: Upper end.
        min_items: Least number of such items of a cluster that is worth exploring.
    """

    similarity_CC: np.ndarray
    items_C: np.ndarray
    low: float
    high: float
    min_items: int


def catalogue_of(
    centroid_CD: np.ndarray, item_ND: np.ndarray, cluster_N: np.ndarray, quantiles: tuple[float, float], min_items: int
) -> Catalogue:
    """The catalogue's own levels: what related means, and what near to a topic means.

    Args:
        centroid_CD: Unit vectors of clusters.
        item_ND: Unit vectors of items.
        cluster_N: Cluster of each item.
        quantiles: Where the band of related clusters is cut, of the similarities of any two.
        min_items: Least number of items near to a topic.
    """
    similarity_CC = centroid_CD @ centroid_CD.T
    apart = similarity_CC[~np.eye(len(centroid_CD), dtype=bool)]
    low, high = np.quantile(apart, quantiles) if len(apart) else (0.0, 0.0)
    near_NC = item_ND @ centroid_CD.T
    tau = float(np.median(near_NC[np.arange(len(item_ND)), cluster_N]))
    return Catalogue(similarity_CC, (near_NC >= tau).sum(0), float(low), float(high), min_items)


def exploration_validity(
    user_E: np.ndarray, anchor_E: np.ndarray, cluster_E: np.ndarray, touched_UC: np.ndarray, catalogue: Catalogue
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Explorations that are new, related to their anchor, and there to be shown; good are those that are all three.

    Args:
        user_E: User of each exploration.
        anchor_E: Cluster of the interest that it is next to.
        cluster_E: Cluster that is explored.
        touched_UC: Clusters that any event of the user touched.
        catalogue: Levels.

    Returns:
        By measure the parts of the two sums, by user. Soft novelty is one minus the cosine to the nearest cluster of
        the history.
    """
    new_E = ~touched_UC[user_E, cluster_E]
    nearest_E = np.where(touched_UC[user_E], catalogue.similarity_CC[cluster_E], -1.0).max(1, initial=-1.0)
    similarity_E = catalogue.similarity_CC[anchor_E, cluster_E]
    related_E = (similarity_E >= catalogue.low - 1e-9) & (similarity_E <= catalogue.high + 1e-9)
    related_E &= anchor_E != cluster_E
    there_E = catalogue.items_C[cluster_E] >= catalogue.min_items
    size = len(touched_UC)
    below_U = np.bincount(user_E, minlength=size)
    said = {
        "exploration_novel": new_E,
        "exploration_novelty_soft": 1 - nearest_E,
        "exploration_related": related_E,
        "exploration_groundable": there_E,
        "exploration_valid": new_E & related_E & there_E,
    }
    return {name: (np.bincount(user_E, value_E, minlength=size), below_U) for name, value_E in said.items()}


def _spread(count_RC: np.ndarray) -> dict[str, np.ndarray]:
    size = count_RC.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        part_RC = count_RC / count_RC.sum(1, keepdims=True)
        entropy_R = -np.where(part_RC > 0, part_RC * np.log(part_RC), 0.0).sum(1) / np.log(max(size, 2))
    sorted_RC = np.sort(part_RC, axis=1)
    gini_R = (sorted_RC * (2 * np.arange(1, size + 1) - size - 1)).sum(1) / size
    return {
        "entropy": entropy_R,
        "gini": gini_R,
        "catalogue_coverage": (count_RC > 0).mean(1),
        f"top{HEAD}_share": sorted_RC[:, -HEAD:].sum(1),
    }


def population(what: str, arm: str, count_UC: np.ndarray, weight_RU: np.ndarray) -> list[Resampled]:
    """How topics are spread over all users: entropy over the largest possible, Gini, coverage, share of the ten first.

    Resampled users name fewer distinct topics than there are, always: resamples are moved back to the value.

    Args:
        what: First part of the measures' names.
        arm: `own` or a control.
        count_UC: How often each user has each topic.
        weight_RU: Draws of users.
    """
    if not count_UC.sum():
        return []
    count_UC = count_UC.astype(np.float64)
    whole, drawn = _spread(count_UC.sum(0, keepdims=True)), _spread(weight_RU @ count_UC)
    users = int((count_UC.sum(1) > 0).sum())
    found = []
    for name, (value,) in whole.items():
        centred_R = np.clip(drawn[name] - np.nanmean(drawn[name]) + value, 0, 1)
        found.append(Resampled(f"{what}_{name}", arm, float(value), centred_R, users))
    return found
