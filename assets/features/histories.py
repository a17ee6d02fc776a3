"""Counts over time: what was known of an item at each day's end, and of a user after each of their moments."""

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from assets.spill import NUM_BUCKETS, Spill
from ray_jobs.warehouse import TIMESTAMP, Table, Warehouse

EVENT_COLUMNS = ["user_id", "item_id", "timestamp", "position", "value", "label"]
IS_EVENT = ~pc.field("sampled")
MOMENTS_AT_ONCE = 100_000


def popularity_by_day(parts: Iterable[pa.Table], created: pa.TimestampScalar) -> pa.Table:
    """Sums up events into one row for each item and day on which it had events.

    Args:
        parts: Events with `EVENT_COLUMNS`, in any order; each part is reduced before the next one is read.
        created: When the rows are written.

    Returns:
        Rows of `features/item_popularity`. A day's row holds from the day's end, so that whoever reads it at a
        moment of the next day knows whole days only.
    """
    reduced: list[pl.DataFrame] = []
    for part in parts:
        events = pl.DataFrame(part.select(["item_id", "timestamp", "value", "label"]))
        reduced.append(
            events.group_by("item_id", pl.col("timestamp").dt.truncate("1d").alias("day")).agg(
                num_events=pl.len().cast(pl.Int64),
                num_likes=pl.col("label").cast(pl.Int64).sum(),
                values=pl.col("value").sum(),
                num_values=pl.col("value").count().cast(pl.Int64),
            )
        )
    if not reduced:
        raise ValueError(
            "interactions/splits has no events, so there is nothing to count: materialize it from a "
            "dataset that is not empty."
        )
    days = pl.concat(reduced).group_by("item_id", "day").sum().sort("item_id", "day")
    so_far = days.with_columns(pl.col("num_events", "num_likes", "values", "num_values").cum_sum().over("item_id"))
    rows = so_far.select(
        "item_id", "num_events", "num_likes", _mean(), event_timestamp=pl.col("day").dt.offset_by("1d")
    )
    return _with_created(rows.to_arrow(), created)


def activity_by_moment(events: pa.Table, created: pa.TimestampScalar, *, num_recent: int) -> Iterator[pa.Table]:
    """Makes one row for each moment in which a user acted: what was known of the user right after it.

    Args:
        events: All events of some users, with `EVENT_COLUMNS`, in any order.
        created: When the rows are written.
        num_recent: Length of the list of last items.

    Yields:
        Rows of `features/user_activity`, some moments at a time: with their lists they are many times as large as the
        events. A row holds from one microsecond after its moment: an event never sees itself, nor others of the same
        moment, whose order the source does not tell.
    """
    ordered = (
        pl.DataFrame(events.select(EVENT_COLUMNS))
        .sort("user_id", "timestamp", "position")
        .with_columns(
            num_events=pl.int_range(1, pl.len() + 1).over("user_id"),
            num_likes=pl.col("label").cast(pl.Int64).cum_sum().over("user_id"),
            values=pl.col("value").fill_null(0.0).cum_sum().over("user_id"),
            num_values=pl.col("value").is_not_null().cast(pl.Int64).cum_sum().over("user_id"),
        )
    )
    ends = (pl.col("user_id") != pl.col("user_id").shift(-1)) | (pl.col("timestamp") != pl.col("timestamp").shift(-1))
    last = np.flatnonzero(ordered.select(ends.fill_null(True)).to_series().to_numpy())
    items = pa.array(ordered["item_id"].to_arrow(), pa.string())
    labels = pa.array(ordered["label"].to_numpy(), pa.int32())
    for start in range(0, len(last), MOMENTS_AT_ONCE):
        some = last[start : start + MOMENTS_AT_ONCE]
        moments = ordered[some]
        recent = _newest_first(some, moments["num_events"].to_numpy(), num_recent)
        rows = moments.select(
            "user_id", "num_events", "num_likes", _mean(), event_timestamp=pl.col("timestamp").dt.offset_by("1us")
        ).to_arrow()
        made = {"recent_item_ids": _gathered(items, recent), "recent_labels": _gathered(labels, recent)}
        for name, column in made.items():
            rows = rows.append_column(name, column)
        yield _with_created(rows, created)


def users_in_buckets(warehouse: Warehouse, table: Table, events_in_memory: int) -> Iterator[pa.Table]:
    """Yields the events of a share of the users at a time, so that a share has to fit into memory and no more.

    Args:
        warehouse: The warehouse.
        table: `interactions/splits`; it is read once.
        events_in_memory: Events held before they are shuffled through scratch files.
    """
    by_user = (pl.col("user_id").hash(seed=0) % NUM_BUCKETS).cast(pl.Int64)
    with Spill(by_user, max_rows=events_in_memory) as histories:
        for part in warehouse.batches(table, EVENT_COLUMNS, IS_EVENT):
            histories.add(pl.DataFrame(part))
        for bucket in histories.buckets():
            yield bucket.to_arrow()


def _mean() -> pl.Expr:
    return pl.when(pl.col("num_values") > 0).then(pl.col("values") / pl.col("num_values")).alias("mean_value")


def _newest_first(last: np.ndarray, num_events: np.ndarray, num_recent: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and row numbers of lists that run back from each row of ``last``, within its user."""
    lengths = np.minimum(num_events, num_recent)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return offsets, np.repeat(last, lengths) - back


def _gathered(values: pa.Array, lists: tuple[np.ndarray, np.ndarray]) -> pa.Array:
    offsets, rows = lists
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values.take(pa.array(rows)))


def _with_created(rows: pa.Table, created: pa.TimestampScalar) -> pa.Table:
    when = rows.schema.get_field_index("event_timestamp")
    rows = rows.set_column(when, "event_timestamp", rows["event_timestamp"].cast(TIMESTAMP))
    return rows.append_column("created_timestamp", pa.repeat(created, rows.num_rows))
