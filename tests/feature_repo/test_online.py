"""What is written to the online store: only changes, typed, the same as Feast's own materialization writes."""

import datetime as dt

import pyarrow as pa
import pytest
from feast.types import Array, Bytes, Float32, Float64, Int32, Int64, String

from feature_repo import latest, online
from feature_repo.publications import Publications
from tests.feature_repo.feast_stores import ASOF, US, at, store_of

FIELDS = {"i": Int64, "f": Float64, "b": Bytes, "ints": Array(Int32), "floats": Array(Float32), "words": Array(String)}
TYPES = {
    "i": pa.int64(),
    "f": pa.float64(),
    "b": pa.binary(),
    "ints": pa.list_(pa.int32()),
    "floats": pa.list_(pa.float32()),
    "words": pa.list_(pa.string()),
}
NAN = float("nan")
VALUES = {
    "full": {"i": 2**53 + 1, "f": 1.5, "b": b"\x00\xff\x7f", "ints": [1, -2], "floats": [0.5, 2.0], "words": ["a", ""]},
    "empty": {"i": 0, "f": 0.0, "b": b"", "ints": [], "floats": [], "words": []},
    "null": dict.fromkeys(FIELDS),
    "nan": {"i": 1, "f": NAN, "b": b"x", "ints": [0], "floats": [NAN, 1.0], "words": ["ä€"]},
}


def rows(values, event=10, created=20):
    made = [{"user_id": k, **v} for k, v in values.items()]
    table = pa.Table.from_pylist(made, pa.schema([("user_id", pa.string()), *TYPES.items()]))
    for name, seconds in (("event_timestamp", event), ("created_timestamp", created)):
        table = table.append_column(name, pa.array([at(seconds)] * len(made), US))
    return table


def read(store, *users, view="v"):
    found = online.read(store, [f"{view}:{f}" for f in FIELDS], "user_id", list(users))
    return [{f: row[f"{view}__{f}"] for f in FIELDS} for row in found]


def publish(folder, version, table, view="v"):
    publications = Publications(str(folder))
    publications.publish(view, table, version)
    return publications


def changed(publications, version, until, before=None, batch_rows=10):
    return list(
        latest.changes(publications, "v", "user_id", version=version, until=until, before=before, batch_rows=batch_rows)
    )


@pytest.mark.parametrize("batch_rows", [10, 1])
def test_every_type_comes_back_as_it_was(tmp_path, batch_rows):
    store = store_of(tmp_path / "feast", {"v": ("user_id", rows(VALUES), FIELDS, dt.timedelta(0))})
    publications = publish(tmp_path / "offline", "1", rows(VALUES))
    assert online.write(store, "v", changed(publications, "1", at(100), batch_rows=batch_rows)) == (4, 0)
    found = dict(zip(VALUES, read(store, *VALUES), strict=True))
    # Feast has no NaN outside of lists: it reads a scalar NaN as missing. No view publishes one.
    wanted = VALUES | {"nan": VALUES["nan"] | {"f": None}}
    assert {k: repr(v) for k, v in found.items()} == {k: repr(v) for k, v in wanted.items()}
    assert read(store, "nobody") == [dict.fromkeys(FIELDS)]


def test_the_same_as_feasts_materialization(tmp_path):
    values = VALUES | {"full": VALUES["full"] | {"i": 7}}  # Feast rounds large integers beside nulls.
    store = store_of(tmp_path / "feast", {"v": ("user_id", rows(values), FIELDS, dt.timedelta(0))}, offline="duckdb")
    store.materialize(at(-100), at(100))
    theirs = read(store, *VALUES)
    online.empty(store, "v")
    assert read(store, "full") == [dict.fromkeys(FIELDS)]
    online.write(store, "v", changed(publish(tmp_path / "offline", "1", rows(values)), "1", at(100)))
    assert repr(read(store, *VALUES)) == repr(theirs)


def test_only_changes_are_written(tmp_path):
    publications = publish(tmp_path, "1", rows(VALUES))
    assert sum(t.num_rows for t in changed(publications, "1", at(100))) == 4
    new = VALUES | {"full": VALUES["full"] | {"ints": [1, -3]}, "fresh": VALUES["empty"]}
    del new["empty"]
    publish(tmp_path, "2", rows(new, event=10, created=99))
    found = pa.concat_tables(changed(publications, "2", at(100), before=("1", at(100))))
    said = {r["user_id"]: r[latest.REMOVED] for r in found.to_pylist()}
    assert said == {"full": False, "fresh": False, "empty": True}
    (gone,) = [r for r in found.to_pylist() if r[latest.REMOVED]]
    assert all(gone[f] is None for f in FIELDS)


def test_the_newest_row_until_the_moment_counts(tmp_path):
    several = pa.concat_tables(
        [
            rows({"u": VALUES["full"]}, event=1),
            rows({"u": VALUES["empty"]}, event=5, created=6),
            rows({"u": VALUES["nan"]}, event=5, created=7),
            rows({"u": VALUES["null"]}, event=50),
            rows({"late": VALUES["full"]}, event=60),
        ]
    )
    publications = publish(tmp_path, "1", several)
    (found,) = changed(publications, "1", at(40))
    assert [(r["user_id"], r["words"]) for r in found.to_pylist()] == [("u", ["ä€"])]
    assert latest.sizes(publications, "v", "user_id", version="1", until=at(40)) == (1, at(50))
    assert latest.sizes(publications, "v", "user_id", version="1", until=at(60)) == (2, None)


def test_a_view_without_rows_is_fine(tmp_path):
    publications = publish(tmp_path, "1", rows({}))
    assert sum(t.num_rows for t in changed(publications, "1", at(9))) == 0
    assert latest.sizes(publications, "v", "user_id", version="1", until=at(9)) == (0, None)
    assert latest.sample_keys(publications, "v", "user_id", version="1", size=3) == []


def test_samples_are_the_same_every_time(tmp_path):
    publications = publish(tmp_path, "1", rows({f"u{i}": VALUES["full"] for i in range(50)}))
    first = latest.sample_keys(publications, "v", "user_id", version="1", size=7)
    assert first == latest.sample_keys(publications, "v", "user_id", version="1", size=7)
    assert len(set(first)) == 7


def test_latency_is_measured_for_each_request(tmp_path):
    from feast import FeatureService

    store = store_of(tmp_path, {"v": ("user_id", rows(VALUES), FIELDS, dt.timedelta(0))}, ASOF)
    store.apply([FeatureService(name="s", features=[store.get_feature_view("v")])])
    taken = online.latency(store, "s", [{"user_id": "full"}] * 3)
    assert len(taken) == 3 and all(t > 0 for t in taken)
    with pytest.raises(Exception, match="missing"):
        online.latency(store, "missing", [{"user_id": "full"}])
