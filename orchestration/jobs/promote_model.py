"""The job `promote_model`: a candidate of your choice through the gate, or past it, on the record."""

from typing import Any

import dagster as dg
import pydantic

from assets.experiments.decisions import GateConfig
from assets.experiments.records import CandidateRecord
from assets.resources import Ledger, RayJobs, Tables, Tracking
from orchestration.jobs.rollback_model import record_champion


class PromoteConfig(GateConfig):
    """Which candidate, and why."""

    candidate: str = pydantic.Field(
        "", description="`name`, for its newest version, or `name@version`; see experiments/candidates."
    )
    reason: str = pydantic.Field(
        "chosen by hand", min_length=5, description="Why, in one sentence; stands in the record."
    )
    force: bool = pydantic.Field(
        False, description="Promote even if the gate refuses; the override stands in the record."
    )


def chosen(ledger: Ledger, named: str) -> CandidateRecord:
    """The candidate that was named.

    Raises:
        dagster.Failure: If there is none.
    """
    known = ledger.candidates()
    found = [c for c in known if named in (c.name, c.label)]
    if not found:
        names = ", ".join(sorted({c.name for c in known})) or "none yet"
        raise dg.Failure(f"There is no candidate {named or '(none named)'}: name one of {names}.", allow_retries=False)
    return found[-1]


def _verdict(
    context: dg.OpExecutionContext,
    config: PromoteConfig,
    record: CandidateRecord,
    tables: Tables,
    ledger: Ledger,
    ray_jobs: RayJobs,
) -> tuple[Any, str]:
    from assets.experiments.decisions import comparison_config, state_now
    from models.experimentation.gate import judge
    from ray_jobs.experiments.comparison import evidence_of

    state = state_now(ledger)
    result = ray_jobs.run(
        context,
        "experiments.comparison",
        comparison_config(tables, ledger, state, config, only=record),
    )
    return judge(evidence_of(result), config.max_ece), result.note


@dg.op(description="Puts a named candidate to the gate and promotes it.")
def put_to_the_gate(
    context: dg.OpExecutionContext,
    config: PromoteConfig,
    tables: Tables,
    ledger: Ledger,
    ray_jobs: RayJobs,
    tracking: Tracking,
) -> None:
    """See the description."""
    from assets.experiments.records import started_by
    from assets.experiments.registry import CHAMPION, Registry, promote

    record = chosen(ledger, config.candidate)
    registry = Registry(tracking)
    standing = registry.aliases().get(CHAMPION)
    if standing is not None and standing.label == record.label:
        context.log.info(f"{record.label} is the champion already; nothing to do.")
        return
    verdict, note = _verdict(context, config, record, tables, ledger, ray_jobs)
    passed = verdict.decision == "promote"
    registry.note_verdict(record, registry.publish(record), passed, verdict.report())
    if not passed and not config.force:
        raise dg.Failure(
            f"{verdict.reason} {note} Set force to promote it all the same.".replace("  ", " "),
            allow_retries=False,
        )
    if not passed:
        context.log.warning(f"The gate is overridden: {verdict.reason}")
    promote(
        registry,
        tables,
        ledger,
        record,
        key=f"job:{context.run.run_id}",
        report=verdict.report(),
        who=started_by(context.run),
        reason=config.reason,
        dagster_run_id=context.run.run_id,
        forced=not passed,
    )
    context.add_output_metadata({"champion": record.label, "forced": not passed, "verdict": verdict.reason})
    record_champion(context, tables, ledger, tracking)


@dg.job(
    description="Promotes a candidate that you name: runs the gate for it, refuses if the gate does. "
    "`force` overrides, and the "
    "override stands in the promotion record.",
    config=dg.RunConfig(ops={"put_to_the_gate": PromoteConfig()}),  # type: ignore[call-arg]
    tags={"intent": "promote", "dagster/max_runtime": "1800"},
)
def promote_model() -> None:
    """See the description."""
    put_to_the_gate()
