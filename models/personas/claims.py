"""Measures of what personas say, by embeddings: is a claim grounded, said once, and about this user?

Shape letters: M claims, E cited items, D embedding, U users, K other users or claims of a user, J draws.
"""

from typing import NamedTuple

import numpy as np

from models.personas.measures import other_rows


class Grounding(NamedTuple):
    """Whether claims follow from what they cite.

    Attributes:
        score_M: Cosine of the claim to the cited item that is nearest.
        one_M: Whether one cited item at least is near enough.
        two_M: Whether two are.
        shuffled_M: Share of draws of another user's citations that are near enough.
        threshold: Cosine from which an item counts.
    """

    score_M: np.ndarray
    one_M: np.ndarray
    two_M: np.ndarray
    shuffled_M: np.ndarray
    threshold: float


def ground(
    claim_MD: np.ndarray,
    cited_MED: np.ndarray,
    user_M: np.ndarray,
    *,
    false_accept_rate: float,
    draws: int,
    rng: np.random.Generator,
) -> Grounding:
    """Holds claims against the items that they cite.

    There is no level of cosine that means "follows": it depends on the encoder. So the threshold is the one at which
    the stated share of other users' citations would pass, cut on half of the draws; the control is the other half.

    Args:
        claim_MD: Unit vectors of claims, claims of one user together.
        cited_MED: Unit vectors of the items that each cites; NaN where it cites fewer, or one that is not there.
        user_M: User of each claim, ascending.
        false_accept_rate: Share of other users' citations that may pass.
        draws: Draws of other users for each claim, for the threshold and for the control each.
        rng: Random numbers.
    """
    cosine_ME = np.nan_to_num(np.einsum("md,med->me", claim_MD, cited_MED), nan=-np.inf)
    score_M = cosine_ME.max(1)
    other_JM = other_rows(user_M, 2 * draws, rng)
    strange_JM = np.stack(
        [np.nan_to_num(np.einsum("md,med->me", claim_MD, cited_MED[o]), nan=-np.inf).max(1) for o in other_JM]
    )
    threshold = float(np.quantile(strange_JM[:draws], 1 - false_accept_rate))
    return Grounding(
        score_M,
        score_M > threshold,
        (cosine_ME > threshold).sum(1) >= 2,
        (strange_JM[draws:] > threshold).mean(0),
        threshold,
    )


def redundancy(claim_MD: np.ndarray, user_M: np.ndarray, tau: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How much a persona says twice: mean cosine of two of its claims, and distinct claims over claims.

    Args:
        claim_MD: Unit vectors.
        user_M: User of each claim, ascending from 0, every user with a claim.
        tau: Claims this near to an earlier one say the same.

    Returns:
        By measure the parts of the two sums, by user.
    """
    size_U = np.bincount(user_M)
    place_M = np.arange(len(user_M)) - np.repeat(np.cumsum(size_U) - size_U, size_U)
    claim_UKD = np.zeros((len(size_U), int(size_U.max(initial=1)), claim_MD.shape[1]))
    claim_UKD[user_M, place_M] = claim_MD
    earlier_UKK = np.tril(claim_UKD @ claim_UKD.transpose(0, 2, 1), -1)
    again_U = (earlier_UKK.max(2) >= tau).sum(1)
    pairs_U = size_U * (size_U - 1) / 2
    mean_U = earlier_UKK.sum((1, 2)) / np.maximum(pairs_U, 1)
    return {"pairwise_cosine": (mean_U, pairs_U > 0), "distinct_claim_ratio": (size_U - again_U, size_U)}


def reciprocal_ranks(
    persona_UD: np.ndarray, history_UD: np.ndarray, num_others: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each user's own history among those of random others, by likeness to the persona: 1/rank.

    Texts of one kind share a direction, so that a history near to all would be everybody's: means are taken off.

    Args:
        persona_UD: Vectors of personas.
        history_UD: Vectors of histories.
        num_others: Other users for each.
        rng: Random numbers.

    Returns:
        Of the persona, and of a random other user's persona in its place (what chance gives).
    """
    persona_UD, history_UD = (x - x.mean(0) for x in (persona_UD, history_UD))
    persona_UD, history_UD = (
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (persona_UD, history_UD)
    )
    users_U = np.arange(len(persona_UD))
    other_KU = other_rows(users_U, num_others, rng)
    (donor_U,) = other_rows(users_U, 1, rng)
    found = []
    for said_UD in (persona_UD, persona_UD[donor_U]):
        own_U = (said_UD * history_UD).sum(1)
        strange_KU = np.einsum("ud,kud->ku", said_UD, history_UD[other_KU])
        found.append(1 / (1 + (strange_KU > own_U).sum(0) + 0.5 * (strange_KU == own_U).sum(0)))
    return found[0], found[1]
