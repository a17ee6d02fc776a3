"""Fidelity over hand-counted outcomes, and each gate on either side of its bound."""

import dataclasses

import pytest

from models.personas.release import Bounds, Outcome, failed_gates, fidelity

ONE = Outcome(True, 2, {1, 2}, 2, {(1, 7), (2, 9)}, {1: 0.6, 2: 0.2}, {2, 7, 30, 31}, {1, 2, 30})
TWO = Outcome(False, 2, set(), 1, set(), {3: 0.5, 4: 0.5}, {3}, {3, 4})
QUIET = Outcome(True, 1, {5}, 0, set(), {5: 0.9}, set(), {5})
FINE = {"users": 20.0, "users_with_later_likes": 15.0, "ifr": 0.97, "grounding": 0.9, "next_cluster_recall": 0.30}


def test_fidelity_counts_what_failed_as_nothing_said():
    found = fidelity([ONE, TWO, QUIET])
    assert found["users"] == 3 and found["users_with_later_likes"] == 2
    assert found["ifr"] == pytest.approx(2 / 3)
    assert found["grounding"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["coverage"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["exploration_validity"] == pytest.approx((1 + 0) / 2)
    assert found["next_cluster_recall"] == pytest.approx((2 / 4 + 0) / 2)
    assert found["next_cluster_hit"] == pytest.approx(1 / 2)
    assert found["next_novel_hit"] == 1.0, "only the first user has a later cluster that is new"
    assert found["exploration_agreement"] == 1.0
    partly = fidelity([ONE._replace(described={1}, explored={(1, 7), (2, 8)})], [ONE])
    assert partly["exploration_agreement"] == 0.5 and partly["grounding"] == 0.5
    assert partly["coverage"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"ifr": 0.9499}, "instruction following rate"),
        ({"grounding": 0.849}, "grounding"),
        ({"grounding": 0.851}, None),
        ({"next_cluster_recall": 0.279}, "next_cluster_recall"),
        ({"next_cluster_recall": 0.281}, None),
        ({"users": 9.0}, "too few"),
        ({"users_with_later_likes": 9.0}, "too few"),
    ],
)
def test_gates(change, said):
    failed = failed_gates(FINE | change, FINE, Bounds())
    assert len(failed) == (said is not None) and (said is None or said in failed[0])


def test_margins_are_the_users_choice():
    strict = dataclasses.replace(Bounds(), grounding_margin=0.0, min_ifr=1.0)
    assert len(failed_gates(FINE | {"grounding": 0.899}, FINE, strict)) == 2
