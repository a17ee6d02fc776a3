"""Digests of rows that are the same on every machine, computed for a whole frame at once."""

import functools
from typing import Any

import polars as pl

DIGEST_LENGTH = 20
SEPARATOR = 31


@functools.cache
def _database() -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET threads TO 1")
    return connection


def _hasher() -> Any:
    """A connection of its own, for one frame."""
    return _database().cursor()


def row_digests(frame: pl.DataFrame, columns: list[str]) -> pl.Series:
    """Returns the first 20 hex digits of the MD5 of each row's ``columns``.

    A null differs from an empty text, and floats count by their bits, so that no formatting is involved.
    (Polars' own hash may change with its version; MD5 is in DuckDB because it needs no Python loop.)

    Args:
        frame: Rows.
        columns: Columns of text, integers, floats or UTC times, in the order that is hashed.
    """
    parts = []
    for name in columns:
        kind, column = frame.schema[name], pl.col(name)
        if kind.is_float():
            # -0.0 and 0.0 are one value with two bit patterns.
            column = pl.when(column == 0).then(0.0).otherwise(column.cast(pl.Float64)).reinterpret(dtype=pl.Int64)
        elif isinstance(kind, pl.Datetime):
            column = column.dt.timestamp("us")
        parts.append(pl.lit("+") + column.cast(pl.String))
    joined = frame.select(pl.concat_str([p.fill_null("-") for p in parts], separator=chr(SEPARATOR)).alias("text"))
    if joined.is_empty():
        return pl.Series("digest", [], dtype=pl.String)
    with _hasher() as connection:
        connection.register("rows", joined.to_arrow())
        found = connection.sql(f"SELECT left(md5(text), {DIGEST_LENGTH}) AS digest FROM rows").to_arrow_table()
    return pl.Series("digest", pl.from_arrow(found["digest"]), dtype=pl.String)


def uniforms(keys: pl.Series, salt: str) -> pl.Series:
    """Returns one number in [0, 1) a key, a pure function of key and salt: randomness without state."""
    if keys.is_empty():
        return pl.Series("uniform", [], dtype=pl.Float64)
    with _hasher() as connection:
        connection.register(
            "rows", keys.to_frame("key").select((pl.lit(salt) + pl.col("key")).alias("text")).to_arrow()
        )
        found = connection.sql(
            "SELECT (('0x' || left(md5(text), 13))::BIGINT) / 4503599627370496.0 AS uniform FROM rows"
        )
        return pl.Series("uniform", pl.from_arrow(found.to_arrow_table()["uniform"]), dtype=pl.Float64)
