"""The contract of `Tables`, held by a local folder and by object storage alike."""

import datetime as dt
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest

from orchestration.resources.tables import LocalTables, ObjectStorageTables
from ray_jobs.warehouse import TIMESTAMP, Column, Table, VersionMismatchError, Warehouse, content_digest

TABLE = Table(
    "stage/events",
    "one event",
    (
        Column("id", pa.string(), "Id."),
        Column("value", pa.float64(), "Value.", nullable=True),
        Column("tags", pa.list_(pa.string()), "Tags."),
        Column("day", pa.string(), "Day."),
        Column("created_timestamp", TIMESTAMP, "When written."),
    ),
    primary_key=("id",),
    partition_by=("day",),
)


def rows(*ids, day="2026-01-01", value=1.0):
    now = dt.datetime.now(dt.UTC)
    return pa.Table.from_pylist(
        [{"id": i, "value": value, "tags": ["a", i], "day": day, "created_timestamp": now} for i in ids], TABLE.schema
    )


@pytest.fixture(params=["local", pytest.param("object_storage", marks=pytest.mark.services)])
def tables(request, tmp_path):
    if request.param == "local":
        return LocalTables(warehouse_root=str(tmp_path / "w"), artifact_root=str(tmp_path / "a"))
    options = request.getfixturevalue("object_store")
    return ObjectStorageTables(
        warehouse_root=f"s3://lake/{tmp_path.name}/w",
        artifact_root=f"s3://lake/{tmp_path.name}/a",
        storage_options=options,
    )


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "c", "none"]])
def test_rows_with_one_of_some_values(tables, ids):
    tables.write(TABLE, pa.concat_tables([rows("a", "b"), rows("c", day="2026-01-02")]), "v1")
    assert sorted(tables.read(TABLE, ["id"], [("id", "in", ids)])["id"].to_pylist()) == [i for i in ids if i != "none"]
    assert tables.read(TABLE, ["id"], [("day", "in", ["2026-01-02"])])["id"].to_pylist() == ["c"]


def test_what_is_written_is_read_with_types_and_version(tables):
    data = rows("a", "b")
    assert tables.write(TABLE, data, "v1") == ("v1", 2, True)
    assert tables.version(TABLE) == "v1" and tables.is_current(TABLE, "v1")
    read = tables.read(TABLE).sort_by("id")
    assert read.to_pylist() == data.to_pylist() and read.schema.types == TABLE.schema.types
    assert tables.read(TABLE, ["id"], [("id", "=", "b")]).to_pylist() == [{"id": "b"}]


def test_the_same_version_is_not_committed_again(tables):
    tables.write(TABLE, rows("a"), "v1")
    assert tables.write(TABLE, rows("b"), "v1") == ("v1", 1, False)
    assert tables.read(TABLE)["id"].to_pylist() == ["a"]


def test_a_reader_refuses_another_version(tables):
    tables.write(TABLE, rows("a"), "v1")
    with pytest.raises(VersionMismatchError, match="holds version v1, not v2"):
        tables.read(TABLE, expect_version="v2")


def test_an_absent_table_is_named(tables):
    with pytest.raises(FileNotFoundError, match="stage/events does not exist yet: materialize"):
        tables.read(TABLE)


def test_a_part_is_replaced_and_the_rest_stands(tables):
    tables.write(TABLE, pa.concat_tables([rows("a"), rows("b", day="2026-01-02")]), "v1")
    tables.write(TABLE, rows("c", day="2026-01-02"), "v2", replace_where="day = '2026-01-02'")
    assert sorted(tables.read(TABLE)["id"].to_pylist()) == ["a", "c"]
    assert tables.version(TABLE) == "v2"


def test_another_shape_is_refused_before_anything_is_written(tables):
    with pytest.raises(ValueError, match=r"missing \['value'\]"):
        tables.write(TABLE, rows("a").drop_columns(["value"]), "v1")
    with pytest.raises(ValueError, match="column of another type"):
        tables.write(TABLE, rows("a").set_column(1, "value", pa.array(["much"])), "v1")
    assert not tables.warehouse().exists(TABLE)


def test_concurrent_appends_all_arrive(tables):
    warehouse = tables.warehouse()
    warehouse.append(TABLE, rows("first"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: warehouse.append(TABLE, rows(f"x{i}")), range(8)))
    assert len(tables.read(TABLE)) == 9
    assert warehouse.compact(TABLE, max_files=2) and len(tables.read(TABLE)) == 9


def test_artifacts_appear_whole_or_not_at_all(tables, tmp_path):
    store = tables.artifacts()
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights.bin").write_bytes(b"123")
    store.put(made, "models/v1")
    assert store.exists("models/v1") and store.names("models") == ["models/v1"]
    with store.local("models/v1") as copy:
        assert (copy / "weights.bin").read_bytes() == b"123"
    with pytest.raises(FileNotFoundError, match="models/v2"), store.local("models/v2"):
        pass
    store.remove("models/v1")
    assert not store.exists("models/v1")


def _killed_while_writing(root):
    def parts():
        yield rows("half")
        os._exit(9)

    Warehouse(root).write_batches(TABLE, parts(), "v2")


def test_a_writer_that_is_killed_leaves_the_old_content(tmp_path):
    warehouse = Warehouse(str(tmp_path))
    warehouse.write(TABLE, rows("old"), "v1")
    process = multiprocessing.get_context("spawn").Process(target=_killed_while_writing, args=(str(tmp_path),))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert warehouse.read(TABLE)["id"].to_pylist() == ["old"] and warehouse.version(TABLE) == "v1"
    assert warehouse.write(TABLE, rows("new"), "v2").committed


def test_the_digest_is_of_content_and_not_of_when_it_was_written():
    first, second = rows("a"), rows("a")
    assert content_digest(first) == content_digest(second)
    assert content_digest(first) != content_digest(rows("a", value=2.0))
