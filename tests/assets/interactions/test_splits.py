import datetime as dt

import numpy as np
import polars as pl
import pytest

from assets.interactions import examples
from assets.interactions.refusals import frame
from assets.interactions.splitting import cut_at, labelled, negatives, placed, pool_of, thresholds
from ray_jobs.tables.interactions import ITEMS, SPLITS
from tests.assets.interactions.sources import NOW, contract, ingest

BASE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def history(num_users: int = 12, num_items: int = 30, seed: int = 0, implicit: bool = False) -> str:
    """Rows of a contract CSV in which several events share a second."""
    rng = np.random.default_rng(seed)
    rows = []
    for u in range(num_users):
        size = int(rng.integers(1, min(20, num_items) + 1))
        start = BASE + dt.timedelta(hours=int(rng.integers(0, 600)))
        for n, i in enumerate(rng.choice(num_items, size, replace=False)):
            action, value = ("click", "") if implicit else ("rating", int(rng.integers(1, 6)))
            rows.append(f"u{u},i{i},{(start + dt.timedelta(seconds=n // 3)).isoformat()},{action},{value}")
    return "\n".join(rows) + "\n"


def items_csv(num_items: int = 30) -> str:
    return "item_id,title\n" + "".join(f"i{i},Item {i}\n" for i in range(num_items))


def split_table(
    tables,
    tmp_path,
    text: str,
    *,
    items: str | None = None,
    split: str = "global_time",
    fractions=(0.8, 0.1),
    positive_value=None,
    seed=1,
) -> pl.DataFrame:
    ingest(tables, contract(tmp_path / "d", text, items=items or items_csv()), "2025-12-01", "2026-03-01")
    settled = examples.plan(tables, fractions, positive_value)
    return pl.concat([frame(part) for part in examples.examples(tables, settled, split, seed, NOW)])


def test_leave_one_out_takes_the_last_two_of_who_has_three(tables, tmp_path):
    rows = split_table(tables, tmp_path, history(), split="leave_one_out")
    for _, own in rows.sort("position").group_by("user_id", maintain_order=True):
        parts = own["leave_one_out"].to_list()
        assert own["position"].to_list() == list(range(len(own))) and own["timestamp"].is_sorted()
        assert parts == (["train"] * len(own) if len(own) < 3 else ["train"] * (len(own) - 2) + ["valid", "test"])
    assert rows["split"].equals(rows["leave_one_out"].alias("split"))


def test_global_time_never_looks_ahead_and_keeps_its_fractions(tables, tmp_path):
    rows = split_table(tables, tmp_path, history(num_users=60))
    spans = {name: part["timestamp"] for (name,), part in rows.group_by("global_time")}
    assert spans["train"].max() < spans["valid"].min() <= spans["valid"].max() < spans["test"].min()
    assert 0.7 < len(spans["train"]) / len(rows) <= 0.8 and len(spans["test"]) >= 0.1 * len(rows)


def test_ties_are_broken_by_input_order(tables, tmp_path):
    text = "".join(f"u,i{i},2026-01-05,rating,{i % 5 + 1}\n" for i in (4, 2, 9, 0))
    rows = split_table(tables, tmp_path, text).sort("position")
    assert rows["item_id"].to_list() == ["i4", "i2", "i9", "i0"]
    assert rows["leave_one_out"].to_list() == ["train", "train", "valid", "test"]


@pytest.mark.parametrize(
    "times", [["2026-01-05"], ["2026-01-05", "2026-01-05", "2026-01-05"], ["2026-01-05", "2026-01-06"]]
)
def test_tiny_data_is_split_without_an_empty_train(tables, tmp_path, times):
    text = "".join(f"u{n},i{n},{time},rating,{n + 1}\n" for n, time in enumerate(times))
    rows = split_table(tables, tmp_path, text)
    assert "train" in rows["global_time"].to_list()
    assert (rows["global_time"] == "test").sum() == (1 if len(set(times)) > 1 else 0)


def test_thresholds_and_labels():
    assert thresholds({"rating": 5.0, "play": 10.0, "click": None, "vote": -1.0}, None) == {
        "rating": 4.0,
        "play": 8.0,
        "vote": -1.0,
    }
    assert thresholds({"rating": 5.0}, 3.0) == {"rating": 3.0}
    rows = pl.DataFrame({"action": ["rating", "rating", "click"], "value": [4.0, 3.5, None]})
    assert labelled(rows, {"rating": 4.0})["label"].to_list() == [1, 0, 1]


def test_explicit_data_gets_no_sampled_negatives(tables, tmp_path):
    rows = split_table(tables, tmp_path, history())
    assert not rows["sampled"].any() and rows["label"].to_list() == (rows["value"] >= 4).cast(int).to_list()


def test_implicit_data_gets_negatives_that_were_there_and_never_met(tables, tmp_path):
    rows = split_table(tables, tmp_path, history(num_users=40, implicit=True))
    drawn, events = rows.filter("sampled"), rows.filter(~pl.col("sampled"))
    assert events["label"].min() == 1 and drawn["label"].max() == 0 and drawn["value"].null_count() == len(drawn)
    assert 0.8 * len(events) < len(drawn) <= len(events) and rows["example_id"].is_unique().all()
    assert drawn.join(events, on=["user_id", "item_id"], how="semi").is_empty()
    first = events.group_by("item_id").agg(pl.col("timestamp").min().alias("first"))
    assert drawn.join(first, on="item_id").filter(pl.col("first") > pl.col("timestamp")).is_empty()
    twin = drawn.with_columns(pl.col("example_id").str.strip_suffix(":n0")).join(
        events, on="example_id", suffix="_event"
    )
    assert len(twin) == len(drawn)
    for column in ("user_id", "timestamp", "position", "leave_one_out", "global_time"):
        other = column if column == "example_id" else f"{column}_event"
        assert twin[column].equals(twin[other].alias(column))


def test_popular_items_are_drawn_more_often():
    events = pl.DataFrame(
        {
            "event_id": [f"e{i}" for i in range(4000)],
            "user_id": ["u"] * 4000,
            "item_id": ["x"] * 4000,
            "timestamp": [BASE + dt.timedelta(days=1)] * 4000,
            "sequence": range(4000),
            "action": ["click"] * 4000,
            "value": [None] * 4000,
        },
        schema_overrides={"value": pl.Float64},
    )
    pool = pool_of(
        pl.DataFrame(
            {
                "item_id": ["x", "y", "z", "later"],
                "num_events": [4000, 16, 1, 500],
                "available": [BASE, BASE, BASE, BASE + dt.timedelta(days=2)],
            }
        )
    )
    rows = placed(events.with_columns(label=1), cut_at([None, None], BASE, None), "global_time")
    drawn = negatives(rows, pool, seed=1)["item_id"]
    share = (drawn == "y").mean()
    assert set(drawn) == {"y", "z"} and abs(share - 8 / 9) < 0.03
    assert drawn.equals(negatives(rows, pool, seed=1)["item_id"]) and not drawn.equals(
        negatives(rows, pool, seed=2)["item_id"]
    )
    # A part of the rows draws the same, and a user who met everything draws nothing.
    assert negatives(rows[:50], pool, seed=1)["item_id"].equals(drawn[:50])
    assert negatives(
        rows, pool_of(pl.DataFrame({"item_id": ["x"], "num_events": [1], "available": [BASE]})), 1
    ).is_empty()


def test_a_small_catalogue_with_a_user_who_met_nearly_all(tables, tmp_path):
    text = "".join(f"u,i{i},2026-01-0{i + 2},click,\n" for i in range(4)) + "v,i4,2026-01-01,click,\n"
    rows = split_table(tables, tmp_path, text, items=items_csv(5))
    assert rows.filter(pl.col("sampled") & (pl.col("user_id") == "u"))["item_id"].unique().to_list() == ["i4"]


def test_items_are_there_from_when_the_catalogue_says(tables, tmp_path):
    items = "item_id,title,available_from\n" + "".join(f"i{i},T,2025-01-01\n" for i in range(30))
    rows = split_table(tables, tmp_path, history(num_users=5, implicit=True), items=items)
    assert (rows["sampled"].sum() == (~rows["sampled"]).sum()) and tables.warehouse().num_rows(ITEMS) == 30
    assert SPLITS.primary_key == ("example_id",)
