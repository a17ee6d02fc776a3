"""What is wrong right now: cheap looks at the instance, each a function from its state to alerts.

Each look is one or two queries, however many assets there are.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable
from typing import Any

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.freshness import TimeWindowFreshnessPolicy
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.tags import WILL_RETRY_TAG

from orchestration.alerts import Alert
from orchestration.causes import causes, check_sentence, partition_of
from orchestration.settings import Settings

PLATFORM = "platform"
PLATFORM_OWNER = "team:ml-platform"
CHILD_RUN_TAG = "child_run"
QUARANTINE = dg.AssetKey(["interactions", "quarantine"])
ROW_COUNT = "dagster/row_count"


@dataclasses.dataclass(frozen=True)
class Limits:
    """From when something is worth an alert.

    Attributes:
        silent: Nothing at all was materialized for so long.
        queued: A run has been waiting for so long.
        quarantine_rows: So many more rows in quarantine than at the last look ...
        quarantine_share: ... and at least this share more.
        persona_wait: A persona refresh has been waiting for so long.
        dead_refreshes: So many persona refreshes more were given up than when it was last told.
        stale_share: More than this share of the users has a stale persona ...
        stale_users: ... and there are at least so many users.
    """

    silent: dt.timedelta = dt.timedelta(hours=30)
    queued: dt.timedelta = dt.timedelta(minutes=30)
    quarantine_rows: int = 100
    quarantine_share: float = 0.2
    persona_wait: dt.timedelta = dt.timedelta(hours=1)
    dead_refreshes: int = 10
    stale_share: float = 0.5
    stale_users: int = 20


LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Directory:
    """Who owns an asset, where its runbook is, where to look: read from the asset's own definition."""

    graph: AssetGraph
    settings: Settings

    def _known(self, key: dg.AssetKey | None) -> Any:
        return self.graph.get(key) if key is not None and self.graph.has(key) else None

    def owner(self, key: dg.AssetKey | None) -> str:
        """First owner of an asset; the platform team where there is none."""
        node = self._known(key)
        return node.owners[0] if node is not None and node.owners else PLATFORM_OWNER

    def runbook(self, key: dg.AssetKey | None) -> str:
        """Runbook of an asset, or that of alerts."""
        node = self._known(key)
        kept = node.metadata.get("runbook") if node is not None else None
        return str(getattr(kept, "value", kept) or f"{self.settings.runbook_base}/runbooks/alerts.md")

    def job_page(self, job: str) -> str:
        """Page of a job; that of alerts for a job of Dagster's own, such as the one of all assets."""
        page = "runbooks/alerts" if job.startswith("__") else job
        return f"{self.settings.runbook_base}/{page}.md"

    def run(self, run_id: str) -> str:
        """Address of a run."""
        return f"{self.settings.dagster_ui.rstrip('/')}/runs/{run_id}"

    def asset(self, key: dg.AssetKey) -> str:
        """Address of an asset."""
        return f"{self.settings.dagster_ui.rstrip('/')}/assets/{key.to_user_string()}"


def check_identity(name: str) -> str:
    """Identity of a failed check: the sensor of runs and the sensor of checks see the same problem."""
    return f"check {name}"


def failed_run(
    instance: dg.DagsterInstance, run: dg.DagsterRun, failure: dg.DagsterEvent, directory: Directory
) -> list[Alert]:
    """One alert for each asset (or step) that made a run fail.

    Empty for a run that Dagster will retry by itself, and for one whose work was another run that speaks for
    itself.
    """
    if run.tags.get(WILL_RETRY_TAG) == "true" or CHILD_RUN_TAG in run.tags:
        return []
    alerts = []
    for cause in causes(instance, run, failure):
        hint = "Fix the cause, then launch the job rematerialize_failed: it makes what failed and nothing that is good."
        if cause.check:
            hint = "Look at the check's failing sample, mend the data, then launch the job rematerialize_failed."
        if cause.asset is None:
            hint = f"Open the run, choose Re-execute from failure, or launch the job {run.job_name} again."
        alerts.append(
            Alert(
                kind="check" if cause.check else "run_failure",
                severity="error",
                owner=directory.owner(cause.asset),
                asset=cause.asset.to_user_string() if cause.asset else f"job {run.job_name}",
                partition=partition_of(run),
                cause=cause.sentence,
                hint=hint,
                link=directory.run(run.run_id),
                runbook=directory.runbook(cause.asset) if cause.asset else directory.job_page(run.job_name),
                identity=check_identity(cause.check) if cause.check else "",
            )
        )
    return alerts


def failed_checks(instance: dg.DagsterInstance, directory: Directory, seen: dict[str, int]) -> list[Alert]:
    """Alerts for checks whose latest evaluation failed and has not been looked at yet.

    Args:
        instance: The instance.
        directory: Owners and runbooks.
        seen: Failed evaluation last looked at, by check; brought up to date.
    """
    keys = sorted(directory.graph.asset_check_keys, key=lambda k: k.to_user_string())
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key(keys)
    alerts = []
    for key, record in latest.items():
        name = key.to_user_string()
        event = record.event.dagster_event if record.event else None
        if record.status != AssetCheckExecutionRecordStatus.FAILED or event is None or seen.get(name) == record.id:
            continue
        seen[name] = record.id
        evaluation = event.asset_check_evaluation_data
        serious = evaluation.severity == dg.AssetCheckSeverity.ERROR
        run = instance.get_run_by_id(record.run_id)
        alerts.append(
            Alert(
                kind="check",
                severity="error" if serious else "warning",
                owner=directory.owner(key.asset_key),
                asset=key.asset_key.to_user_string(),
                partition=record.partition or (partition_of(run) if run else ""),
                cause=check_sentence(evaluation),
                runbook=directory.runbook(key.asset_key),
                hint="Look at the check's failing sample, mend the data, then materialize the asset again.",
                link=directory.run(record.run_id),
                identity=check_identity(key.name),
            )
        )
    return alerts


def _fail_window(node: Any) -> dt.timedelta | None:
    policy = node.freshness_policy
    return policy.fail_window.to_timedelta() if isinstance(policy, TimeWindowFreshnessPolicy) else None


def _hours(span: dt.timedelta) -> int:
    return int(span.total_seconds() // 3600)


def stale_assets(
    instance: dg.DagsterInstance, directory: Directory, now: dt.datetime, limits: Limits = LIMITS
) -> list[Alert]:
    """Alerts for assets older than their freshness policy allows.

    One alert for the platform when nothing was made at all; else one for each stale asset above which nothing
    is stale, since the others follow from it. An asset that was never made is not stale.
    """
    keys = list(directory.graph.materializable_asset_keys)
    made = {}
    for record in instance.get_asset_records(keys):
        entry = record.asset_entry
        if entry.last_materialization_record is not None:
            made[entry.asset_key] = dt.datetime.fromtimestamp(entry.last_materialization_record.timestamp, dt.UTC)
    if not made:
        return []
    newest = max(made.values())
    if now - newest > limits.silent:
        return [
            Alert(
                kind="freshness",
                severity="error",
                owner=PLATFORM_OWNER,
                asset=PLATFORM,
                partition="",
                cause=f"Nothing has been materialized for {_hours(now - newest)} hours.",
                identity="silent",
                runbook=directory.runbook(None),
                link=f"{directory.settings.dagster_ui}/deployment/daemons",
                hint="See whether the daemon runs and the schedule refresh_daily is on; then launch refresh_daily.",
            )
        ]
    windows = {key: window for key in made if (window := _fail_window(directory.graph.get(key))) is not None}
    stale = {key for key, window in windows.items() if now - made[key] > window}
    return [
        Alert(
            kind="freshness",
            severity="error",
            owner=directory.owner(key),
            asset=key.to_user_string(),
            partition="",
            cause=f"{key.to_user_string()} was last made {_hours(now - made[key])} hours ago; "
            f"its freshness policy allows {_hours(windows[key])}.",
            runbook=directory.runbook(key),
            hint="Launch the job rematerialize_failed, or materialize the asset.",
            link=directory.asset(key),
            identity="stale",
        )
        for key in sorted(stale)
        if not directory.graph.get(key).parent_keys & stale
    ]


def grown_quarantine(
    instance: dg.DagsterInstance, directory: Directory, seen: dict[str, int], limits: Limits = LIMITS
) -> list[Alert]:
    """An alert when the quarantine grew by much since the last look.

    Args:
        instance: The instance.
        directory: Owners and runbooks.
        seen: Rows at the last look, under ``rows``; brought up to date.
        limits: What is much.
    """
    latest = instance.get_latest_materialization_event(QUARANTINE)
    materialization = latest.asset_materialization if latest else None
    if materialization is None or ROW_COUNT not in materialization.metadata:
        return []
    rows = int(materialization.metadata[ROW_COUNT].value)  # type: ignore[arg-type]
    before = seen.get("rows", 0)
    seen["rows"] = rows
    if rows - before < max(limits.quarantine_rows, limits.quarantine_share * before):
        return []
    return [
        Alert(
            kind="quarantine",
            severity="warning",
            owner=directory.owner(QUARANTINE),
            asset=QUARANTINE.to_user_string(),
            partition="",
            runbook=directory.runbook(QUARANTINE),
            cause=f"The quarantine grew from {before:,} to {rows:,} rows.",
            identity="growth",
            hint="Read the reason codes, mend the source, then launch the job replay_quarantine.",
            link=directory.asset(QUARANTINE),
        )
    ]


def oldest_queued(
    instance: dg.DagsterInstance, directory: Directory, now: dt.datetime, limits: Limits = LIMITS
) -> list[Alert]:
    """An alert when a run has been waiting for too long: a pool's slot may be held by a dead run."""
    waiting = instance.get_run_records(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]),
        limit=1,
        order_by="create_timestamp",
        ascending=True,
    )
    if not waiting:
        return []
    age = now - waiting[0].create_timestamp.astimezone(dt.UTC)
    if age <= limits.queued:
        return []
    run = waiting[0].dagster_run
    return [
        Alert(
            kind="queue",
            severity="warning",
            owner=PLATFORM_OWNER,
            asset=PLATFORM,
            partition="",
            identity="queue",
            cause=f"A run of {run.job_name} has been queued for {int(age.total_seconds() // 60)} minutes.",
            runbook=directory.runbook(None),
            link=directory.run(run.run_id),
            hint="See Deployment > Concurrency for slots that a dead run holds; launch "
            "rematerialize_failed to free them.",
        )
    ]


def dead_daemons(instance: dg.DagsterInstance, directory: Directory) -> list[Alert]:
    """An alert when a daemon's heartbeat stopped. No sensor can see that; `orchestration.heartbeat` can."""
    dead = sorted(
        kind for kind, status in instance.get_daemon_statuses().items() if status.required and not status.healthy
    )
    if not dead:
        return []
    return [
        Alert(
            kind="daemon",
            severity="error",
            owner=PLATFORM_OWNER,
            asset=PLATFORM,
            partition="",
            identity="daemon",
            cause=f"Dagster daemons without heartbeat: {', '.join(d.lower() for d in dead)}.",
            runbook=directory.runbook(None),
            link=f"{directory.settings.dagster_ui}/deployment/daemons",
            hint="Start the daemon again (`make ui`, or the daemon's deployment).",
        )
    ]


def unreadable_records(directory: Directory, error: Exception) -> Alert:
    """The alert when Dagster's own records can't be read: then no daemon works, and no sensor says so."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Alert(
        kind="daemon",
        severity="error",
        owner=PLATFORM_OWNER,
        asset=PLATFORM,
        partition="",
        identity="records",
        cause=f"Dagster's records cannot be read, so that nothing runs: {said}",
        runbook=directory.runbook(None),
        link=directory.settings.dagster_ui,
        hint="Start the database of BELVEDERE_DAGSTER_POSTGRES_URL, or mend the address.",
    )


@dataclasses.dataclass
class Cursor:
    """What the sensor `alerts` remembers from one tick to the next."""

    checks: dict[str, int] = dataclasses.field(default_factory=dict)
    quarantine: dict[str, int] = dataclasses.field(default_factory=dict)
    personas: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, text: str | None) -> "Cursor":
        """The cursor of a tick; empty at the first."""
        return cls(**json.loads(text)) if text else cls()

    def text(self) -> str:
        """The cursor for the next tick."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def looks(
    instance: dg.DagsterInstance, directory: Directory, cursor: Cursor, now: dt.datetime, limits: Limits = LIMITS
) -> Iterable[Alert]:
    """Everything that the sensor `alerts` looks at."""
    yield from failed_checks(instance, directory, cursor.checks)
    yield from stale_assets(instance, directory, now, limits)
    yield from grown_quarantine(instance, directory, cursor.quarantine, limits)
    yield from oldest_queued(instance, directory, now, limits)
