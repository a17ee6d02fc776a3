"""What the gate decides: a pure function of the evidence.

The contender is the best candidate on validation. The baseline is the champion, or the floor while there is
none.

====================================================  ====================================================
case                                                  decision
====================================================  ====================================================
no contender                                          keep
the contender is the baseline                         keep
the contender was decided against before              keep: the same model is not put to the test twice
not surely better than the baseline on validation     keep: a quiet night, and the test set is not used up
holds every rule on test                              promote
fails any rule on test                                reject
====================================================  ====================================================

A champion that refuses today's content answers no request. It is left out: the floor is the baseline, as while there
is no champion, and the verdict says so.

The rules: the paired bootstrap interval of the difference in test AUC lies above zero against the champion
and above zero against the floor; the expected calibration error is within its bound.
"""

from typing import Any, Literal, NamedTuple

Decision = Literal["promote", "keep", "reject"]


class Difference(NamedTuple):
    """A paired difference in AUC with its bootstrap interval."""

    value: float
    low: float
    high: float


class Rule(NamedTuple):
    """One rule of the gate: what was asked, what was seen, and whether it held."""

    name: str
    threshold: str
    observed: str
    ok: bool


class Evidence(NamedTuple):
    """What the gate looks at.

    Attributes:
        challenger: Label of the contender (name and version); None if there is none.
        champion: Label of the champion; None while there is none.
        floor: Name of the floor, e.g. ``popularity``.
        challenger_is_floor: Whether the contender is the floor itself.
        valid_auc: The contender's AUC on validation.
        baseline_valid_auc: The baseline's, on the same examples.
        valid_gain: Paired difference to the baseline on validation; None if the champion cannot be compared.
        test_auc: The contender's AUC on test.
        ece: The contender's expected calibration error on test.
        against_champion: Paired difference to the champion on test; None without a champion.
        against_floor: Paired difference to the floor on test; None if the contender is the floor.
        decided_against: Why this very version was rejected or rolled back earlier; empty if it was not.
        left_out: Label of a champion that refuses today's content; ``champion`` is None then.
    """

    challenger: str | None
    champion: str | None
    floor: str
    challenger_is_floor: bool = False
    valid_auc: float = float("nan")
    baseline_valid_auc: float = float("nan")
    valid_gain: Difference | None = None
    test_auc: float = float("nan")
    ece: float = float("nan")
    against_champion: Difference | None = None
    against_floor: Difference | None = None
    decided_against: str = ""
    left_out: str = ""

    @property
    def standing(self) -> str:
        """What stays as it is while nothing is promoted."""
        if self.left_out:
            return f"{self.left_out} stays champion, although it refuses today's content"
        return f"{self.champion} stays champion" if self.champion else "there is still no champion"


class Verdict(NamedTuple):
    """What the gate decided, and why.

    Attributes:
        decision: ``promote``, ``keep`` or ``reject``.
        reason: One sentence.
        rules: Every rule with what was seen; empty when nothing was put to the test.
    """

    decision: Decision
    reason: str
    rules: tuple[Rule, ...] = ()

    def report(self) -> dict[str, Any]:
        """The verdict as JSON, for ledger and registry."""
        return {
            "decision": self.decision,
            "reason": self.reason,
            "rules": [rule._asdict() for rule in self.rules],
        }


def _shown(difference: Difference) -> str:
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _beats(name: str, difference: Difference | None) -> Rule:
    if difference is None:
        return Rule(name, "interval of the AUC difference above 0", "no common test examples", False)
    return Rule(name, "interval of the AUC difference above 0", _shown(difference), difference.low > 0)


def rules_of(evidence: Evidence, max_ece: float) -> tuple[Rule, ...]:
    """Every rule that a challenger must hold."""
    rules = []
    if evidence.left_out:
        name, observed = f"beats champion {evidence.left_out}", "left out: it refuses today's content"
        rules.append(Rule(name, "only where the champion can read today's content", observed, True))
    if evidence.champion is not None:
        rules.append(_beats(f"beats champion {evidence.champion}", evidence.against_champion))
    beats_floor = _beats(f"beats floor {evidence.floor}", evidence.against_floor)
    rules.append(beats_floor._replace(observed="is the floor itself") if evidence.challenger_is_floor else beats_floor)
    # `not (x <= bound)` is also true for NaN: what could not be measured does not pass.
    rules.append(
        Rule(
            "calibrated",
            f"expected calibration error at most {max_ece:g}",
            f"{evidence.ece:.4f}",
            evidence.ece <= max_ece,
        )
    )
    return tuple(rules)


def decide(evidence: Evidence, max_ece: float = 0.05) -> Verdict:
    """Decides about the challenger of one night; see the table in the module's docstring.

    Args:
        evidence: What is known.
        max_ece: Largest expected calibration error that serving can take.
    """
    if evidence.challenger is None:
        return Verdict("keep", f"No candidate can be compared; {evidence.standing}.")
    if evidence.challenger == evidence.champion:
        return Verdict("keep", f"The best candidate on validation is the champion itself; {evidence.standing}.")
    if evidence.decided_against:
        return Verdict(
            "keep",
            f"{evidence.challenger} was decided against before ({evidence.decided_against}); {evidence.standing}.",
        )
    if evidence.champion is None and evidence.challenger_is_floor:
        return Verdict(
            "keep", f"No candidate is better than the floor {evidence.floor} on validation; {evidence.standing}."
        )
    gain = evidence.valid_gain
    if gain is not None and gain.low <= 0:
        against = f"champion {evidence.champion}" if evidence.champion else f"floor {evidence.floor}"
        return Verdict(
            "keep",
            f"No candidate is surely better than the {against} on validation: the best, "
            f"{evidence.challenger}, differs in AUC by {_shown(gain)}; {evidence.standing}.",
        )
    return judge(evidence, max_ece)


def judge(evidence: Evidence, max_ece: float = 0.05) -> Verdict:
    """Holds a challenger against the rules, whatever it did on validation.

    Args:
        evidence: What is known.
        max_ece: As in `decide`.
    """
    rules = rules_of(evidence, max_ece)
    failed = [rule for rule in rules if not rule.ok]
    if failed:
        first = failed[0]
        return Verdict(
            "reject",
            f"{evidence.challenger} is refused: it must hold '{first.name}' ({first.threshold}) "
            f"and has {first.observed}; {evidence.standing}.",
            rules,
        )
    return Verdict(
        "promote",
        f"{evidence.challenger} holds every rule of the gate: "
        + "; ".join(f"{r.name} ({r.observed})" for r in rules)
        + ".",
        rules,
    )
