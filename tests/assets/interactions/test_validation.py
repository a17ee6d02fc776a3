import datetime as dt
import hashlib
import json
import zoneinfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.interactions.catalogue import gather, judge_items
from assets.interactions.clocks import to_utc
from assets.interactions.digests import row_digests, uniforms
from assets.interactions.readers.base import POSITION, Batch, DatasetError, no_faults
from assets.interactions.validation import Limits, judge_events
from tests.assets.interactions.sources import NOW

LIMITS = Limits(NOW)
DAY_IN_KARACHI = dt.datetime(2026, 1, 5, tzinfo=zoneinfo.ZoneInfo("Asia/Karachi"))
KNOWN = pl.Series("item_id", ["a", "b"])
GOOD = {
    "user_id": "u",
    "item_id": "a",
    "timestamp": "2026-01-05T10:00:00Z",
    "action": "rating",
    "value": "3.5",
}


def judged(**changes):
    row = GOOD | changes
    return judge_events(pl.DataFrame({POSITION: [1], **{k: [v] for k, v in row.items()}}), LIMITS, KNOWN)


def utc(*parts) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"user_id": None}, "missing_user_id"),
        ({"user_id": "  "}, "missing_user_id"),
        ({"item_id": None}, "missing_item_id"),
        ({"timestamp": None}, "missing_time"),
        ({"timestamp": "last Tuesday"}, "unparsable_time"),
        ({"timestamp": "2026-02-30"}, "unparsable_time"),
        ({"timestamp": "nan"}, "unparsable_time"),
        ({"timestamp": "-86400"}, "negative_time"),
        ({"timestamp": "1969-12-31"}, "negative_time"),
        ({"timestamp": "1976-11-01"}, "too_early"),
        ({"timestamp": "2026-11-03"}, "future_time"),
        ({"timestamp": "4102444800"}, "future_time"),
        ({"value": "four"}, "wrong_type_value"),
        ({"value": "inf"}, "wrong_type_value"),
        ({"item_id": "zz"}, "unknown_item"),
    ],
)
def test_each_bad_row_has_its_reason_and_one_sentence(changes, reason):
    good, refused = judged(**changes)
    assert good.is_empty() and refused["reason"].to_list() == [reason]
    assert refused["detail"][0].endswith(".") and ": " in refused["detail"][0]
    assert '"action":"rating"' in refused["payload"][0]
    timed = reason not in ("missing_time", "unparsable_time", "negative_time", "too_early", "future_time")
    assert refused["day"].to_list() == (["2026-01-05"] if timed else [None])


def test_a_missing_time_of_numpy_is_a_negative_time():
    assert judged(timestamp=str(-(2**63))).refused["reason"].to_list() == ["negative_time"]


def test_a_refused_row_keeps_its_ids_as_they_are_read():
    columns = {POSITION: [1], "user_id": [7.0], "item_id": [1], "timestamp": [DAY_IN_KARACHI], "value": [float("inf")]}
    good, refused = judge_events(pl.DataFrame(columns), LIMITS, None)
    payload = json.loads(refused["payload"][0])
    assert good.is_empty() and (payload["user_id"], payload["value"]) == ("7", "inf")
    assert to_utc(pl.Series([payload["timestamp"]])).to_list() == [DAY_IN_KARACHI]


def test_a_clock_may_run_ahead_by_a_day():
    assert len(judged(timestamp="2026-11-01T23:59:59Z").good) == 1
    assert judged(timestamp="2026-11-02T00:00:01Z").refused["reason"].to_list() == ["future_time"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1767225600", utc(2026, 1, 1)),
        ("1767225600000", utc(2026, 1, 1)),
        ("1767225600000000", utc(2026, 1, 1)),
        ("1767225600000000000", utc(2026, 1, 1)),
        ("1767225600.5", utc(2026, 1, 1, 0, 0, 0, 500_000)),
        ("1.7672256e9", utc(2026, 1, 1)),
        ("2026-01-01", utc(2026, 1, 1)),
        ("2026-01-01T12:30", utc(2026, 1, 1, 12, 30)),
        ("2026-01-01 12:30:15.25", utc(2026, 1, 1, 12, 30, 15, 250_000)),
        ("2026-01-01T12:00:00Z", utc(2026, 1, 1, 12)),
        ("2026-01-01T12:00:00+02:00", utc(2026, 1, 1, 10)),
        ("2026-01-01T12:00:00-0530", utc(2026, 1, 1, 17, 30)),
        ("2026-01-01 12:00:00 UTC", utc(2026, 1, 1, 12)),
        ("  2026-01-01  ", utc(2026, 1, 1)),
        ("2026-01-01T12:00:00+25:00", None),
        ("2026-01-01T12:00:00+٠٢:٠٠", None),
        ("12/31/2025", None),
        ("1e300", None),
        ("99999999999999999999", None),
        ("", None),
    ],
)
def test_times(written, meant):
    assert to_utc(pl.Series([written])).to_list() == [meant]


def test_mixed_zones_in_one_column_are_one_instant():
    column = pl.Series(["2026-01-01T12:00:00+00:00", "2026-01-01T13:00:00+01:00", "2026-01-01T12:00:00", "1767268800"])
    assert set(to_utc(column).to_list()) == {utc(2026, 1, 1, 12)}


@pytest.mark.parametrize(
    "typed",
    [
        pl.Series([dt.datetime(2026, 1, 1, 12)]),
        pl.Series([dt.datetime(2026, 1, 1, 12)]).cast(pl.Datetime("ns")),
        pl.Series([dt.datetime(2026, 1, 1, 17)]).dt.replace_time_zone("Asia/Karachi"),
        pl.Series([1767268800]),
        pl.Series([1767268800.0]),
        pl.Series([1767268800000]),
    ],
)
def test_typed_times(typed):
    assert to_utc(typed).to_list() == [utc(2026, 1, 1, 12)]


def test_numbers_as_ids_and_missing_optional_columns():
    rows = pl.DataFrame({POSITION: [1, 2], "user_id": [7.0, None], "item_id": [1, 2], "timestamp": [1767225600] * 2})
    good, refused = judge_events(rows, LIMITS, None)
    assert good.select("user_id", "item_id", "action", "value").rows() == [("7", "1", "interaction", None)]
    assert refused["reason"].to_list() == ["missing_user_id"]


def test_a_column_of_lists_is_another_type():
    rows = pl.DataFrame({POSITION: [1], "user_id": [["u"]], "item_id": ["a"], "timestamp": [1]})
    with pytest.raises(DatasetError, match="user_id has the type List.*write it as text"):
        judge_events(rows, LIMITS, None)


def test_missing_values_in_floats_are_no_wrong_type():
    rows = pl.DataFrame(
        {
            POSITION: [1],
            "user_id": ["u"],
            "item_id": ["a"],
            "timestamp": [1767225600],
            "value": [float("nan")],
        }
    )
    assert judge_events(rows, LIMITS, KNOWN).good["value"].to_list() == [None]


def test_digests_are_stable_and_tell_null_from_empty():
    frame = pl.DataFrame({"a": ["x", "", None], "b": [0.0, -0.0, None]})
    digests = row_digests(frame, ["a", "b"])
    assert digests[0] == hashlib.md5(b"+x\x1f+0").hexdigest()[:20] and digests.n_unique() == 3
    shares = uniforms(pl.Series([str(i) for i in range(2000)]), "seed")
    assert shares.min() >= 0 and shares.max() < 1 and abs(shares.mean() - 0.5) < 0.03


def test_items_without_title_repeated_and_conflicting():
    rows = pl.DataFrame(
        {
            POSITION: [1, 2, 3, 4, 5],
            "item_id": ["b", "a", "a", "a", None],
            "title": [None, "A", "A", "B", "C"],
            "categories": ["p| q |", "", "", "", ""],
            "attributes": ["{}"] * 5,
        }
    )
    read = gather("items", iter([Batch("items.csv", rows, no_faults())]), LIMITS)
    assert read.kept.select("item_id", "title", "categories").rows() == [
        ("a", "A", []),
        ("b", "b", ["p", "q"]),
    ]
    assert read.refused.select(POSITION, "reason").sort(POSITION).rows() == [
        (4, "conflicting_item_id"),
        (5, "missing_item_id"),
    ]
    assert read.accounts.select(pl.exclude("source_table", "source")).rows() == [(5, 2, 2, 1)]
    assert read.untitled == 1


def test_items_with_typed_lists_and_bad_times():
    rows = pl.DataFrame(
        {
            POSITION: [1, 2],
            "item_id": [1, 2],
            "title": ["A", "B"],
            "categories": [["x", None, " y"], None],
            "available_from": ["2026-01-01", "soon"],
            "attributes": ["{}", "{}"],
        }
    )
    good, refused = judge_items(rows, LIMITS)
    assert good["categories"].to_list() == [["x", "y"]] and refused["reason"].to_list() == ["unparsable_time"]


CELL = st.one_of(
    st.none(),
    st.sampled_from(["", " ", "a", "b", "zz", "1767225600", "2026-01-01", "-1", "9e99", "3", "x,y", "\x00"]),
    st.text(max_size=6),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(CELL, CELL, CELL, CELL, CELL, CELL), max_size=12))
def test_every_row_is_either_good_or_refused(rows):
    names = ["user_id", "item_id", "timestamp", "action", "value", "event_id"]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row").insert_column(
        0, pl.Series(POSITION, range(1, len(rows) + 1), dtype=pl.Int64)
    )
    good, refused = judge_events(frame, LIMITS, KNOWN)
    assert sorted(good[POSITION].to_list() + refused[POSITION].to_list()) == list(range(1, len(rows) + 1))
    assert good["timestamp"].null_count() == 0 and set(good["item_id"]) <= {"a", "b"}
