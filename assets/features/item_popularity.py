"""The asset `features/item_popularity`."""

import datetime as dt

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa

from assets.failures import data_errors_are_final
from assets.features.histories import EVENT_COLUMNS, IS_EVENT, popularity_by_day
from assets.features.plots import histogram
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.tables.features import ITEM_POPULARITY
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.warehouse import TIMESTAMP

CODE_VERSION = "1"


@dg.asset(
    key=["features", "item_popularity"],
    group_name="features",
    kinds={"python", "deltalake"},
    deps=[["interactions", "splits"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(ITEM_POPULARITY),
)
@data_errors_are_final
def item_popularity(context: dg.AssetExecutionContext, tables: Tables) -> dg.MaterializeResult:
    """How often each item had been chosen and liked by the end of each day on which it had events.

    Grain: one item on one day. A row holds from the day's end, so a reader knows completed days only. Sampled
    negatives do not count. Read by Feast's view `item_popularity`, and through it by every ranker.

    If this is red: look at `interactions/splits` first, which it is a sum of; then `rematerialize_failed`.
    """
    report = Report(ITEM_POPULARITY)
    version = version_of(splits=tables.version(SPLITS), code=CODE_VERSION)
    if tables.is_current(ITEM_POPULARITY, version):
        return report.unchanged(tables, version)
    created = pa.scalar(dt.datetime.now(dt.UTC), TIMESTAMP)
    rows = popularity_by_day(tables.warehouse().batches(SPLITS, EVENT_COLUMNS, IS_EVENT), created)
    rows = rows.select([c.name for c in ITEM_POPULARITY.columns])
    written = tables.write(ITEM_POPULARITY, rows, version)
    totals = pl.DataFrame(rows.select(["item_id", "num_events"])).group_by("item_id").max()["num_events"]
    return report.result(
        version=version,
        data=rows,
        committed=written.committed,
        metadata={
            "num_items": totals.len(),
            "num_events": int(totals.sum()),
            "median_events": float(np.median(totals.to_numpy())),
            "events_of_items": dg.MetadataValue.md(histogram(totals.to_numpy(), "events of an item", "items")),
        },
    )
