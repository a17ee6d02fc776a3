"""When a student may replace its teacher: fidelity measured on held-out users, and the bounds that it must keep."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Literal, NamedTuple

import numpy as np

from models.ranking.bootstrap import Interval, interval, ratio, user_weights

COMPARED = ("grounding", "next_cluster_recall")
MORE_USERS = "raise examined_users, examination_budget or held_share"
Verdict = Literal["released", "undecided", "kept back"]


class Outcome(NamedTuple):
    """What one writer made of one held-out user.

    Attributes:
        followed: Whether the answer had the form that was asked for.
        asked: Interests that were to be described.
        described: Clusters that a usable, grounded sentence describes.
        anchors: Explorations that were to be chosen.
        explored: Pairs of anchor and chosen cluster; valid ones only.
        shares: Of each interest's cluster the share of the user's likes.
        later: Clusters that the user liked later.
        known: Clusters that the history had touched.
    """

    followed: bool
    asked: int
    described: Set[int]
    anchors: int
    explored: Set[tuple[int, int]]
    shares: Mapping[int, float]
    later: Set[int]
    known: Set[int]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a student must reach.

    Attributes:
        min_ifr: Least instruction following rate.
        grounding_margin: Its grounding may lie this much below the teacher's.
        recall_margin: Its next-cluster recall may lie this much below the teacher's.
        min_users: Least held-out users that a verdict rests on; as many must have liked something later.
        resamples: Bootstrap resamples of users.
        seed: Seed of the resamples.
    """

    min_ifr: float = 0.95
    grounding_margin: float = 0.05
    recall_margin: float = 0.02
    min_users: int = 10
    resamples: int = 2000
    seed: int = 17


class Gate(NamedTuple):
    """One condition of a release.

    Attributes:
        name: What is looked at.
        state: ``undecided`` where the sample cannot tell whether it holds.
        said: Figures and bound in a sentence.
    """

    name: str
    state: Literal["passed", "undecided", "failed"]
    said: str


def fidelity(outcomes: Sequence[Outcome], teacher: Sequence[Outcome] = ()) -> dict[str, float]:
    """Metrics of a writer over all rows; what could not be read counts as nothing said.

    * ``ifr``: instruction following rate.
    * ``grounding``: share of the interests asked for that a usable sentence with existing evidence describes.
    * ``coverage``: share of the user's likes within the interests asked for that such a sentence describes.
    * ``exploration_validity``: share of the anchors with a chosen topic that is novel and may follow the anchor.
    * ``next_cluster_recall``, ``next_cluster_hit``: share of the clusters liked later that the persona names, and
      whether it names any; of users who liked something later.
    * ``next_novel_hit``: whether an exploration is among the clusters that were liked later and never touched before;
      of users who have such a cluster and an anchor.
    * ``exploration_agreement``: share of the teacher's explorations that are also this writer's.

    Args:
        outcomes: Of each held-out user.
        teacher: The teacher's, of the same users in the same order.
    """
    after = [o for o in outcomes if o.later]
    with_anchors = [o for o in outcomes if o.anchors]
    novel = [o for o in with_anchors if o.later - o.known]
    pairs = [(o, t) for o, t in zip(outcomes, teacher or outcomes, strict=True) if t.explored]
    return {
        "users": float(len(outcomes)),
        "users_with_later_likes": float(len(after)),
        "ifr": _mean([float(o.followed) for o in outcomes]),
        "grounding": _mean([_grounded(o) for o in outcomes]),
        "coverage": _mean(
            [sum(o.shares[c] for c in o.described) / max(sum(o.shares.values()), 1e-12) for o in outcomes]
        ),
        "exploration_validity": _mean([len(o.explored) / o.anchors for o in with_anchors]),
        "next_cluster_recall": _mean([_recalled(o) for o in after]),
        "next_cluster_hit": _mean([float(bool(_named(o) & o.later)) for o in after]),
        "next_novel_hit": _mean([float(bool({c for _, c in o.explored} & (o.later - o.known))) for o in novel]),
        "exploration_agreement": _mean([len(o.explored & t.explored) / len(t.explored) for o, t in pairs]),
    }


def differences(writer: Sequence[Outcome], teacher: Sequence[Outcome], bounds: Bounds) -> dict[str, Interval]:
    """How much the figures of a writer lie above the teacher's, with 95 % intervals; users are drawn with both figures.

    Args:
        writer: Of each held-out user.
        teacher: The teacher's, of the same users in the same order.
        bounds: Resamples and seed.
    """
    weight_RU = user_weights(len(teacher), bounds.resamples, bounds.seed).astype(np.float64)
    found = {}
    for name, figure, counts_U in (
        ("grounding", _grounded, np.ones(len(teacher))),
        ("next_cluster_recall", _recalled, np.array([float(bool(o.later)) for o in teacher])),
    ):
        more_U = np.array([figure(o) - figure(t) for o, t in zip(writer, teacher, strict=True)])
        value = float(more_U.sum() / counts_U.sum()) if counts_U.any() else float("nan")
        found[name] = interval(value, ratio(more_U, counts_U, weight_RU))
    return found


def gates(student: Sequence[Outcome], teacher: Sequence[Outcome], bounds: Bounds) -> list[Gate]:
    """Every condition of a release, with what became of it.

    Where the student is compared, the whole interval of the difference must lie above minus the margin; one that lies
    below as a whole fails, and one that reaches over the bound is undecided: more users would tell.

    Args:
        student: Of each held-out user.
        teacher: The teacher's, of the same users in the same order.
        bounds: What must be reached.
    """
    figures = fidelity(student, teacher)
    # Recall is of those with later likes alone.
    enough = min(figures["users"], figures["users_with_later_likes"]) >= bounds.min_users
    counted = f"{figures['users']:.0f} held-out users, {figures['users_with_later_likes']:.0f} with later likes"
    short = f" are too few for a verdict ({bounds.min_users} are wanted): {MORE_USERS}."
    found = [
        Gate("users", "passed", f"{counted}.") if enough else Gate("users", "undecided", counted + short),
        # A floor of form, of the student alone: nothing is compared.
        Gate(
            "ifr",
            "passed" if figures["ifr"] >= bounds.min_ifr else "failed",
            f"The instruction following rate is {figures['ifr']:.3f}; {bounds.min_ifr} is wanted.",
        ),
    ]
    margins = dict(zip(COMPARED, (bounds.grounding_margin, bounds.recall_margin), strict=True))
    for name, (value, low, high) in differences(student, teacher, bounds).items():
        bound = -margins[name]
        said = f"{name} less the teacher's is {value:+.3f} [{low:+.3f}, {high:+.3f}]; {bound:+.3f} may be lost"
        if low >= bound:
            found.append(Gate(name, "passed", f"{said}."))
        elif high < bound:
            found.append(Gate(name, "failed", f"{said}: the student is worse."))
        else:
            found.append(Gate(name, "undecided", f"{said}: too few users to tell, {MORE_USERS}."))
    return found


def verdict(found: Sequence[Gate]) -> Verdict:
    """A student is released if every gate passed; kept back without a failure, it is undecided."""
    states = {gate.state for gate in found}
    return "kept back" if "failed" in states else "undecided" if "undecided" in states else "released"


def _grounded(outcome: Outcome) -> float:
    return len(outcome.described) / outcome.asked


def _named(outcome: Outcome) -> Set[int]:
    return outcome.described | {c for _, c in outcome.explored}


def _recalled(outcome: Outcome) -> float:
    return len(_named(outcome) & outcome.later) / len(outcome.later) if outcome.later else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
