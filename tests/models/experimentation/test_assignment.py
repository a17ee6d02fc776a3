"""Laws of the assignment of users to arms."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.experimentation.assignment import (
    SLOTS,
    Allocation,
    assign,
    bucket,
    buckets,
    check_salt,
    count_users,
    sample_ratio_test,
)

USERS = pa.array([f"user-{i}" for i in range(20_000)])
ARMS = st.dictionaries(st.sampled_from(list("abcdef")), st.floats(0.01, 10), min_size=1, max_size=6)


def test_many_users_fall_where_each_alone_would():
    users = pa.array(["1", "", "名前", "x" * 200, "a:b"])
    assert buckets("salt", users).tolist() == [bucket("salt", u) for u in users.to_pylist()]
    # A fixed point: serving in another language must find the same place.
    assert bucket("s", "user0") == 3165961552364757 / 16**13


def test_an_arm_is_the_one_that_owns_the_place_of_the_user():
    allocation = Allocation.of({"a": 0.3, "b": 0.7})
    arms = assign("s", allocation, USERS)
    assert arms.tolist()[:50] == [allocation.arm_at(bucket("s", u)) for u in USERS.to_pylist()[:50]]


@settings(max_examples=8)
@given(ARMS, st.text("abcdefgh0123", min_size=1, max_size=8))
def test_assignment_is_stable_and_follows_the_weights(weights, salt):
    allocation = Allocation.of(weights)
    first, again = assign(salt, allocation, USERS), assign(salt, Allocation.of(weights), USERS)
    assert (first == again).all()
    shuffled = pa.array(np.random.default_rng(0).permutation(USERS.to_pylist()))
    assert dict(zip(shuffled.to_pylist(), assign(salt, allocation, shuffled), strict=True)) == dict(
        zip(USERS.to_pylist(), first, strict=True)
    )
    for arm, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(np.mean(first == arm) - share) < 5 * np.sqrt(share * (1 - share) / len(USERS)) + 1e-3


@settings(max_examples=100)
@given(ARMS, ARMS)
def test_new_weights_move_as_few_users_as_possible(before, after):
    old, new = Allocation.of(before), Allocation.of(before, after)
    assert new.segments[0].start == 0 and new.segments[-1].end == SLOTS
    assert all(a.end == b.start for a, b in zip(new.segments, new.segments[1:], strict=False))
    assert new.sizes() == Allocation.of(after).sizes()
    edges = sorted({e for s in (*old.segments, *new.segments) for e in (s.start, s.end)})
    moved = sum(
        end - start
        for start, end in zip(edges, edges[1:], strict=False)
        if old.arm_at(start / SLOTS + 1e-9) != new.arm_at(start / SLOTS + 1e-9)
    )
    least = sum(
        max(new.sizes().get(arm, 0) - size, 0)
        for arm, size in {arm: old.sizes().get(arm, 0) for arm in new.sizes()}.items()
    )
    assert moved == least


def test_adding_an_arm_takes_its_share_from_the_others_and_moves_nobody_else():
    before = assign("s", Allocation.of({"a": 0.5, "b": 0.5}), USERS)
    after = assign("s", Allocation.of({"a": 0.5, "b": 0.5}, {"a": 0.4, "b": 0.4, "c": 0.2}), USERS)
    changed = before != after
    assert set(after[changed]) == {"c"}
    assert abs(changed.mean() - 0.2) < 0.02


def test_salts_are_independent():
    allocation = Allocation.of({"a": 0.5, "b": 0.5})
    both = np.mean((assign("s1", allocation, USERS) == "a") & (assign("s2", allocation, USERS) == "a"))
    assert abs(both - 0.25) < 0.02


def test_users_are_counted_once_however_often_they_come():
    allocation = Allocation.of({"a": 0.5, "b": 0.5}, {"a": 0.2, "b": 0.5, "c": 0.3})
    arms = assign("s", allocation, USERS)
    counts = count_users("s", allocation, [USERS, USERS[:500], pa.array([], pa.string())])
    assert counts == {arm: int((arms == arm).sum()) for arm in "abc"}
    assert count_users("s", allocation, []) == {"a": 0, "b": 0, "c": 0}


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0, "b": 2.0}, {"a": float("nan")}])
def test_impossible_weights_are_refused(weights):
    with pytest.raises(ValueError, match="Weights must be"):
        Allocation.of(weights)


@pytest.mark.parametrize("salt", ["", "a:b"])
def test_impossible_salts_are_refused(salt):
    with pytest.raises(ValueError, match="Salt"):
        check_salt(salt)


def test_a_share_that_is_lost_is_a_mismatch_and_chance_is_none():
    weights = {"a": 0.5, "b": 0.5}
    assert not sample_ratio_test({"a": 500_300, "b": 499_700}, weights).mismatch
    # Fault: 2 % of arm b are dropped on their way.
    lost = sample_ratio_test({"a": 500_000, "b": 490_000}, weights)
    assert lost.mismatch and lost.p_value < 0.001
    assert sample_ratio_test({"a": 10, "z": 3}, {"a": 1.0}).mismatch
    assert not sample_ratio_test({"a": 2, "b": 0}, weights).mismatch, "three users say nothing"
    assert not sample_ratio_test({}, weights).mismatch


def test_the_p_value_is_that_of_the_chi_square_distribution():
    from scipy.stats import chisquare

    ours = sample_ratio_test({"a": 310, "b": 180, "c": 510}, {"a": 3, "b": 2, "c": 5})
    assert ours.p_value == pytest.approx(chisquare([310, 180, 510], [300, 200, 500]).pvalue)
