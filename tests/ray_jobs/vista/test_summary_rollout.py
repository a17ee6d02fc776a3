"""Both versions of summaries stay readable until the champion moves, and no longer."""

import datetime as dt

import pyarrow as pa

from assets.features.summary_coverage import summary_coverage
from ray_jobs.tables.features import USER_ACTIVITY
from ray_jobs.tables.vista import HELD_SUMMARIES, USER_SUMMARIES
from ray_jobs.vista.summary_rollout import held_rows, held_version, hold, release

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MOMENTS = {"event_timestamp": NOW, "created_timestamp": NOW}


def write(tables, version, users):
    """Writes two summaries of each user, the latest after so many events."""
    rows = [
        {"user_id": user, "num_events": n, "summary": b"x", "scales": [1.0], "is_latest": n > 1}
        | MOMENTS
        | {"summary_version": version}
        for user, count in users.items()
        for n in (1, count)
    ]
    tables.write(USER_SUMMARIES, pa.Table.from_pylist(rows, USER_SUMMARIES.schema), f"{version}-{len(users)}")


def published(warehouse):
    """User, summary and version of what requests read."""
    rows = [row for part in held_rows(warehouse) for row in part.to_pylist()]
    return sorted((row["user_id"], row["summary"], row["summary_version"]) for row in rows)


def test_what_the_champion_reads_is_held_until_it_moves(tables):
    warehouse = tables.warehouse()
    assert not hold(warehouse, "A") and not release(warehouse, None) and published(warehouse) == []
    write(tables, "A", {"u1": 3, "u2": 4})
    assert not hold(warehouse, "A") and held_version(warehouse) is None, (
        "more events of the same version are no rollout"
    )
    assert hold(warehouse, "B") and held_version(warehouse) == "A"
    write(tables, "B", {"u1": 3, "u2": 4, "u3": 2})
    assert published(warehouse) == [("u1", b"x", "A"), ("u2", b"x", "A"), ("u3", None, "A")]
    # A second new version before anybody reads the first: what the champion reads stays.
    assert not hold(warehouse, "C") and held_version(warehouse) == "A"
    assert not release(warehouse, wanted="A") and tables.read(HELD_SUMMARIES).num_rows == 2
    assert release(warehouse, wanted="C") and published(warehouse) == [] and held_version(warehouse) is None
    assert not release(warehouse, wanted="C") and hold(warehouse, "C") and held_version(warehouse) == "B"


def test_missing_and_stale_summaries_are_counted(tables):
    write(tables, "A", {"u1": 3, "u2": 4})
    columns = {c.name: pa.nulls(4, c.type) for c in USER_ACTIVITY.columns}
    values = {"user_id": ["u1", "u2", "u2", "u3"], "num_events": [3, 5, 7, 1], "num_likes": [0] * 4}
    values |= {"recent_item_ids": [[]] * 4, "recent_labels": [[]] * 4} | {name: [NOW] * 4 for name in MOMENTS}
    rows = pa.table(columns | values).select(list(columns)).cast(USER_ACTIVITY.schema)
    tables.write(USER_ACTIVITY, rows, "1")
    expected = {"summaries_missing": 1, "summaries_stale": 1, "events_missed": 3, "summaries_held": "none"}
    assert summary_coverage(tables.warehouse()) == expected
