import random

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.interactions.checks import broken_accounts
from assets.interactions.days import stored_days
from assets.interactions.ingestion import take_in
from assets.interactions.readers.base import DatasetError, open_reader
from assets.interactions.survey import survey
from assets.interactions.validation import Limits
from orchestration.resources.tables import LocalTables
from ray_jobs.tables.interactions import DAYS, QUARANTINE, RAW_INTERACTIONS
from tests.assets.interactions.sources import (
    ALL_DAYS,
    NOW,
    accounts_of,
    commits,
    contract,
    events_of,
    ingest,
    refused_of,
)

BAD = (
    ",a,2026-01-05,rating,1\n"
    "u,,2026-01-05,rating,1\n"
    "u,a,never,rating,1\n"
    "u,a,-5,rating,1\n"
    "u,a,2030-01-01,rating,1\n"
    "u,a,2026-01-05,rating,lots\n"
    "u,zz,2026-01-05,rating,1\n"
    "u,a\n"
)
FINE = "u,a,2026-01-05T10:00:00,rating,4\nu,b,2026-01-05T10:00:00,rating,2\nv,a,2026-01-07,rating,5\n"


def test_good_rows_enter_by_day_in_input_order(tables, tmp_path):
    done = ingest(tables, contract(tmp_path / "d", FINE))
    assert events_of(tables).select("user_id", "item_id", "day", "sequence").rows() == [
        ("u", "a", "2026-01-05", 0),
        ("u", "b", "2026-01-05", 1),
        ("v", "a", "2026-01-07", 0),
    ]
    assert done.days.changed == ["2026-01-05", "2026-01-07"] and done.counts["rows_kept"] == 3


def test_every_bad_row_is_in_quarantine_with_its_place(tables, tmp_path):
    done = ingest(tables, contract(tmp_path / "d", FINE + BAD + FINE.splitlines()[0] + "\n"))
    found = refused_of(tables).select("position", "reason", "status").rows()
    assert found == [
        (4, "missing_user_id", "open"),
        (5, "missing_item_id", "open"),
        (6, "unparsable_time", "open"),
        (7, "negative_time", "open"),
        (8, "future_time", "open"),
        (9, "wrong_type_value", "open"),
        (10, "unknown_item", "open"),
        (11, "malformed_row", "open"),
    ]
    assert (
        done.counts["rows_read"],
        done.counts["rows_kept"],
        done.counts["rows_quarantined"],
        done.counts["rows_duplicate"],
    ) == (12, 3, 8, 1)
    assert broken_accounts(accounts_of(tables)).is_empty()
    assert refused_of(tables)["quarantine_id"].is_unique().all()


def test_reading_twice_changes_nothing_and_commits_nothing(tables, tmp_path):
    source = contract(tmp_path / "d", FINE + BAD)
    first = ingest(tables, source)
    before = {t: commits(tables, t) for t in (RAW_INTERACTIONS, QUARANTINE, DAYS)}
    again = ingest(tables, source)
    assert again.days.version == first.days.version and not again.days.committed and again.counts == first.counts
    assert {t: commits(tables, t) for t in before} == before


def test_a_file_replayed_after_itself_is_all_duplicates(tables, tmp_path):
    source = contract(tmp_path / "d", FINE)
    once = ingest(tables, source).days.version
    twice = ingest(tables, contract(tmp_path / "e", FINE + FINE))
    assert twice.days.version == once and twice.counts["rows_duplicate"] == 3


def test_given_ids_keep_the_first_and_refuse_other_content(tables, tmp_path):
    header = "user_id,item_id,timestamp,action,value,event_id"
    source = contract(
        tmp_path / "d",
        header=header,
        events=(
            "u,a,2026-01-05,rating,4,e1\n"
            "u,b,2026-01-06,rating,4,e1\n"
            "u,a,2026-01-05,rating,4,e1\n"
            "u,b,2026-01-06,rating,4,e2\n"
        ),
    )
    done = ingest(tables, source)
    assert events_of(tables)["event_id"].to_list() == ["e1", "e2"] and done.reasons == {"conflicting_event_id": 1}
    version, rows = done.days.version, refused_of(tables)
    assert rows.select("position", "day").rows() == [(2, "2026-01-06")]
    # The same from single days, whatever the order: the conflict lies on another day than the event that it
    # repeats.
    other = LocalTables(warehouse_root=str(tmp_path / "w2"), artifact_root=str(tmp_path / "a2"))
    ingest(other, source, "2026-01-06", "2026-01-06")
    assert events_of(other)["event_id"].to_list() == ["e2"]
    assert ingest(other, source, "2026-01-05", "2026-01-05").days.version == version
    assert refused_of(other)["quarantine_id"].to_list() == rows["quarantine_id"].to_list()


def test_late_events_write_their_day_only(tables, tmp_path):
    ingest(tables, contract(tmp_path / "d", FINE))
    files = set(tables.warehouse()._open(RAW_INTERACTIONS).file_uris())
    late = ingest(tables, contract(tmp_path / "d", FINE + "w,c,2026-01-05T09:00:00,rating,1\n"))
    after = set(tables.warehouse()._open(RAW_INTERACTIONS).file_uris())
    assert late.days.changed == ["2026-01-05"] and {f for f in files if "2026-01-07" in f} <= after
    fresh = LocalTables(warehouse_root=str(tmp_path / "w2"), artifact_root=str(tmp_path / "a2"))
    full = ingest(fresh, contract(tmp_path / "d", FINE + "w,c,2026-01-05T09:00:00,rating,1\n"))
    assert full.days.version == late.days.version and events_of(fresh).equals(events_of(tables))


def test_days_outside_of_the_run_are_left_alone(tables, tmp_path):
    ingest(tables, contract(tmp_path / "d", FINE + BAD))
    kept = refused_of(tables)
    done = ingest(tables, contract(tmp_path / "d", "x,a,2026-01-07,rating,1\n"), "2026-01-07", "2026-01-07")
    assert done.days.changed == ["2026-01-07"]
    assert events_of(tables)["user_id"].to_list() == ["u", "u", "x"]
    assert set(refused_of(tables)["day"]) == {"2026-01-05"}, kept


def test_an_event_that_the_source_withdrew_goes(tables, tmp_path):
    ingest(tables, contract(tmp_path / "d", FINE))
    gone = ingest(tables, contract(tmp_path / "d", FINE.splitlines()[0] + "\n"))
    assert gone.days.changed == ["2026-01-05", "2026-01-07"] and len(events_of(tables)) == 1
    assert stored_days(tables)["day"].to_list() == ["2026-01-05"]


def test_a_crash_between_the_commits_is_mended_by_a_rerun(tables, tmp_path):
    first = ingest(tables, contract(tmp_path / "d", FINE))
    before = tables.read(DAYS)
    ingest(tables, contract(tmp_path / "d", FINE + "w,c,2026-01-05,rating,1\n"))
    # As if the run had died after the events' commit: the table of days is still the old one.
    tables.write(DAYS, before, first.days.version)
    assert tables.version(DAYS) != tables.version(RAW_INTERACTIONS)
    back = ingest(tables, contract(tmp_path / "d", FINE))
    assert back.days.version == first.days.version and len(events_of(tables)) == 3


def test_shuffling_through_files_gives_the_same(tmp_path):
    rng = random.Random(0)
    rows = [
        f"u{rng.randrange(20)},{rng.choice('abc')},2026-01-{1 + n % 29:02d}T10:00:0{n % 3},rating,{n % 2}"
        for n in range(3000)
    ]
    source = contract(tmp_path / "d", "\n".join(rows) + "\n")
    found = []
    for max_rows in (10**6, 100):
        with take_in(
            open_reader(source).interactions(),
            limits=Limits(NOW),
            known_items=pl.Series(["a", "b", "c"]),
            first=ALL_DAYS[0],
            last=ALL_DAYS[1],
            max_rows=max_rows,
        ) as intake:
            assert intake.events.spilled == (max_rows == 100)
            found.append((pl.concat(list(intake.events.buckets())).sort("order"), intake.accounts))
    assert found[0][0].equals(found[1][0]) and found[0][1].equals(found[1][1])
    assert found[0][1]["rows_duplicate"].sum() > 0


def test_unreadable_files_are_in_quarantine_and_the_rest_proceeds(tables, tmp_path):
    folder = tmp_path / "d" / "interactions"
    folder.mkdir(parents=True)
    (tmp_path / "d" / "items.csv").write_text("item_id,title\na,A\n")
    (folder / "1.csv").write_text("user_id,item_id,timestamp\nu,a,2026-01-05\n")
    (folder / "2.csv").write_text("")
    pl.DataFrame({"user_id": ["v"] * 5, "item_id": ["a"] * 5, "timestamp": ["2026-01-06"] * 5}).write_parquet(
        folder / "3.parquet"
    )
    (folder / "3.parquet").write_bytes((folder / "3.parquet").read_bytes()[:100])
    done = ingest(tables, f"contract:{tmp_path / 'd'}")
    assert refused_of(tables).select("source", "position", "reason").rows() == [
        ("interactions/2.csv", 0, "empty_file"),
        ("interactions/3.parquet", 0, "unreadable_file"),
    ]
    assert done.counts["rows_kept"] == 1 and broken_accounts(accounts_of(tables)).is_empty()


def test_a_dropped_column_stops_before_anything_is_written(tables, tmp_path):
    ingest(tables, contract(tmp_path / "d", FINE))
    version = tables.version(RAW_INTERACTIONS)
    with pytest.raises(DatasetError, match="no column timestamp"):
        ingest(tables, contract(tmp_path / "d", "u,a,x,4\n", header="user_id,item_id,action,value"))
    assert tables.version(RAW_INTERACTIONS) == version


def test_survey_spans_the_credible_days(tmp_path):
    source = contract(tmp_path / "d", FINE + BAD)
    assert survey(open_reader(source), NOW) == {
        "dataset": source,
        "first_day": "2026-01-05",
        "last_day": "2026-01-07",
        "rows": 11,
    }
    with pytest.raises(DatasetError, match="has no event that can be read .1 rows were."):
        survey(open_reader(contract(tmp_path / "e", "u,a,never,rating,1\n")), NOW)


CELLS = st.tuples(
    st.sampled_from(["u", "v", ""]),
    st.sampled_from(["a", "b", "zz", ""]),
    st.sampled_from(["2026-01-05", "2026-01-06T10:00:00+02:00", "1767600000", "no", "-1", "2031-01-01", ""]),
    st.sampled_from(["rating", ""]),
    st.sampled_from(["1", "2.5", "x", ""]),
    st.sampled_from(["", "e1", "e2"]),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(CELLS, max_size=25),
    st.sampled_from([ALL_DAYS, ("2026-01-05", "2026-01-05")]),
    st.sampled_from([3, 10**6]),
)
def test_law_of_totals_and_idempotence(tmp_path_factory, rows, days, max_rows):
    text = "".join(",".join(row) + "\n" for row in rows)
    header = "user_id,item_id,timestamp,action,value,event_id"
    outcomes = []
    for copies in (1, 2):
        source = contract(tmp_path_factory.mktemp("d"), text * copies, header=header)
        with take_in(
            open_reader(source).interactions(),
            limits=Limits(NOW),
            known_items=pl.Series(["a", "b"]),
            first=days[0],
            last=days[1],
            max_rows=max_rows,
        ) as intake:
            kept = list(intake.events.buckets())
            total = sum(intake.total(c) for c in ("rows_kept", "rows_quarantined", "rows_duplicate"))
            assert intake.total("rows_read") == total and total + intake.total("rows_outside") == len(rows) * copies
            assert sum(map(len, kept)) == intake.total("rows_kept") and len(intake.refused) == intake.total(
                "rows_quarantined"
            )
            outcomes.append(pl.concat(kept).sort("order") if kept else None)
    once, twice = outcomes
    assert (once is None) == (twice is None) and (once is None or once.equals(twice))
