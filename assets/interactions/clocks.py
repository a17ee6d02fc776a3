"""Times as sources write them, turned into UTC microseconds, all rows at once."""

import datetime as dt

import polars as pl

UTC_TIME = pl.Datetime("us", "UTC")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

# Numbers are told apart by size: as seconds these bounds lie in the years 5138, and so on for each finer
# unit.
SECONDS_BELOW, MILLIS_BELOW, MICROS_BELOW = 10**11, 10**14, 10**17

ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[Tt ]([0-9]{2}:[0-9]{2})(:[0-9]{2}(?:[.,][0-9]{1,9})?)?)?"
    r"\s*(?:([Zz]|UTC|GMT)|([+-])([0-9]{2}):?([0-9]{2})?)?$"
)
# Clocks beyond are clipped: nanoseconds, in which some consumers count, hold no others.
EARLIEST, LATEST = dt.datetime(1678, 1, 1, tzinfo=dt.UTC), dt.datetime(2262, 1, 1, tzinfo=dt.UTC)


def _from_whole(number: pl.Expr) -> pl.Expr:
    # The least integer, which is what a missing time becomes in numpy, has no absolute value.
    number = number.clip(-(2**63 - 1))
    size = number.abs()
    micros = (
        pl.when(size < SECONDS_BELOW)
        .then(number * 1_000_000)
        .when(size < MILLIS_BELOW)
        .then(number * 1_000)
        .when(size < MICROS_BELOW)
        .then(number)
        .otherwise(number // 1_000)
    )
    return micros.cast(UTC_TIME)


def _from_fraction(number: pl.Expr) -> pl.Expr:
    finite = pl.when(number.is_finite() & (number.abs() < 9e18)).then(number)
    size = finite.abs()
    micros = (
        pl.when(size < SECONDS_BELOW)
        .then(finite * 1e6)
        .when(size < MILLIS_BELOW)
        .then(finite * 1e3)
        .when(size < MICROS_BELOW)
        .then(finite)
        .otherwise(finite / 1e3)
    )
    return micros.round().cast(pl.Int64, strict=False).cast(UTC_TIME)


def _from_iso(text: pl.Series) -> pl.Series:
    names = ["day", "minutes", "seconds", "zulu", "sign", "hours_off", "minutes_off"]
    parts = (
        text.to_frame("text").select(pl.col("text").str.extract_groups(ISO).struct.rename_fields(names)).unnest("text")
    )
    seconds = pl.col("seconds").fill_null(":00").str.replace(",", ".", literal=True)
    clock = pl.concat_str([pl.col("day"), pl.lit("T"), pl.col("minutes").fill_null("00:00"), seconds])
    local = clock.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", strict=False, time_unit="us")
    hours, rest = pl.col("hours_off").cast(pl.Int64), pl.col("minutes_off").cast(pl.Int64).fill_null(0)
    offset = (hours * 3600 + rest * 60) * pl.when(pl.col("sign") == "-").then(-1).otherwise(1)
    credible = pl.col("sign").is_null() | ((hours <= 14) & (rest < 60))
    return parts.select(
        pl.when(credible)
        .then(local - pl.duration(seconds=offset.fill_null(0)))
        .dt.replace_time_zone("UTC")
        .alias("time")
    )["time"]


def _from_text(text: pl.Series) -> pl.Series:
    frame = (
        text.str.strip_chars()
        .to_frame("text")
        .with_columns(
            pl.col("text").cast(pl.Int64, strict=False).alias("whole"),
            pl.col("text").cast(pl.Float64, strict=False).alias("number"),
        )
    )
    times = frame.select(pl.coalesce(_from_whole(pl.col("whole")), _from_fraction(pl.col("number"))).alias("time"))[
        "time"
    ]
    other = times.is_null() & text.is_not_null()
    if not other.any():
        return times
    return times.scatter(other.arg_true(), _from_iso(frame["text"].filter(other)))


def bounded(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Clips typed dates and timestamps, in their own unit; beyond, Polars can neither convert nor show them."""
    per_day = {"ms": 86_400 * 10**3, "us": 86_400 * 10**6, "ns": 86_400 * 10**9}
    scale = per_day[kind.time_unit] if isinstance(kind, pl.Datetime) else 1
    first, last = ((time - EPOCH).days * scale for time in (EARLIEST, LATEST))
    return column.to_physical().clip(first, last).cast(kind)


def to_utc(times: pl.Series) -> pl.Series:
    """Reads times; null where a value is no time.

    Accepted are epoch seconds, milliseconds, microseconds and nanoseconds (told apart by size), ISO 8601
    dates and times with or without zone (without: UTC), also mixed in one column, and typed dates and
    timestamps. Times beyond `EARLIEST` and `LATEST` are clipped to them.

    Args:
        times: Text, numbers, dates or timestamps; nothing else holds times.
    """
    kind, frame = times.dtype, times.to_frame("time")
    value = pl.col("time")
    if kind == pl.String:
        return _from_text(times).clip(EARLIEST, LATEST)
    if isinstance(kind, pl.Datetime):
        read = (value.dt.convert_time_zone("UTC") if kind.time_zone else value.dt.replace_time_zone("UTC")).cast(
            UTC_TIME
        )
    elif kind == pl.Date:
        read = value.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    elif kind.is_integer():
        read = _from_whole(value.cast(pl.Int64, strict=False))
    elif kind.is_float() or isinstance(kind, pl.Decimal):
        read = _from_fraction(value.cast(pl.Float64))
    else:
        return pl.Series("time", [None] * len(times), dtype=UTC_TIME)
    return frame.select(read.clip(EARLIEST, LATEST).alias("time"))["time"]
