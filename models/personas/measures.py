"""Measures of personas beside their controls: per-user parts, equal numbers of clusters, intervals over users.

Every measure is a ratio of sums over users, so that users can be resampled, and every control is measured on the same
users, so that its difference is paired.

Shape letters: U users, C clusters, R resamples.
"""

from typing import NamedTuple

import numpy as np

from models.ranking.bootstrap import interval, ratio

OWN = "own"


class Resampled(NamedTuple):
    """One measure of one arm.

    Attributes:
        measure: What was measured.
        arm: `own` or a control.
        value: The value.
        resampled_R: The value in each resample.
        num_users: Users that have it.
    """

    measure: str
    arm: str
    value: float
    resampled_R: np.ndarray
    num_users: int


class Line(NamedTuple):
    """A row of the table, without where it was measured; see `ray_jobs.tables.personas.PERSONA_MEASURES`."""

    measure: str
    arm: str
    baseline: str
    value: float
    low: float
    high: float
    num_users: int


def rated(measure: str, arm: str, above_U: np.ndarray, below_U: np.ndarray, weight_RU: np.ndarray) -> Resampled:
    """A ratio of sums over users.

    Args:
        measure: Its name.
        arm: `own` or a control.
        above_U: Parts of the numerator.
        below_U: Parts of the denominator; 0 where a user has none.
        weight_RU: Draws, as `user_weights` gives them.
    """
    above_U, below_U = np.asarray(above_U, np.float64), np.asarray(below_U, np.float64)
    total = below_U.sum()
    value = float(above_U.sum() / total) if total else float("nan")
    return Resampled(measure, arm, value, ratio(above_U, below_U, weight_RU), int((below_U > 0).sum()))


def lines_of(found: list[Resampled]) -> list[Line]:
    """Rows of the table: each value, and the difference of `own` to each control; what nobody has is left out."""
    own = {r.measure: r for r in found if r.arm == OWN}
    lines = []
    for r in found:
        if not np.isfinite(r.value):
            continue
        lines.append(Line(r.measure, r.arm, "", *interval(r.value, r.resampled_R), r.num_users))
        mine = own.get(r.measure)
        if mine is not None and r is not mine and np.isfinite(mine.value):
            between = interval(mine.value - r.value, mine.resampled_R - r.resampled_R)
            lines.append(Line(r.measure, OWN, r.arm, *between, min(mine.num_users, r.num_users)))
    return lines


def pick(score_UC: np.ndarray, number_U: np.ndarray) -> np.ndarray:
    """The clusters of highest score of each user, as many as asked for, (U, C); those of score -inf are never taken."""
    place_UC = np.argsort(np.argsort(-score_UC, axis=1, kind="stable"), axis=1)
    return (place_UC < number_U[:, None]) & np.isfinite(score_UC)


def other_rows(user_M: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """For each row random rows of other users, (draws, M).

    Args:
        user_M: User of each row; rows of one user stand together.
        draws: Rows that are drawn.
        rng: Random numbers.

    Raises:
        ValueError: If all rows are of one user.
    """
    size = len(user_M)
    start_M = np.searchsorted(user_M, user_M, side="left")
    end_M = np.searchsorted(user_M, user_M, side="right")
    free_M = size - (end_M - start_M)
    if not len(free_M) or free_M.min() <= 0:
        raise ValueError("There is nobody else to draw from: give rows of two users at least.")
    return (end_M + (rng.random((draws, size)) * free_M).astype(np.int64)) % size


class Topics(NamedTuple):
    """Which clusters each user's persona names.

    Attributes:
        known_UC: Clusters of the interests.
        explored_UC: Clusters of the explorations.
        source_U: Whose persona it is; None: nobody's.
    """

    known_UC: np.ndarray
    explored_UC: np.ndarray
    source_U: np.ndarray | None = None


def controls(
    own: Topics, share_UC: np.ndarray, popular_C: np.ndarray, draws: int, rng: np.random.Generator
) -> dict[str, list[Topics]]:
    """Controls with as many clusters as each user's own persona has.

    `other_user`: the persona of a random other user, filled up by that user's own history; `popular`: what all like
    most, untouched clusters as explorations; `raw_clusters`: what the user liked most, before anything is dropped,
    with random untouched clusters as explorations.

    Args:
        own: The personas.
        share_UC: Part of each user's likes that lies in each cluster.
        popular_C: Likes of all users in each cluster.
        draws: Random draws of what is random.
        rng: Random numbers.
    """
    known_U, explored_U = own.known_UC.sum(1), own.explored_UC.sum(1)
    popular_UC = np.broadcast_to(popular_C / max(popular_C.sum(), 1), share_UC.shape)
    new_UC = np.where(share_UC > 0, -np.inf, 0.0)
    made: dict[str, list[Topics]] = {
        "popular": [Topics(pick(popular_UC, known_U), pick(popular_UC + new_UC, explored_U))],
        "raw_clusters": [],
    }
    for _ in range(draws):
        raw_UC = np.where(share_UC > 0, share_UC, -np.inf)
        noise_UC = rng.random(share_UC.shape)
        made["raw_clusters"].append(Topics(pick(raw_UC, known_U), pick(noise_UC + new_UC, explored_U)))
    if len(share_UC) > 1:
        made["other_user"] = []
        for donor_U in other_rows(np.arange(len(share_UC)), draws, rng):
            noise_UC = 1e-6 * rng.random(share_UC.shape)
            filled_UC = share_UC[donor_U] + noise_UC
            known_UC = pick(own.known_UC[donor_U] * 2.0 + filled_UC, known_U)
            explored_UC = pick(own.explored_UC[donor_U] * 2.0 + filled_UC, explored_U)
            made["other_user"].append(Topics(known_UC, explored_UC, donor_U))
    return made


def later_hits(
    topics: Topics, later_UC: np.ndarray, touched_UC: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Whether a persona names clusters of what its user likes later, by measure: parts of the two sums.

    Interests answer for clusters that the user had touched, explorations for those that were new.

    Args:
        topics: Personas that saw nothing of what is later.
        later_UC: Later likes in each cluster.
        touched_UC: Clusters that any event before had touched.
    """
    both_UC = topics.known_UC | topics.explored_UC
    seen_UC, new_UC = later_UC * touched_UC, later_UC * ~touched_UC
    explores_U = topics.explored_UC.any(1)
    return {
        "next_cluster_hit": (((later_UC > 0) & both_UC).any(1), (later_UC > 0).any(1)),
        "next_cluster_hit_seen": (((seen_UC > 0) & topics.known_UC).any(1), (seen_UC > 0).any(1)),
        "next_cluster_hit_unseen": (((new_UC > 0) & topics.explored_UC).any(1), (new_UC > 0).any(1) & explores_U),
        "next_likes_share_seen": ((seen_UC * topics.known_UC).sum(1), seen_UC.sum(1)),
        "next_likes_share_unseen": ((new_UC * topics.explored_UC).sum(1), new_UC.sum(1) * explores_U),
    }


def averaged(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean over draws of the parts of a measure."""
    return (
        np.mean([np.asarray(above, np.float64) for above, _ in parts], axis=0),
        np.mean([np.asarray(below, np.float64) for _, below in parts], axis=0),
    )
