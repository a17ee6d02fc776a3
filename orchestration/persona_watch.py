"""The queue of persona refreshes, watched: when it is drained, and from when it is worth an alert."""

import datetime as dt
from collections.abc import Iterable

import dagster as dg

from assets.personas.refreshing import tokens_today
from assets.resources import Tables
from models.personas.freshness import FreshnessConfig
from orchestration.alerts import Alert
from orchestration.resources.ledger import SqlLedger, ledger_twin
from orchestration.settings import Settings
from orchestration.watch import LIMITS, Directory, Limits

PERSONAS = dg.AssetKey(["personas", "user_personas"])
JOB = "refresh_personas"
FORGETTING = "forget_user"
AFTER_FAILURE = dt.timedelta(minutes=5)
RUNNING = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def persona_looks(
    ledger: SqlLedger, directory: Directory, seen: dict[str, int], now: dt.datetime, limits: Limits = LIMITS
) -> Iterable[Alert]:
    """Alerts for refreshes that wait too long, that were given up, and for too many stale personas.

    Args:
        ledger: Where the queue is.
        directory: Owners and runbooks.
        seen: Dead letters when they were last told, under ``dead``; brought up to date.
        now: The moment.
        limits: What is much.
    """
    queue = ledger.persona_queue()
    stats = queue.stats(now)
    freshness = queue.freshness(FreshnessConfig().max_age_seconds, now=now)
    told = {}
    if stats.oldest_seconds > limits.persona_wait.total_seconds():
        minutes = int(stats.oldest_seconds // 60)
        told["age"] = (
            f"A persona refresh has waited for {minutes:,} minutes; {stats.depth:,} wait.",
            "See what the sensor refresh_personas says (off, a red run, or the day's budget is used up); then launch "
            "refresh_personas.",
        )
    if stats.failed - min(seen.get("dead", 0), stats.failed) >= limits.dead_refreshes:
        told["dead"] = (
            f"{stats.failed:,} persona refreshes were given up.",
            "Read the reasons (runbook), mend the cause, then launch refresh_personas with replay: true.",
        )
        seen["dead"] = stats.failed
    seen["dead"] = min(seen.get("dead", 0), stats.failed)
    if freshness.users >= limits.stale_users and freshness.share_stale > limits.stale_share:
        told["stale"] = (
            f"{freshness.share_stale:.0%} of {freshness.users:,} users are served a stale persona, or none.",
            "Launch refresh_personas; if the queue grows faster than it is drained, raise num_actors.",
        )
    for what, (cause, hint) in told.items():
        yield Alert(
            kind="personas",
            severity="warning",
            owner=directory.owner(PERSONAS),
            asset=PERSONAS.to_user_string(),
            partition="",
            cause=cause,
            identity=f"refreshes {what}",
            runbook=directory.runbook(PERSONAS),
            hint=hint,
            link=directory.asset(PERSONAS),
        )


def persona_sensor(settings: Settings) -> dg.SensorDefinition:
    """The sensor that has the queue drained."""
    ledger = ledger_twin(settings.ledger_url)

    @dg.sensor(
        name=JOB,
        job_name=JOB,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description="Launches refresh_personas when a persona refresh is due and none is running, nor forget_user, "
        "which needs everybody else to be at rest; no more than the day's token budget allows.",
    )
    def waiting_personas(context: dg.SensorEvaluationContext, tables: Tables) -> dg.RunRequest | dg.SkipReason:
        stats = ledger.persona_queue().stats()
        if not stats.due:
            return dg.SkipReason(f"No persona refresh is due; {stats.depth:,} wait, {stats.leased:,} are worked at.")
        for job in (JOB, FORGETTING):
            if context.instance.get_run_records(dg.RunsFilter(job_name=job, statuses=RUNNING), limit=1):
                return dg.SkipReason(f"{stats.due:,} persona refreshes are due, and {job} is running.")
        last = context.instance.get_run_records(dg.RunsFilter(job_name=JOB), limit=1)
        if last and last[0].dagster_run.status is dg.DagsterRunStatus.FAILURE:
            # What is wrong is mostly wrong for a while: not a red run every half minute.
            again = dt.datetime.fromtimestamp(last[0].end_time or 0.0, dt.UTC) + AFTER_FAILURE
            if dt.datetime.now(dt.UTC) < again:
                return dg.SkipReason(
                    f"The last {JOB} failed: {stats.due:,} refreshes of personas wait until {again:%H:%M}."
                )
        most = settings.persona_daily_tokens
        if not most:
            return dg.RunRequest(tags={"intent": "refresh"})
        spent = tokens_today(tables)
        if spent >= most:
            return dg.SkipReason(
                f"Personas have cost {spent:,} tokens today (UTC), and the day's budget is {most:,}: {stats.due:,} "
                "refreshes wait until 00:00 UTC. Raise BELVEDERE_PERSONA_DAILY_TOKENS, or launch refresh_personas."
            )
        # A worker that has spent it leases no more, and gives back what it has not begun.
        budget = {"ops": {"drain_persona_queue": {"config": {"token_budget": most - spent}}}}
        return dg.RunRequest(tags={"intent": "refresh"}, run_config=budget)

    return waiting_personas
