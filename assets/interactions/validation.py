"""What a row must be to enter the platform. Pure: rows in, good rows and refused rows out."""

import dataclasses
import datetime as dt
from typing import Any, NamedTuple

import polars as pl

from assets.interactions.clocks import EPOCH, UTC_TIME, to_utc
from assets.interactions.digests import row_digests
from assets.interactions.readers.base import POSITION, DatasetError, to_json

MAX_PAYLOAD = 4096
CONTENT = ["user_id", "item_id", "timestamp", "action", "value"]
REFUSED_SCHEMA: dict[str, Any] = {
    POSITION: pl.Int64,
    "reason": pl.String,
    "detail": pl.String,
    "payload": pl.String,
    "day": pl.String,
}
EVENT_SCHEMA: dict[str, Any] = {
    POSITION: pl.Int64,
    "event_id": pl.String,
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": UTC_TIME,
    "action": pl.String,
    "value": pl.Float64,
    "day": pl.String,
    "content": pl.String,
    "given_id": pl.Boolean,
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which times are credible.

    Attributes:
        now: The moment of reading.
        tolerance: How far a clock may run ahead.
        earliest: Before this no platform kept event logs: such a clock was never set.
    """

    now: dt.datetime
    tolerance: dt.timedelta = dt.timedelta(days=1)
    earliest: dt.datetime = dt.datetime(1990, 1, 1, tzinfo=dt.UTC)


class Judged(NamedTuple):
    """Good rows, and refused rows with `REFUSED_SCHEMA`; together every row that came in."""

    good: pl.DataFrame
    refused: pl.DataFrame


def text(rows: pl.DataFrame, name: str) -> pl.Expr:
    """A text column, trimmed, null where empty; numbers and booleans become text.

    Raises:
        DatasetError: If the column's type holds no text.
    """
    if name not in rows.columns:
        return pl.lit(None, dtype=pl.String)
    kind, column = rows.schema[name], pl.col(name)
    if kind.is_float():
        # Frames with gaps turn whole numbers into floats; "7.0" is the id 7.
        whole = column.is_finite() & (column == column.round()) & (column.abs() < 2**53)
        number_text = column.cast(pl.Int64, strict=False).cast(pl.String)
        written = pl.coalesce(
            pl.when(whole).then(number_text), pl.when(column.is_not_nan()).then(column.cast(pl.String))
        )
    elif kind.is_decimal():
        written = column.cast(pl.String).str.replace(r"\.0+$", "")
    elif kind.is_integer() or kind in (pl.Boolean, pl.String, pl.Null) or isinstance(kind, pl.Categorical | pl.Enum):
        written = column.cast(pl.String)
    else:
        raise DatasetError(f"The column {name} has the type {kind}, which is no text or number: write it as text.")
    trimmed = written.str.strip_chars()
    return pl.when(trimmed != "").then(trimmed)


def present(rows: pl.DataFrame, name: str) -> pl.Expr:
    """Whether a cell holds anything."""
    if name not in rows.columns:
        return pl.lit(False)
    column = pl.col(name)
    if rows.schema[name] == pl.String:
        return column.str.strip_chars().fill_null("") != ""
    if rows.schema[name].is_float():
        return column.is_not_null() & column.is_not_nan()
    return column.is_not_null()


def number(rows: pl.DataFrame, name: str) -> tuple[pl.Expr, pl.Expr]:
    """A numeric column, and whether a cell holds something else."""
    if name not in rows.columns:
        return pl.lit(None, dtype=pl.Float64), pl.lit(False)
    kind = rows.schema[name]
    if not (kind.is_numeric() or kind in (pl.String, pl.Boolean, pl.Null)):
        return pl.lit(None, dtype=pl.Float64), pl.col(name).is_not_null()
    written = pl.col(name).str.strip_chars() if kind == pl.String else pl.col(name)
    read = written.cast(pl.Float64, strict=False)
    finite = pl.when(read.is_finite()).then(read)
    return finite, present(rows, name) & finite.is_null()


def shown(rows: pl.DataFrame, name: str) -> pl.Expr:
    """A cell as messages show it."""
    if name not in rows.columns or rows.schema[name].is_nested() or rows.schema[name] == pl.Binary:
        return pl.lit("")
    return pl.col(name).cast(pl.String, strict=False).fill_null("").str.slice(0, 80)


def judge(
    rows: pl.DataFrame,
    cleaned: list[pl.Expr | pl.Series],
    derived: list[pl.Expr],
    faults: list[tuple[str, pl.Expr, pl.Expr]],
    schema: dict[str, Any],
) -> Judged:
    """Splits rows by the first fault that holds.

    Args:
        rows: As a `Batch` has them.
        cleaned: The contract's columns, out of those of ``rows``.
        derived: More columns, out of the cleaned ones.
        faults: Reason, condition and detail; conditions and details see cleaned and derived columns.
        schema: Schema of the good rows.
    """
    raw = [n for n in rows.columns if n != POSITION]
    both = rows.select(POSITION, pl.struct(raw).alias("_raw"), *cleaned).with_columns(derived)
    both = both.with_columns(pl.coalesce([pl.when(bad).then(pl.lit(name)) for name, bad, _ in faults]).alias("reason"))
    good = both.filter(pl.col("reason").is_null()).select(
        [pl.col(n).cast(kind) for n, kind in schema.items() if n in both.columns]
    )
    refused = both.filter(pl.col("reason").is_not_null())
    if refused.is_empty():
        return Judged(good, pl.DataFrame(schema=REFUSED_SCHEMA))
    detail = pl.coalesce([pl.when(pl.col("reason") == name).then(text) for name, _, text in faults])
    day = pl.col("day") if "day" in both.columns else pl.lit(None, dtype=pl.String)
    unpacked = refused.select("_raw").unnest("_raw")
    refused = refused.select(POSITION, "reason", detail.alias("detail"), day.alias("day"))
    # As ids are read, so that a row that comes back mended has the ids that it would have had.
    unpacked = unpacked.with_columns(
        text(unpacked, n).alias(n) for n, kind in unpacked.schema.items() if kind.is_float()
    )
    payload = unpacked.select(to_json(unpacked, unpacked.columns).str.slice(0, MAX_PAYLOAD).alias("payload"))
    return Judged(good, pl.concat([refused, payload], how="horizontal").select(list(REFUSED_SCHEMA)))


def judge_events(rows: pl.DataFrame, limits: Limits, known_items: pl.Series | None) -> Judged:
    """Judges rows of ``interactions``.

    Args:
        rows: As a `Batch` has them.
        limits: Which times are credible.
        known_items: Ids of the catalogue; None does not ask.

    Returns:
        Good rows with `EVENT_SCHEMA`: ``content`` is the digest of user, item, time, action and value, and
        also the ``event_id`` where the source gives none. A refused row has a day only where its time is
        credible.

    Raises:
        DatasetError: If a column has a type that cannot hold what the contract asks for.
    """
    if rows.is_empty():
        return Judged(pl.DataFrame(schema=EVENT_SCHEMA), pl.DataFrame(schema=REFUSED_SCHEMA))
    value, wrong_value = number(rows, "value")
    time, late = pl.col("timestamp"), limits.now + limits.tolerance
    credible = (time >= limits.earliest) & (time <= late)
    cleaned: list[pl.Expr | pl.Series] = [
        text(rows, "user_id").alias("user_id"),
        text(rows, "item_id").alias("item_id"),
        to_utc(rows["timestamp"]).alias("timestamp"),
        value.alias("value"),
        pl.coalesce(text(rows, "action"), pl.lit("interaction")).alias("action"),
        text(rows, "event_id").alias("event_id"),
        wrong_value.alias("_wrong_value"),
        present(rows, "timestamp").alias("_has_time"),
        shown(rows, "timestamp").alias("_time"),
        shown(rows, "value").alias("_value"),
    ]
    unknown = pl.lit(False) if known_items is None else ~pl.col("item_id").is_in(known_items.implode())
    faults = [
        ("missing_user_id", pl.col("user_id").is_null(), pl.lit("The row has no user_id: fill it in.")),
        ("missing_item_id", pl.col("item_id").is_null(), pl.lit("The row has no item_id: fill it in.")),
        ("missing_time", ~pl.col("_has_time"), pl.lit("The row has no timestamp: fill it in.")),
        (
            "unparsable_time",
            time.is_null(),
            pl.format(
                "The timestamp `{}` is no epoch number and no ISO 8601 time: write e.g. 2026-01-31T12:00:00Z.",
                pl.col("_time"),
            ),
        ),
        (
            "negative_time",
            time < EPOCH,
            pl.format("The timestamp `{}` lies before 1970: correct the clock or the sign.", pl.col("_time")),
        ),
        (
            "too_early",
            time < limits.earliest,
            pl.format(
                "The timestamp `{}` lies before {}: the clock was not set, correct it.",
                pl.col("_time"),
                pl.lit(limits.earliest.date().isoformat()),
            ),
        ),
        (
            "future_time",
            time > late,
            pl.format(
                "The timestamp `{}` lies in the future: correct the clock; a true time is taken once it has come.",
                pl.col("_time"),
            ),
        ),
        (
            "wrong_type_value",
            pl.col("_wrong_value"),
            pl.format("The value `{}` is no finite number: write e.g. 4.5 or leave it empty.", pl.col("_value")),
        ),
        (
            "unknown_item",
            unknown,
            pl.format("The item `{}` is not in the catalogue: add it to items or correct the id.", pl.col("item_id")),
        ),
    ]
    day = pl.when(credible).then(time.dt.strftime("%Y-%m-%d")).alias("day")
    good, refused = judge(rows, cleaned, [day], faults, EVENT_SCHEMA)
    given = pl.col("event_id").is_not_null().alias("given_id")
    good = good.with_columns(row_digests(good, CONTENT).alias("content"), given)
    return Judged(
        good.with_columns(pl.coalesce("event_id", "content").alias("event_id")).select(list(EVENT_SCHEMA)),
        refused,
    )
