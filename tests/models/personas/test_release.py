"""Fidelity over hand-counted outcomes, and each gate on either side of its bound."""

import dataclasses

import numpy as np
import pytest

from models.personas.release import Bounds, Outcome, differences, fidelity, gates, verdict

ONE = Outcome(True, 2, {1, 2}, 2, {(1, 7), (2, 9)}, {1: 0.6, 2: 0.2}, {2, 7, 30, 31}, {1, 2, 30})
TWO = Outcome(False, 2, set(), 1, set(), {3: 0.5, 4: 0.5}, {3}, {3, 4})
QUIET = Outcome(True, 1, {5}, 0, set(), {5: 0.9}, set(), {5})
# Describes both interests, and names one of the two clusters that are liked later.
FULL = Outcome(True, 2, {1, 2}, 0, set(), {1: 0.5, 2: 0.5}, {2, 9}, {1, 2, 9})
HALF = FULL._replace(described={2})
MISSES = FULL._replace(described={1})


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


def test_differences_are_paired_by_user_and_as_a_loop_of_draws_finds_them():
    teacher = [ONE, TWO, QUIET, FULL, FULL, HALF]
    student = [ONE._replace(described={1}), TWO, QUIET, HALF, MISSES, FULL]
    bounds = Bounds(resamples=400, seed=3)
    found = differences(student, teacher, bounds)
    one, other = fidelity(student), fidelity(teacher)
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(one[name] - other[name])
        drawn = []
        rng = np.random.default_rng(3)
        for _ in range(400):
            times = rng.multinomial(6, np.full(6, 1 / 6))
            sides = [[o for o, n in zip(side, times, strict=True) for _ in range(n)] for side in (student, teacher)]
            if any(o.later for o in sides[1]):
                drawn.append(fidelity(sides[0])[name] - fidelity(sides[1])[name])
        assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-6)
    same = differences(teacher, teacher, bounds)
    assert all(tuple(interval) == (0, 0, 0) for interval in same.values())


@pytest.mark.parametrize(
    ("student", "teacher", "states"),
    [
        ([FULL] * 20, [FULL] * 20, {}),
        ([FULL._replace(followed=False)] * 2 + [FULL] * 18, [FULL] * 20, {"ifr": "failed"}),
        ([FULL._replace(followed=False)] + [FULL] * 19, [FULL] * 20, {}),
        # All lose half of the grounding: nothing that more users could change.
        ([HALF] * 20, [FULL] * 20, {"grounding": "failed"}),
        # One of twenty does: by the point 0.025 are lost, which the margin allows, but the interval reaches 0.075.
        ([HALF] + [FULL] * 19, [FULL] * 20, {"grounding": "undecided"}),
        ([HALF] + [FULL] * 299, [FULL] * 300, {}),
        ([MISSES, HALF] * 10, [HALF] * 20, {"next_cluster_recall": "failed"}),
        ([FULL] * 9, [FULL] * 9, {"users": "undecided"}),
        ([FULL] * 9 + [QUIET] * 9, [FULL] * 9 + [QUIET] * 9, {"users": "undecided"}),
        ([QUIET] * 12, [QUIET] * 12, {"users": "undecided", "next_cluster_recall": "undecided"}),
    ],
)
def test_a_gate_passes_only_by_its_whole_interval(student, teacher, states):
    found = gates(student, teacher, Bounds())
    assert {g.name: g.state for g in found if g.state != "passed"} == states
    wanted = "kept back" if "failed" in states.values() else "undecided" if states else "released"
    assert verdict(found) == wanted
    assert [g.name for g in found] == ["users", "ifr", "grounding", "next_cluster_recall"]


def test_gates_say_figures_and_bound_in_a_sentence():
    said = {g.name: g.said for g in gates([HALF] + [FULL] * 19, [FULL] * 20, Bounds())}
    assert said["users"] == "20 held-out users, 20 with later likes."
    assert said["grounding"].startswith("grounding less the teacher's is -0.025 [-0.075, +0.000]; -0.050 may be lost")
    assert said["grounding"].endswith("too few users to tell, raise examined_users, examination_budget or held_share.")


def test_margins_are_the_users_choice():
    student, teacher = [HALF] + [FULL] * 19, [FULL] * 20
    strict = dataclasses.replace(Bounds(), grounding_margin=0.0, min_ifr=1.0)
    loose = dataclasses.replace(Bounds(), grounding_margin=0.2)
    assert verdict(gates(student, teacher, strict)) == "undecided"
    assert verdict(gates(student, teacher, loose)) == "released"
