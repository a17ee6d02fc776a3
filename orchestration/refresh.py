"""What has to be made again after a failure, and making it: without redoing what is good."""

import os
import socket
from collections.abc import Iterable
from typing import NamedTuple

import dagster as dg
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from assets.policies import ON_DEMAND_TAG
from assets.resources import PROCESS_TAG

# Everything that a refresh makes; experiments wait for somebody who asks.
((_TAG, _ON_DEMAND),) = ON_DEMAND_TAG.items()
ROUTINE = dg.AssetSelection.all() - dg.AssetSelection.tag(_TAG, _ON_DEMAND)
UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]


def _is_alive(process: str) -> bool:
    host, pid = process.rsplit(":", 1)
    if host != socket.gethostname():
        return True  # not for us to judge: the run monitor of that machine does
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def reap_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Marks runs of this machine whose process is gone as failed, and frees the pool slots that they held.

    Dagster's run monitor can't see that the process of a run was killed when the default launcher started it.

    Returns:
        Ids of the runs that were marked.
    """
    lost = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        process = run.tags.get(PROCESS_TAG)
        if process and not _is_alive(process):
            instance.report_run_failed(run, f"The process of this run ({process}) was lost; its finished work stands.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
            lost.append(run.run_id)
    return lost


def _blocks(record: AssetCheckExecutionRecord) -> bool:
    """Whether the latest execution of a blocking check holds back what follows; a warning does not."""
    event = record.event.dagster_event if record.event else None
    return (
        record.status == AssetCheckExecutionRecordStatus.FAILED
        and event is not None
        and event.asset_check_evaluation_data.severity == dg.AssetCheckSeverity.ERROR
    )


class Unfinished(NamedTuple):
    """What the last attempts left undone.

    Attributes:
        assets: Assets that were planned and not made, were never made, or failed a blocking check.
        partitions: Failed or missing days of each partitioned one of them.
    """

    assets: list[dg.AssetKey]
    partitions: dict[dg.AssetKey, list[str]]


def unfinished(instance: dg.DagsterInstance, defs: dg.Definitions) -> Unfinished:
    """Finds what the last attempts left undone, from the event log."""
    graph = defs.resolve_asset_graph()
    routine = ROUTINE.resolve(graph)
    checks_of: dict[dg.AssetKey, list[dg.AssetCheckKey]] = {}
    for check in graph.asset_check_keys:
        if graph.get(check).blocking:
            checks_of.setdefault(check.asset_key, []).append(check)
    records = {
        r.asset_entry.asset_key: r.asset_entry
        for r in instance.get_asset_records(list(graph.materializable_asset_keys))
    }
    assets, partitions = [], {}
    for key in graph.toposorted_asset_keys:
        if key not in routine or key not in graph.materializable_asset_keys:
            continue
        entry = records.get(key)
        made = entry.last_materialization if entry else None
        # A finished asset's last plan is the run that made it.
        undone = made is None or (entry is not None and entry.last_run_id not in (None, made.run_id))
        latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(checks_of.get(key, []))
        refused = any(_blocks(record) for record in latest.values())
        days = graph.get(key).partitions_def
        if days is not None:
            done = instance.get_materialized_partitions(key)
            missing = [day for day in days.get_partition_keys() if day not in done]
            if missing or undone or refused:
                partitions[key] = missing or [days.get_partition_keys()[-1]]
                undone = True
        if undone or refused:
            assets.append(key)
    return Unfinished(assets, partitions)


def materialize(
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    assets: Iterable[dg.AssetKey] | None = None,
    *,
    days: tuple[str, str] | None = None,
    tags: dict[str, str] | None = None,
    run_id: str | None = None,
    quiet: bool = True,
) -> dg.ExecuteInProcessResult:
    """Materializes assets with their checks in one run of this process.

    Args:
        instance: Where the run is recorded.
        defs: The code location.
        assets: What to make; everything but what is on demand by default.
        days: First and last day of the partitioned assets.
        tags: Tags of the run.
        run_id: Id of the run, if the caller wants to listen to its events.
        quiet: Whether to keep Dagster's own log off the terminal.
    """
    job = defs.resolve_implicit_global_asset_job_def()
    range_tags = (
        {} if days is None else {ASSET_PARTITION_RANGE_START_TAG: days[0], ASSET_PARTITION_RANGE_END_TAG: days[1]}
    )
    loggers = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}} if quiet else {}
    return job.execute_in_process(
        instance=instance,
        raise_on_error=False,
        run_id=run_id,
        tags=range_tags | (tags or {}),
        run_config=loggers,
        asset_selection=list(ROUTINE.resolve(defs.resolve_asset_graph()) if assets is None else assets),
    )
