"""Whose summaries have to be made, and from where on: by comparing histories with what is stored of each user."""

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ray_jobs.histories.data import bucket_of
from ray_jobs.histories.intake import event_digests
from ray_jobs.histories.store import BUCKETS, ROWS_AT_ONCE, HistoryStore, parts_of
from ray_jobs.tables.vista import USER_STATES, USER_SUMMARIES
from ray_jobs.warehouse import Warehouse

CHANGES = {"user_id": pl.String, "kept": pl.Int64}
KNOWN = ["user_id", "num_events", "digest", "is_regular", "event_timestamp"]
CHECKED = ["user_id", "position", "item_id", "timestamp", "action", "value"]


def all_of(index: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Plan and changes of an export that makes everything anew.

    Args:
        index: Users, as `HistoryStore.index` gives them.
    """
    plan = index.with_columns(seen=pl.lit(0, pl.Int64), state=pl.lit(None, pl.Binary))
    return plan, pl.DataFrame(schema=CHANGES)


def changed_since(
    store: HistoryStore, index: pl.DataFrame, base: str, shard: int, shards: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Plan and changes of a refresh that starts from stored states.

    A state is extended if the events that it saw are still the first ones of the history, which the digests tell, and
    all others are later; else the user is summarised from the first event on.

    Args:
        store: The histories.
        index: Users of the shard.
        base: Version of the states.
        shard: The shard.
        shards: How many there are.

    Returns:
        Users with new events, with ``seen`` and ``state``; and, for each user whose rows change, how many events the
        newest summary has seen that is ``kept``.
    """
    states = _of_shard(store.warehouse, KNOWN, base, shard, shards)
    known = states.rename({c: f"old_{c}" for c in KNOWN if c != "user_id"})
    joined = index.join(known, on="user_id", how="left", maintain_order="left")
    same = (pl.col("num_events") == pl.col("old_num_events")) & (pl.col("digest") == pl.col("old_digest"))
    todo = joined.filter(~same.fill_null(False))
    grown = todo.filter((pl.col("old_num_events") < pl.col("num_events")).fill_null(False))
    whole = _that_only_grew(store, grown)
    todo = todo.with_columns(
        seen=pl.when(pl.col("user_id").is_in(whole.implode())).then(pl.col("old_num_events")).otherwise(0)
    )
    changes = todo.select(
        "user_id",
        # A summary that was only there because the history ended is none that a whole export would make.
        kept=pl.col("seen") - (~pl.col("old_is_regular")).fill_null(False).cast(pl.Int64),
    )
    gone = states.join(index, on="user_id", how="anti").select("user_id", kept=pl.lit(0, pl.Int64))
    old = _of_users(store.warehouse, whole)
    plan = todo.join(old, on="user_id", how="left", maintain_order="left").select(*index.columns, "seen", "state")
    return plan, pl.concat([changes, gone])


def _that_only_grew(store: HistoryStore, grown: pl.DataFrame) -> pl.Series:
    """Users whose new events follow all that was there, unchanged."""
    kept = []
    sums: dict[str, int] = {}
    earliest: dict[str, Any] = {}
    for part in parts_of(grown, ROWS_AT_ONCE, start="old_num_events"):
        frame = store.read(part, CHECKED)
        digests = event_digests(frame)
        firsts = np.flatnonzero((frame["user_id"] != frame["user_id"].shift(1)).fill_null(True).to_numpy())
        for user, moment, more in zip(
            frame["user_id"][firsts], frame["timestamp"][firsts], np.add.reduceat(digests, firsts), strict=True
        ):
            sums[user] = (sums.get(user, 0) + int(more)) % 2**64
            earliest.setdefault(user, moment)
    for row in grown.select("user_id", "digest", "old_digest", "old_event_timestamp").iter_rows():
        user, digest, old, moment = row
        if (old + sums[user] - digest) % 2**64 == 0 and earliest[user] >= moment:
            kept.append(user)
    return pl.Series("user_id", kept, pl.String)


def _of_shard(warehouse: Warehouse, columns: list[str], base: str, shard: int, shards: int) -> pl.DataFrame:
    filters = [("bucket", "in", list(range(shard, BUCKETS, shards)))] if BUCKETS % shards == 0 else None
    data: Any = pl.from_arrow(warehouse.read(USER_STATES, columns, filters, expect_version=base))
    if filters is None:
        data = data.filter(pl.Series(bucket_of(data["user_id"], shards)) == shard)
    return data


def _of_users(warehouse: Warehouse, users: pl.Series) -> pl.DataFrame:
    filters = [("user_id", "in", users.to_list())]
    data: Any = pl.from_arrow(warehouse.read(USER_STATES, ["user_id", "state"], filters))
    return data


class Kept:
    """What a refresh leaves of a table that it does not write anew.

    Args:
        warehouse: The warehouse.
        changes: Changes of all shards.
    """

    def __init__(self, warehouse: Warehouse, changes: pl.DataFrame):
        self.warehouse, self.changes = warehouse, changes

    def summaries(self, part: pa.Table) -> pa.Table:
        """Rows of `vista/user_summaries` that stay; of users with newer ones, none is the latest any more."""
        frame: Any = pl.from_arrow(part)
        joined = frame.join(self.changes, on="user_id", how="left", maintain_order="left")
        joined = joined.filter(pl.col("kept").is_null() | (pl.col("num_events") <= pl.col("kept")))
        joined = joined.with_columns(pl.col("is_latest") & pl.col("kept").is_null())
        return joined.select(part.column_names).to_arrow()

    def states(self, part: pa.Table) -> pa.Table:
        """Rows of `vista/user_states` that stay."""
        frame: Any = pl.from_arrow(part)
        return frame.join(self.changes, on="user_id", how="anti", maintain_order="left").to_arrow()

    def num_summaries(self) -> int:
        """How many summaries stay."""
        parts = self.warehouse.batches(USER_SUMMARIES, ["user_id", "num_events", "is_latest"])
        return sum(self.summaries(part).num_rows for part in parts)
