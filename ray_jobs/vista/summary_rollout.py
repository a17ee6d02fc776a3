"""Two versions of summaries while a model is rolled out: the newest, and the one that the champion still reads."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.tables.vista import HELD_SUMMARIES, USER_SUMMARIES
from ray_jobs.warehouse import Warehouse

NOTHING = "nothing"
"""Version of `vista/held_summaries` while no rollout is going on."""
COLUMNS = [c.name for c in HELD_SUMMARIES.columns]


def held_version(warehouse: Warehouse) -> str | None:
    """Content version that is held beside the newest; None if there is none."""
    found = warehouse.version(HELD_SUMMARIES)
    return None if found == NOTHING else found


def hold(warehouse: Warehouse, content_version: str) -> bool:
    """Keeps what readers have, before summaries of another content version are written.

    What is held already stays: the champion reads that, and nobody has come to read what came after it.

    Args:
        warehouse: The warehouse.
        content_version: Version of the summaries that are about to be written.

    Returns:
        Whether anything was kept by this call.
    """
    if held_version(warehouse) is not None or not warehouse.exists(USER_SUMMARIES):
        return False
    standing = warehouse.first(USER_SUMMARIES, "summary_version")
    if standing in (None, content_version):
        return False
    newest = warehouse.batches(USER_SUMMARIES, COLUMNS, pc.field("is_latest"), num_rows=65_536)
    return warehouse.write_batches(HELD_SUMMARIES, newest, standing).committed


def release(warehouse: Warehouse, wanted: str | None) -> bool:
    """Drops what is held unless the champion reads it.

    Args:
        warehouse: The warehouse.
        wanted: Content version that the champion reads, if it reads summaries.

    Returns:
        Whether anything was dropped.
    """
    held = held_version(warehouse)
    if held is None or held == wanted:
        return False
    return warehouse.write(HELD_SUMMARIES, HELD_SUMMARIES.schema.empty_table(), NOTHING).committed


def held_rows(warehouse: Warehouse) -> Iterator[pa.Table]:
    """Yields what requests read during a rollout: a row of every user, without a summary where none is held.

    Such a row tells a reader that the version is there and the user is not, so that it need not refuse.
    """
    held = held_version(warehouse)
    if held is None:
        return
    known = [pl.Series([], dtype=pl.String)]
    for part in warehouse.batches(HELD_SUMMARIES, num_rows=65_536):
        known.append(pl.Series(part["user_id"]))
        yield part
    users = pl.concat(known).implode()
    created = dt.datetime.now(dt.UTC)
    for part in warehouse.batches(USER_SUMMARIES, ["user_id", "event_timestamp"], pc.field("is_latest")):
        frame: Any = pl.from_arrow(part)
        new = frame.filter(~pl.col("user_id").is_in(users)).to_arrow()
        empty = {name: pa.nulls(new.num_rows) for name in ("summary", "scales")}
        said = {"summary_version": [held] * new.num_rows, "created_timestamp": [created] * new.num_rows}
        rows = {name: new[name] for name in new.column_names} | empty | said
        yield HELD_SUMMARIES.conform(pa.table({name: rows[name] for name in COLUMNS}))
