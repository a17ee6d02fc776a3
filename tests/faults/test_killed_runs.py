"""The whole lineage on the project's synthetic dataset, killed twice, mended by `rematerialize_failed`, then run again.

One story, because each chapter stands on the one before: `kill -9` while captions are written, `kill -9` while VISTA
trains, the job that mends, a user who is forgotten in every store, and a run that finds nothing to do and nobody to
bring back.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from orchestration.resources.ledger import SqliteLedger
from ray_jobs.tables.captions import CAPTION_STORE, ITEM_CAPTIONS
from ray_jobs.tables.experiments import EXPERIMENT_CANDIDATES
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from ray_jobs.tables.personas import USER_PERSONAS
from ray_jobs.warehouse import Warehouse
from tests.searching import places_with

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900.0
MEND = """
from orchestration.quiet import be_quiet; be_quiet()
import dagster as dg
from orchestration.definitions import defs
with dg.DagsterInstance.get() as instance:
    job = defs().resolve_job_def("rematerialize_failed")
    raise SystemExit(0 if job.execute_in_process(instance=instance, raise_on_error=False).success else 1)
"""
FORGET = """
import sys
from orchestration.quiet import be_quiet; be_quiet()
import dagster as dg
from orchestration.definitions import defs
config = {"ops": {"forget_users": {"config": {"users_file": sys.argv[1], "reason": "asked for it"}}}}
with dg.DagsterInstance.get() as instance:
    job = defs().resolve_job_def("forget_user")
    done = job.execute_in_process(instance=instance, raise_on_error=False, run_config=config)
    raise SystemExit(0 if done.success else 1)
"""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(2400)]


class Platform:
    """One home, and the commands that a user gives in it."""

    def __init__(self, home: Path, shared: Path):
        self.home = home
        home.mkdir()
        shared.mkdir(exist_ok=True)
        (home / "models").symlink_to(shared)  # the converted weights, half a minute's work, serve later sessions too
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("BELVEDERE_")} | {
            "BELVEDERE_HOME": str(home),
            "DAGSTER_HOME": str(ROOT),
            "BELVEDERE_DATASET": f"synthetic:{home}/shop?users=80&items=40&events=6000&seed=3&images=true",
            "BELVEDERE_TRAIN_WORKERS": "0",
            "BELVEDERE_PERSONA_TOKEN_BUDGET": "6000",
        }
        self.warehouse = Warehouse(str(home / "warehouse"))

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Starts a command; its output is kept in the home."""
        with (self.home / "output.txt").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", *command], cwd=ROOT, env=self.environment, stdout=output, stderr=output
            )

    def kill_when(self, process: subprocess.Popen[bytes], happened) -> None:
        """Kills with SIGKILL as soon as ``happened()``."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert process.poll() is None, f"ended before it could be killed:\n{self.said()}"
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def said(self) -> str:
        """The end of what commands printed."""
        return (self.home / "output.txt").read_text()[-4000:]

    def stored(self) -> int:
        """Captions that were paid for."""
        return self.warehouse.num_rows(CAPTION_STORE)

    def places(self) -> list[str]:
        """Files of the platform that hold the id of ``user``; the dataset is its source's."""
        return places_with(self.home, self.user, (self.home / "shop", self.home / "models"))

    def metadata(self, *key: str) -> dict:
        """Metadata of an asset's last materialization."""
        os.environ["DAGSTER_HOME"], before = str(ROOT), os.environ.get("BELVEDERE_HOME")
        os.environ["BELVEDERE_HOME"] = str(self.home)
        try:
            with dg.DagsterInstance.get() as instance:
                event = instance.get_latest_materialization_event(dg.AssetKey(list(key)))
                return {k: v.value for k, v in event.asset_materialization.metadata.items()}
        finally:
            os.environ["BELVEDERE_HOME"] = before


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    return Platform(
        tmp_path_factory.mktemp("platform") / "home", tmp_path_factory.getbasetemp().parent / "belvedere-models"
    )


def test_1_killed_while_captions_are_written(platform):
    run = platform.start("-m", "orchestration.run")
    platform.kill_when(run, lambda: platform.warehouse.exists(CAPTION_STORE) and platform.stored() > 0)
    assert platform.stored() > 0
    assert not platform.warehouse.exists(ITEM_CAPTIONS)


def test_2_killed_again_while_vista_trains(platform):
    checkpoints = platform.home / "artifacts" / "checkpoints"
    mend = platform.start("-c", MEND)
    platform.kill_when(
        mend, lambda: any(checkpoints.glob("vista*/*/_COMPLETE")) or any(checkpoints.glob("*/*/_COMPLETE"))
    )
    captions = platform.warehouse.read(CAPTION_STORE)["content_key"].to_pylist()
    assert len(captions) == len(set(captions)), "a caption was paid for twice"
    assert platform.warehouse.num_rows(ITEM_CAPTIONS) > 0


def test_3_rematerialize_failed_mends_and_training_resumes(platform):
    paid = platform.stored()
    assert platform.start("-c", MEND).wait(PATIENCE) == 0, platform.said()
    assert platform.stored() == paid, "nothing that was paid for is paid for again"
    assert platform.metadata("vista", "summarizer")["resumed_from_epoch"] >= 1
    assert platform.warehouse.num_rows(RAW_INTERACTIONS) > 0
    assert platform.warehouse.num_rows(TRAINING_SET) == platform.warehouse.num_rows(SPLITS)
    assert platform.warehouse.num_rows(EXPERIMENT_CANDIDATES) >= 4


def test_4_a_user_is_forgotten_in_every_store(platform, tmp_path):
    platform.user = platform.warehouse.read(USER_PERSONAS, ["user_id"])["user_id"][0].as_py()
    assert len(platform.places()) > 20
    (tmp_path / "users.txt").write_text(platform.user)
    assert platform.start("-c", FORGET, str(tmp_path / "users.txt")).wait(PATIENCE) == 0, platform.said()
    assert platform.places() == []
    (certificate,) = SqliteLedger(url=f"sqlite:///{platform.home}/ledger.db").certificates()
    removed = {store.store: store.rows_removed for store in certificate.stores}
    assert removed["table interactions/splits"] == removed["table features/training_set"] > 0
    assert removed["table personas/user_personas"] == removed["online store sqlite"] == 1
    assert removed["models in MLflow"] > 0 and any("ranker_dlrm" in model for model in certificate.models)


def test_5_a_run_without_news_makes_nothing(platform):
    assert platform.start("-m", "orchestration.run").wait(PATIENCE) == 0, platform.said()
    counted = re.findall(r"([\d,]+) LLM calls, (\d+) trainings, (\d+) table commits", platform.said())
    assert counted[-1] == ("0", "0", "0"), platform.said()
    assert platform.places() == [], "nobody who was forgotten is back"


def test_6_nothing_is_left_undone(platform):
    assert platform.start("-c", MEND).wait(PATIENCE) == 0, platform.said()
    assert "not made" not in platform.said().split("table commits")[-2]
