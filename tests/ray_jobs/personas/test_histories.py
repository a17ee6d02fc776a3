"""Histories in which items come back: what personas read of them is as large as the items that were met."""

import polars as pl
import pytest

from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig, find_interests
from ray_jobs.personas import planning as persona_planning
from ray_jobs.personas.panels import before
from ray_jobs.personas.planning import earlier, find_all, later, read_history, read_newest
from ray_jobs.tables.interactions import SPLITS
from tests.assets.personas.test_persona_measures import WARMED_UP
from tests.assets.personas.test_persona_measures import lineage as lineage  # noqa: PLC0414

USERS = ["u0", "u1", "u2"]


@pytest.fixture
def again(lineage, tmp_path):
    """The lineage's tables, in which every user goes through the same history twelve times."""
    import shutil

    from orchestration.resources.tables import LocalTables

    copy = LocalTables(warehouse_root=str(tmp_path / "w"), artifact_root=str(tmp_path / "a"))
    shutil.copytree(lineage.tables.warehouse().root, tmp_path / "w")
    once = pl.DataFrame(copy.read(SPLITS)).filter(pl.col("user_id").is_in(USERS) & ~pl.col("sampled"))
    size = pl.len().over("user_id").cast(pl.Int32)
    rounds = [
        once.with_columns(
            pl.format("{}-{}", "example_id", pl.lit(n)).alias("example_id"),
            (pl.col("position") + n * size).alias("position"),
            pl.col("timestamp") + pl.duration(days=1000 * n),
            pl.lit("train" if n < 10 else "test").alias("global_time"),
        )
        for n in range(12)
    ]
    rows = pl.concat(rounds).sort("user_id", "position")
    copy.write(SPLITS, SPLITS.conform(rows.select(c.name for c in SPLITS.columns).to_arrow()), "again")
    return copy.warehouse(), once, rows


def test_what_is_held_grows_with_the_items_and_not_with_the_events(again, monkeypatch):
    warehouse, once, rows = again
    monkeypatch.setattr(persona_planning, "EVENTS_AT_ONCE", 8)
    held, real = [], persona_planning.newest_of_each
    monkeypatch.setattr(persona_planning, "newest_of_each", lambda e: held.append(e.height) or real(e))
    history = read_history(warehouse, USERS)
    assert rows.height == 12 * once.height and history["times"].sum() == rows.height
    # A row for each side of the split, and the part that is being read.
    sides = once.select("user_id", "item_id", "label", "leave_one_out").unique().height * 2
    assert history.height <= sides < rows.height / 4 and max(held) <= sides + 8


def test_interests_are_those_of_all_events(again):
    warehouse, _, rows = again
    history = read_history(warehouse, USERS)
    known = history.select("item_id", "cluster", "label", "title").unique("item_id")
    every = rows.with_columns(liked=pl.col("label") == 1).drop("label").join(known, on="item_id", how="left")
    for config in (WARMED_UP, InterestConfig(min_events=1, min_likes=1, min_items=1)):
        found = find_interests(history.drop_nulls("cluster"), config)
        assert found.height and found.equals(find_interests(every.drop_nulls("cluster"), config))
    activity = before(history, "global_time", InterestConfig(min_events=rows.height // 3 * 10 // 12 - 12))
    assert activity.height > 0, "events that have no row of their own count"
    assert find_all(warehouse, history, WARMED_UP, ExplorationConfig()).requests


def test_the_newest_share_is_a_share_of_all_events(again):
    warehouse, once, rows = again
    history = read_history(warehouse, USERS, held_share=0.25)
    sizes = dict(once.group_by("user_id").len().iter_rows())
    assert later(history)["times"].sum() == sum(3 * size for size in sizes.values())
    assert earlier(history)["times"].sum() == sum(9 * size for size in sizes.values())
    assert later(history).join(pl.DataFrame({"user_id": USERS}), on="user_id")["first"].min() >= 9 * min(sizes.values())


def test_the_newest_events_have_a_row_each(again, monkeypatch):
    warehouse, _, rows = again
    monkeypatch.setattr(persona_planning, "EVENTS_AT_ONCE", 8)
    found = read_newest(warehouse, USERS, 7)
    wanted = rows.filter(pl.col("position").rank("ordinal", descending=True).over("user_id") <= 7)
    keys = ["user_id", "position", "item_id"]
    assert found.select(keys).sort(keys).equals(wanted.select(keys).sort(keys))
    assert found["times"].sum() == found.height
