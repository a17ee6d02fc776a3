"""Brings `vista/user_histories` in line with `interactions/raw_interactions`: only what changed is written.

Events come by day, and every history is in the order of time, so that the events since the earliest changed day are
the end of every history: that end is replaced in one commit. Memory holds one part of days, and a count a user.
"""

import datetime as dt
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.identity import version_of
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.histories.data import bucket_of, fnv
from ray_jobs.histories.store import BUCKETS, ROWS_AT_ONCE, WHOLE, HistoryStore, parts_of
from ray_jobs.progress import note
from ray_jobs.tables.interactions import RAW_INTERACTIONS
from ray_jobs.tables.vista import USER_HISTORIES, USER_HISTORY_INDEX
from ray_jobs.warehouse import VersionMismatchError, Warehouse

CODE_VERSION = "1"
# Rows of a row group: what a window of a few events reads at least.
ROW_GROUP = 8_192
# Sorted runs that lie over each other in a bucket before it is sorted anew; a window reads a row group of each.
MOST_RUNS = 8
SOURCE = "source.json"
READ = ["user_id", "item_id", "timestamp", "sequence", "action", "value", "day"]
TOTALS: Any = {"user_id": pl.String, "num_events": pl.Int64, "digest": pl.UInt64, "last": pl.Datetime("us", "UTC")}


class Synced(NamedTuple):
    """What bringing the store in line did.

    Attributes:
        version: Version of the store.
        since: Earliest day that was written; empty if everything was, None if nothing.
        rows: Events that were written.
        sorted_anew: Whether the runs were merged.
    """

    version: str
    since: str | None
    rows: int
    sorted_anew: bool


def store_version(raw_interactions: str) -> str:
    """Version of the store that holds this version of the events."""
    return version_of(raw_interactions=raw_interactions, code=CODE_VERSION, buckets=BUCKETS)


def sync(
    warehouse: Warehouse, artifacts: ArtifactStore, raw_interactions: str, rows_at_once: int = ROWS_AT_ONCE
) -> Synced:
    """Makes the store hold exactly the events of `interactions/raw_interactions`.

    Args:
        warehouse: The warehouse.
        artifacts: Where it stands which files of the events the store was made of.
        raw_interactions: Version of the events.
        rows_at_once: Events in memory.

    Raises:
        VersionMismatchError: If the events are of another version.
    """
    version = store_version(raw_interactions)
    standing = [warehouse.version(t) for t in (USER_HISTORIES, USER_HISTORY_INDEX)]
    if standing == [version, version]:
        return Synced(version, None, 0, False)
    if (found := warehouse.version(RAW_INTERACTIONS)) != raw_interactions:
        raise VersionMismatchError(
            f"Table {RAW_INTERACTIONS.name} holds version {found}, not {raw_interactions}: start the export again."
        )
    files = warehouse.files(RAW_INTERACTIONS)
    # A run that died between the two commits left an index that counts other events: all is made again.
    known = _source(artifacts, standing[0]) if standing[0] is not None and standing[0] == standing[1] else None
    since = _since(files, known)
    totals = _before(warehouse, since) if since else pl.DataFrame(schema=TOTALS)
    intake = _Intake(warehouse, files, since, totals, rows_at_once)
    runs = (known["runs"] if known and since else 0) + intake.num_parts
    _put_source(artifacts, version, files, runs)
    written = warehouse.write_batches(
        USER_HISTORIES,
        intake.parts(),
        version,
        replace_where=f"day >= '{since}'" if since else None,
        row_group_rows=ROW_GROUP,
        again=True,  # the index is not of this version, so that the rows have to be counted
    )
    _write_index(warehouse, _with_last(warehouse, intake.totals), version)
    if runs > MOST_RUNS:
        _sort_anew(warehouse, version, rows_at_once)
        _put_source(artifacts, version, files, 1)
    if standing[0] not in (None, version):
        artifacts.remove(_name(str(standing[0])))
    note("history store", "in line with the events", since=since or "the beginning", rows=written.rows)
    return Synced(version, since, written.rows, runs > MOST_RUNS)


def event_digests(frame: pl.DataFrame) -> np.ndarray:
    """A number for each event and its place in the history; those of a history are added up, modulo 2^64."""
    values = frame["value"].cast(pl.Float64).fill_null(float("nan")).to_numpy().astype(np.float64)
    mixed = np.zeros(len(frame), np.uint64)
    for part in (
        fnv(frame["item_id"]),
        fnv(frame["action"]),
        np.where(np.isnan(values), np.nan, values).view(np.uint64),
        frame["timestamp"].dt.epoch("us").to_numpy().astype(np.uint64),
        frame["position"].to_numpy().astype(np.uint64),
    ):
        # SplitMix64's finaliser.
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + part
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = mixed ^ (mixed >> np.uint64(27))
    return mixed


class _Intake:
    """Events since a day, part by part, with their places in the histories."""

    def __init__(
        self,
        warehouse: Warehouse,
        files: list[dict[str, Any]],
        since: str | None,
        totals: pl.DataFrame,
        rows_at_once: int,
    ):
        self.warehouse, self.totals = warehouse, totals
        sizes: dict[str, int] = {}
        for file in files:
            if since is not None and file["day"] >= since:
                sizes[file["day"]] = sizes.get(file["day"], 0) + file["rows"]
        self.groups = _groups(sizes, rows_at_once)
        self.num_parts = sum(passes for *_, passes in self.groups)

    def parts(self) -> Iterator[pa.Table]:
        """Yields rows of `vista/user_histories`: a bucket at a time."""
        for first, last, passes in self.groups:
            for chosen in range(passes):
                days = (pc.field("day") >= first) & (pc.field("day") <= last)
                frame = self._read(days, chosen, passes)
                if len(frame):
                    yield from self._placed(frame)

    def _read(self, days: pc.Expression, chosen: int, passes: int) -> pl.DataFrame:
        kept = []
        for part in self.warehouse.batches(RAW_INTERACTIONS, READ, days, num_rows=ROWS_AT_ONCE):
            frame: Any = pl.from_arrow(part)
            frame = frame.with_columns(bucket=pl.Series(bucket_of(frame["user_id"], BUCKETS), dtype=pl.Int32))
            kept.append(frame.filter(pl.col("bucket") % passes == chosen) if passes > 1 else frame)
        return pl.concat(kept).sort("bucket", "user_id", "timestamp", "sequence") if kept else pl.DataFrame()

    def _placed(self, frame: pl.DataFrame) -> Iterator[pa.Table]:
        seen = frame.select("user_id").join(
            self.totals.select("user_id", "num_events"), on="user_id", how="left", maintain_order="left"
        )
        frame = frame.with_columns(
            position=seen["num_events"].fill_null(0) + pl.int_range(pl.len(), dtype=pl.Int64).over("user_id")
        )
        firsts = np.flatnonzero((frame["user_id"] != frame["user_id"].shift(1)).fill_null(True).to_numpy())
        sums = np.add.reduceat(event_digests(frame), firsts)
        ends = np.append(firsts[1:], len(frame))
        more = pl.DataFrame(
            {
                "user_id": frame["user_id"][firsts],
                "num_events": ends - firsts,
                "digest": sums,
                "last": frame["timestamp"][ends - 1],
            },
            schema=TOTALS,
        )
        self.totals = _added(self.totals, more)
        for part in frame.partition_by("bucket", maintain_order=True):
            yield part.select(WHOLE).to_arrow().cast(USER_HISTORIES.schema)


def _groups(sizes: dict[str, int], rows_at_once: int) -> list[tuple[str, str, int]]:
    """First and last day of each part, and the passes over buckets that a day needs which is too large for one."""
    groups: list[tuple[str, str, int]] = []
    held = 0
    for day in sorted(sizes):
        if groups and held + sizes[day] <= rows_at_once:
            groups[-1] = (groups[-1][0], day, groups[-1][2])
            held += sizes[day]
        else:
            groups.append((day, day, min(max(-(-sizes[day] // rows_at_once), 1), BUCKETS)))
            held = sizes[day]
    return groups


def _since(files: list[dict[str, Any]], known: dict[str, Any] | None) -> str | None:
    """The earliest day whose files are others than those that the store was made of; empty: all of them."""
    if known is None:
        return ""
    before, now = {f["path"]: f["day"] for f in known["files"]}, {f["path"]: f["day"] for f in files}
    changed = [(now | before)[path] for path in now.keys() ^ before.keys()]
    # A version without a changed file is written, too: later than any day, nothing is replaced.
    return min(changed, default="9999-12-31")


def _before(warehouse: Warehouse, since: str) -> pl.DataFrame:
    """Totals of every user before a day, by taking what is later off the index."""
    index: Any = pl.from_arrow(warehouse.read(USER_HISTORY_INDEX))
    totals = index.select(
        "user_id",
        "num_events",
        pl.Series("digest", index["digest"].to_numpy().view(np.uint64)),
        pl.col("event_timestamp").dt.offset_by("-1us").alias("last"),
    )
    columns = ["user_id", "item_id", "timestamp", "action", "value", "position"]
    for part in warehouse.batches(USER_HISTORIES, columns, pc.field("day") >= since, num_rows=ROWS_AT_ONCE):
        frame: Any = pl.from_arrow(part)
        frame = frame.sort("user_id", "position")
        firsts = np.flatnonzero((frame["user_id"] != frame["user_id"].shift(1)).fill_null(True).to_numpy())
        sums = np.add.reduceat(event_digests(frame), firsts)
        less = pl.DataFrame(
            {
                "user_id": frame["user_id"][firsts],
                "num_events": firsts - np.append(firsts[1:], len(frame)),
                "digest": np.uint64(0) - sums,
                "last": None,
            },
            schema=TOTALS,
        )
        # Their last event may be among these: it is looked for among those that stay, or come.
        gone = pl.col("user_id").is_in(less["user_id"].implode())
        totals = _added(totals.with_columns(last=pl.when(~gone).then("last")), less)
    return totals.filter(pl.col("num_events") > 0)


def _with_last(warehouse: Warehouse, totals: pl.DataFrame) -> pl.DataFrame:
    """Totals with the last moments of users whose newest events went and none came."""
    lacking = totals.filter(pl.col("last").is_null())
    if lacking.is_empty():
        return totals
    wanted = lacking.select("user_id", position=pl.col("num_events") - 1)
    ids = pc.field("user_id").isin(pa.array(lacking["user_id"].to_list(), pa.string()))
    ids &= pc.field("bucket").isin(pa.array(np.unique(bucket_of(lacking["user_id"], BUCKETS)), pa.int32()))
    found = [
        pl.DataFrame(part).join(wanted, on=["user_id", "position"])
        for part in warehouse.batches(USER_HISTORIES, ["user_id", "position", "timestamp"], ids, num_rows=ROWS_AT_ONCE)
    ]
    joined = totals.join(pl.concat(found), on="user_id", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("last", "timestamp").alias("last")).select(totals.columns)


def _added(totals: pl.DataFrame, more: pl.DataFrame) -> pl.DataFrame:
    """Totals with those of more events; digests wrap around."""
    both = pl.concat([totals, more]).sort("user_id", maintain_order=True)
    firsts = np.flatnonzero((both["user_id"] != both["user_id"].shift(1)).fill_null(True).to_numpy())
    if not len(firsts):
        return totals
    return pl.DataFrame(
        {
            "user_id": both["user_id"][firsts],
            "num_events": np.add.reduceat(both["num_events"].to_numpy(), firsts),
            "digest": np.add.reduceat(both["digest"].to_numpy(), firsts),
            "last": both.group_by("user_id", maintain_order=True).agg(pl.col("last").max())["last"],
        },
        schema=TOTALS,
    )


def _write_index(warehouse: Warehouse, totals: pl.DataFrame, version: str) -> None:
    rows = totals.select(
        "user_id",
        pl.Series("bucket", bucket_of(totals["user_id"], BUCKETS), dtype=pl.Int32),
        "num_events",
        pl.Series("digest", totals["digest"].to_numpy().view(np.int64)),
        pl.col("last").dt.offset_by("1us").alias("event_timestamp"),
        pl.lit(dt.datetime.now(dt.UTC), pl.Datetime("us", "UTC")).alias("created_timestamp"),
    ).sort("bucket", "user_id")
    warehouse.write(USER_HISTORY_INDEX, rows.to_arrow().cast(USER_HISTORY_INDEX.schema), version)


def _sort_anew(warehouse: Warehouse, version: str, rows_at_once: int) -> None:
    """Merges the sorted runs of every bucket into one, part by part; the version stays."""
    store = HistoryStore(warehouse, version)

    def rows() -> Iterator[pa.Table]:
        for bucket in range(BUCKETS):
            for part in parts_of(store.index(bucket, BUCKETS), rows_at_once):
                yield store.read(part, WHOLE).to_arrow().cast(USER_HISTORIES.schema)

    warehouse.write_batches(USER_HISTORIES, rows(), version, row_group_rows=ROW_GROUP, again=True)


def _name(version: str) -> str:
    return f"histories/{version}"


def _put_source(artifacts: ArtifactStore, version: str, files: list[dict[str, Any]], runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / SOURCE).write_text(json.dumps({"files": files, "runs": runs}), encoding="utf-8")
        artifacts.put(Path(folder), _name(version))


def _source(artifacts: ArtifactStore, version: str) -> dict[str, Any] | None:
    if not artifacts.exists(_name(version)):
        return None
    with artifacts.local(_name(version)) as folder:
        found: dict[str, Any] = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
    return found
