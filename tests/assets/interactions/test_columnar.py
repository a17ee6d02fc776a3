"""Parquet as other tools write it: types, damage, and bytes that are no text."""

import datetime as dt
import decimal
import random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from assets.interactions.checks import broken_accounts
from assets.interactions.readers.base import POSITION, DatasetError, open_reader
from assets.interactions.readers.columnar import scan_parquet
from ray_jobs.tables.interactions import ITEMS
from tests.assets.interactions.sources import accounts_of, events_of, ingest, refused_of

# The second of three texts is no UTF-8.
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"u\xff\xfev")]
)
DAY = dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
D = decimal.Decimal


def shop(folder, items=None, **columns) -> str:
    """A dataset of two events in parquet, some columns replaced."""
    events = {"user_id": ["u", "v"], "item_id": ["7", "8"], "timestamp": ["2026-01-05"] * 2} | columns
    folder.mkdir()
    pq.write_table(pa.table(events), folder / "interactions.parquet")
    pq.write_table(pa.table({"item_id": ["7", "8"], "title": ["A", "B"]} | (items or {})), folder / "items.parquet")
    return f"contract:{folder}"


@pytest.mark.parametrize(
    "columns",
    [
        {"item_id": pa.array([D(7), D(8)], pa.decimal128(10, 0))},
        {"item_id": pa.array([D("7.00"), D("8.00")], pa.decimal128(10, 2))},
        {"item_id": pa.array([7, 8], pa.uint64())},
        {"item_id": pa.array([7, 8]).dictionary_encode()},
        {"user_id": pa.array(["u", "v"]).dictionary_encode(), "item_id": pa.array(["7", "8"], pa.string_view())},
        {"user_id": pa.array(["u", "v"], pa.large_string())},
        {"timestamp": pa.array(["2026-01-05"] * 2).dictionary_encode()},
        {"timestamp": pa.array([D(1767571200)] * 2, pa.decimal128(20, 3))},
        {"timestamp": pa.array([dt.date(2026, 1, 5)] * 2)},
        {"timestamp": pa.array([DAY] * 2, pa.timestamp("ns", "America/New_York"))},
    ],
)
def test_other_types_of_the_same_content_are_the_same_events(tables, tmp_path, columns):
    ingest(tables, shop(tmp_path / "plain"))
    plain = events_of(tables)
    ingest(tables, shop(tmp_path / "typed", **columns))
    assert events_of(tables).equals(plain) and len(plain) == 2


def test_values_of_every_type_are_numbers(tables, tmp_path):
    for number, values in enumerate(
        (pa.array(["4", "5"]).dictionary_encode(), pa.array([D("4.0"), D("5.0")], pa.decimal128(5, 1)), [4, 5])
    ):
        ingest(tables, shop(tmp_path / str(number), value=values))
        assert sorted(events_of(tables)["value"]) == [4.0, 5.0]


@pytest.mark.parametrize(
    ("columns", "reasons"),
    [
        ({"timestamp": pa.array([2**62, -(2**62)], pa.timestamp("ms"))}, ["future_time", "negative_time"]),
        ({"timestamp": pa.array([2**62, -(2**62)], pa.timestamp("us", "UTC"))}, ["future_time", "negative_time"]),
        ({"timestamp": pa.array([5, 6], pa.duration("s"))}, ["unparsable_time"] * 2),
        ({"timestamp": pa.array([5, 6], pa.time32("s"))}, ["unparsable_time"] * 2),
        ({"value": [b"\xff", b"2"]}, ["wrong_type_value"] * 2),
        ({"value": [{"stars": 1}, {"stars": 2}]}, ["wrong_type_value"] * 2),
    ],
)
def test_cells_that_hold_no_time_or_number_cost_their_row(tables, tmp_path, columns, reasons):
    ingest(tables, shop(tmp_path / "d", **columns))
    assert refused_of(tables)["reason"].to_list() == reasons
    assert broken_accounts(accounts_of(tables)).is_empty()


def test_text_that_is_no_utf8_costs_its_row_and_keeps_the_place_of_the_others(tables, tmp_path):
    events = {"item_id": ["7", "7", "zz"], "timestamp": ["2026-01-05"] * 3}
    for number, column in enumerate((NOT_UTF8, NOT_UTF8.dictionary_encode())):
        done = ingest(tables, shop(tmp_path / str(number), user_id=column, **events))
        assert events_of(tables)["user_id"].to_list() == ["u"]
        assert refused_of(tables).select("position", "reason").rows() == [(2, "bad_encoding"), (3, "unknown_item")]
        assert '"item_id": "7"' in refused_of(tables)["payload"][0]
        assert done.counts["rows_read"] == 3 and broken_accounts(accounts_of(tables)).is_empty()


def test_a_type_that_no_frame_holds_costs_the_file(tables, tmp_path):
    ingest(tables, shop(tmp_path / "d", value=pa.array([D(1), D(2)], pa.decimal256(50, 0))))
    found = refused_of(tables).select("position", "reason", "detail").row(0)
    assert found[:2] == (0, "unreadable_file") and "Int256" in found[2]


def test_items_of_every_type(tables, tmp_path):
    items = {
        "categories": pa.array([["x", "y"], ["z", "w"]], pa.list_(pa.string(), 2)),
        "available_from": [-99_999_999_999, 1767571200],
        "picture": [b"\xff", None],
        "length": pa.array([90, None], pa.duration("s")),
        "released": [DAY, None],
    }
    ingest(tables, shop(tmp_path / "d", items))
    rows = pl.from_arrow(tables.read(ITEMS)).to_dicts()
    assert [r["categories"] for r in rows] == [["x", "y"], ["z", "w"]]
    # Long before every clock, but where Python and nanoseconds can hold it.
    assert [r["available_from"].year for r in rows] == [1678, 2026]
    assert rows[0]["attributes"] == '{"length":"PT1M30S","picture":"/w==","released":"2026-01-05T00:00:00+00:00"}'


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ({"categories": [[["x"]], [["y"]]]}, "In items.parquet: the column categories has the type .*no list of texts"),
        ({"picture": [[b"x"], []]}, "In items.parquet: the column picture holds bytes inside of lists.*leave it out"),
        ({"title": [["A"], ["B"]]}, "In items.parquet: the column title has the type List.*write it as text"),
    ],
)
def test_a_column_of_another_type_names_file_column_and_fix(tables, tmp_path, items, said):
    with pytest.raises(DatasetError, match=said):
        ingest(tables, shop(tmp_path / "d", items))


def test_damage_anywhere_is_a_fault_and_no_crash(tmp_path):
    path = tmp_path / "x.parquet"
    rows = {"user_id": [f"u{i % 9}" for i in range(300)], "item_id": list(range(300)), "timestamp": [1767571200] * 300}
    pq.write_table(pa.table(rows), path, row_group_size=100)
    whole, rng, reasons = path.read_bytes(), random.Random(0), set()
    for _ in range(150):
        damaged = bytearray(whole)
        # Most of what can go wrong is in the footer.
        damaged[rng.choice([rng.randrange(len(whole)), -1 - rng.randrange(1500)])] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            reasons |= {r for _, read in scan_parquet(UPath(path), "x.parquet") for r in read.faults["reason"]}
        except DatasetError as error:
            assert "rename it" in str(error)
    assert reasons >= {"unreadable_file"} and reasons <= {"unreadable_file", "bad_encoding"}


def test_a_folder_may_be_called_like_a_file_and_hides_nothing(tables, tmp_path):
    (tmp_path / "interactions.parquet").mkdir()
    rows = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": ["2026-01-05"]})
    rows.write_parquet(tmp_path / "interactions.parquet" / "part-0.parquet")
    (tmp_path / "interactions.parquet" / "part-1.CSV").write_text(rows.write_csv())
    (tmp_path / "interactions.parquet" / "_SUCCESS").write_text("")
    (tmp_path / "items.csv").write_text("item_id,title\na,A\n")
    ingest(tables, f"contract:{tmp_path}")
    assert events_of(tables)["user_id"].to_list() == ["u"]
    assert refused_of(tables).select("source", "position", "reason").rows() == [
        ("interactions.parquet/part-1.CSV", 0, "unreadable_file")
    ]
    batches = list(open_reader(f"contract:{tmp_path}").interactions())
    assert [b.rows[POSITION].to_list() for b in batches] == [[1], []]
