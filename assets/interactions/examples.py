"""From the table of events to the table of labelled examples, one bucket of users at a time."""

import datetime as dt
from collections.abc import Iterator
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from assets.interactions.days import stored_days
from assets.interactions.refusals import frame
from assets.interactions.splitting import (
    TEST,
    TRAIN,
    VALID,
    Cuts,
    Pool,
    cut_at,
    labelled,
    negatives,
    placed,
    pool_of,
    thresholds,
)
from assets.resources import Tables
from assets.spill import NUM_BUCKETS, Spill
from ray_jobs.tables.interactions import ITEMS, RAW_INTERACTIONS, SPLITS

NEEDED = ["event_id", "user_id", "item_id", "timestamp", "sequence", "action", "value"]


class Plan(NamedTuple):
    """What one pass over the events settles for the next.

    Attributes:
        cuts: Times of the global split.
        least: Least value of a positive, by action.
        sample: Whether negatives must be sampled, because every event is a positive.
        positives: Number of positive events.
        pool: Items to draw negatives from, if they must be.
    """

    cuts: Cuts
    least: dict[str, float]
    sample: bool
    positives: int
    pool: Pool | None


def _time_at(tables: Tables, days: pl.DataFrame, rank: int) -> dt.datetime | None:
    """Time of the event of a rank in time; reads the one day that holds it."""
    before = 0
    for day, count in days.sort("day").select("day", "num_rows").iter_rows():
        if rank < before + count:
            times = frame(tables.read(RAW_INTERACTIONS, ["timestamp"], [("day", "=", day)]))["timestamp"].sort()
            return times[rank - before]
        before += count
    return None


def _first_times(tables: Tables, days: pl.DataFrame) -> tuple[dt.datetime, dt.datetime | None]:
    """The first two distinct times."""
    found: list[dt.datetime] = []
    for day in days.filter(pl.col("num_rows") > 0).sort("day")["day"]:
        times = frame(tables.read(RAW_INTERACTIONS, ["timestamp"], [("day", "=", day)]))["timestamp"]
        found.extend(times.unique().sort().head(2))
        if len(found) > 1:
            return found[0], found[1]
    return found[0], None


def _totals(
    tables: Tables, columns: list[str], by: str, aggregates: list[pl.Expr], again: list[pl.Expr]
) -> pl.DataFrame:
    """Aggregates of all events by one column, part by part; bounded by the column's distinct values."""
    total: pl.DataFrame | None = None
    for part in tables.warehouse().batches(RAW_INTERACTIONS, columns):
        counted = frame(part).group_by(by).agg(aggregates)
        total = counted if total is None else pl.concat([total, counted]).group_by(by).agg(again)
    assert total is not None
    return total


def plan(tables: Tables, fractions: tuple[float, float], positive_value: float | None) -> Plan:
    """Settles cuts, labels and whether negatives are sampled.

    Args:
        tables: The warehouse.
        fractions: Shares of train and of validation in the global split.
        positive_value: Least value of a positive; None: 80 % of the largest value of the action.
    """
    days = stored_days(tables)
    total = int(days["num_rows"].sum())
    at = [_time_at(tables, days, int(total * share)) for share in (fractions[0], fractions[0] + fractions[1])]
    cuts = cut_at(at, *_first_times(tables, days))
    maxima = _totals(tables, ["action", "value"], "action", [pl.col("value").max()], [pl.col("value").max()])
    least = thresholds(dict(maxima.select("action", "value").iter_rows()), positive_value)
    positives = 0
    for part in tables.warehouse().batches(RAW_INTERACTIONS, ["action", "value"]):
        positives += int(labelled(frame(part), least)["label"].sum())
    sample = positives == total
    return Plan(cuts, least, sample, positives, _pool(tables) if sample else None)


def _pool(tables: Tables) -> Pool:
    """Items with events, available from the time that the catalogue names, else from their first event."""
    counted = _totals(
        tables,
        ["item_id", "timestamp"],
        "item_id",
        [pl.len().cast(pl.Int64).alias("num_events"), pl.col("timestamp").min().alias("first")],
        [pl.col("num_events").sum(), pl.col("first").min()],
    )
    known = frame(tables.read(ITEMS, ["item_id", "available_from"]))
    rows = counted.join(known, on="item_id", how="left")
    return pool_of(
        rows.select("item_id", "num_events", pl.min_horizontal("available_from", "first").alias("available"))
    )


def examples(tables: Tables, settled: Plan, split: str, seed: int, created: dt.datetime) -> Iterator[pa.Table]:
    """Yields the rows of `SPLITS`, one bucket of users at a time.

    Args:
        tables: The warehouse.
        settled: See `plan`.
        split: The split in force.
        seed: Seed of sampled negatives.
        created: When the rows are written.
    """
    names = [c.name for c in SPLITS.columns]
    by_user = (pl.col("user_id").hash(seed=0) % NUM_BUCKETS).cast(pl.Int64)
    with Spill(by_user) as histories:
        for part in tables.warehouse().batches(RAW_INTERACTIONS, NEEDED):
            histories.add(frame(part))
        for bucket in histories.buckets():
            rows = placed(labelled(bucket, settled.least), settled.cuts, split).with_columns(
                pl.col("event_id").alias("example_id"), pl.lit(False).alias("sampled")
            )
            drawn = [negatives(rows, settled.pool, seed).select(rows.columns)] if settled.pool is not None else []
            both = pl.concat([rows, *drawn]).with_columns(pl.lit(created).alias("created_timestamp"))
            yield SPLITS.conform(both.select(names).to_arrow())


def sizes(tables: Tables) -> tuple[dict[str, int], int, int]:
    """Examples by split and part, positives, and sampled negatives of the table as it stands."""
    found = {f"{rule}_{part}": 0 for rule in ("global_time", "leave_one_out") for part in (TRAIN, VALID, TEST)}
    positives, sampled = 0, 0
    for part in tables.warehouse().batches(SPLITS, ["leave_one_out", "global_time", "label", "sampled"]):
        rows = frame(part)
        for rule in ("global_time", "leave_one_out"):
            for name, count in rows.group_by(rule).len().iter_rows():
                found[f"{rule}_{name}"] += count
        positives += int(rows["label"].sum())
        sampled += int(rows["sampled"].sum())
    return found, positives, sampled
