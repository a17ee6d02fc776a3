"""From a failed run to its first causes: which asset and partition, and what happened in one sentence."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from dagster._utils.error import SerializableErrorInfo

_REMOTE = re.compile(r"^(?:ray::|\s*File |\s*Traceback|\(\w+ pid=)|^\s*$")
_PREFIX = re.compile(r"^(?:[\w.]*\.)?(?:RayTaskError\()?([A-Z]\w*(?:Error|Exception|Failure|Exit|Interrupt))\)?: ")


class Cause(NamedTuple):
    """What one failed step says.

    Attributes:
        asset: The step's asset, or None for the step of a plain job.
        step: The step.
        sentence: First cause.
        check: Name of the blocking check that failed, if it was one.
    """

    asset: dg.AssetKey | None
    step: str
    sentence: str
    check: str = ""


def deepest(error: SerializableErrorInfo) -> str:
    """The root exception of a chain in one sentence: its class, and the first telling line of its message."""
    while error.cause is not None:
        error = error.cause
    lines = error.message.strip().splitlines() or [error.cls_name or "unknown error"]
    if len(lines) > 1 and (_REMOTE.match(lines[1]) or "Traceback" in error.message):
        # An error that came from another process carries its traceback as text: the cause is its last line.
        lines = [line for line in lines if not _REMOTE.match(line)][-1:]
    return " ".join(lines[0].split())


def sentence_of(event: dg.DagsterEvent) -> str:
    """The cause that a failed step names: the description of its `dg.Failure`, or its root exception."""
    data = event.step_failure_data
    if data.user_failure_data and data.user_failure_data.description:
        return " ".join(data.user_failure_data.description.split())
    if data.error is None:
        return event.message or "The step failed without saying why."
    told = deepest(data.error)
    # A ValueError's class says nothing that its sentence does not.
    return _PREFIX.sub("", told) if _PREFIX.sub("", told).rstrip().endswith(".") else told


def partition_of(run: dg.DagsterRun) -> str:
    """Partition, or first and last partition, of a run; empty if it has none."""
    if PARTITION_NAME_TAG in run.tags:
        return run.tags[PARTITION_NAME_TAG]
    first, last = run.tags.get(ASSET_PARTITION_RANGE_START_TAG), run.tags.get(ASSET_PARTITION_RANGE_END_TAG)
    if first is None or last is None:
        return ""
    return first if first == last else f"{first}...{last}"


def _events(instance: dg.DagsterInstance, run_id: str, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    entries = (r.event_log_entry for r in instance.get_records_for_run(run_id, of_type=kind).records)
    return [e.dagster_event for e in entries if e.dagster_event is not None]


def _asset_of_step(instance: dg.DagsterInstance, run_id: str) -> dict[str, dg.AssetKey]:
    kinds = dg.DagsterEventType
    found = {
        e.step_key: e.asset_check_planned_data.asset_key
        for e in _events(instance, run_id, kinds.ASSET_CHECK_EVALUATION_PLANNED)
        if e.step_key
    }
    return found | {
        e.step_key: e.asset_key
        for e in _events(instance, run_id, kinds.ASSET_MATERIALIZATION_PLANNED)
        if e.step_key and e.asset_key
    }


def causes(instance: dg.DagsterInstance, run: dg.DagsterRun, failure: dg.DagsterEvent) -> Sequence[Cause]:
    """The first causes of a failed run, one a failed step.

    Args:
        instance: Where the run is recorded.
        run: The run.
        failure: Its failure event, which speaks for it when no step could (its process was lost).
    """
    kinds = dg.DagsterEventType
    asset_of = _asset_of_step(instance, run.run_id)
    refused: dict[str, dg.AssetCheckEvaluation] = {}
    for event in _events(instance, run.run_id, kinds.ASSET_CHECK_EVALUATION):
        evaluation = event.asset_check_evaluation_data
        if not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR and event.step_key:
            refused.setdefault(event.step_key, evaluation)
    found = []
    for event in _events(instance, run.run_id, kinds.STEP_FAILURE):
        step = str(event.step_key)
        error = event.step_failure_data.error
        if step in refused and error is not None and error.cls_name == "DagsterAssetCheckFailedError":
            check = refused[step]
            found.append(Cause(check.asset_key, step, check_sentence(check), check.check_name))
        else:
            found.append(Cause(asset_of.get(step), step, sentence_of(event)))
    if found:
        return found
    started = [str(e.step_key) for e in _events(instance, run.run_id, kinds.STEP_START)]
    ended = {
        e.step_key for kind in (kinds.STEP_SUCCESS, kinds.STEP_SKIPPED) for e in _events(instance, run.run_id, kind)
    }
    open_steps = [step for step in started if step not in ended] or [""]
    said = failure.message or "The run ended without saying why."
    data = failure.job_failure_data if failure.event_type == kinds.RUN_FAILURE else None
    if data is not None and data.error is not None:
        said = deepest(data.error)
    return [Cause(asset_of.get(open_steps[0]), open_steps[0], " ".join(said.split()))]


def check_sentence(check: dg.AssetCheckEvaluation) -> str:
    """What a failed check says: its description, or at least its name."""
    return " ".join((check.description or f"The check {check.check_name} failed.").split())
