import polars as pl
import pytest

from assets.interactions.checks import broken_accounts
from assets.interactions.readers.base import DatasetError
from assets.interactions.replay import export_quarantine, replay
from ray_jobs.tables.interactions import MENDED_EVENTS, QUARANTINE, RAW_INTERACTIONS
from tests.assets.interactions.sources import (
    NOW,
    accounts_of,
    commits,
    contract,
    events_of,
    ingest,
    refused_of,
)

EVENTS = (
    "u,a,2026-01-05T10:00:00,rating,4\n"
    "u,,2026-01-05T10:00:00,rating,3\n"
    "v,b,never,rating,2\n"
    "w,c,2026-01-07,rating,much\n"
    "x,a\n"
)


@pytest.fixture
def source(tmp_path):
    return contract(tmp_path / "d", EVENTS)


def mend(folder, **cells) -> None:
    """Fills in cells of an export: ``reason={"column": value}``."""
    rows = pl.read_csv(folder / "interactions.csv", infer_schema=False)
    for reason, values in cells.items():
        rows = rows.with_columns(
            [
                pl.when(pl.col("reason") == reason).then(pl.lit(v)).otherwise(pl.col(c)).alias(c)
                for c, v in values.items()
            ]
        )
    rows.write_csv(folder / "interactions.csv")


def test_round_trip(tables, source, tmp_path):
    ingest(tables, source)
    assert export_quarantine(tables, str(tmp_path / "out")) == 4
    exported = pl.read_csv(tmp_path / "out" / "interactions.csv", infer_schema=False)
    assert exported["user_id"].to_list() == ["u", "v", "w", None] and exported["timestamp"][1] == "never"
    mend(
        tmp_path / "out",
        missing_item_id={"item_id": "b"},
        unparsable_time={"timestamp": "2026-01-09"},
        wrong_type_value={"value": "plenty"},
    )
    done = replay(tables, str(tmp_path / "out"), NOW)
    assert done == (2, 2, 0, 0, ["2026-01-05", "2026-01-09"])
    assert events_of(tables).select("user_id", "item_id", "day", "sequence").rows() == [
        ("u", "a", "2026-01-05", 0),
        ("u", "b", "2026-01-05", 1),
        ("v", "b", "2026-01-09", 0),
    ]
    assert refused_of(tables).select("reason", "status").rows() == [
        ("missing_item_id", "replayed"),
        ("unparsable_time", "replayed"),
        ("wrong_type_value", "open"),
        ("missing_user_id", "open"),
    ]
    accounts = accounts_of(tables)
    assert broken_accounts(accounts).is_empty()
    kept = accounts.filter(pl.col("source_table") == "interactions")["rows_kept"].sum()
    assert kept == tables.warehouse().num_rows(RAW_INTERACTIONS) == 3


def test_an_export_overwrites_neither_the_source_nor_mended_rows(tables, source, tmp_path):
    ingest(tables, source)
    before = (tmp_path / "d" / "interactions.csv").read_text()
    with pytest.raises(DatasetError, match="There is an interactions.csv in .* already: name another folder"):
        export_quarantine(tables, str(tmp_path / "d"))
    assert (tmp_path / "d" / "interactions.csv").read_text() == before


def test_a_replay_after_a_run_over_some_days_counts_each_row_once(tables, source, tmp_path):
    ingest(tables, source)
    for number, changes in enumerate(
        ({"missing_item_id": {"item_id": "b"}}, {"unparsable_time": {"timestamp": "2026-01-09"}})
    ):
        out = tmp_path / f"out{number}"
        export_quarantine(tables, str(out))
        mend(out, **changes)
        # The first mended row, of the 5th, lies outside of this run.
        ingest(tables, source, "2026-01-09", "2026-01-09")
        assert replay(tables, str(out), NOW).replayed == 1
    mended = accounts_of(tables).filter(pl.col("source") == "mended")
    names = ["rows_read", "rows_kept", "rows_quarantined", "rows_duplicate", "rows_outside"]
    assert mended.select(names).rows() == [(1, 1, 0, 0, 1)] and len(events_of(tables)) == 3


def test_replaying_twice_changes_nothing(tables, source, tmp_path):
    ingest(tables, source)
    export_quarantine(tables, str(tmp_path / "out"))
    mend(tmp_path / "out", missing_item_id={"item_id": "b"})
    replay(tables, str(tmp_path / "out"), NOW)
    before = {t: commits(tables, t) for t in (RAW_INTERACTIONS, MENDED_EVENTS)}
    again = replay(tables, str(tmp_path / "out"), NOW)
    assert again.replayed == 0 and again.already_replayed == 1
    assert {t: commits(tables, t) for t in before} == before


def test_replayed_rows_survive_the_next_ingestion(tables, source, tmp_path):
    ingest(tables, source)
    export_quarantine(tables, str(tmp_path / "out"))
    mend(tmp_path / "out", missing_item_id={"item_id": "b"}, unparsable_time={"timestamp": "2026-01-09"})
    replay(tables, str(tmp_path / "out"), NOW)
    version, rows, state = tables.version(RAW_INTERACTIONS), events_of(tables), tables.version(QUARANTINE)
    again = ingest(tables, source)
    assert again.days.version == version and not again.days.committed and tables.version(QUARANTINE) == state
    assert events_of(tables).equals(rows) and again.counts["rows_kept"] == 3
    assert broken_accounts(accounts_of(tables)).is_empty()


@pytest.mark.parametrize("mended_as", ["csv", "parquet"])
def test_ids_of_a_float_column_come_back_as_they_are_read(tables, tmp_path, mended_as):
    (tmp_path / "d").mkdir()
    # Pandas turns a column of whole numbers with a gap into floats.
    events = {"user_id": [7.0, 7.0, None], "item_id": ["a"] * 3, "timestamp": ["2026-01-05", "never", "2026-01-05"]}
    pl.DataFrame(events).write_parquet(tmp_path / "d" / "interactions.parquet")
    (tmp_path / "d" / "items.csv").write_text("item_id,title\na,A\n")
    ingest(tables, f"contract:{tmp_path / 'd'}")
    out = tmp_path / "out"
    export_quarantine(tables, str(out))
    mend(out, unparsable_time={"timestamp": "2026-01-06"}, missing_user_id={"user_id": "8"})
    if mended_as == "parquet":
        rows = pl.read_csv(out / "interactions.csv").cast({"user_id": pl.Float64})
        rows.write_parquet(out / "interactions.parquet")
        (out / "interactions.csv").unlink()
    assert replay(tables, str(out), NOW).replayed == 2
    assert events_of(tables).select("user_id", "day").sort("user_id", "day").rows() == [
        ("7", "2026-01-05"),
        ("7", "2026-01-06"),
        ("8", "2026-01-05"),
    ]


def test_a_killed_replay_is_finished_by_the_next(tables, source, tmp_path, monkeypatch):
    import assets.interactions.replay as module

    ingest(tables, source)
    export_quarantine(tables, str(tmp_path / "out"))
    mend(tmp_path / "out", missing_item_id={"item_id": "b"})
    for victim in ("write_days", "_account", "_mark"):
        with monkeypatch.context() as patched:

            def die(*args, **kwargs):
                raise KeyboardInterrupt

            patched.setattr(module, victim, die)
            with pytest.raises(KeyboardInterrupt):
                replay(tables, str(tmp_path / "out"), NOW)
    assert replay(tables, str(tmp_path / "out"), NOW).replayed == 1
    assert len(events_of(tables)) == 2 and len(tables.read(MENDED_EVENTS)) == 1
    accounts = accounts_of(tables)
    assert broken_accounts(accounts).is_empty() and accounts.filter(pl.col("source") == "mended")[
        "rows_kept"
    ].to_list() == [1]


def test_a_row_that_the_source_mends_too_is_a_duplicate(tables, tmp_path):
    ingest(tables, contract(tmp_path / "d", EVENTS))
    export_quarantine(tables, str(tmp_path / "out"))
    mend(tmp_path / "out", missing_item_id={"item_id": "b"})
    replay(tables, str(tmp_path / "out"), NOW)
    done = ingest(tables, contract(tmp_path / "d", EVENTS.replace("u,,", "u,b,")))
    assert done.counts["rows_duplicate"] == 1 and len(events_of(tables)) == 2


def test_unknown_rows_conflicts_and_missing_columns(tables, tmp_path):
    header = "user_id,item_id,timestamp,action,value,event_id"
    ingest(tables, contract(tmp_path / "d", "u,a,2026-01-05,rating,4,e1\nv,b,never,rating,4,e1\n", header=header))
    export_quarantine(tables, str(tmp_path / "out"))
    mend(tmp_path / "out", unparsable_time={"timestamp": "2026-01-06"})
    extra = (tmp_path / "out" / "interactions.csv").read_text() + "0000,x,9,r,d,u,a,2026-01-05,rating,1,\n"
    (tmp_path / "out" / "interactions.csv").write_text(extra)
    done = replay(tables, str(tmp_path / "out" / "interactions.csv"), NOW)
    assert (done.replayed, done.still_bad, done.unknown) == (0, 1, 1)
    assert refused_of(tables)["reason"].to_list() == ["conflicting_event_id"]
    (tmp_path / "x.csv").write_text("user_id,item_id,timestamp\nu,a,1\n")
    with pytest.raises(DatasetError, match="has no column quarantine_id"):
        replay(tables, str(tmp_path / "x.csv"), NOW)
    with pytest.raises(DatasetError, match="no mended rows at"):
        replay(tables, str(tmp_path / "nowhere"), NOW)
