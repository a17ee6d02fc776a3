"""What models of long histories read of users who have more than they learn from."""

import polars as pl
import pytest

from ray_jobs import newest
from ray_jobs.histories import data as history_data
from ray_jobs.histories.data import read_events, read_examples
from ray_jobs.newest import Newest
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from tests.factories import seed_interactions


@pytest.mark.parametrize("events_per_user", [20, 200])
def test_examples_held_do_not_grow_with_the_history(tables, monkeypatch, events_per_user):
    seed_interactions(tables, num_users=4, events_per_user=events_per_user)
    monkeypatch.setattr(newest, "ROWS_AT_ONCE", 16)
    held, concat = [], pl.concat
    monkeypatch.setattr(pl, "concat", lambda parts: held.append(concat(parts).height) or concat(parts))
    found = read_examples(tables.warehouse(), tables.version(SPLITS), Newest(trained=5, scored=2))
    sizes = found.group_by("user_id", "split").len()
    assert sizes.filter(pl.col("split") == 0)["len"].max() == 5
    assert (sizes.filter(pl.col("split") > 0)["len"].max() or 0) <= 2
    assert max(held) <= 4 * (5 + 2 + 2) + 16


def test_the_newest_are_kept_and_short_histories_are_whole(tables, monkeypatch):
    seed_interactions(tables, num_users=6, events_per_user=30)
    version = tables.version(SPLITS)
    whole = read_examples(tables.warehouse(), version)
    assert whole.height == tables.warehouse().num_rows(SPLITS)
    monkeypatch.setattr(newest, "ROWS_AT_ONCE", 7)
    assert read_examples(tables.warehouse(), version).equals(whole)
    some = read_examples(tables.warehouse(), version, Newest(trained=4, scored=1))
    kept = whole.filter(
        pl.col("position").rank("ordinal", descending=True).over("user_id", "split")
        <= pl.when(pl.col("split") == 0).then(4).otherwise(1)
    )
    assert some.equals(kept) and some.height < whole.height


def test_events_are_read_in_parts_and_none_is_missing(tables, monkeypatch):
    seed_interactions(tables, num_users=5, events_per_user=9)
    whole = read_events(tables.warehouse(), tables.version(RAW_INTERACTIONS))
    monkeypatch.setattr(history_data, "ROWS_AT_ONCE", 7)
    assert read_events(tables.warehouse(), tables.version(RAW_INTERACTIONS)).equals(whole)
    assert whole.height == 45 and whole["user_id"].is_sorted()
