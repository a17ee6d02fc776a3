"""Asset `interactions/quarantine`."""

import dagster as dg
import polars as pl

from assets.interactions.charts import refusals_by_reason
from assets.interactions.refusals import OPEN, quarantine_state
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Tables
from ray_jobs.tables.interactions import QUARANTINE

CODE_VERSION = "1"
SAMPLE_ROWS = 5


@dg.asset(
    key=["interactions", "quarantine"],
    group_name="interactions",
    kinds={"delta"},
    code_version=CODE_VERSION,
    deps=[["interactions", "raw_interactions"], ["interactions", "items"], ["interactions", "users"]],
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(QUARANTINE),
    tags={"tier": "bronze", "pii": "true"},
)
def quarantine(tables: Tables) -> dg.MaterializeResult:
    """Every row of the source that was refused, with its file, its position, the reason and the fix.

    Grain: one refused row; `quarantine_id` is the key. The assets above write it as they read; this asset
        reports it.
    Consumers: on-call, who mend rows and run the job `replay_quarantine`. If this is red: many rows were
    refused of late; the table by reason says why, and the runbook says what to do.
    """
    report = Report(QUARANTINE)
    version = tables.version(QUARANTINE)
    state = quarantine_state(tables)
    still_open = state.filter(pl.col("status") == OPEN)
    reasons = still_open.group_by("source_table", "reason").len().sort("len", descending=True)
    lines = [
        "| table | reason | rows |",
        "|---|---|---|",
        *(f"| {t} | {r} | {n} |" for t, r, n in reasons.iter_rows()),
    ]
    ids = still_open["quarantine_id"].head(SAMPLE_ROWS).to_list()
    sample = tables.read(QUARANTINE, filters=[("quarantine_id", "in", ids)]) if ids else QUARANTINE.schema.empty_table()
    result = report.result(version=version, data=sample, committed=False)
    by_reason = reasons.group_by("reason").agg(pl.col("len").sum()).sort("len")
    return result._replace(
        metadata=dict(result.metadata or {})
        | {
            "dagster/row_count": len(state),
            "rows_open": len(still_open),
            "rows_replayed": len(state) - len(still_open),
            **{f"open_{reason}": count for reason, count in by_reason.iter_rows()},
            "by_reason": dg.MetadataValue.md("\n".join(lines)),
            "reasons": dg.MetadataValue.md(refusals_by_reason(by_reason)),
        }
    )
