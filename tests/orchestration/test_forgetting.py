"""A user who asks for it leaves every store, stays away, and a certificate says so: also after a kill in the middle."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from assets.interactions.replay import export_quarantine
from orchestration.forget_stores import uncovered
from orchestration.forgetting import Platform, StillFoundError, forget
from orchestration.jobs.forget_user import Quiet, forget_user, users_in
from orchestration.jobs.quarantine import replay_quarantine_job
from orchestration.reference import all_tables
from ray_jobs import erasure
from ray_jobs.tables.clusters import EMBEDDING_STORE
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import INGESTIONS, QUARANTINE, RAW_INTERACTIONS, SPLITS, USERS
from ray_jobs.tables.personas import PERSONA_COVERAGE, PERSONA_STORE, USER_PERSONAS
from ray_jobs.tables.vista import STAGED_EXPORTS
from ray_jobs.warehouse import Column, Table, Warehouse
from tests.orchestration.forgetting import ASSETS, GONE, PREDICTIONS, build, platform, refresh
from tests.searching import places_with

ROOT = Path(__file__).resolve().parents[2]
REASON = "asked for by mail"


@pytest.fixture(scope="module")
def made(tmp_path_factory, migrated_mlflow):
    """A home with the user in every store."""
    home = tmp_path_factory.mktemp("forgetting") / "home"
    (home / "mlflow").mkdir(parents=True)
    (home / "dagster").mkdir()
    shutil.copy(migrated_mlflow, home / "mlflow/mlflow.db")
    with dg.instance_for_test(temp_dir=str(home / "dagster")) as instance:
        build(home, instance)
    return home


@pytest.fixture
def home(made, tmp_path, monkeypatch):
    """A copy of it, which is the configured home."""
    shutil.copytree(made, tmp_path / "home")
    monkeypatch.setenv("BELVEDERE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def world(home):
    """The platform of a home, for calls without Dagster."""
    r = platform(home)
    return Platform(*(r[n] for n in ("tables", "features", "ledger", "tracking", "text_encoder")), home, "")


def erase(home, *ids, say=lambda _: None, **more):
    """Forgets without Dagster."""
    return forget(world(home), list(ids or (GONE,)), reason=REASON, requested_by="T-1", run_id="r", say=say, **more)


def launch(home, instance, **config):
    """The job as on-call launches it."""
    resources = {k: v for k, v in platform(home).items() if k != "dataset"}
    config = {"users_file": listed(home, GONE), "reason": REASON} | config
    return forget_user.execute_in_process(
        run_config={"ops": {"forget_users": {"config": config}}},
        resources=resources,
        instance=instance,
        raise_on_error=False,
    )


def listed(home, *ids):
    """A file with ids, beside the home."""
    path = home.parent / "users.txt"
    path.write_text("\n".join(ids))
    return str(path)


def versions(home):
    """The version that each table and view says it has; the accounts of an ingestion count who is kept out, no more."""
    r = platform(home)
    warehouse, published = r["tables"].warehouse(), r["features"].publications()
    found = [t for t in [*all_tables(), PREDICTIONS] if warehouse.exists(t) and t is not INGESTIONS]
    tables = {t.name: warehouse.version(t) for t in found}
    return tables | {v: published.current(v).version for v in ("user_activity", "user_persona", "user_vista")}


def test_every_table_with_personal_data_is_covered():
    assert uncovered(all_tables()) == []
    letter = Column("letter", pa.string(), "What somebody wrote.", pii=True)
    assert uncovered([Table("stage/new", "one letter", (letter,), ())]) == ["stage/new"]


def test_nothing_is_left_and_nothing_else_is_lost(home, instance):
    before, tables = versions(home), platform(home)["tables"]
    others = {t.name: tables.warehouse().num_rows(t) for t in (RAW_INTERACTIONS, SPLITS, TRAINING_SET, PREDICTIONS)}
    assert len(places_with(home, GONE)) > 20, "the user is in every store before"
    done = launch(home, instance)
    assert done.success
    assert places_with(home.parent, GONE, (home.parent / "shop",)) == ["users.txt"]
    assert places_with(home, "What somebody watched") == [] and len(places_with(home, "What u01 watched")) >= 2
    assert versions(home) == before, "nobody else's data is stale because one left"
    for table in (RAW_INTERACTIONS, SPLITS, TRAINING_SET, PREDICTIONS):
        assert tables.warehouse().num_rows(table) == others[table.name] - 8
        assert DeltaTable(tables.uri(table)).version() > 0
        with pytest.raises(Exception, match="No files in log"):
            DeltaTable(tables.uri(table), version=0)
    texts = set(tables.read(PERSONA_STORE, ["content_key"])["content_key"].to_pylist())
    kept = {"key of shared v1", "key of shared v2", "key of u02, fresh"}
    assert not {k for k in texts if "somebody" in k} and kept <= texts
    assert tables.warehouse().num_rows(EMBEDDING_STORE) == len(texts) - 1, "the fresh one was not encoded"
    (counts,) = tables.read(PERSONA_COVERAGE).to_pylist()
    assert counts["users"] == 12 and counts["users_written"] == tables.warehouse().num_rows(USER_PERSONAS)
    assert tables.read(QUARANTINE, ["payload"])["payload"].to_pylist() == [
        '{"user_id":"u01","item_id":"i1","timestamp":"never","action":"rating","value":"4"}'
    ]
    from feature_repo import online  # not above: the process that is killed needs no Feast

    features = platform(home)["features"]
    found = online.read(features.store(), ["user_activity:num_events"], "user_id", [GONE, "u01"])
    assert [row["user_activity__num_events"] for row in found] == [None, 8]


def test_the_certificate_tells_what_was_done_and_names_nobody(home, instance):
    target = home.parent / "certificate.json"
    done = launch(home, instance, certificate_file=str(target), requested_by="ticket 7")
    (kept,) = platform(home)["ledger"].certificates()
    said = json.loads(target.read_text())
    assert said == json.loads(kept.to_json()) and GONE not in target.read_text()
    rows = {s.store: s.rows_removed for s in kept.stores}
    assert rows["table interactions/raw_interactions"] == rows["table ranking/popularity"] == 8
    assert rows["table interactions/quarantine"] == 3 and rows["online store sqlite"] == 1 and rows["ledger"] == 1
    assert rows["view user_activity"] >= 8 and rows["models in MLflow"] == rows["models in the artifact store"] == 1
    assert rows["table personas/lessons"] == rows["lessons of students"] == 1
    assert rows["table personas/examined_personas"] == 1
    assert {s.verified for s in kept.stores} == {"nothing"}
    assert kept.users == (platform(home)["ledger"].forget_list().digest(GONE),)
    assert (kept.reason, kept.requested_by) == (REASON, "ticket 7")
    shown = next(e for e in done.all_events if e.event_type_value == "STEP_OUTPUT").step_output_data.metadata
    assert shown["certificate"].data == said and "| table interactions/splits | 8 |" in shown["stores"].md_str


def test_the_second_time_nothing_is_found_and_that_is_certified(home):
    erase(home)
    before = {p: p.stat().st_mtime_ns for p in (home / "warehouse").rglob("*")}
    again = erase(home)
    assert again.rows_removed == 0 and again.note.startswith("Nothing was found of 1 user in")
    assert {p: p.stat().st_mtime_ns for p in (home / "warehouse").rglob("*")} == before, "nothing is written again"
    assert erase(home, "nobody-of-this-name").note.startswith("Nothing was found of 1 user in")
    assert len(platform(home)["ledger"].certificates()) == 3


def test_a_refresh_neither_makes_anything_again_nor_brings_the_user_back(home, instance):
    erase(home)
    before, resources = versions(home), platform(home)
    result = refresh(resources, instance)
    committed = {
        e.asset_key.to_user_string(): e.materialization.metadata["table_commits"].value
        for e in result.get_asset_materialization_events()
    }
    assert len(committed) == len(ASSETS) and set(committed.values()) == {0}
    assert versions(home) == before
    assert places_with(home, GONE) == []


def test_when_a_day_is_read_anew_the_user_stays_away(home, instance):
    erase(home)
    resources, shop = platform(home), home.parent / "shop" / "interactions.csv"
    with shop.open("a") as events:
        events.write("u05,i9,2026-01-05T23:00:00,rating,5\n")
    refresh(resources, instance, ASSETS[:4])
    tables = resources["tables"]
    assert tables.warehouse().num_rows(RAW_INTERACTIONS) == 12 * 8 + 1
    assert GONE not in tables.read(USERS)["user_id"].to_pylist()
    assert places_with(home, GONE) == []


def test_what_a_killed_export_staged_is_not_taken_up_by_the_next_one(home, tmp_path):
    artifacts, shard = platform(home)["tables"].artifacts(), f"{STAGED_EXPORTS}/v/of-8/shard-00000"
    (tmp_path / "staged").mkdir()
    pq.write_table(pa.table({"user_id": [GONE, "u01"]}), tmp_path / "staged/summaries.parquet", compression="none")
    artifacts.put(tmp_path / "staged", shard)
    (store,) = [s for s in erase(home).stores if s.store == "staged exports of summaries"]
    assert not artifacts.exists(shard) and places_with(home, GONE) == []
    assert (store.versions_vacuumed, store.verified) == (2, "nothing"), "a shard and its marker"


def test_mended_rows_do_not_bring_the_user_back(home, instance):
    tables, folder = platform(home)["tables"], home.parent / "mended"
    export_quarantine(tables, str(folder))
    rows = pl.read_csv(folder / "interactions.csv", infer_schema=False)
    mended = rows.with_columns(item_id=pl.lit("i3"), timestamp=pl.lit("2026-01-06T09:00:00"))
    mended.write_csv(folder / "interactions.csv")
    erase(home)
    resources = {k: platform(home)[k] for k in ("tables", "ledger")}
    config = {"ops": {"take_back_mended_rows": {"config": {"mended": str(folder)}}}}
    assert replay_quarantine_job.execute_in_process(run_config=config, resources=resources, instance=instance).success
    assert tables.warehouse().num_rows(RAW_INTERACTIONS) == 12 * 8 + 1, "the other's row is back"
    assert places_with(home, GONE) == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.orchestration.test_forgetting import erase
def say(text):
    if text.startswith({at!r}):
        os.kill(os.getpid(), signal.SIGKILL)
erase(Path({home!r}), say=say)
"""


def test_killed_in_the_middle_it_goes_on_and_counts_once(home):
    code = KILLED.format(root=str(ROOT), home=str(home), at="table interactions/splits")
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"BELVEDERE_HOME": str(home)})
    assert killed.returncode == -signal.SIGKILL
    ledger = platform(home)["ledger"]
    assert ledger.certificates() == [] and len(ledger.forget_list().digests) == 1
    assert places_with(home, GONE), "the work is half done"
    said = []
    certificate = erase(home, say=said.append)
    assert said[0].endswith("it was begun before and goes on.")
    assert {s.store: s.rows_removed for s in certificate.stores}["table interactions/raw_interactions"] == 8
    assert places_with(home, GONE) == []


@pytest.mark.parametrize("victim", ["delete", "purge"])
def test_interrupted_inside_a_table_it_goes_on(home, monkeypatch, victim):
    real, calls = getattr(erasure, victim), []

    def fails_once_after_its_work(*arguments):
        done = real(*arguments)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(erasure, victim, fails_once_after_its_work)
        with pytest.raises(KeyboardInterrupt):
            erase(home)
    rows = {s.store: s.rows_removed for s in erase(home).stores}
    assert rows["table interactions/raw_interactions"] == rows["table interactions/splits"] == 8
    assert places_with(home, GONE) == []


def test_what_another_run_wrote_meanwhile_is_erased_too(home):
    tables, told = platform(home)["tables"], []
    held = tables.read(PREDICTIONS)

    def quiet():
        quiet_so_far = bool(told) or GONE in tables.read(PREDICTIONS, ["user_id"])["user_id"].to_pylist()
        if not quiet_so_far:
            told.append("once")
            tables.write(PREDICTIONS, held, "written by a run that had read the user before")
        return quiet_so_far

    erase(home, wait_for_others=quiet)
    assert told and places_with(home, GONE) == []


def test_a_longer_id_is_another_user_and_what_the_home_only_points_to_is_not_touched(home):
    longer, outside = f"{GONE}0", home.parent / "outside.log"
    outside.write_text(GONE)
    (home / "logs/link.log").symlink_to(outside)
    os.mkfifo(home / "logs/pipe")
    (home / "logs/both.log").write_text(f"{longer}, {GONE}.")
    with platform(home)["ledger"].session() as session:
        import sqlalchemy as sa

        session.execute(sa.text("INSERT INTO queue VALUES (:u, :p)"), {"u": longer, "p": f"of {longer}"})
    assert {s.verified for s in erase(home).stores} == {"nothing"}
    assert (home / "logs/both.log").read_text() == f"{longer}, {'*' * len(GONE)}."
    assert outside.read_text() == GONE
    with platform(home)["ledger"].session() as session:
        assert session.scalars(sa.text("SELECT user_id FROM queue")).all() == ["u01", longer]


def test_an_id_in_a_database_or_in_an_artifact_is_named_and_not_written_over(home):
    artifact = home / "mlflow/artifacts/ranking/note.yaml"
    artifact.write_text(f"who: {GONE}")
    with pytest.raises(StillFoundError, match=r"still has the id in mlflow/artifacts/ranking/note\.yaml"):
        erase(home)
    assert artifact.read_text() == f"who: {GONE}"
    artifact.unlink()
    with contextlib.closing(sqlite3.connect(home / "other.db")) as database:
        database.execute("CREATE TABLE t (a TEXT, b TEXT)")
        database.execute("INSERT INTO t VALUES ('x', ?)", [GONE])
        database.commit()
    with pytest.raises(StillFoundError, match=r"still has the id in other\.db"):
        erase(home)


def test_a_file_of_ids_is_read_to_the_letter(tmp_path):
    path = tmp_path / "users.txt"
    path.write_bytes("\ufeffann\r\n\r\n bob\u2028cid \r\n".encode())
    assert users_in(str(path), str(tmp_path / "home")) == ["ann", "bob\u2028cid"]
    path.write_bytes("j\u00f6rg".encode("latin-1"))
    with pytest.raises(ValueError, match="is not UTF-8: save it as such"):
        users_in(str(path), str(tmp_path / "home"))
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="lies below BELVEDERE_HOME"):
        users_in(f"{tmp_path.parent}/../{tmp_path.parent.name}/{tmp_path.name}/elsewhere/users.txt", str(tmp_path))


def test_ids_of_any_form_take_nobody_along(tmp_path):
    ids = [
        "o'brien",
        "x' OR '1'='1",
        "back\\slash",
        "%",
        "_",
        "*?[a]",
        "line\nbreak",
        "\u2028",
        "\u00e9",
        "e\u0301",
        "1",
        "1.0",
    ]
    write_deltalake(tmp_path / "stage/any", pa.table({"user_id": ids}))
    for gone in (ids[::2], ids[1::2]):
        assert erasure.count(Warehouse(str(tmp_path)), "stage/any", "user_id", gone) == 6
        erasure.delete(Warehouse(str(tmp_path)), "stage/any", "user_id", gone, "note")
        kept = DeltaTable(tmp_path / "stage/any").to_pyarrow_table()["user_id"].to_pylist()
        assert sorted(kept) == sorted(set(ids[1::2]) - set(gone))


def test_without_a_clean_search_there_is_no_certificate(home):
    with platform(home)["ledger"].session() as session:
        import sqlalchemy as sa

        session.execute(sa.text("CREATE TABLE letters (body TEXT)"))
        session.execute(sa.text("INSERT INTO letters VALUES (:body)"), {"body": f"Dear {GONE},"})
    with pytest.raises(StillFoundError, match="no certificate, because .* letters.* launch forget_user again"):
        erase(home)
    assert platform(home)["ledger"].certificates() == []


def test_what_can_go_wrong_is_one_sentence(home, instance):
    below = home / "users.txt"
    below.write_text(GONE)
    (home.parent / "empty.txt").write_text("\n")
    for config, said in (
        ({"users_file": str(home.parent / "no.txt")}, "There is no file"),
        ({"users_file": str(below)}, "The list of users lies below BELVEDERE_HOME"),
        ({"users_file": str(home.parent / "empty.txt")}, "There is no user to forget"),
        ({"reason": f"Asked for by {GONE}."}, "The reason or the requester names the user"),
    ):
        failed = launch(home, instance, **config)
        assert not failed.success
        assert said in failed.failure_data_for_node("forget_users").user_failure_data.description
    assert platform(home)["ledger"].certificates() == []


def test_it_waits_for_other_runs_and_says_whose_turn_it_is(home, instance):
    from dagster._core.test_utils import create_run_for_test

    create_run_for_test(instance, job_name="refresh_daily", status=dg.DagsterRunStatus.STARTED)
    failed = launch(home, instance, wait_minutes=0)
    said = failed.failure_data_for_node("forget_users").user_failure_data.description
    assert "of refresh_daily is still at work" in said and "launch forget_user again" in said
    first, second = (create_run_for_test(instance, job_name="forget_user").run_id for _ in range(2))
    waited_for = {r: {o.run_id for o in Quiet(instance, r, 0)._others()} for r in (first, second)}
    assert second not in waited_for[first] and first in waited_for[second], "they do not wait for each other"
    assert platform(home)["ledger"].forget_list().digests, "from the request on no ingestion brings the user back"
