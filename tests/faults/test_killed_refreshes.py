"""Real worker processes killed with SIGKILL, and the queue's database killed under a worker: nothing is lost."""

import datetime as dt
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from models.personas.safety import SafetyConfig
from orchestration.ledger.database import ready_engine
from orchestration.resources.ledger import ledger_twin
from ray_jobs.databases import shared_engine
from ray_jobs.personas.queue import Wanted
from ray_jobs.personas.refresh import PersonaRefresher
from ray_jobs.personas.sql_queue import PERSONA_REFRESH
from ray_jobs.tables.personas import PERSONA_STORE, REFRESHED_PERSONAS
from tests.ray_jobs.language.fault_server import FaultServer
from tests.ray_jobs.refreshes import Model, files_in, refresh_config, seed_tables
from tests.services import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
USERS = [f"u{n}" for n in range(6)]
PATIENCE = 120.0
WORKER = """
import sys
from ray_jobs.personas.refresh import Config, PersonaRefresher
PersonaRefresher(Config.model_validate_json(sys.stdin.read())).drain()
"""


class Trap:
    """Holds the first prompt of a kind for as long as the test wants, and says that it is there."""

    def __init__(self, is_it):
        self.is_it, self.caught, self.open = is_it, threading.Event(), threading.Event()

    def __call__(self, prompt):
        if not self.open.is_set() and self.is_it(prompt):
            self.caught.set()
            self.open.wait(PATIENCE)


def killed_in_a(trap, config):
    """Runs a worker as a process of its own until the trap holds it; then SIGKILL."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER], cwd=ROOT, stdin=subprocess.PIPE, text=True)
    worker.stdin.write(config.model_dump_json())
    worker.stdin.close()
    try:
        assert trap.caught.wait(PATIENCE)
    finally:
        worker.kill()
        assert worker.wait() == -9
        trap.open.set()


@pytest.mark.parametrize("where", ["while sentences are written", "between store and completion"])
def test_a_killed_worker_loses_nothing_and_pays_nothing_twice(tables, tmp_path, where):
    seed_tables(tables)
    queue = ledger_twin(f"sqlite:///{tmp_path}/ledger.db").persona_queue()
    queue.enqueue([Wanted(u, "missing", "c", "v1") for u in USERS])
    writing = where == "while sentences are written"
    # Two users a batch: the first batch is through when the fifth sentence is asked for.
    trap = Trap(lambda prompt: "<interest>" in prompt and len(model.sentences) >= 4 if writing else "<text>" in prompt)
    model = Model(trap)
    with FaultServer(model) as server:
        config = refresh_config(
            tables,
            queue,
            server.url,
            files_in(tmp_path / "online"),
            lease_seconds=600.0,
            safety=SafetyConfig(categories=("violence",)),
        )
        killed_in_a(trap, config)
        stored = tables.read(PERSONA_STORE, ["content_key", "text"]).to_pylist()
        served = config.store.open().read(USERS)
        assert len(stored) == 2 and len(served) == (2 if writing else 0)
        assert queue.stats().leased == 6 - len(served), "nobody gave them back"
        paid = [p for p in model.sentences if any(_topic(p) in row["text"] for row in stored)]
        before, model.sentences = list(model.sentences), []
        with shared_engine(queue.url).begin() as connection:  # Ten minutes later.
            connection.execute(sa.update(PERSONA_REFRESH).values(lease_until=dt.datetime.now(dt.UTC)))
        told = PersonaRefresher(config, number=7).drain()
    assert (told.refreshed, told.failed, told.lost) == (6 - len(served), 0, 0)
    assert told.cached == 2 - len(served), "what was stored is served without the model"
    assert queue.stats()[:4] == (0, 0, 0, 0)
    assert set(config.store.open().read(USERS)) == set(USERS)
    keys = tables.read(PERSONA_STORE, ["content_key"])["content_key"].to_pylist()
    assert len(keys) == len(set(keys)) == 6
    assert paid and not set(before[:4]) & set(model.sentences), "no sentence of a stored text is asked for again"
    rows = tables.read(REFRESHED_PERSONAS, ["user_id"])["user_id"].to_pylist()
    assert sorted(rows) == USERS
    shared_engine(queue.url).dispose()


def _topic(prompt):
    return prompt.split("topic: ")[1].splitlines()[0]


@pytest.mark.services
def test_a_worker_outlives_the_queues_database(tables, tmp_path):
    seed_tables(tables)
    with tempfile.TemporaryDirectory(prefix="belvedere-postgres-") as folder:
        server = PostgresServer(Path(folder), {"synchronous_commit": "on"})
        down, up = threading.Event(), threading.Event()

        def until_it_is_down(prompt):
            down.set()
            up.wait(PATIENCE)

        with FaultServer(Model(until_it_is_down)) as endpoint:
            with server.running():
                queue = ledger_twin(f"{server.url}/postgres").persona_queue()
                queue.enqueue([Wanted(u, "missing", "c", "v1") for u in USERS])
                config = refresh_config(tables, queue, endpoint.url, files_in(tmp_path / "online"))
                worker = PersonaRefresher(config)
                told = []
                thread = threading.Thread(target=lambda: told.append(worker.drain()))
                thread.start()
                assert down.wait(PATIENCE)
                server.kill()
            up.set()
            with server.running():
                thread.join(PATIENCE)
                assert told and told[0].refreshed == 6 and told[0].lost == told[0].retried == 0
                stats = queue.stats()
                assert stats.depth == stats.leased == stats.failed == 0
                for engine in (shared_engine(queue.url), ready_engine(queue.url)):
                    engine.dispose()
