"""What a decision of the gate changes in the registry, before anybody acts on it."""

from typing import Any

from assets.experiments.records import Pointer
from assets.experiments.registry import CHALLENGER, Registry, find_candidate
from assets.resources import Ledger, Tracking


def tell_registry(tracking: Tracking, ledger: Ledger, row: dict[str, Any], verdict: Any) -> Pointer | None:
    """Publishes a challenger that was put to the test, with the alias `challenger` and the gate's report.

    Args:
        tracking: MLflow; not asked when the decision is to keep the champion.
        ledger: The ledger.
        row: Row of `experiments/challenger`.
        verdict: Verdict of the gate.

    Returns:
        The challenger's version of `ranker`, or None if there was nothing to say.
    """
    if verdict.decision == "keep":
        return None
    record = find_candidate(ledger, row["challenger"], row["challenger_version"])
    registry = Registry(tracking)
    pointer = registry.publish(record)
    registry.note_verdict(record, pointer, verdict.decision == "promote", verdict.report())
    registry.point(CHALLENGER, pointer)
    return pointer
