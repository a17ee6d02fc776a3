"""Reads histories by user and window out of `vista/user_histories`, however long they are.

The table lies in buckets of users and, within a bucket, by user and position, so that the statistics of its files and
row groups tell where a window stands. What is in memory is the window that was asked for and a batch of rows.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ray_jobs.histories.data import bucket_of
from ray_jobs.tables.vista import USER_HISTORIES, USER_HISTORY_INDEX
from ray_jobs.warehouse import VersionMismatchError, Warehouse

BUCKETS = 16
"""Buckets of users; a power of two, so that shards of half or a quarter as many read whole buckets."""
ROWS_AT_ONCE = 500_000
# Users of one filter: each has a window of its own, and a filter of thousands of terms is slow.
WINDOWS_AT_ONCE = 32
BATCH = 65_536
COLUMNS = ["user_id", "position", "item_id", "timestamp", "action", "value"]
WHOLE = [c.name for c in USER_HISTORIES.columns]


class Window(NamedTuple):
    """Windows of the histories of some users.

    Attributes:
        users: The users, sorted.
        starts: First position of each window.
        stops: End of each, exclusive.
    """

    users: pl.Series
    starts: np.ndarray
    stops: np.ndarray

    @property
    def num_events(self) -> int:
        """Events of all windows."""
        return int((self.stops - self.starts).sum())


def parts_of(index: pl.DataFrame, most_events: int, start: str = "") -> Iterator[Window]:
    """Cuts histories into parts of at most ``most_events``: several whole users, or a window of one.

    Args:
        index: Users with ``num_events``, as `HistoryStore.index` gives them.
        most_events: Most events of a part.
        start: Column with the first position that is wanted; all by default.
    """
    if index.is_empty():
        return
    stops = index["num_events"].to_numpy()
    starts = index[start].to_numpy() if start else np.zeros_like(stops)
    users, at = index["user_id"], 0
    ends = np.cumsum(stops - starts)
    while at < len(users):
        before = ends[at - 1] if at else 0
        until = max(int(np.searchsorted(ends, before + most_events, side="right")), at + 1)
        if until == at + 1 and stops[at] - starts[at] > most_events:
            for first in range(int(starts[at]), int(stops[at]), most_events):
                last = min(first + most_events, int(stops[at]))
                yield Window(users[at : at + 1], np.array([first]), np.array([last]))
        else:
            yield Window(users[at:until], starts[at:until], stops[at:until])
        at = until


class HistoryStore:
    """Histories at one version.

    Args:
        warehouse: The warehouse.
        version: Version that both tables must hold; whatever they hold by default.

    Raises:
        FileNotFoundError: If the store was never written.
        VersionMismatchError: If the tables are of other versions.
    """

    def __init__(self, warehouse: Warehouse, version: str | None = None):
        self.warehouse = warehouse
        found = [warehouse.version(t) for t in (USER_HISTORIES, USER_HISTORY_INDEX)]
        if None in found:
            raise FileNotFoundError(f"Table {USER_HISTORIES.name} does not exist yet: export the summaries first.")
        self.version = str(found[0])
        if found[0] != found[1] or version not in (None, self.version):
            raise VersionMismatchError(
                f"{USER_HISTORIES.name} holds version {found[0]} and its index {found[1]}, not "
                f"{version or 'the same'}: materialize vista/user_summaries again."
            )

    def index(self, shard: int = 0, shards: int = 1) -> pl.DataFrame:
        """Users of one shard with ``num_events``, ``digest`` and the time of the last event; sorted by bucket and user.

        Args:
            shard: Which shard.
            shards: How many there are; users are in them by `bucket_of`.
        """
        filters = None
        if shards > 1 and BUCKETS % shards == 0:
            filters = [("bucket", "in", list(range(shard, BUCKETS, shards)))]
        data: Any = pl.from_arrow(self.warehouse.read(USER_HISTORY_INDEX, filters=filters))
        if shards > 1 and filters is None:
            data = data.filter(pl.Series(bucket_of(data["user_id"], shards)) == shard)
        return data.sort("bucket", "user_id")

    @functools.cached_property
    def _rows(self) -> ds.Dataset:
        return self.warehouse.dataset(USER_HISTORIES)

    def read(self, window: Window, columns: list[str] = COLUMNS) -> pl.DataFrame:
        """Events of windows, sorted by user and position.

        Args:
            window: The windows.
            columns: Columns of `vista/user_histories`; by default those that `history_data.encode_events` takes.
        """
        wanted = pl.DataFrame({"user_id": window.users, "start": window.starts, "stop": window.stops})
        empty: Any = pl.from_arrow(USER_HISTORIES.schema.empty_table().select(columns))
        kept = [empty]
        for batch in self._batches(window, columns):
            frame: Any = pl.from_arrow(
                pa.table(batch).cast(pa.schema([USER_HISTORIES.schema.field(c) for c in columns]))
            )
            joined = frame.join(wanted, on="user_id")
            kept.append(joined.filter(pl.col("position").is_between("start", "stop", closed="left")).select(columns))
        found = pl.concat(kept)
        if len(found) != window.num_events:
            raise ValueError(
                f"{USER_HISTORIES.name} has {len(found):,} of {window.num_events:,} events that its index tells of: "
                "delete both tables and materialize vista/user_summaries again."
            )
        return found.sort("user_id", "position")

    def newest(self, users: pl.Series, most_events: int) -> pl.DataFrame:
        """The newest ``most_events`` events of each of these users, oldest first; users without events have none."""
        filters = [("user_id", "in", users.to_list())]
        data: Any = pl.from_arrow(self.warehouse.read(USER_HISTORY_INDEX, ["user_id", "num_events"], filters))
        data = data.sort("user_id")
        stops = data["num_events"].to_numpy()
        return self.read(Window(data["user_id"], np.maximum(stops - most_events, 0), stops))

    def rows_touched(self, window: Window) -> int:
        """Rows of the row groups that reading these windows opens: what statistics do not rule out."""
        touched: dict[tuple[str, int], int] = {}
        for chosen in _filters(window):
            for fragment in self._rows.get_fragments(filter=chosen):
                for group in fragment.subset(filter=chosen, schema=self._rows.schema).row_groups:
                    touched[fragment.path, group.id] = group.num_rows
        return sum(touched.values())

    def _batches(self, window: Window, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for chosen in _filters(window):
            yield from self._rows.to_batches(
                columns=columns, filter=chosen, batch_size=BATCH, batch_readahead=1, fragment_readahead=1
            )


def _filters(window: Window) -> Iterator[pc.Expression]:
    """Filters that cover the windows and little more.

    Users whose history begins with their window share one; each of the others has a term of its own, as its older
    events would be read, too.
    """
    whole = window.starts == 0
    if whole.any():
        yield _users(window.users.filter(pl.Series(whole)))
    places = np.flatnonzero(~whole & (window.stops > window.starts))
    for chosen in np.split(places, range(WINDOWS_AT_ONCE, len(places), WINDOWS_AT_ONCE)):
        if not len(chosen):
            continue
        terms = [
            (pc.field("user_id") == window.users[int(i)])
            & (pc.field("position") >= int(window.starts[i]))
            & (pc.field("position") < int(window.stops[i]))
            for i in chosen
        ]
        either = functools.reduce(lambda a, b: a | b, terms)
        yield either & pc.field("bucket").isin(pa.array(_buckets(window.users[chosen]), pa.int32()))


def _users(users: pl.Series) -> pc.Expression:
    ids = users.to_list()
    return (
        pc.field("bucket").isin(pa.array(_buckets(users), pa.int32()))
        & (pc.field("user_id") >= min(ids))
        & (pc.field("user_id") <= max(ids))
        & pc.field("user_id").isin(pa.array(ids, pa.string()))
    )


def _buckets(users: pl.Series) -> list[int]:
    return np.unique(bucket_of(users, BUCKETS)).tolist()
