"""Items and users: judging their rows, and keeping each id once."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import polars as pl

from assets.interactions.clocks import UTC_TIME, to_utc
from assets.interactions.digests import row_digests
from assets.interactions.forgotten import about_forgotten
from assets.interactions.readers.base import ATTRIBUTES, POSITION, Batch, DatasetError, naming
from assets.interactions.validation import REFUSED_SCHEMA, Judged, Limits, judge, present, shown, text
from models.forgetting import MASK, NOBODY, ForgetList

ITEM_SCHEMA: dict[str, Any] = {
    POSITION: pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "description": pl.String,
    "categories": pl.List(pl.String),
    "image_uri": pl.String,
    ATTRIBUTES: pl.String,
    "available_from": UTC_TIME,
}
USER_SCHEMA: dict[str, Any] = {POSITION: pl.Int64, "user_id": pl.String, ATTRIBUTES: pl.String}
CATEGORY_SEPARATOR = "|"


def _categories(rows: pl.DataFrame) -> pl.Expr:
    """A list of texts: a typed list, or text with bars between; empty if unknown."""
    if "categories" not in rows.columns:
        return pl.lit([], dtype=pl.List(pl.String))
    kind = rows.schema["categories"]
    if isinstance(kind, pl.List | pl.Array):
        if kind.inner.is_nested() or kind.inner == pl.Binary:
            raise DatasetError(
                f"The column categories has the type {kind}, which is no list of texts: write a list of texts, or "
                f"text with `{CATEGORY_SEPARATOR}` between."
            )
        parts = pl.col("categories").cast(pl.List(pl.String))
    else:
        parts = text(rows, "categories").str.split(CATEGORY_SEPARATOR)
    parts = parts.list.eval(pl.element().str.strip_chars()).list.drop_nulls()
    return parts.list.filter(pl.element() != "").fill_null([])


def judge_items(rows: pl.DataFrame, limits: Limits) -> Judged:
    """Judges rows of ``items``. An item without a title has its id for a title.

    Args:
        rows: As a `Batch` has them.
        limits: Which times are credible.

    Returns:
        Good rows with `ITEM_SCHEMA`.

    Raises:
        DatasetError: If a column has a type that cannot hold what the contract asks for.
    """
    if rows.is_empty():
        return Judged(pl.DataFrame(schema=ITEM_SCHEMA), pl.DataFrame(schema=REFUSED_SCHEMA))
    timed = "available_from" in rows.columns
    cleaned: list[pl.Expr | pl.Series] = [
        text(rows, "item_id").alias("item_id"),
        pl.coalesce(text(rows, "title"), text(rows, "item_id")).alias("title"),
        text(rows, "description").alias("description"),
        _categories(rows).alias("categories"),
        text(rows, "image_uri").alias("image_uri"),
        pl.coalesce(text(rows, ATTRIBUTES), pl.lit("{}")).alias(ATTRIBUTES),
        to_utc(rows["available_from"]).alias("available_from")
        if timed
        else pl.lit(None, dtype=UTC_TIME).alias("available_from"),
        present(rows, "available_from").alias("_has_time"),
        shown(rows, "available_from").alias("_time"),
    ]
    faults = [
        ("missing_item_id", pl.col("item_id").is_null(), pl.lit("The row has no item_id: fill it in.")),
        (
            "unparsable_time",
            pl.col("_has_time") & pl.col("available_from").is_null(),
            pl.format(
                "available_from `{}` is no epoch number and no ISO 8601 time: write e.g. 2026-01-31 or leave it empty.",
                pl.col("_time"),
            ),
        ),
    ]
    return judge(rows, cleaned, [], faults, ITEM_SCHEMA)


def judge_users(rows: pl.DataFrame, limits: Limits) -> Judged:
    """Judges rows of ``users``; see `judge_items`."""
    if rows.is_empty():
        return Judged(pl.DataFrame(schema=USER_SCHEMA), pl.DataFrame(schema=REFUSED_SCHEMA))
    cleaned: list[pl.Expr | pl.Series] = [
        text(rows, "user_id").alias("user_id"),
        pl.coalesce(text(rows, ATTRIBUTES), pl.lit("{}")).alias(ATTRIBUTES),
    ]
    faults = [("missing_user_id", pl.col("user_id").is_null(), pl.lit("The row has no user_id: fill it in."))]
    return judge(rows, cleaned, [], faults, USER_SCHEMA)


@dataclasses.dataclass
class Catalogue:
    """What a source says of its items or users.

    Attributes:
        kept: One row an id, sorted by it.
        refused: Refused rows with their ``source``.
        accounts: Rows read, kept, quarantined and duplicate, by source.
        untitled: Items whose id stands for a missing title.
    """

    kept: pl.DataFrame
    refused: pl.DataFrame
    accounts: pl.DataFrame
    untitled: int = 0


def _keep_once(good: pl.DataFrame, table: str, key: str) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Keeps the first row of an id; returns it, equal rows and conflicting rows."""
    same = ["source", POSITION, "_order"]
    content = row_digests(good.with_columns(pl.struct(pl.exclude(same)).struct.json_encode().alias("_json")), ["_json"])
    marked = good.with_columns(content.alias("_content"))
    marked = marked.with_columns(
        pl.col("_content").first().over(key).alias("_kept"),
        (pl.int_range(pl.len()).over(key) > 0).alias("_repeated"),
    )
    kept = marked.filter(~pl.col("_repeated"))
    equal = marked.filter(pl.col("_repeated") & (pl.col("_content") == pl.col("_kept")))
    other = marked.filter(pl.col("_repeated") & (pl.col("_content") != pl.col("_kept")))
    conflicts = other.select(
        "source",
        POSITION,
        pl.lit(f"conflicting_{key}").alias("reason"),
        # Details are shown where a user could not be forgotten; the payload tells which one it is.
        pl.format(
            "The {} `{}` is described before in another way: keep one row for it.",
            pl.lit(table.removesuffix("s")),
            pl.lit(MASK) if table == "users" else pl.col(key),
        ).alias("detail"),
        pl.struct(pl.exclude(same + ["_content", "_kept", "_repeated"])).struct.json_encode().alias("payload"),
        pl.lit(None, dtype=pl.String).alias("day"),
    )
    return kept.drop("_order", "_content", "_kept", "_repeated").sort(key), equal, conflicts


def gather(table: str, batches: Iterator[Batch], limits: Limits, forgotten: ForgetList = NOBODY) -> Catalogue:
    """Reads all items or users. Memory is bounded by their number.

    Args:
        table: ``items`` or ``users``.
        batches: The reader's stream.
        limits: Which times are credible.
        forgotten: Users of whom no refused row is kept.
    """
    judged_by: Any = judge_items if table == "items" else judge_users
    key = "item_id" if table == "items" else "user_id"
    schema = ITEM_SCHEMA if table == "items" else USER_SCHEMA
    good = [pl.DataFrame(schema={"source": pl.String, **schema, "_order": pl.Int64})]
    refused = [pl.DataFrame(schema={"source": pl.String, **REFUSED_SCHEMA})]
    read: dict[str, int] = {}
    done, untitled = 0, 0
    for batch in batches:
        with naming(batch.source):
            judged = judged_by(batch.rows, limits)
        named = pl.lit(batch.source).alias("source")
        good.append(
            judged.good.select(named, *schema, pl.int_range(done, done + pl.len(), dtype=pl.Int64).alias("_order"))
        )
        done += len(judged.good)
        faults = batch.faults.with_columns(pl.lit(None, dtype=pl.String).alias("day"))
        refused += [frame.select(named, *REFUSED_SCHEMA) for frame in (judged.refused, faults)]
        read[batch.source] = read.get(batch.source, 0) + len(batch.rows) + len(batch.faults)
        if table == "items" and "title" in batch.rows.columns:
            untitled += int(batch.rows.select((~present(batch.rows, "title")).sum()).item())
    kept, equal, conflicts = _keep_once(pl.concat(good), table, key)
    bad = pl.concat([*refused, conflicts.select("source", *REFUSED_SCHEMA)])
    if table == "users":
        about = about_forgotten(bad, forgotten)
        for source, number in bad.filter(about).group_by("source").len().iter_rows():
            read[source] -= number
        bad = bad.filter(~about)
    return Catalogue(kept, bad, accounts(table, read, kept, bad, equal), untitled)


def accounts(
    table: str, read: dict[str, int], kept: pl.DataFrame, refused: pl.DataFrame, duplicate: pl.DataFrame
) -> pl.DataFrame:
    """One row a source file: what became of the rows that were read; see `INGESTIONS`."""
    files = pl.DataFrame(
        {"source": list(read), "rows_read": list(read.values())},
        schema={"source": pl.String, "rows_read": pl.Int64},
    )
    for name, frame in (("rows_kept", kept), ("rows_quarantined", refused), ("rows_duplicate", duplicate)):
        files = files.join(frame.group_by("source").agg(pl.len().cast(pl.Int64).alias(name)), on="source", how="left")
    return files.select(pl.lit(table).alias("source_table"), pl.all().fill_null(0)).sort("source")
