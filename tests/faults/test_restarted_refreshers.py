"""Actors that refresh personas, killed in a batch: Ray starts them again, nothing is lost, nothing is paid twice."""

import json
import os
import signal
import subprocess
import sys

import pytest

from orchestration.resources.ledger import ledger_twin
from ray_jobs.databases import shared_engine
from ray_jobs.personas.queue import Wanted
from ray_jobs.personas.refresh import Counts, start_workers
from ray_jobs.tables.personas import PERSONA_STORE, REFRESHED_PERSONAS
from tests.faults.test_killed_refreshes import PATIENCE, ROOT, USERS, Trap
from tests.ray_jobs.language.fault_server import FaultServer
from tests.ray_jobs.refreshes import Model, files_in, refresh_config, seed_tables

pytestmark = pytest.mark.ray


@pytest.mark.parametrize("how", ["SIGKILL", "ray.kill"])
def test_an_actor_that_is_started_again_goes_on(tables, tmp_path, ray_cluster, how):
    import ray

    seed_tables(tables)
    queue = ledger_twin(f"sqlite:///{tmp_path}/ledger.db").persona_queue()
    queue.enqueue([Wanted(u, "missing", "c", "v1") for u in USERS])
    # Two users a batch: the first batch is through when the fifth sentence is asked for.
    trap = Trap(lambda prompt: "<interest>" in prompt and len(model.sentences) >= 4)
    model = Model(trap)
    with FaultServer(model) as server:
        # Ten minutes: only who takes its own leases over can go on at once.
        config = refresh_config(tables, queue, server.url, files_in(tmp_path / "online"), lease_seconds=600.0)
        (worker,) = start_workers(config)
        pending = worker.drain.remote()
        assert trap.caught.wait(PATIENCE)
        before, model.sentences = list(model.sentences), []
        stored = tables.read(PERSONA_STORE, ["content_key"])["content_key"].to_pylist()
        assert len(stored) == 2 and queue.stats().leased == 4
        if how == "SIGKILL":
            os.kill(ray.get(worker.__ray_call__.remote(lambda actor: os.getpid())), signal.SIGKILL)
        else:
            ray.kill(worker, no_restart=False)
        trap.open.set()
        told = Counts(*ray.get(pending, timeout=PATIENCE))
        ray.kill(worker)
    assert (told.refreshed, told.failed, told.lost, told.retried) == (4, 0, 0, 0)
    assert queue.stats()[:4] == (0, 0, 0, 0)
    assert set(config.store.open().read(USERS)) == set(USERS), "nobody is lost"
    keys = tables.read(PERSONA_STORE, ["content_key"])["content_key"].to_pylist()
    assert len(keys) == len(set(keys)) == 6 and set(stored) < set(keys)
    assert model.sentences and not set(before[:4]) & set(model.sentences), "what is stored is not asked for again"
    rows = tables.read(REFRESHED_PERSONAS, ["user_id"])["user_id"].to_pylist()
    assert sorted(rows) == USERS, "each is written once"
    shared_engine(queue.url).dispose()


ON_TWO_NODES = """
import contextlib, json, os, shutil, signal, sys, tempfile
import ray
from ray.cluster_utils import Cluster
from ray_jobs.personas.refresh import Config, start_workers

# What Ray prints of lost nodes goes to stderr, wherever it is printed: answers have a pipe of their own.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
size = {"object_store_memory": 80 * 2**20}
# Not in Ray's own folder, where other clusters of the machine are looked for.
apart = {"temp_dir": tempfile.mkdtemp(prefix="ray-"), "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **apart, **size})
first = cluster.add_node(num_cpus=1, **size)
ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
(worker,) = start_workers(Config.model_validate_json(sys.stdin.readline()))
pending = worker.drain.remote()
sys.stdin.readline()
pid = ray.get(worker.__ray_call__.remote(lambda actor: os.getpid()))
cluster.remove_node(first, allow_graceful=False)
with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGKILL)  # The node's processes are lost with it.
print("null", file=answers, flush=True)
cluster.add_node(num_cpus=1, **size)
print(json.dumps(ray.get(pending)), file=answers, flush=True)
ray.shutdown()
cluster.shutdown()
shutil.rmtree(apart["temp_dir"], ignore_errors=True)
"""


@pytest.mark.services
def test_a_node_that_is_lost_takes_nothing_with_it(tables, tmp_path):
    seed_tables(tables)
    queue = ledger_twin(f"sqlite:///{tmp_path}/ledger.db").persona_queue()
    queue.enqueue([Wanted(u, "missing", "c", "v1") for u in USERS])
    trap = Trap(lambda prompt: "<interest>" in prompt and len(model.sentences) >= 4)
    model = Model(trap)
    with FaultServer(model) as server:
        config = refresh_config(tables, queue, server.url, files_in(tmp_path / "online"), lease_seconds=600.0)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        with subprocess.Popen([sys.executable, "-c", ON_TWO_NODES], **pipes) as driver:
            driver.stdin.write(config.model_dump_json() + "\n")
            driver.stdin.flush()
            assert trap.caught.wait(PATIENCE)
            before, model.sentences = list(model.sentences), []
            driver.stdin.write("\n")
            driver.stdin.flush()
            said = map(json.loads, driver.stdout)
            assert next(said) is None, "the node is gone"
            trap.open.set()
            told = Counts(*next(said))
    assert (told.refreshed, told.failed, told.lost) == (4, 0, 0) and queue.stats()[:4] == (0, 0, 0, 0)
    assert set(config.store.open().read(USERS)) == set(USERS)
    assert not set(before[:4]) & set(model.sentences)
    rows = tables.read(REFRESHED_PERSONAS, ["user_id"])["user_id"].to_pylist()
    assert sorted(rows) == USERS
    shared_engine(queue.url).dispose()
