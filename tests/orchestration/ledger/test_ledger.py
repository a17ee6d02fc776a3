"""The ledger on SQLite and PostgreSQL: schema, append-only records, and that writing twice writes once."""

import concurrent.futures
import dataclasses
import datetime as dt
import threading

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from assets.experiments.records import CandidateRecord, ExperimentRecord, Pointer, PromotionRecord
from assets.forget_records import ForgetCertificate, ForgetRequest, StoreErasure
from orchestration.ledger.database import alembic_config, make_engine, ready_engine, upgrade
from orchestration.ledger.models import AppendOnlyError, Base, Candidate, Promotion
from orchestration.resources.ledger import PostgresLedger, SqliteLedger, ledger_twin

CANDIDATE = CandidateRecord(
    name="dlrm",
    version="v1",
    model_name="ranker_dlrm",
    model_version="3",
    artifact="rankers/dlrm/v1",
    feature_service="dlrm",
    mlflow_run_id="run",
    dagster_run_id="dagster",
    data_versions={"features/training_set": "t1"},
    metrics={"test/auc": 0.7},
)
PROMOTION = PromotionRecord(
    key="promote:d1",
    kind="promote",
    model="ranker",
    before=None,
    after=Pointer("1", "dlrm", "v1"),
    previous=None,
    who="schedule refresh_daily",
    reason="It is better.",
    report={"rules": [{"ok": True}]},
    dagster_run_id="dagster",
)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def ledger(request, tmp_path):
    """An empty ledger of each kind."""
    url = (
        f"sqlite:///{tmp_path}/deep/ledger.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )
    made = ledger_twin(url)
    assert isinstance(made, SqliteLedger if request.param == "sqlite" else PostgresLedger)
    yield made
    ready_engine(url).dispose()
    ready_engine.cache_clear()


def test_migrations_make_what_the_models_say_and_do_it_once(ledger):
    engine = make_engine(ledger.url)
    assert upgrade(engine) is True
    assert upgrade(engine) is False
    with engine.begin() as connection:
        found = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), Base.metadata)
    assert found == []
    engine.dispose()


def test_migrations_can_be_taken_back(ledger):
    import alembic.command

    engine = make_engine(ledger.url)
    upgrade(engine)
    with engine.begin() as connection:
        alembic.command.downgrade(alembic_config(connection), "base")
    with engine.begin() as connection:
        assert set(sa.inspect(connection).get_table_names()) == {"alembic_version"}
    assert upgrade(engine) is True
    engine.dispose()


def test_several_processes_may_upgrade_at_once(ledger):
    done, errors = [], []

    def first_use():
        engine = make_engine(ledger.url)
        try:
            done.append(upgrade(engine))
        except Exception as error:  # the test asserts that there is none
            errors.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=first_use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(done) == [False, False, False, True]


def test_a_candidate_is_written_once(ledger):
    assert ledger.record_candidate(CANDIDATE) is True
    assert ledger.record_candidate(dataclasses.replace(CANDIDATE, metrics={"test/auc": 0.1})) is False
    assert ledger.record_candidate(dataclasses.replace(CANDIDATE, version="v2")) is True
    first, second = ledger.candidates()
    assert dataclasses.replace(first, created=None) == CANDIDATE
    assert first.created.utcoffset() == dt.timedelta(0) and second.label == "dlrm@v2"


def test_a_candidate_changes_its_status_and_only_to_known_ones(ledger):
    ledger.record_candidate(CANDIDATE)
    ledger.set_status("dlrm", "v1", "rejected", "It is worse.")
    assert [(c.status, c.status_reason) for c in ledger.candidates()] == [("rejected", "It is worse.")]
    with pytest.raises(KeyError, match="no candidate dlrm@v9"):
        ledger.set_status("dlrm", "v9", "rejected", "")
    with pytest.raises(sa.exc.IntegrityError):
        ledger.set_status("dlrm", "v1", "beloved", "")


def test_promotions_are_appended_once_a_key_and_read_back_whole(ledger):
    rollback = dataclasses.replace(
        PROMOTION,
        key="rollback:r",
        kind="rollback",
        before=PROMOTION.after,
        after=Pointer("2", "x", "y"),
        previous=Pointer("1", "dlrm", "v1"),
        forced=True,
    )
    assert [ledger.append_promotion(p) for p in (PROMOTION, PROMOTION, rollback)] == [True, False, True]
    kept = ledger.promotions()
    assert [p.kind for p in kept] == ["promote", "rollback"] and kept[0].number < kept[1].number
    assert [dataclasses.replace(p, created=None, number=0) for p in kept] == [PROMOTION, rollback]


def test_promotions_cannot_be_changed(ledger):
    ledger.append_promotion(PROMOTION)
    with pytest.raises(AppendOnlyError), ledger.session() as session:
        session.scalar(sa.select(Promotion)).reason = "another"
    with pytest.raises(AppendOnlyError), ledger.session() as session:
        session.delete(session.scalar(sa.select(Promotion)))
    for statement in (sa.update(Promotion).values(reason="x"), sa.delete(Promotion)):
        with pytest.raises(AppendOnlyError), ledger.session() as session:
            session.execute(statement)
    for text in ("UPDATE promotion SET reason = 'x'", "DELETE FROM promotion"):
        with pytest.raises(sa.exc.DatabaseError, match="append-only"), ledger.session() as session:
            session.execute(sa.text(text))
    assert [p.reason for p in ledger.promotions()] == ["It is better."]


REQUEST = ForgetRequest("r1", ("d1", "d2"), "asked", "T-1", dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
CERTIFICATE = ForgetCertificate(
    "r1",
    ("d1", "d2"),
    "asked",
    "T-1",
    REQUEST.created,
    REQUEST.created,
    (StoreErasure("ledger", 2, 0, "nothing"),),
    ("ranker version 1",),
    "2 rows were removed.",
    "abc",
    "run",
)


def test_a_request_to_forget_goes_on_until_it_is_certified(ledger):
    known = ledger.forget_list()
    assert known.digests == frozenset() and len(known.key) == 32
    assert ledger.begin_forgetting(REQUEST) == REQUEST
    assert ledger.forget_list() == dataclasses.replace(known, digests=frozenset(REQUEST.users)), "one secret for ever"
    ledger.note_forgetting("r1", {"ledger": {"rows": 2, "versions": 0}}, ("ranker version 1",))
    again = ledger.begin_forgetting(dataclasses.replace(REQUEST, request_id="r2", users=("d2", "d1")))
    assert (again.request_id, again.done["ledger"]["rows"], again.models) == ("r1", 2, ("ranker version 1",))
    assert [ledger.append_certificate(CERTIFICATE) for _ in range(2)] == [True, False]
    assert ledger.certificates() == [CERTIFICATE] and CERTIFICATE.rows_removed == 2
    later = dataclasses.replace(REQUEST, request_id="r3")
    assert ledger.begin_forgetting(later).request_id == "r3", "a finished request does not go on"
    for text in ("UPDATE forget_certificate SET note = 'x'", "DELETE FROM forget_certificate"):
        with pytest.raises(sa.exc.DatabaseError, match="append-only"), ledger.session() as session:
            session.execute(sa.text(text))


def test_rows_of_users_go_from_every_table_that_has_users(ledger, tmp_path):
    with ledger.session() as session:
        session.execute(sa.text("CREATE TABLE queue (user_id VARCHAR(99), payload VARCHAR(99))"))
        session.execute(sa.text("INSERT INTO queue VALUES ('one-to-forget', 'p'), ('other', 'about one-to-forget')"))
    assert ledger.held_rows(["one-to-forget", "nobody"])["queue"] == 1
    ledger.erase_rows(["one-to-forget", "nobody"])
    assert ledger.held_rows(["one-to-forget"])["queue"] == 0 and ledger.held_rows(["other"])["queue"] == 1
    assert ledger.tables_with_text("one-to-forget") == ["queue"] and ledger.tables_with_text("one_to_forget") == []
    if isinstance(ledger, SqliteLedger):
        ledger.erase_rows(["other"])
        assert not [p for p in (tmp_path / "deep").iterdir() if b"one-to-forget" in p.read_bytes()]


def test_an_experiment_grows_by_phases_and_never_changes_its_past(ledger):
    record = ExperimentRecord("e", "salt", ({"control": 0.5, "treatment": 0.5},))
    assert ledger.experiment("e") is None
    started = ledger.record_experiment(record).started
    grown = dataclasses.replace(record, arms=(*record.arms, {"zeta": 0.2, "control": 0.8}))
    assert ledger.record_experiment(grown).arms == grown.arms
    kept = ledger.record_experiment(record)
    assert kept.arms == grown.arms and kept.started == started, "an older phase does not take a newer one back"
    assert list(kept.arms[1]) == ["zeta", "control"], "the order of arms is part of the allocation"
    for wrong in (
        dataclasses.replace(grown, salt="other"),
        dataclasses.replace(record, arms=({"control": 1.0},)),
    ):
        with pytest.raises(ValueError, match="another salt or other arms"):
            ledger.record_experiment(wrong)


def test_a_session_that_fails_writes_nothing(ledger):
    with pytest.raises(RuntimeError), ledger.session() as session:
        values = dataclasses.asdict(CANDIDATE) | {"created": dt.datetime.now(dt.UTC)}
        session.add(Candidate(**values))
        session.flush()
        raise RuntimeError
    assert ledger.candidates() == []


def test_a_moment_without_time_zone_is_refused(ledger):
    naive = dataclasses.replace(CANDIDATE, created=dt.datetime(2026, 1, 1))
    with pytest.raises(sa.exc.StatementError, match="time zone"):
        ledger.record_candidate(naive)


def test_writers_wait_for_each_other(ledger):
    errors = []

    def write(n):
        try:
            for i in range(10):
                ledger.record_candidate(dataclasses.replace(CANDIDATE, version=f"v{n}-{i}"))
                ledger.set_status("dlrm", f"v{n}-{i}", "rejected", "busy")
        except Exception as error:  # the test asserts that there is none
            errors.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(ledger.candidates()) == 40


def test_sqlite_is_in_wal_mode_with_a_busy_timeout(tmp_path):
    engine = make_engine(f"sqlite:///{tmp_path}/ledger.db")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000
    engine.dispose()


def test_many_may_open_a_new_ledger_at_once(tmp_path):
    def first_use(n):
        # A lone switch to the write-ahead log collides once in some hundred attempts: thirty files, eight openers.
        engine = make_engine(f"sqlite:///{tmp_path}/ledger{n % 30}.db")
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS t (x)")
        engine.dispose()
        return n

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert len(list(pool.map(first_use, sorted(range(240), key=lambda n: n % 30)))) == 240


def test_a_database_that_does_not_answer_is_named_without_its_password():
    ledger = ledger_twin("postgresql://someone:secret@127.0.0.1:9/ledger")
    with pytest.raises(ConnectionError, match="BELVEDERE_LEDGER_URL") as refused:
        ledger.candidates()
    assert "secret" not in str(refused.value)
