"""The training loop: resume is bit-equal, best epoch is kept, finished trainings never run again."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from tests.ray_jobs.toy_task import ToyConfig, train_toy


def weights(root, name="toy"):
    return read_model(ArtifactStore(str(root)), name).weights


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    return root, train_toy(root)


def test_a_finished_training_is_never_run_again(uninterrupted, tmp_path):
    root, fitted = uninterrupted
    again = train_toy(root, config=ToyConfig(journal=str(tmp_path / "journal")))
    assert fitted.trained and fitted.epochs_run == 5 and not again.trained and again.epochs_run == 0
    assert again.history == fitted.history and not (tmp_path / "journal").exists()


def test_interrupted_and_resumed_is_bit_equal_to_uninterrupted(uninterrupted, tmp_path):
    root, fitted = uninterrupted
    with pytest.raises(ValueError, match="broke in epoch 3"):
        train_toy(tmp_path, config=ToyConfig(stop_after=2))
    resumed = train_toy(tmp_path)
    assert (resumed.resumed_from_epoch, resumed.epochs_run, resumed.epochs) == (2, 3, 5)
    assert same(weights(root), weights(tmp_path))
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in fitted.history]


def test_killed_training_resumes_from_its_checkpoint(uninterrupted, tmp_path):
    journal = tmp_path / "journal"
    root, store = uninterrupted[0], ArtifactStore(str(tmp_path / "store"))
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.ray_jobs.toy_task", str(tmp_path / "store"), "0.15"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TOY_JOURNAL": str(journal)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(store.names("checkpoints/toy")) < 1 and child.poll() is None:
        time.sleep(0.05)
    child.kill()
    assert child.wait() == -9 and not store.exists("models/toy")
    resumed = train_toy(tmp_path / "store", config=ToyConfig(journal=str(journal)))
    assert resumed.resumed_from_epoch >= 1 and resumed.epochs_run == 5 - resumed.resumed_from_epoch < 5
    assert same(weights(root), weights(tmp_path / "store"))
    epochs = [int(e) for e in journal.read_text().split()]
    assert len(epochs) <= 6 and sorted(set(epochs)) == [1, 2, 3, 4, 5]


def test_half_a_checkpoint_does_not_count(uninterrupted, tmp_path):
    with pytest.raises(ValueError, match="broke in epoch 4"):
        train_toy(tmp_path, config=ToyConfig(stop_after=3))
    newest = sorted((tmp_path / "checkpoints" / "toy").iterdir())[-1]
    (newest / "_COMPLETE").unlink()
    (newest / "model.safetensors").write_bytes(b"torn")
    resumed = train_toy(tmp_path)
    assert resumed.resumed_from_epoch < 3 and same(weights(uninterrupted[0]), weights(tmp_path))


def test_best_epoch_is_kept_and_training_stops_early(tmp_path):
    fitted = train_toy(tmp_path, config=ToyConfig(metric=(0.6, 0.8, 0.7, 0.8, 0.9)), patience=2)
    assert (fitted.best_epoch, fitted.epochs, fitted.metrics["auc"]) == (2, 4, 0.8)
    assert ArtifactStore(str(tmp_path)).names("checkpoints/toy") == [
        "checkpoints/toy/epoch-0002",
        "checkpoints/toy/epoch-0004",
    ]
    two = train_toy(tmp_path, name="two", epochs=2)
    assert two.epochs == 2 and same(weights(tmp_path), weights(tmp_path, "two")) == (two.best_epoch == 2)


def test_seed_decides_the_weights(tmp_path):
    train_toy(tmp_path, name="a", epochs=1)
    train_toy(tmp_path, name="b", epochs=1)
    train_toy(tmp_path, name="c", epochs=1, seed=4)
    assert same(weights(tmp_path, "a"), weights(tmp_path, "b"))
    assert not same(weights(tmp_path, "a"), weights(tmp_path, "c"))


def test_mixed_precision_trains(tmp_path):
    fitted = train_toy(tmp_path, epochs=1, amp="bf16")
    assert weights(tmp_path)["0.weight"].dtype == torch.float32 and fitted.history[0]["loss"] > 0


def test_clear_sentences(tmp_path):
    with pytest.raises(ValueError, match="nothing to train toy on"):
        train_toy(tmp_path, config=ToyConfig(num_examples=0))
    with pytest.raises(ValueError, match="non-finite in epoch 1: lower the learning rate"):
        train_toy(tmp_path, config=ToyConfig(learning_rate_blows_up=True))
    with pytest.raises(ValueError, match="validation split is not finite"):
        train_toy(tmp_path, config=ToyConfig(metric=(float("nan"),)))
    assert ArtifactStore(str(tmp_path)).names("checkpoints/toy") == []


def test_progress_is_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="belvedere.progress"):
        train_toy(tmp_path, epochs=2)
    assert "toy: epoch 1/2, loss" in caplog.text and "valid auc" in caplog.text and "best epoch" in caplog.text


@pytest.mark.ray
def test_a_real_worker_gives_the_same_weights_and_its_lines(uninterrupted, tmp_path, ray_cluster, caplog):
    with caplog.at_level(logging.INFO, logger="belvedere.progress"):
        fitted = train_toy(tmp_path, workers=1)
    assert fitted.epochs_run == 5 and same(weights(uninterrupted[0]), weights(tmp_path))
    assert "toy: epoch 5/5" in caplog.text and not list((tmp_path / "ray_train").iterdir())


@pytest.mark.ray
def test_two_workers_train_together_and_say_what_broke(tmp_path, ray_cluster):
    with pytest.raises(RuntimeError, match="The toy broke in epoch 2") as raised:
        train_toy(tmp_path, workers=2, config=ToyConfig(stop_after=1))
    assert isinstance(raised.value.__cause__, ValueError)
    fitted = train_toy(tmp_path, workers=0, epochs=2)
    assert fitted.resumed_from_epoch == 1 and fitted.history[0]["examples"] == 64
