"""Writing events by day: only days whose content changed, all of them in one commit."""

import datetime as dt
import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from assets.interactions.digests import row_digests
from assets.interactions.refusals import frame
from assets.resources import Tables
from assets.spill import MAX_ROWS_IN_MEMORY, Spill
from models.identity import version_of
from ray_jobs.tables.interactions import DAYS, RAW_INTERACTIONS

DIGESTED = ["event_id", "user_id", "item_id", "timestamp", "sequence", "action", "value"]
DAYS_SCHEMA = {"day": pl.String, "digest": pl.String, "num_rows": pl.Int64}


class DaysWritten(NamedTuple):
    """What a write of days did.

    Attributes:
        version: Version of all events: a digest of the days' digests.
        changed: Days that were written or emptied.
        days: Every day of the table, with its digest and number of events.
        committed: Whether a commit was made.
    """

    version: str
    changed: list[str]
    days: pl.DataFrame
    committed: bool


def sequenced(events: pl.DataFrame) -> pl.DataFrame:
    """Numbers events within their day by input order and sorts them by the tie rule.

    Args:
        events: Whole days, with ``day`` and ``order``. A forgotten user's events keep their numbers, so that those of
            others do not change.
    """
    numbered = events.sort("day", "order").with_columns(
        pl.int_range(pl.len(), dtype=pl.Int64).over("day").alias("sequence")
    )
    return numbered.drop("order").sort("day", "timestamp", "sequence")


def day_digests(events: pl.DataFrame) -> pl.DataFrame:
    """Digest and size of each day of `sequenced` events.

    The digest is that of the source's day: forgetting a user does not change it, so nothing is made again because
    of it. The size is that of what is kept.
    """
    if events.is_empty():
        return pl.DataFrame(schema=DAYS_SCHEMA)
    days = (
        events.select("day", "forgotten", row_digests(events, DIGESTED).alias("row"))
        .group_by("day", maintain_order=True)
        .agg(pl.col("row").str.join("").alias("rows"), (~pl.col("forgotten")).sum().cast(pl.Int64).alias("num_rows"))
    )
    digests = [hashlib.sha256(rows.encode()).hexdigest()[:16] for rows in days["rows"]]
    return days.select("day", pl.Series("digest", digests, dtype=pl.String), "num_rows")


def days_version(days: pl.DataFrame) -> str:
    """Version of the table that holds ``days``; it does not depend on the runs that wrote them."""
    return version_of(table=RAW_INTERACTIONS.name, days=days.sort("day").select("day", "digest").rows())


def stored_days(tables: Tables) -> pl.DataFrame:
    """The days that the table holds now, with digests.

    The table of days is believed only if it belongs to the very version of the events; else (a run died
    between the two commits) the digests are made again from the events. Those lack forgotten users, so that days that
    had some count as changed once.
    """
    warehouse = tables.warehouse()
    standing = warehouse.version(RAW_INTERACTIONS)
    if standing is None:
        return pl.DataFrame(schema=DAYS_SCHEMA)
    if warehouse.version(DAYS) == standing:
        return frame(tables.read(DAYS, list(DAYS_SCHEMA)))
    counts = pl.concat(
        [frame(part).group_by("day").len() for part in warehouse.batches(RAW_INTERACTIONS, ["day"])]
        or [pl.DataFrame(schema={"day": pl.String, "len": pl.UInt32})]
    )
    sizes = (
        counts.group_by("day")
        .agg(pl.col("len").sum())
        .sort("day")
        .with_columns((pl.col("len").cum_sum() // MAX_ROWS_IN_MEMORY).alias("part"))
    )
    found = [pl.DataFrame(schema=DAYS_SCHEMA)]
    for _, part in sizes.group_by("part", maintain_order=True):
        events = frame(tables.read(RAW_INTERACTIONS, [*DIGESTED, "day"], [("day", "in", part["day"].to_list())]))
        known = events.sort("day", "timestamp", "sequence").with_columns(pl.lit(False).alias("forgotten"))
        found.append(day_digests(known))
    return pl.concat(found)


def _where(changed: list[str], all_days: list[str]) -> str:
    """Predicate of the changed days: a range where every day of it changed, else a list."""
    if changed == all_days:
        return f"day >= '{changed[0]}' AND day <= '{changed[-1]}'"
    return f"day IN ({', '.join(repr(day) for day in changed)})"


def write_days(tables: Tables, events: Spill, *, first: str, last: str, created: dt.datetime) -> DaysWritten:
    """Makes the table hold exactly ``events`` in the days ``first`` to ``last``; other days stay as they are.

    Args:
        tables: The warehouse.
        events: Events of those days, in input order (``order``); those that are ``forgotten`` are not written.
        first: First day, ``YYYY-MM-DD``.
        last: Last day.
        created: When the rows are written.
    """
    stored = stored_days(tables)
    fresh = pl.concat([pl.DataFrame(schema=DAYS_SCHEMA), *(day_digests(sequenced(b)) for b in events.buckets())])
    within = pl.col("day").is_between(pl.lit(first), pl.lit(last))
    both = fresh.join(stored.filter(within), on="day", how="full", coalesce=True, suffix="_stored").sort("day")
    changed = both.filter(~pl.col("digest").eq_missing(pl.col("digest_stored")))["day"].to_list()
    days = pl.concat([stored.filter(~within), fresh]).sort("day")
    version = days_version(days)
    if tables.is_current(RAW_INTERACTIONS, version):
        _keep_days(tables, days, version, created)
        return DaysWritten(version, [], days, committed=False)
    rows = _rows(events, changed, created)
    where = _where(changed, both["day"].to_list()) if changed else "day < ''"
    written = tables.warehouse().write_batches(RAW_INTERACTIONS, rows, version, replace_where=where)
    _keep_days(tables, days, version, created)
    return DaysWritten(version, changed, days, written.committed)


def _rows(events: Spill, days: list[str], created: dt.datetime) -> Iterator[pa.Table]:
    names = [c.name for c in RAW_INTERACTIONS.columns]
    for bucket in events.buckets():
        rows = sequenced(bucket.filter(pl.col("day").is_in(days))).filter(~pl.col("forgotten"))
        rows = rows.with_columns(pl.lit(created).alias("created_timestamp"))
        for start in range(0, len(rows), MAX_ROWS_IN_MEMORY):
            yield rows.slice(start, MAX_ROWS_IN_MEMORY).select(names).to_arrow()


def _keep_days(tables: Tables, days: pl.DataFrame, version: str, created: dt.datetime) -> None:
    rows = days.with_columns(pl.lit(created).alias("created_timestamp"))
    tables.write(DAYS, rows.select([c.name for c in DAYS.columns]).to_arrow(), version)
