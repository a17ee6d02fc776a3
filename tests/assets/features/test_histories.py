"""Counts over time, against a plain loop."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from assets.features import histories
from assets.features.histories import activity_by_moment, popularity_by_day, users_in_buckets
from ray_jobs.tables.features import ITEM_POPULARITY, USER_ACTIVITY
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.warehouse import TIMESTAMP
from tests.factories import seed_interactions

CREATED = pa.scalar(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), TIMESTAMP)
START = dt.datetime(2025, 3, 1, tzinfo=dt.UTC)


def events(seed, num_events=200, num_users=5, num_items=9, values=True):
    """Random events of a few days, many of one moment, in random order."""
    rng = np.random.default_rng(seed)
    made, positions = [], {}
    for seconds in sorted(rng.integers(0, 5 * 86400, num_events // 2).tolist() * 2):
        user = f"u{rng.integers(num_users)}"
        positions[user] = positions.get(user, -1) + 1
        made.append(
            {
                "user_id": user,
                "item_id": f"i{rng.integers(num_items)}",
                "position": positions[user],
                "timestamp": START + dt.timedelta(seconds=seconds),
                "label": int(rng.integers(2)),
                "value": float(rng.integers(1, 6)) if values and rng.random() < 0.8 else None,
            }
        )
    rng.shuffle(made)
    schema = pa.schema(
        [
            SPLITS.schema.field(n).with_nullable(True)
            for n in ("user_id", "item_id", "timestamp", "position", "value", "label")
        ]
    )
    return pa.Table.from_pylist(made, schema)


def activity(rows, num_recent):
    made = pa.concat_tables(activity_by_moment(rows, CREATED, num_recent=num_recent))
    return made.select([c.name for c in USER_ACTIVITY.columns])


def mean(values):
    known = [v for v in values if v is not None]
    return pytest.approx(sum(known) / len(known)) if known else None


@pytest.mark.parametrize("seed", range(3))
def test_popularity_counts_what_happened_before_the_days_end(seed):
    rows = events(seed)
    parts = [rows.slice(0, 70), rows.slice(70, 1), rows.slice(71)]
    found = ITEM_POPULARITY.conform(popularity_by_day(parts, CREATED).select([c.name for c in ITEM_POPULARITY.columns]))
    plain = rows.to_pylist()
    assert found.num_rows == len({(r["item_id"], r["timestamp"].date()) for r in plain})
    for row in found.to_pylist():
        assert row["event_timestamp"].time() == dt.time(0)
        before = [r for r in plain if r["item_id"] == row["item_id"] and r["timestamp"] < row["event_timestamp"]]
        assert (row["num_events"], row["num_likes"]) == (len(before), sum(r["label"] for r in before))
        assert row["mean_value"] == mean([r["value"] for r in before])


@pytest.mark.parametrize("num_recent", [1, 4, 1000])
def test_activity_counts_what_happened_until_the_moment(num_recent):
    rows = events(7)
    found = USER_ACTIVITY.conform(activity(rows, num_recent)).to_pylist()
    plain = sorted(rows.to_pylist(), key=lambda r: r["position"])
    assert len(found) == len({(r["user_id"], r["timestamp"]) for r in plain}) < len(plain)
    for row in found:
        assert row["event_timestamp"].microsecond == 1
        before = [r for r in plain if r["user_id"] == row["user_id"] and r["timestamp"] < row["event_timestamp"]]
        assert (row["num_events"], row["num_likes"]) == (len(before), sum(r["label"] for r in before))
        assert row["recent_item_ids"] == [r["item_id"] for r in before[::-1]][:num_recent]
        assert row["recent_labels"] == [r["label"] for r in before[::-1]][:num_recent]
        assert row["mean_value"] == mean([r["value"] for r in before])


def test_events_without_values_have_no_mean():
    rows = events(3, values=False)
    for made in (popularity_by_day([rows], CREATED), activity(rows, 3)):
        assert made["mean_value"].null_count == made.num_rows > 0


def test_no_events_is_said_in_one_sentence():
    with pytest.raises(ValueError, match="has no events"):
        popularity_by_day([], CREATED)


def test_buckets_hold_whole_users_and_no_sampled_negatives(tables):
    seed_interactions(tables, num_users=12, events_per_user=6, implicit=True)
    buckets = list(users_in_buckets(tables.warehouse(), SPLITS, 3))
    assert len(buckets) > 3
    users = [set(b["user_id"].to_pylist()) for b in buckets]
    assert sum(len(u) for u in users) == len(set.union(*users)) == 12
    assert sum(b.num_rows for b in buckets) == 12 * 6
    (whole,) = users_in_buckets(tables.warehouse(), SPLITS, 1_000_000)
    assert whole.num_rows == 12 * 6


def test_the_lists_of_a_long_history_are_made_some_moments_at_a_time(monkeypatch):
    rows = events(5, num_events=2000, num_users=2)
    whole = activity(rows, 20)
    monkeypatch.setattr(histories, "MOMENTS_AT_ONCE", 100)
    parts = list(activity_by_moment(rows, CREATED, num_recent=20))
    assert max(part.num_rows for part in parts) == 100 < whole.num_rows == sum(part.num_rows for part in parts)
    assert max(part.nbytes for part in parts) < whole.nbytes / 5
    assert pa.concat_tables(parts).select(whole.column_names).equals(whole), "nothing depends on the parts"
