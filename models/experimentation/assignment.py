"""Deterministic assignment of users to the arms of an experiment.

A user's place is ``sha256(salt + ":" + user id)``, its first 52 bits read as a fraction in [0, 1). Nothing is
stored: any process that knows salt and allocation finds the same arm, and another salt shuffles users
independently.

An `Allocation` cuts [0, 1) into segments, each owned by an arm. The first phase lays the arms out by their
cumulative weights in the order given. A later phase keeps the segments and moves only what must move: an arm
that shrinks gives up the end of its segments, an arm that grows (or is new) takes what was given up. The
share of users that change arm is therefore the total variation distance between the two weightings, the least
possible. Cumulative weights alone would shift every boundary and move users between arms that only shrank.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SLOTS = 1_000_000
"""Weights are exact to one in a million."""

_HEX_DIGITS = 13
_SCALE = float(16**_HEX_DIGITS)


class Segment(NamedTuple):
    """Slots ``start`` (inclusive) to ``end`` (exclusive) of an arm."""

    start: int
    end: int
    arm: str


def _slots(weights: dict[str, float]) -> dict[str, int]:
    """Slots of each arm, adding up to `SLOTS`: the largest remainders get what rounding left over."""
    if not weights or any(not math.isfinite(w) or w < 0 for w in weights.values()) or sum(weights.values()) <= 0:
        raise ValueError("Weights must be finite, not negative, and at least one must be above zero.")
    total = sum(weights.values())
    exact = {arm: weight / total * SLOTS for arm, weight in weights.items()}
    # Rounded first: 0.29 * 1e6 is 289999.99999999994.
    floors = {arm: int(round(share, 6)) for arm, share in exact.items()}
    by_remainder = sorted(exact, key=lambda arm: floors[arm] - exact[arm])
    for arm in by_remainder[: SLOTS - sum(floors.values())]:
        floors[arm] += 1
    return floors


class Allocation(NamedTuple):
    """How [0, 1) is divided among arms.

    Attributes:
        segments: In order, without gaps, covering all `SLOTS` slots.
    """

    segments: tuple[Segment, ...]

    @classmethod
    def of(cls, *phases: dict[str, float]) -> "Allocation":
        """The allocation after ``phases``, oldest first; weights are relative.

        Raises:
            ValueError: If there is no phase, or a phase has no positive weight.
        """
        if not phases:
            raise ValueError("An experiment needs at least one phase with weights of its arms.")
        segments, start = [], 0
        for arm, size in _slots(phases[0]).items():
            if size:
                segments.append(Segment(start, start + size, arm))
            start += size
        allocation = cls(tuple(segments))
        for weights in phases[1:]:
            allocation = allocation._reweighted(_slots(weights))
        return allocation

    def _reweighted(self, wanted: dict[str, int]) -> "Allocation":
        surplus = {arm: max(size - wanted.get(arm, 0), 0) for arm, size in self.sizes().items()}
        kept, freed = [], []
        for start, end, arm in reversed(self.segments):
            given = min(surplus[arm], end - start)
            surplus[arm] -= given
            kept.append(Segment(start, end - given, arm))
            freed.append(Segment(end - given, end, ""))
        sizes = self.sizes()
        takers = [(arm, size - sizes.get(arm, 0)) for arm, size in wanted.items() if size > sizes.get(arm, 0)]
        for start, end, _ in reversed(freed):
            while start < end:
                arm, need = takers[0]
                taken = min(need, end - start)
                kept.append(Segment(start, start + taken, arm))
                start += taken
                takers[0] = (arm, need - taken)
                if need == taken:
                    takers.pop(0)
        merged: list[Segment] = []
        for segment in sorted(s for s in kept if s.start < s.end):
            if merged and merged[-1].arm == segment.arm:
                merged[-1] = Segment(merged[-1].start, segment.end, segment.arm)
            else:
                merged.append(segment)
        return Allocation(tuple(merged))

    def sizes(self) -> dict[str, int]:
        """Slots of each arm that has any."""
        sizes: dict[str, int] = {}
        for start, end, arm in self.segments:
            sizes[arm] = sizes.get(arm, 0) + end - start
        return sizes

    def weights(self) -> dict[str, float]:
        """Share of each arm that has any."""
        return {arm: size / SLOTS for arm, size in self.sizes().items()}

    def arm_at(self, fraction: float) -> str:
        """The arm that owns a place in [0, 1)."""
        slot = int(fraction * SLOTS)
        return next(s.arm for s in self.segments if s.start <= slot < s.end)


def bucket(salt: str, user_id: str) -> float:
    """The place of one user in [0, 1). This is the rule; `buckets` is the same for many users."""
    return int(hashlib.sha256(f"{salt}:{user_id}".encode()).hexdigest()[:_HEX_DIGITS], 16) / _SCALE


def check_salt(salt: str) -> str:
    """Returns ``salt`` if it can be one.

    Raises:
        ValueError: If it is empty or holds a colon, which would let two salts meet in one hash.
    """
    if not salt or ":" in salt:
        raise ValueError(f"Salt {salt!r} must not be empty and must not hold a colon.")
    return salt


def buckets(salt: str, user_ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The places of many users.

    Args:
        salt: The experiment's salt.
        user_ids: User ids (string), without nulls.

    Returns:
        float64, in the order of ``user_ids``, in [0, 1).
    """
    import duckdb

    users = pa.table({"user_id": user_ids})
    with duckdb.connect() as connection:
        # DuckDB hashes on all cores without a Python call a row.
        connection.register("users", users)
        connection.execute("SET preserve_insertion_order = true")
        hashed: Any = connection.execute(
            f"SELECT ('0x' || substr(sha256(? || ':' || user_id), 1, {_HEX_DIGITS}))::BIGINT AS place FROM users",
            [salt],
        ).fetchnumpy()
    return np.asarray(hashed["place"], dtype=np.float64) / _SCALE


def arms_at(allocation: Allocation, places: np.ndarray) -> np.ndarray:
    """The arms that own many places.

    Returns:
        Arm names (object), in the order of ``places``.
    """
    ends = np.array([s.end for s in allocation.segments])
    arms = np.array([s.arm for s in allocation.segments], dtype=object)
    return arms[np.searchsorted(ends, (places * SLOTS).astype(np.int64), side="right")]


def assign(salt: str, allocation: Allocation, user_ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The arms of many users, in the order of ``user_ids`` (object)."""
    return arms_at(allocation, buckets(salt, user_ids))


def count_users(salt: str, allocation: Allocation, parts: Iterable[pa.ChunkedArray | pa.Array]) -> dict[str, int]:
    """Distinct users in each arm, of parts that may repeat users.

    What is kept of a user is its place alone, 8 bytes. Two of 10^9 users share one with a chance of about
    10^-7 each.

    Args:
        salt: The experiment's salt.
        allocation: Its allocation.
        parts: User ids, a part at a time.
    """
    known = np.zeros(0)
    for part in parts:
        known = np.union1d(known, buckets(salt, pc.unique(part)))
    edges = np.searchsorted((known * SLOTS).astype(np.int64), [s.end for s in allocation.segments], side="left")
    counts = dict.fromkeys(allocation.sizes(), 0)
    for segment, count in zip(allocation.segments, np.diff(edges, prepend=0), strict=True):
        counts[segment.arm] += int(count)
    return counts


class RatioTest(NamedTuple):
    """Result of the sample ratio test.

    Attributes:
        p_value: Chance of a split at least this uneven if assignment works.
        mismatch: Whether assignment must be taken as broken.
        statistic: Chi-square statistic.
    """

    p_value: float
    mismatch: bool
    statistic: float


SRM_THRESHOLD = 0.001
"""As in Fabijan et al., *Diagnosing Sample Ratio Mismatch in Online Controlled Experiments*, KDD 2019."""

MIN_EXPECTED = 5
"""Below so many expected users in an arm the chi-square distribution does not hold."""


def sample_ratio_test(
    observed: dict[str, int], weights: dict[str, float], threshold: float = SRM_THRESHOLD
) -> RatioTest:
    """Chi-square test of users seen in each arm against the arms' weights.

    Args:
        observed: Users seen in each arm.
        weights: Relative weights; an arm that is seen without a weight is a mismatch by itself.
        threshold: Largest p-value that is a mismatch.
    """
    from scipy.special import gammaincc

    total, mass = sum(observed.values()), sum(weights.values())
    if any(count and not weights.get(arm) for arm, count in observed.items()):
        return RatioTest(0.0, True, math.inf)
    arms = [arm for arm, weight in weights.items() if weight > 0]
    if total == 0 or len(arms) < 2:
        return RatioTest(1.0, False, 0.0)
    expected = {arm: total * weights[arm] / mass for arm in arms}
    if min(expected.values()) < MIN_EXPECTED:
        return RatioTest(1.0, False, 0.0)
    statistic = sum((observed.get(arm, 0) - e) ** 2 / e for arm, e in expected.items())
    p_value = float(gammaincc((len(arms) - 1) / 2, statistic / 2))
    return RatioTest(p_value, p_value < threshold, float(statistic))
