"""Schedules: when the lineage is refreshed without anybody asking."""

import datetime as dt
from collections.abc import Iterable
from typing import Any

import dagster as dg
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from assets.policies import LOOK_BACK_DAYS
from orchestration.settings import Settings
from orchestration.stamping import daily_partitions

REFRESH = "refresh_daily"


def last_days(settings: Settings, now: dt.datetime, count: int = LOOK_BACK_DAYS) -> tuple[str, str] | None:
    """First and last of the newest days that have ended, so that events that came late are taken in too.

    Returns:
        Two partition keys, or None while no day has ended.
    """
    keys = daily_partitions(settings).get_partition_keys(current_time=now)
    return (keys[-count:][0], keys[-1]) if keys else None


def schedules(jobs: Iterable[Any], settings: Settings) -> list[dg.ScheduleDefinition]:
    """The schedules of the jobs at hand.

    Args:
        jobs: Jobs of the code location; `refresh_daily` is scheduled.
        settings: They tell the days, and whether this schedule or the sensor `automation` drives the lineage.
    """
    job = next((j for j in jobs if j.name == REFRESH), None)
    if job is None:
        raise ValueError(f"There is no job {REFRESH} to schedule.")

    @dg.schedule(
        name=REFRESH,
        job=job,
        cron_schedule="0 2 * * *",
        execution_timezone="UTC",
        default_status=(
            dg.DefaultScheduleStatus.STOPPED if settings.dagster_postgres_url else dg.DefaultScheduleStatus.RUNNING
        ),
        description=f"Every night at 02:00 UTC: takes in the last {LOOK_BACK_DAYS} days, late events "
        "included, and refreshes what follows from them. What has not changed costs nothing. "
        "Stopped in production, where the sensor automation drives the lineage: turn on one "
        "of the two.",
    )
    def nightly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        now = context.scheduled_execution_time
        days = last_days(settings, now)
        if days is None:
            return dg.SkipReason("No day of the dataset has ended yet.")
        return dg.RunRequest(
            run_key=now.date().isoformat(),
            tags={
                "intent": "nightly",
                ASSET_PARTITION_RANGE_START_TAG: days[0],
                ASSET_PARTITION_RANGE_END_TAG: days[1],
            },
        )

    return [nightly]
