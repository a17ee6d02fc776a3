"""When a student may replace its teacher: fidelity measured on held-out users, and the bounds that it must keep."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple


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
    """

    min_ifr: float = 0.95
    grounding_margin: float = 0.05
    recall_margin: float = 0.02
    min_users: int = 10


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
    named = [o.described | {c for _, c in o.explored} for o in after]
    with_anchors = [o for o in outcomes if o.anchors]
    novel = [o for o in with_anchors if o.later - o.known]
    pairs = [(o, t) for o, t in zip(outcomes, teacher or outcomes, strict=True) if t.explored]
    return {
        "users": float(len(outcomes)),
        "users_with_later_likes": float(len(after)),
        "ifr": _mean([float(o.followed) for o in outcomes]),
        "grounding": _mean([len(o.described) / o.asked for o in outcomes]),
        "coverage": _mean(
            [sum(o.shares[c] for c in o.described) / max(sum(o.shares.values()), 1e-12) for o in outcomes]
        ),
        "exploration_validity": _mean([len(o.explored) / o.anchors for o in with_anchors]),
        "next_cluster_recall": _mean([len(n & o.later) / len(o.later) for n, o in zip(named, after, strict=True)]),
        "next_cluster_hit": _mean([float(bool(n & o.later)) for n, o in zip(named, after, strict=True)]),
        "next_novel_hit": _mean([float(bool({c for _, c in o.explored} & (o.later - o.known))) for o in novel]),
        "exploration_agreement": _mean([len(o.explored & t.explored) / len(t.explored) for o, t in pairs]),
    }


def failed_gates(student: Mapping[str, float], teacher: Mapping[str, float], bounds: Bounds) -> list[str]:
    """Why the student may not be released, one sentence a gate; empty if it may.

    Args:
        student: As `fidelity` gives it.
        teacher: The teacher's, of the same users.
        bounds: What must be reached.
    """
    failed = []
    # Recall is of those with later likes alone.
    if min(student["users"], student["users_with_later_likes"]) < bounds.min_users:
        failed.append(
            f"{student['users']:.0f} held-out users, {student['users_with_later_likes']:.0f} with later likes, are too "
            f"few for a verdict ({bounds.min_users} are wanted): raise token_budget."
        )
    if student["ifr"] < bounds.min_ifr:
        failed.append(f"The instruction following rate is {student['ifr']:.3f}, below {bounds.min_ifr}.")
    for name, margin in (("grounding", bounds.grounding_margin), ("next_cluster_recall", bounds.recall_margin)):
        if student[name] < teacher[name] - margin:
            failed.append(f"{name} is {student[name]:.3f}, more than {margin} below the teacher's {teacher[name]:.3f}.")
    return failed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
