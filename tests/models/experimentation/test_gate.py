"""The truth table of the gate."""

import pytest

from models.experimentation.gate import Difference, Evidence, decide, judge

SURE, UNSURE, WORSE = (
    Difference(0.02, 0.01, 0.03),
    Difference(0.01, -0.01, 0.03),
    Difference(-0.02, -0.03, -0.01),
)
GOOD = Evidence(
    challenger="dlrm@2",
    champion="dlrm@1",
    floor="popularity",
    valid_auc=0.8,
    baseline_valid_auc=0.78,
    valid_gain=SURE,
    test_auc=0.8,
    ece=0.02,
    against_champion=SURE,
    against_floor=SURE,
)


@pytest.mark.parametrize(
    ("case", "change", "decision", "says"),
    [
        ("better", {}, "promote", "holds every rule"),
        ("uncertain on test", {"against_champion": UNSURE}, "reject", "beats champion dlrm@1"),
        ("worse on test", {"against_champion": WORSE}, "reject", "beats champion dlrm@1"),
        (
            "an interval that ends at zero",
            {"against_champion": Difference(0.01, 0.0, 0.02)},
            "reject",
            "beats champion",
        ),
        ("not better than the floor", {"against_floor": UNSURE}, "reject", "beats floor popularity"),
        ("miscalibrated", {"ece": 0.051}, "reject", "calibrated"),
        ("just calibrated", {"ece": 0.05}, "promote", "holds every rule"),
        ("calibration not measurable", {"ece": float("nan")}, "reject", "calibrated"),
        (
            "champion cannot be compared",
            {"against_champion": None, "valid_gain": None},
            "reject",
            "no common test examples",
        ),
        ("uncertain on validation", {"valid_gain": UNSURE}, "keep", "No candidate is surely better"),
        ("worse on validation", {"valid_gain": WORSE}, "keep", "No candidate is surely better"),
        ("same", {"challenger": "dlrm@1"}, "keep", "champion itself"),
        ("decided against before", {"decided_against": "rolled back: slow"}, "keep", "rolled back: slow"),
        ("nobody", {"challenger": None}, "keep", "No candidate can be compared"),
        (
            "no champion, better than the floor",
            {"champion": None, "against_champion": None},
            "promote",
            "holds every rule",
        ),
        (
            "no champion, floor is best",
            {"champion": None, "challenger": "popularity@1", "challenger_is_floor": True},
            "keep",
            "still no champion",
        ),
        (
            "the floor is better than the champion",
            {"challenger": "popularity@1", "challenger_is_floor": True, "against_floor": None},
            "reject",
            "is the floor itself",
        ),
        (
            "the champion refuses today's content",
            {"champion": None, "against_champion": None, "left_out": "dlrm@1"},
            "promote",
            "beats champion dlrm@1 (left out: it refuses today's content)",
        ),
        (
            "the champion refuses today's content, and the floor is not surely beaten",
            {"champion": None, "against_champion": None, "left_out": "dlrm@1", "valid_gain": UNSURE},
            "keep",
            "dlrm@1 stays champion, although it refuses today's content",
        ),
        (
            "no champion, not surely better than the floor",
            {"champion": None, "valid_gain": UNSURE},
            "keep",
            "floor popularity",
        ),
        (
            "no champion, floor not beaten on test",
            {"champion": None, "against_champion": None, "against_floor": WORSE},
            "reject",
            "beats floor",
        ),
    ],
)
def test_the_gate_decides(case, change, decision, says):
    verdict = decide(GOOD._replace(**change))
    assert verdict.decision == decision
    assert says in verdict.reason
    assert verdict.report()["decision"] == decision
    assert bool(verdict.rules) == (decision != "keep"), "a rule is only named when it was put to the test"


def test_a_candidate_that_was_named_is_judged_whatever_it_did_on_validation():
    seen = GOOD._replace(valid_gain=WORSE, decided_against="rejected")
    assert judge(seen).decision == "promote"
    assert judge(seen._replace(against_champion=UNSURE)).decision == "reject"


def test_the_bound_of_the_calibration_error_is_configured():
    assert decide(GOOD._replace(ece=0.08), max_ece=0.1).decision == "promote"
    assert "at most 0.01" in decide(GOOD, max_ece=0.01).reason
