"""Policies that assets share: when they refresh, when they retry, how fresh they must be."""

import datetime as dt
from typing import Any

import dagster as dg

# A data error stays a data error however often it is tried: assets raise `dg.Failure(allow_retries=False)` for it.
RETRY_TRANSIENT = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

# Events come late: the newest days are taken in again, and those without news cost nothing.
LOOK_BACK_DAYS = 3

NIGHTLY = (
    dg.AutomationCondition.on_cron("0 2 * * *")
    .replace(
        dg.AutomationCondition.in_latest_time_window(),
        dg.AutomationCondition.in_latest_time_window(lookback_delta=dt.timedelta(days=LOOK_BACK_DAYS)),
    )
    .with_label("nightly at 02:00 UTC")
)

# `eager()` alone never fires below a partitioned asset of which any partition is missing.
ON_CHANGE = (
    dg.AutomationCondition.any_deps_updated()
    & ~dg.AutomationCondition.any_deps_in_progress()
    & ~dg.AutomationCondition.in_progress()
).with_label("when an input has changed and none is being made")

FRESH_DAILY = dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(hours=50), warn_window=dt.timedelta(hours=26))

FRESH_YEARLY = dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(days=366), warn_window=dt.timedelta(days=184))


def on_demand(job: str) -> dg.AutomationCondition:
    """The condition of an asset that nothing but a person's wish makes, by ``job``."""
    never = dg.AutomationCondition.newly_requested() & ~dg.AutomationCondition.newly_requested()
    return never.with_label(f"on demand only: job {job}")


LLM_POOL = "llm"
GPU_POOL = "gpu"

# What only a person starts: no refresh, no automation makes it.
ON_DEMAND_TAG = {"refresh": "on_demand"}


def experiment(job: str) -> dict[str, Any]:
    """Arguments of the asset of an experiment, which trains on the GPUs when a person launches ``job``."""
    return {
        "kinds": {"ray", "mlflow", "pytorch"},
        "pool": GPU_POOL,
        "retry_policy": RETRY_TRANSIENT,
        "automation_condition": on_demand(job),
        "freshness_policy": FRESH_YEARLY,
        "tags": {"tier": "gold"} | ON_DEMAND_TAG,
    }
