"""The as-of join against a hand-written join in polars, and against Feast's own stores."""

import datetime as dt

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from feast.types import Array, Float32, Int64, String

from tests.feature_repo.feast_stores import ASOF, US, at, store_of

NO_TTL = dt.timedelta(0)


def random_rows(seed, num_rows, num_keys, key="user_id"):
    rng = np.random.default_rng(seed)
    seconds = rng.integers(0, 500, num_rows)
    return pa.table(
        {
            key: pa.array([f"k{k}" for k in rng.integers(0, num_keys, num_rows)]),
            "n": pa.array(np.arange(num_rows), pa.int64()),
            "tags": pa.array([[f"t{i}"] * (i % 3) for i in range(num_rows)], pa.list_(pa.string())),
            "event_timestamp": pa.array(at([float(s) for s in seconds]), US),
            "created_timestamp": pa.array(at([float(s) for s in seconds + rng.integers(0, 300, num_rows)]), US),
        }
    )


def random_frame(seed, num_rows, num_keys):
    rng = np.random.default_rng(seed + 1)
    return pd.DataFrame(
        {
            "example": [f"e{i}" for i in range(num_rows)],
            "user_id": [f"k{k}" for k in rng.integers(0, num_keys + 3, num_rows)],  # Some were never seen.
            "event_timestamp": pd.to_datetime(at([float(s) for s in rng.integers(-50, 600, num_rows)])),
        }
    )


FIELDS = {"n": Int64, "tags": Array(String)}


def by_polars(rows, frame, ttl=None):
    features = pl.DataFrame(rows).sort("event_timestamp", "created_timestamp", "n", maintain_order=True)
    found = (
        pl.DataFrame(frame)
        .with_columns(pl.col("event_timestamp").cast(pl.Datetime("us", "UTC")))
        .sort("event_timestamp", maintain_order=True)
        .join_asof(
            features.rename({"event_timestamp": "seen"}), left_on="event_timestamp", right_on="seen", by="user_id"
        )
    )
    if ttl is not None:
        late = pl.col("seen") + ttl < pl.col("event_timestamp")
        found = found.with_columns(pl.when(~late).then(pl.col(c)).alias(c) for c in ("n", "tags"))
    return found.sort("example")["n"].to_list()


def unique_newest(rows):
    """Rows whose (key, event, created) is unique, so that which one is newest is defined."""
    return (
        pl.DataFrame(rows)
        .unique(["user_id", "event_timestamp", "created_timestamp"], keep="first", maintain_order=True)
        .to_arrow()
        .cast(rows.schema)
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ttl", [NO_TTL, dt.timedelta(seconds=60)])
def test_equals_a_hand_written_join(tmp_path, seed, ttl):
    rows, frame = unique_newest(random_rows(seed, 400, 12)), random_frame(seed, 300, 12)
    store = store_of(tmp_path, {"v": ("user_id", rows, FIELDS, ttl)})
    found = store.get_historical_features(entity_df=frame, features=["v:n", "v:tags"]).to_arrow()
    assert found["example"].to_pylist() == frame["example"].tolist(), "every row, in order"
    truth = by_polars(rows, frame, ttl or None)
    assert pl.DataFrame(found).sort("example")["n"].to_list() == truth
    assert 0 < sum(n is None for n in truth) < len(truth)
    tags = dict(zip(rows["n"].to_pylist(), rows["tags"].to_pylist(), strict=True))
    assert found["tags"].to_pylist() == [tags.get(n) for n in found["n"].to_pylist()]


@pytest.mark.parametrize("knowledge", [False, True])
def test_equals_feasts_own_duckdb_store(tmp_path, knowledge):
    views = {
        "v": ("user_id", unique_newest(random_rows(7, 300, 8)), FIELDS, NO_TTL),
        "w": ("user_id", unique_newest(random_rows(8, 300, 8)), FIELDS, dt.timedelta(seconds=100)),
    }
    frame = random_frame(9, 200, 8)
    asked = ["v:n", "w:n", "w:tags"]
    found = {}
    for offline in (ASOF, "duckdb"):
        rows = (
            store_of(tmp_path, views, offline)
            .get_historical_features(
                entity_df=frame.copy(), features=asked, full_feature_names=True, filter_by_created_timestamp=knowledge
            )
            .to_df()
            .sort_values("example")
        )
        rows = rows[["example", "v__n", "w__n"]].astype(object)
        found[offline] = rows.where(rows.notna(), None).values.tolist()
    if knowledge:
        # Feast looks at the expiry of each row, we at that of the newest: a late row may have expired before one
        # that it replaced. Only rows without expiry must agree.
        found = {k: [r[:2] for r in v] for k, v in found.items()}
    assert found[ASOF] == found["duckdb"]


def test_knowledge_time_hides_what_was_written_later(tmp_path):
    rows = pa.table(
        {
            "user_id": ["u", "u", "u"],
            "n": pa.array([1, 2, 3], pa.int64()),
            "event_timestamp": pa.array(at([0, 10, 20]), US),
            # The fact of second 10 was back-filled at 50, when that of second 20 was long known.
            "created_timestamp": pa.array(at([1, 50, 25]), US),
        }
    )
    store = store_of(tmp_path, {"v": ("user_id", rows, {"n": Int64}, NO_TTL)})
    frame = pd.DataFrame({"user_id": ["u"] * 5, "event_timestamp": pd.to_datetime(at([0, 15, 22, 30, 60]))})
    seen = {
        k: store.get_historical_features(entity_df=frame, features=["v:n"], filter_by_created_timestamp=k)
        .to_arrow()["n"]
        .to_pylist()
        for k in (False, True)
    }
    assert seen[False] == [1, 2, 3, 3, 3]
    assert seen[True] == [None, 1, 1, 3, 3]


def slate():
    """Ten items shown to each of two users at one moment; one was liked."""
    frame = pd.DataFrame(
        {
            "user_id": ["a"] * 10 + ["b"] * 10,
            "item": [f"i{i}" for i in range(20)],
            "label": [1] + [0] * 18 + [1],
            "event_timestamp": pd.to_datetime(at([100] * 20)),
        }
    )
    rows = pa.table(
        {
            "user_id": ["a"],
            "n": pa.array([5], pa.int64()),
            "event_timestamp": pa.array(at([50]), US),
            "created_timestamp": pa.array(at([50]), US),
        }
    )
    return frame, {"v": ("user_id", rows, {"n": Int64}, NO_TTL)}


def test_slates_keep_their_rows_which_feasts_default_store_drops(tmp_path):
    frame, views = slate()
    ours = store_of(tmp_path, views).get_historical_features(entity_df=frame.copy(), features=["v:n"]).to_df()
    assert len(ours) == 20 and ours["label"].sum() == 2
    assert ours["n"].notna().sum() == 10
    default = (
        store_of(tmp_path, views, "file").get_historical_features(entity_df=frame.copy(), features=["v:n"]).to_df()
    )
    assert len(default) < 20, "Feast mended its file store: say so in docs/reference/features.md"


def test_values_of_lists_survive(tmp_path):
    nan = float("nan")
    rows = pa.table(
        {
            "user_id": ["a", "b", "c"],
            "x": pa.array([[], None, [1.5, nan, None]], pa.list_(pa.float32())),
            "event_timestamp": pa.array(at([0, 0, 0]), US),
            "created_timestamp": pa.array(at([0, 0, 0]), US),
        }
    )
    store = store_of(tmp_path, {"v": ("user_id", rows, {"x": Array(Float32)}, NO_TTL)})
    frame = pd.DataFrame({"user_id": list("abcd"), "event_timestamp": pd.to_datetime(at([9] * 4))})
    found = store.get_historical_features(entity_df=frame, features=["v:x"]).to_arrow()["x"]
    assert found.type == pa.list_(pa.field("l", pa.float32())) or found.type.value_type == pa.float32()
    assert repr(found.to_pylist()) == "[[], None, [1.5, nan, None], None]"


def test_sql_as_entity_frame_is_refused(tmp_path):
    frame, views = slate()
    with pytest.raises(ValueError, match="as a data frame"):
        store_of(tmp_path, views).get_historical_features(entity_df="SELECT 1", features=["v:n"])
    assert len(frame) == 20
