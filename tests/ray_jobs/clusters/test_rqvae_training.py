"""The RQ-VAE as the platform trains it: levels help, it resumes, its artifact is the quantiser."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from models.semantic_ids.quality import measure
from models.semantic_ids.rqvae_config import RqVaeConfig
from orchestration.resources.tables import LocalTables
from ray_jobs.clusters.rqvae_training import Config, RqVaeTask, load_rqvae, train_rqvae
from ray_jobs.embedding_store import as_matrix
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS
from ray_jobs.training_task import TrainingOptions
from tests.assets.clusters.seeding import anisotropic, seed_embeddings

KNOBS = RqVaeConfig(widths=(16, 16, 16), hidden=(32,), latent=16)


def config(root: Path, *, epochs: int = 12, **changes) -> Config:
    tables = LocalTables(warehouse_root=str(root / "warehouse"), artifact_root=str(root / "artifacts"))
    if not tables.warehouse().exists(ITEM_EMBEDDINGS):
        seed_embeddings(tables, anisotropic(num_items=300), "one")
    return Config(
        **{
            "warehouse": tables.warehouse(),
            "artifacts": tables.artifacts(),
            "embeddings": "one",
            "quantiser": KNOBS,
            "training": TrainingOptions(epochs=epochs, patience=epochs, learning_rate=5e-3, weight_decay=1e-4),
        }
        | changes
    )


def vectors(job: Config) -> np.ndarray:
    return as_matrix(job.warehouse.read(ITEM_EMBEDDINGS).sort_by("item_id")["embedding"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    job = config(tmp_path_factory.mktemp("rqvae"))
    return job, *train_rqvae(job)


def test_training_lowers_the_error_and_every_level_takes_some_away(trained):
    job, quantiser, fitted = trained
    assert fitted.history[fitted.best_epoch - 1]["error"] < fitted.history[0]["error"]
    x = vectors(job)
    quality = measure(quantiser, x, quantiser.encode(x), quantiser.widths)
    errors = [level.error for level in quality.levels]
    assert errors[2] < errors[1] < errors[0] < 1
    assert min(level.utilisation for level in quality.levels) > 0.8


def test_a_finished_training_is_found_and_its_artifact_is_the_quantiser(trained):
    job, quantiser, _ = trained
    again, fitted = train_rqvae(job)
    x = vectors(job)
    assert not fitted.trained and (again.encode(x) == quantiser.encode(x)).all()


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_the_seed_decides_whichever_gradient(tmp_path, gradient):
    knobs = RqVaeConfig(**vars(KNOBS) | {"gradient": gradient})
    codes = [train_rqvae(config(tmp_path / name, epochs=2, quantiser=knobs))[0] for name in "ab"]
    x = vectors(config(tmp_path / "a"))
    assert (codes[0].encode(x) == codes[1].encode(x)).all()


def test_a_killed_training_resumes_bit_equal(trained, tmp_path):
    job = config(tmp_path)
    assert job.name == trained[0].name, "where it runs is no part of the version"
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_jobs.clusters.test_rqvae_training", str(tmp_path)],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"RQVAE_PACE": "0.1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not job.artifacts.names(f"checkpoints/{job.name}") and child.poll() is None:
        time.sleep(0.05)
    child.kill()
    assert child.wait() == -9
    quantiser, fitted = train_rqvae(job)
    assert fitted.resumed_from_epoch >= 1 and fitted.epochs_run < 12
    whole, resumed = trained[1].state()[0], quantiser.state()[0]
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.ray
def test_two_workers_revive_the_same_codes(tmp_path, ray_cluster):
    knobs = RqVaeConfig(**vars(KNOBS) | {"widths": (64, 64, 64), "revive_after": 1})
    quantiser, fitted = train_rqvae(config(tmp_path, epochs=3, quantiser=knobs, workers=2))
    assert fitted.trained and fitted.history[0]["examples"] == 270
    assert quantiser.encode(vectors(config(tmp_path))).max() < 64


def test_items_that_are_skipped_are_not_seen(tmp_path):
    assert len(RqVaeTask(config(tmp_path)).z_NR) == 300
    assert len(RqVaeTask(config(tmp_path, skipped=("i0", "i7"))).z_NR) == 298


def test_a_tiny_or_constant_catalogue_is_trained_on(tmp_path):
    job = config(tmp_path, epochs=1)
    tables = LocalTables(warehouse_root=str(tmp_path / "warehouse"), artifact_root=str(tmp_path / "artifacts"))
    for name, x in (("tiny", anisotropic(2, 8)), ("constant", np.ones((30, 8), np.float32))):
        seed_embeddings(tables, x, name)
        quantiser, _ = train_rqvae(job.model_copy(update={"embeddings": name, "quantiser": RqVaeConfig(hidden=(8,))}))
        assert quantiser.encode(vectors(job)).shape == (len(x), 3)


def test_load_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="materialize"):
        load_rqvae(config(tmp_path).artifacts, "nothing")


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    pace, batches = float(os.environ["RQVAE_PACE"]), RqVaeTask.train_batches

    def slowly(task, epoch, rank, world):
        for batch in batches(task, epoch, rank, world):
            time.sleep(pace)
            yield batch

    RqVaeTask.train_batches = slowly  # type: ignore[method-assign]
    train_rqvae(config(Path(sys.argv[1])))
