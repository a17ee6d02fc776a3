"""Asset `interactions/raw_interactions`."""

import datetime as dt

import dagster as dg

from assets.interactions.charts import events_by_day
from assets.interactions.intake import data_errors, ingest_events
from assets.policies import NIGHTLY, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Dataset, Ledger, Tables
from ray_jobs.tables.interactions import RAW_INTERACTIONS

CODE_VERSION = "1"
INGESTION_POOL = "ingestion"


@dg.asset(
    key=["interactions", "raw_interactions"],
    group_name="interactions",
    kinds={"delta", "polars"},
    deps=[["interactions", "items"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=NIGHTLY,
    metadata=definition_metadata(RAW_INTERACTIONS),
    pool=INGESTION_POOL,
    tags={"tier": "bronze", "pii": "true"},
    partitions_def=dg.DailyPartitionsDefinition("1990-01-01"),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def raw_interactions(
    context: dg.AssetExecutionContext, tables: Tables, dataset: Dataset, ledger: Ledger
) -> dg.MaterializeResult:
    """Every event of the source, kept once: who did what with which item, when, and how strongly.

    Grain: one event; `event_id` is the key, `day` the partition, and ties in time are broken by `sequence`.
    Consumers: splits, personas, VISTA, features. Only days whose content changed are written, all in one
    commit. Users whom `forget_user` removed stay away. If this is red: the error names the file, the column and the
    fix; refused rows stand in `interactions/quarantine`, and `totals_add_up` says whether every row is accounted for.
    """
    report = Report(RAW_INTERACTIONS)
    asked = context.partition_key_range
    with data_errors():
        done = ingest_events(
            tables,
            dataset.reader(),
            first=asked.start,
            last=asked.end,
            now=dt.datetime.now(dt.UTC),
            forgotten=ledger.forget_list(),
        )
    in_range = done.days.days.filter(done.days.days["day"].is_between(asked.start, asked.end))
    sizes = dict(in_range.select("day", "num_rows").iter_rows())
    for day in context.partition_keys:
        context.add_asset_metadata({"dagster/partition_row_count": sizes.get(day, 0)}, partition_key=day)
    # Once, not once a day: what a range run returns is repeated in the event of each of its days.
    context.add_asset_metadata({"events_by_day": dg.MetadataValue.md(events_by_day(in_range))}, partition_key=asked.end)
    return report.result(
        version=done.days.version,
        num_rows=int(done.days.days["num_rows"].sum()),
        committed=done.days.committed,
        metadata=done.counts
        | {f"refused_{reason}": count for reason, count in done.reasons.items()}
        | {
            "days_changed": len(done.days.changed),
            "days_with_events": len(in_range),
            "unused_columns": ", ".join(done.unused) or "none",
        },
    )
