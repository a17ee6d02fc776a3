"""Asset `interactions/items`."""

import datetime as dt

import dagster as dg

from assets.interactions.intake import catalogue_version, data_errors, ingest_catalogue
from assets.policies import NIGHTLY, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Dataset, Tables
from ray_jobs.tables.interactions import ITEMS

CODE_VERSION = "1"


@dg.asset(
    key=["interactions", "items"],
    group_name="interactions",
    kinds={"delta", "polars"},
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=NIGHTLY,
    metadata=definition_metadata(ITEMS),
    tags={"tier": "bronze"},
)
def items(tables: Tables, dataset: Dataset) -> dg.MaterializeResult:
    """The catalogue: one row an item, with title, description, categories and image as the source gives them.

    Grain: one item; `item_id` is the key. Consumers: `interactions/raw_interactions` (refuses events of
    unknown items), captions, clusters, rankers. If this is red: the source misses a file or a column, which
    the error names; correct it and materialize again. Refused rows stand in `interactions/quarantine`.
    """
    report = Report(ITEMS)
    with data_errors():
        read, rows = ingest_catalogue(tables, dataset.reader(), ITEMS, dt.datetime.now(dt.UTC))
    written = tables.write(ITEMS, rows, catalogue_version(rows))
    kept = read.kept
    return report.result(
        version=written.version,
        data=rows,
        committed=written.committed,
        metadata={
            "rows_read": int(read.accounts["rows_read"].sum()),
            "rows_quarantined": len(read.refused),
            "rows_duplicate": int(read.accounts["rows_duplicate"].sum()),
            "items_without_title": read.untitled,
            "items_without_categories": int((kept["categories"].list.len() == 0).sum()),
            "items_with_image": int(kept["image_uri"].is_not_null().sum()),
            "items_with_description": int(kept["description"].is_not_null().sum()),
        },
    )
