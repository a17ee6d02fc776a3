"""Asset `interactions/users`."""

import datetime as dt

import dagster as dg

from assets.interactions.intake import catalogue_version, data_errors, ingest_catalogue, without
from assets.policies import NIGHTLY, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Dataset, Ledger, Tables
from ray_jobs.tables.interactions import USERS

CODE_VERSION = "1"


@dg.asset(
    key=["interactions", "users"],
    group_name="interactions",
    kinds={"delta", "polars"},
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=NIGHTLY,
    metadata=definition_metadata(USERS),
    tags={"tier": "bronze", "pii": "true"},
    deps=[["interactions", "items"]],
)
def users(tables: Tables, dataset: Dataset, ledger: Ledger) -> dg.MaterializeResult:
    """The users whom the source describes: one row a user, attributes as JSON; empty if it describes none.

    Grain: one user; `user_id` is the key. Consumers: personas and features, where attributes are known. Users whom
    `forget_user` removed stay away. If this is red: the source's users miss the column that the error names; correct
    it and materialize again.
    """
    report = Report(USERS)
    with data_errors():
        forgotten = ledger.forget_list()
        read, told = ingest_catalogue(tables, dataset.reader(), USERS, dt.datetime.now(dt.UTC), forgotten)
    rows = without(told, forgotten)
    written = tables.write(USERS, rows, catalogue_version(told))
    return report.result(
        version=written.version,
        data=rows,
        committed=written.committed,
        metadata={
            "rows_read": int(read.accounts["rows_read"].sum()),
            "rows_quarantined": len(read.refused),
            "rows_duplicate": int(read.accounts["rows_duplicate"].sum()),
        },
    )
