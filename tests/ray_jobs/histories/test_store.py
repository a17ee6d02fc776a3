"""The history store: every history in order, windows without the rest of them, and only changed days written."""

import datetime as dt

import numpy as np
import polars as pl
import pytest

from ray_jobs.histories import intake as history_intake
from ray_jobs.histories import store as history_store
from ray_jobs.histories.data import bucket_of
from ray_jobs.histories.intake import event_digests, sync
from ray_jobs.histories.store import HistoryStore, Window, parts_of
from ray_jobs.tables.interactions import RAW_INTERACTIONS
from ray_jobs.warehouse import VersionMismatchError

FIRST = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def events(sizes, days=10, seed=0, items="i"):
    """Events of users ``u0``, ``u1``..., so many each, over some days; several share a moment."""
    rng = np.random.default_rng(seed)
    users = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    seconds = np.sort(rng.integers(0, days * 86_400, len(users)) // 30 * 30)
    moments = pl.Series(seconds * 1_000_000).cast(pl.Duration("us")) + FIRST
    frame = pl.DataFrame(
        {
            "event_id": [f"{items}{n}" for n in range(len(users))],
            "user_id": [f"u{u}" for u in users],
            "item_id": [f"{items}{i}" for i in rng.integers(0, 50, len(users))],
            "timestamp": moments.cast(pl.Datetime("us", "UTC")),
            "sequence": np.arange(len(users)),
            "action": "click",
            "value": rng.integers(1, 6, len(users)).astype(float),
            "created_timestamp": FIRST,
        }
    )
    return frame.with_columns(day=pl.col("timestamp").dt.strftime("%Y-%m-%d"))


def write(tables, frame, version, since=None):
    """Writes raw events; only days from ``since`` on are replaced, as the lineage does."""
    rows = frame if since is None else frame.filter(pl.col("day") >= since)
    rows = rows.select(RAW_INTERACTIONS.schema.names).to_arrow().cast(RAW_INTERACTIONS.schema)
    tables.warehouse().write(RAW_INTERACTIONS, rows, version, replace_where=f"day >= '{since}'" if since else None)


def in_line(tables, version, **knobs):
    return sync(tables.warehouse(), tables.artifacts(), version, **knobs)


def holds(tables, frame):
    """The store has exactly these events, every history in order, and counts and digests that belong to them."""
    store = HistoryStore(tables.warehouse())
    index = store.index()
    found = store.read(Window(index["user_id"], np.zeros(len(index), np.int64), index["num_events"].to_numpy()))
    expected = frame.sort("user_id", "timestamp", "sequence")
    expected = expected.with_columns(position=pl.int_range(pl.len()).over("user_id"))
    assert found.equals(expected.select(found.columns))
    assert (
        found.group_by("user_id").len().sort("user_id")["len"].to_list()
        == index.sort("user_id")["num_events"].to_list()
    )
    last = expected.group_by("user_id").agg(pl.col("timestamp").max().dt.offset_by("1us")).sort("user_id")
    assert index.sort("user_id")["event_timestamp"].to_list() == last["timestamp"].to_list()
    sums = {
        str(user): int(np.add.reduce(event_digests(part)).view(np.int64)) for (user,), part in found.group_by("user_id")
    }
    assert sums == dict(index.select("user_id", "digest").iter_rows())
    return True


def test_the_store_holds_every_history_in_order_whatever_fits_into_memory(tables):
    frame = events([300, 2, 40, 1])
    write(tables, frame, "r1")
    done = in_line(tables, "r1", rows_at_once=50)
    assert done.since == "" and done.rows == 343 and done.sorted_anew and holds(tables, frame)
    assert in_line(tables, "r1") == done._replace(since=None, rows=0, sorted_anew=False)


def test_only_the_end_of_histories_is_written_when_days_change(tables):
    frame = events([30, 20, 10])
    write(tables, frame.filter(pl.col("day") <= "2025-01-06"), "r1")
    in_line(tables, "r1")
    write(tables, frame, "r2", since="2025-01-07")
    later = frame.filter(pl.col("day") > "2025-01-06")
    done = in_line(tables, "r2")
    assert (done.since, done.rows) == (later["day"].min(), len(later)) and holds(tables, frame)

    # A day that was there changes, in the middle: what follows it takes other places.
    other = events([5, 5, 5, 9], seed=1, items="j").with_columns(day=pl.lit("2025-01-04"))
    other = other.with_columns(
        pl.lit(FIRST + dt.timedelta(days=3, hours=4)).cast(pl.Datetime("us", "UTC")).alias("timestamp")
    )
    changed = pl.concat([frame.filter(pl.col("day") != "2025-01-04"), other.select(frame.columns)])
    write(tables, changed, "r3", since="2025-01-04")
    done = in_line(tables, "r3")
    assert done.since == "2025-01-04" and done.rows < len(changed) and holds(tables, changed)

    # A user who had events in the last days and has none of them any more, and one who never had others.
    fewer = changed.filter((pl.col("user_id") != "u3") & ((pl.col("user_id") != "u1") | (pl.col("day") < "2025-01-04")))
    write(tables, fewer, "r4", since="2025-01-04")
    in_line(tables, "r4")
    assert holds(tables, fewer)


def test_a_run_that_died_between_the_commits_is_mended(tables, monkeypatch):
    frame = events([30, 20])
    write(tables, frame.filter(pl.col("day") <= "2025-01-06"), "r1")
    in_line(tables, "r1")
    write(tables, frame, "r2", since="2025-01-07")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(history_intake, "_write_index", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        in_line(tables, "r2")
    with pytest.raises(VersionMismatchError, match="materialize vista/user_summaries again"):
        HistoryStore(tables.warehouse())
    in_line(tables, "r2")
    assert holds(tables, frame)
    with pytest.raises(VersionMismatchError, match="start the export again"):
        in_line(tables, "r9")


def test_a_window_is_read_without_the_rest_of_the_history(tables, monkeypatch):
    """Rows, not seconds: of 60,000 events of one user and 3,000 of others, a window opens a few row groups."""
    monkeypatch.setattr(history_intake, "ROW_GROUP", 512)
    monkeypatch.setattr(history_store, "BATCH", 512)
    frame = events([60_000] + [150] * 20, days=40)
    write(tables, frame, "r1")
    in_line(tables, "r1", rows_at_once=20_000)
    store = HistoryStore(tables.warehouse())
    window = Window(pl.Series(["u0"]), np.array([30_000]), np.array([30_100]))
    beside = int((bucket_of(pl.Series([f"u{u}" for u in range(21)]), 16) == bucket_of(pl.Series(["u0"]), 16)[0]).sum())
    # A window of 100 lies in two row groups of each run at most, of which there are four; neighbours add their share.
    assert 0 < store.rows_touched(window) <= 512 * 2 * 4 + 150 * beside
    read = []
    batches = store._batches
    monkeypatch.setattr(store, "_batches", lambda *a: (read.append(b.num_rows) or b for b in batches(*a)))
    newest = store.newest(pl.Series(["nobody", "u0", "u7"]), 100)
    assert newest["user_id"].to_list() == ["u0"] * 100 + ["u7"] * 100 and sum(read) <= 100 + 150 and max(read) <= 512
    ordered = frame.sort("user_id", "timestamp", "sequence")
    expected = ordered.filter(pl.col("user_id").is_in(["u0", "u7"])).group_by("user_id", maintain_order=True).tail(100)
    assert newest["item_id"].to_list() == expected["item_id"].to_list()


def test_parts_are_whole_users_or_windows_of_one():
    index = pl.DataFrame(
        {"user_id": ["a", "b", "c", "d", "e"], "num_events": [3, 4, 25, 1, 2], "seen": [0, 4, 20, 0, 1]}
    )
    parts = list(parts_of(index, 10))
    assert [p.users.to_list() for p in parts] == [["a", "b"], ["c"], ["c"], ["c"], ["d", "e"]]
    assert [(p.starts.tolist(), p.stops.tolist()) for p in parts[1:4]] == [([0], [10]), ([10], [20]), ([20], [25])]
    (new,) = parts_of(index, 100, start="seen")
    assert new.num_events == 3 + 0 + 5 + 1 + 1
    assert list(parts_of(index.clear(), 10)) == []
