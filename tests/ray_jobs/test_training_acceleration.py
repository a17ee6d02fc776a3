"""What makes training faster or smaller changes nothing but rounding: compiled steps, bf16, DDP, FSDP."""

import os
import shutil

import pytest
import torch

from ray_jobs import training_network
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from tests.ray_jobs.toy_task import ToyConfig, train_toy

PLAIN = ToyConfig(dropout=0.0)
DDP, FSDP = Acceleration(strategy="ddp"), Acceleration(strategy="fsdp")
EPOCHS = 3
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler here"
)


def losses(fitted):
    return torch.tensor([record["loss"] for record in fitted.history])


def weights(root, name="toy"):
    return read_model(ArtifactStore(str(root)), name).weights


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The training by one process."""
    root = tmp_path_factory.mktemp("alone")
    return root, train_toy(root, config=PLAIN, epochs=EPOCHS)


def assert_equal_training(fitted, root, alone):
    torch.testing.assert_close(losses(fitted), losses(alone[1]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights(root), weights(alone[0]), atol=1e-4, rtol=1e-3)
    assert fitted.metrics["auc"] == alone[1].metrics["auc"] and fitted.epochs == EPOCHS


def test_mixed_precision_stays_near_full_precision(alone, tmp_path):
    fitted = train_toy(tmp_path, config=PLAIN, epochs=EPOCHS, amp="bf16")
    assert not torch.equal(losses(fitted), losses(alone[1]))
    torch.testing.assert_close(losses(fitted), losses(alone[1]), atol=0, rtol=0.03)
    assert all(w.dtype == torch.float32 for w in weights(tmp_path).values())


@needs_compiler
def test_compiled_steps_learn_the_same_with_the_same_dropout(tmp_path):
    plain = train_toy(tmp_path, name="plain", epochs=2)
    compiled = train_toy(tmp_path, name="compiled", epochs=2, acceleration=Acceleration(compile=True))
    torch.testing.assert_close(losses(compiled), losses(plain), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(weights(tmp_path, "compiled"), weights(tmp_path, "plain"), atol=1e-4, rtol=1e-3)


def test_without_a_compiler_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(training_network.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match=r"without a C\+\+ compiler: install g\+\+, or set BELVEDERE_TRAIN_COMPILE"):
        train_toy(tmp_path, acceleration=Acceleration(compile=True))


@pytest.mark.ray
def test_a_training_of_shards_goes_on_as_one_of_replicas_and_equals_one_process(alone, tmp_path, ray_cluster):
    with pytest.raises(RuntimeError, match="The toy broke in epoch 2"):
        config = PLAIN.model_copy(update={"stop_after": 1})
        train_toy(tmp_path, config=config, epochs=EPOCHS, workers=2, acceleration=FSDP)
    fitted = train_toy(tmp_path, config=PLAIN, epochs=EPOCHS, workers=2, acceleration=DDP)
    assert fitted.resumed_from_epoch == 1
    assert_equal_training(fitted, tmp_path, alone)


@pytest.mark.ray
def test_a_training_of_one_process_goes_on_in_shards_and_equals_one_process(alone, tmp_path, ray_cluster):
    with pytest.raises(ValueError, match="The toy broke in epoch 2"):
        train_toy(tmp_path, config=PLAIN.model_copy(update={"stop_after": 1}), epochs=EPOCHS)
    fitted = train_toy(tmp_path, config=PLAIN, epochs=EPOCHS, workers=2, acceleration=FSDP)
    assert fitted.resumed_from_epoch == 1
    assert_equal_training(fitted, tmp_path, alone)
