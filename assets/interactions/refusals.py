"""The two books of an ingestion: refused rows (quarantine), and what became of every row that was read."""

import datetime as dt

import polars as pl
import pyarrow as pa

from assets.interactions.digests import row_digests
from assets.interactions.readers.base import POSITION
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.tables.interactions import INGESTIONS, QUARANTINE

OPEN, REPLAYED = "open", "replayed"
IDENTITY = ["source_table", "source", "position", "reason", "payload"]
STATE = ["quarantine_id", "status", "reason", "source_table", "source", "day"]


def frame(data: pa.Table | pa.ChunkedArray) -> pl.DataFrame:
    """An Arrow table as a data frame."""
    made = pl.from_arrow(data)
    assert isinstance(made, pl.DataFrame)
    return made


def quarantine_version(state: pl.DataFrame) -> str:
    """Version of the quarantine's content, whatever the order of its rows."""
    digests = row_digests(state, ["quarantine_id", "status", "reason"]).sort()
    return version_of(table=QUARANTINE.name, rows=version_of(digests=digests.str.join("").to_list()))


def quarantine_state(tables: Tables) -> pl.DataFrame:
    """Id, status, reason, source and day of every row in quarantine."""
    if not tables.warehouse().exists(QUARANTINE):
        return pl.DataFrame(schema=dict.fromkeys(STATE, pl.String))
    return frame(tables.read(QUARANTINE, STATE))


def _covered(source_table: str, days: tuple[str, str] | None) -> tuple[pl.Expr, str]:
    """Open rows that a run reads again, as an expression and as SQL."""
    which = (pl.col("source_table") == source_table) & (pl.col("status") == OPEN)
    sql = f"source_table = '{source_table}' AND status = '{OPEN}'"
    if days is None:
        return which, sql
    first, last = days
    return (
        which & (pl.col("day").is_null() | pl.col("day").is_between(pl.lit(first), pl.lit(last))),
        f"{sql} AND (day IS NULL OR (day >= '{first}' AND day <= '{last}'))",
    )


def put_in_quarantine(
    tables: Tables,
    source_table: str,
    refused: pl.DataFrame,
    created: dt.datetime,
    days: tuple[str, str] | None = None,
) -> bool:
    """Puts a run's refused rows in quarantine, in place of those that an earlier run found in the same part.

    A row that was read before is the same row; one that was replayed stays replayed; one that the source no
    longer has, or has mended, goes.

    Args:
        tables: The warehouse.
        source_table: ``interactions``, ``items`` or ``users``.
        refused: ``source``, `POSITION`, ``reason``, ``detail``, ``payload``, ``day``.
        created: When the rows are written.
        days: First and last day that the run read; all by default.

    Returns:
        Whether anything was written.
    """
    rows = refused.rename({POSITION: "position"}).with_columns(
        pl.lit(source_table).alias("source_table"),
        pl.lit(OPEN).alias("status"),
        pl.lit(created).dt.convert_time_zone("UTC").alias("created_timestamp"),
    )
    rows = rows.with_columns(row_digests(rows, IDENTITY).alias("quarantine_id"))
    state = quarantine_state(tables)
    replayed = state.filter(pl.col("status") == REPLAYED)
    rows = rows.join(replayed, on="quarantine_id", how="anti")
    which, sql = _covered(source_table, days)
    standing = state.filter(which)
    if tables.warehouse().exists(QUARANTINE) and set(standing["quarantine_id"]) == set(rows["quarantine_id"]):
        return False
    after = pl.concat([state.filter(~which), rows.select(STATE)])
    ordered = rows.select([c.name for c in QUARANTINE.columns])
    return tables.write(QUARANTINE, ordered.to_arrow(), quarantine_version(after), replace_where=sql).committed


def keep_accounts(tables: Tables, source_table: str, accounts: pl.DataFrame, created: dt.datetime) -> bool:
    """Keeps the accounts of a run, in place of those of the last run that read ``source_table``.

    Args:
        tables: The warehouse.
        source_table: ``interactions``, ``items`` or ``users``.
        accounts: ``source`` and the counts of `INGESTIONS`.
        created: When they are written.
    """
    names = [c.name for c in INGESTIONS.columns if c.name != "created_timestamp"]
    new = accounts.select([pl.col(n) if n in accounts.columns else pl.lit(0, dtype=pl.Int64).alias(n) for n in names])
    parts = [new.with_columns(pl.lit(created).dt.convert_time_zone("UTC").alias("created_timestamp"))]
    if tables.warehouse().exists(INGESTIONS):
        parts.append(frame(tables.read(INGESTIONS)).filter(pl.col("source_table") != source_table))
    after = pl.concat([p.cast({"created_timestamp": pl.Datetime("us", "UTC")}) for p in parts]).sort(
        "source_table", "source"
    )
    version = version_of(table=INGESTIONS.name, rows=after.drop("created_timestamp").rows())
    return tables.write(INGESTIONS, after.to_arrow(), version).committed
