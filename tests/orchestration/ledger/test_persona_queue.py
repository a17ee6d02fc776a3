"""The queue of persona refreshes on SQLite and PostgreSQL: one contract."""

import concurrent.futures
import datetime as dt
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa

from orchestration.ledger.database import ready_engine
from orchestration.ledger.models import PersonaRefresh
from orchestration.resources.ledger import ledger_twin
from ray_jobs.databases import UtcTimestamp, shared_engine
from ray_jobs.personas.queue import INELIGIBLE, REFRESHED, UNSAFE, QueueUnavailableError, Wanted
from ray_jobs.personas.sql_queue import PERSONA_REFRESH, PersonaQueue, due_rows
from tests.services import PostgresServer

ROOT = Path(__file__).resolve().parents[3]
NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
A, B = Wanted("a", "stale", "c1", "v1"), Wanted("b", "missing", "c1", "v1")


def later(seconds):
    return NOW + dt.timedelta(seconds=seconds)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def queue(request, tmp_path):
    """An empty queue of each kind."""
    url = f"sqlite:///{tmp_path}/ledger.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    made = ledger_twin(url).persona_queue().model_copy(update={"max_attempts": 3, "backoff_seconds": 60.0})
    yield made
    shared_engine(url).dispose()


def rows(queue):
    with shared_engine(queue.url).begin() as connection:
        return [r._asdict() for r in connection.execute(sa.select(PERSONA_REFRESH).order_by(PERSONA_REFRESH.c.user_id))]


def only(queue):
    (row,) = rows(queue)
    return row


def test_the_ledgers_model_is_the_queues_table():
    assert [(c.name, str(c.type), c.nullable) for c in PersonaRefresh.__table__.columns] == [
        (c.name, str(c.type), c.nullable) for c in PERSONA_REFRESH.columns
    ]


def test_a_user_has_one_row_and_missing_goes_before_stale(queue):
    assert queue.enqueue([A, A, B, A], NOW) == [True, False, True, False]
    assert queue.stats(later(30)) == (2, 2, 0, 0, 30.0)
    assert [lease.user_id for lease in queue.lease(5, "w", 60, NOW)] == ["b", "a"]
    assert queue.lease(5, "w2", 60, NOW) == [] and queue.stats(NOW).leased == 2


def test_a_finished_refresh_is_asked_for_again_when_clusters_change_or_time_has_passed(queue):
    queue.enqueue([A], NOW)
    (lease,) = queue.lease(1, "w", 60, NOW)
    assert queue.complete([(lease, REFRESHED, "")], NOW) == [True]
    assert queue.enqueue([A], later(10)) == [False], "it was just made"
    assert queue.enqueue([A._replace(reason="missing")], later(10)) == [True], "the online store has lost it"
    (lease,) = queue.lease(1, "w", 60, later(10))
    queue.complete([(lease, UNSAFE, "")], later(10))
    assert queue.enqueue([A._replace(reason="missing")], later(10)) == [False], "it was never served"
    assert queue.enqueue([A._replace(clusters="c2")], later(10)) == [True]
    (lease,) = queue.lease(1, "w", 60, later(10))
    assert lease.clusters == "c2" and lease.attempts == 1
    queue.complete([(lease, REFRESHED, "")], later(10))
    assert queue.enqueue([A._replace(clusters="c2")], later(20 + queue.again_after_seconds)) == [True]


def test_what_is_asked_for_while_a_worker_is_at_it_is_not_lost(queue):
    queue.enqueue([A], NOW)
    (lease,) = queue.lease(1, "w", 60, NOW)
    assert queue.enqueue([A], NOW) == [False], "the worker is at exactly this"
    assert queue.enqueue([A._replace(clusters="c2")], NOW) == [True]
    assert queue.complete([(lease, REFRESHED, "")], later(1)) == [True]
    (again,) = queue.lease(1, "w", 60, later(1))
    assert (again.clusters, again.attempts) == ("c2", 1) and again.fence > lease.fence
    queue.enqueue([A._replace(persona_version="v2")], later(1))
    assert queue.fail(again, "no", retryable=False, now=later(2))
    assert [x.persona_version for x in queue.lease(1, "w", 60, later(2))] == ["v2"], "what failed was another request"


def test_a_lease_that_ended_is_taken_over_and_its_first_holder_has_no_say(queue):
    queue.enqueue([A], NOW)
    (old,) = queue.lease(1, "w1", 60, NOW)
    assert queue.lease(1, "w2", 60, later(59)) == []
    assert queue.stats(later(60)) == (1, 1, 0, 0, 60.0), "waits for whoever comes"
    (new,) = queue.lease(1, "w2", 60, later(60))
    assert new.id == old.id and new.attempts == 2
    assert queue.renew([old], 60, later(61)) == [] and queue.renew([new], 60, later(61)) == [new]
    assert queue.complete([(old, REFRESHED, "")], later(61)) == [False]
    assert queue.fail(old, "x", retryable=True, now=later(61)) is False and queue.release([old]) == 0
    assert only(queue)["state"] == "leased"
    assert queue.complete([(new, REFRESHED, "")], later(61)) == [True]
    assert queue.complete([(new, REFRESHED, "")], later(61)) == [False], "once"


def test_a_prolonged_lease_stays(queue):
    queue.enqueue([A], NOW)
    (lease,) = queue.lease(1, "w1", 60, NOW)
    assert queue.renew([lease], 60, later(50)) == [lease]
    assert queue.lease(1, "w2", 60, later(100)) == [] and len(queue.lease(1, "w2", 60, later(110))) == 1


def test_failures_back_off_and_end_as_dead_letters_that_can_be_replayed(queue):
    queue.enqueue([A], NOW)
    now, pauses = NOW, []
    for attempt in (1, 2, 3):
        (lease,) = queue.lease(1, "w", 60, now)
        assert lease.attempts == attempt
        queue.fail(lease, f"Try {attempt} failed.", retryable=True, now=now)
        row = only(queue)
        if row["state"] == "queued":
            pauses.append((row["not_before"] - now).total_seconds())
            assert queue.lease(1, "w", 60, row["not_before"] - dt.timedelta(seconds=1)) == []
            now = row["not_before"]
    assert 60 <= pauses[0] <= 75 and 120 <= pauses[1] <= 150
    (letter,) = queue.dead_letters()
    assert (letter.attempts, letter.error) == (3, "Try 3 failed.") and queue.stats(now).failed == 1
    assert queue.enqueue([A], later(1e6)) == [False], "the same would fail again"
    assert queue.replay(now) == 1 and queue.replay(now) == 0
    (lease,) = queue.lease(1, "w", 60, now)
    queue.fail(lease, "It can never work.", retryable=False, now=now)
    assert queue.stats(now).failed == 1
    assert queue.enqueue([A._replace(clusters="c2")], now) == [True], "other clusters, another chance"


def test_what_kills_its_workers_is_given_up(queue):
    queue.enqueue([A], NOW)
    for n in range(3):
        assert len(queue.lease(1, "w", 60, later(60 * n))) == 1
    assert queue.lease(1, "w", 60, later(180)) == []
    assert queue.dead_letters()[0].error == "Its worker ended 3 times without a result."


def test_what_was_not_begun_goes_back_without_counting(queue):
    queue.enqueue([A, B], NOW)
    first, second = queue.lease(2, "w-0", 60, NOW)
    assert queue.release([first], pause=30, now=NOW) == 1
    assert queue.lease(2, "w", 60, later(29)) == []
    (again,) = queue.lease(1, "w", 60, later(30))
    assert again.user_id == first.user_id and again.attempts == 1
    assert queue.recover("w-0") == 1, "a process of the same name comes again"
    assert queue.complete([(second, REFRESHED, "")], NOW) == [False]


def test_a_removed_user_leaves_nothing_and_no_lease_fits_a_row_that_comes_after(queue):
    queue.enqueue([A], NOW)
    (lease,) = queue.lease(1, "w", 60, NOW)
    assert queue.remove(["a", "x"]) == 1 and rows(queue) == []
    assert queue.renew([lease], 60, NOW) == []
    queue.enqueue([A], NOW)
    queue.lease(1, "w", 60, NOW)
    assert queue.complete([(lease, REFRESHED, "")], NOW) == [False]


def test_staleness_is_what_became_of_the_last_refresh(queue):
    outcomes = {"a": REFRESHED, "b": REFRESHED, "c": UNSAFE, "d": INELIGIBLE, "e": None}
    queue.enqueue([Wanted(u, "missing", "c", "v2" if u == "b" else "v1") for u in outcomes], NOW)
    leases = queue.lease(9, "w", 60, NOW)
    queue.complete([(x, outcomes[x.user_id], "") for x in leases if outcomes[x.user_id]], NOW)
    assert queue.freshness(100, now=NOW) == (4, 2), "c is unsafe, e waits, d has no history to speak of"
    assert queue.freshness(100, "v1", now=NOW) == (4, 3)
    assert queue.freshness(100, now=later(200)) == (1, 1), "the others have asked for nothing since"


def test_rows_that_answer_no_request_any_more_go(queue):
    queue.enqueue([A, B, A._replace(user_id="c")], NOW)
    leases = {x.user_id: x for x in queue.lease(9, "w", 60, NOW)}
    queue.complete([(leases["a"], REFRESHED, "")], NOW)
    queue.fail(leases["b"], "No.", retryable=False, now=NOW)
    assert queue.prune(10, later(100)) == 0, "it still answers who asks again"
    assert queue.prune(10, later(queue.again_after_seconds)) == 1
    assert [r["user_id"] for r in rows(queue)] == ["b", "c"], "what nobody has done stays"


def test_rows_that_wait_and_rows_whose_lease_ended_are_leased_in_one_order(queue):
    for second, user in enumerate("abcdef"):
        queue.enqueue([Wanted(user, "stale")], later(second))
    held = queue.lease(2, "gone", 10, later(10))
    assert [lease.user_id for lease in held] == ["a", "b"]
    queue.enqueue([Wanted("z", "missing")], later(20))
    assert [lease.user_id for lease in queue.lease(4, "w", 60, later(30))] == ["z", "a", "b", "c"]
    assert [lease.user_id for lease in queue.lease(4, "w", 60, later(30))] == ["d", "e", "f"]


FILL = """
INSERT INTO persona_refresh (id, user_id, reason, state, priority, clusters, persona_version, generation, enqueued,
    not_before, attempts, fence, lease_owner, lease_until, finished, outcome, error)
SELECT n, 'u' || n, 'stale', CASE WHEN n % 100 = 0 THEN 'leased' WHEN n % 10 = 0 THEN 'done' ELSE 'queued' END, n % 2,
    'c', 'v', 1, :then, :then, 0, 0, NULL, CASE WHEN n % 100 = 0 THEN :then END, NULL, '', '' FROM {numbers}
"""
NUMBERS = {
    "sqlite": "(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < :rows) SELECT n FROM c)",
    "postgresql": "generate_series(1, :rows) AS c(n)",
}


def test_a_lease_goes_along_the_index_of_a_million_rows(queue):
    with shared_engine(queue.url).begin() as connection:
        kind = connection.dialect.name
        fill = sa.text(FILL.format(numbers=NUMBERS[kind])).bindparams(sa.bindparam("then", NOW, UtcTimestamp()))
        connection.execute(fill, {"rows": 1_000_000})
        connection.execute(sa.text("ANALYZE persona_refresh"))
        plans = []
        for select in due_rows(256, later(60)):
            shown = select.compile(connection, compile_kwargs={"render_postcompile": True})
            explain = "EXPLAIN QUERY PLAN " if kind == "sqlite" else "EXPLAIN "
            bound = {k: shown._bind_processors.get(k, lambda v: v)(v) for k, v in shown.params.items()}
            found = connection.exec_driver_sql(
                explain + shown.string, bound if kind != "sqlite" else tuple(bound[k] for k in shown.positiontup)
            )
            plans.append(" ".join(str(row[-1]) for row in found))
    for plan in plans:
        assert "ix_persona_refresh_state" in plan, plan
        assert "TEMP B-TREE" not in plan and "Seq Scan" not in plan, plan
    assert len(queue.lease(256, "w", 60, later(60))) == 256


def test_many_workers_get_each_row_once(queue):
    queue.enqueue([Wanted(f"u{n}", "stale") for n in range(120)], NOW)

    def work(n):
        mine = []
        while leases := queue.lease(3, f"w{n}", 60, NOW):
            assert all(queue.complete([(x, REFRESHED, "") for x in leases], NOW))
            mine += [x.user_id for x in leases]
        return mine

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        got = [user for mine in pool.map(work, range(6)) for user in mine]
    assert len(got) == 120 == len(set(got)) and {r["state"] for r in rows(queue)} == {"done"}


def test_many_askers_make_one_row(queue):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        news = list(pool.map(lambda n: queue.enqueue([A, B] if n % 2 else [B, A], NOW), range(24)))
    assert sum(map(sum, news)) == 2 and len(rows(queue)) == 2


WORKER = """
import json, sys
from ray_jobs.personas.sql_queue import PersonaQueue
queue, mine = PersonaQueue(url=sys.argv[1]), []
sys.stdin.readline()
while leases := queue.lease(4, sys.argv[2], 60):
    mine += [x.user_id for x in leases]
    queue.complete([(x, "refreshed", "") for x in leases])
print(json.dumps(mine))
"""


def test_processes_get_each_row_once(tmp_path):
    """SQLite only, where the lock is one of files; to PostgreSQL a thread's connection is as good as a process's."""
    queue = ledger_twin(f"sqlite:///{tmp_path}/ledger.db").persona_queue()
    queue.enqueue([Wanted(f"u{n}", "stale") for n in range(100)])
    command = [sys.executable, "-c", WORKER, queue.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    workers = [subprocess.Popen([*command, name], **pipes) for name in ("w1", "w2")]
    got = [user for w in workers for user in json.loads(w.communicate("\n", timeout=120)[0])]
    assert len(got) == 100 == len(set(got))


@pytest.mark.services
def test_nothing_is_lost_when_the_database_is_killed():
    with tempfile.TemporaryDirectory(prefix="belvedere-postgres-") as folder:
        server = PostgresServer(Path(folder), {"synchronous_commit": "on"})
        with server.running():
            url = f"{server.url}/postgres"
            queue = ledger_twin(url).persona_queue()
            queue.enqueue([A, B])
            (lease,) = queue.lease(1, "w", 3600)
            server.kill()
            with pytest.raises(QueueUnavailableError, match="does not answer: start the ledger's database"):
                queue.enqueue([A])
        with server.running():
            stats = queue.stats()
            assert (stats.depth, stats.leased) == (1, 1)
            assert queue.complete([(lease, REFRESHED, "")]) == [True], "the holder goes on where it was"
            assert [x.user_id for x in queue.lease(2, "w", 60)] == ["a"]
            # It ends when its last client has gone.
            for engine in (shared_engine(url), ready_engine(url)):
                engine.dispose()


def test_errors_of_the_database_show_no_user(queue):
    queue.stats()
    with shared_engine(queue.url).begin() as connection:
        connection.execute(sa.text("ALTER TABLE persona_refresh RENAME TO away"))
    try:
        with pytest.raises(sa.exc.DBAPIError) as refused:
            try:
                queue.enqueue([Wanted("someone@example.org", "stale")])
            except QueueUnavailableError as error:
                raise error.__cause__ from None
        assert "INSERT INTO persona_refresh" in str(refused.value) and "someone" not in str(refused.value)
    finally:
        with shared_engine(queue.url).begin() as connection:
            connection.execute(sa.text("ALTER TABLE away RENAME TO persona_refresh"))


def test_a_database_that_is_away_is_named_without_its_password():
    queue = PersonaQueue(url="postgresql://someone:secret@127.0.0.1:9/ledger")
    with pytest.raises(QueueUnavailableError) as refused:
        queue.stats()
    assert "secret" not in str(refused.value) and "secret" not in repr(queue)
