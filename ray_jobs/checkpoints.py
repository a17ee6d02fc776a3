"""Checkpoints and trained models in the artifact store: whole or not there at all.

Weights are safetensors. The optimiser's state is nested and holds plain numbers beside tensors, which safetensors
cannot express: it is written by `torch.save` and read with ``weights_only=True``, which runs no code. A finished
model is weights + constructor arguments + preprocessing + history, all but the weights as JSON.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from ray_jobs.artifacts import ArtifactStore

WEIGHTS, OPTIMIZER = "model.safetensors", "optimizer.pt"
STATE, CONSTRUCTOR, PREPROCESSING = "state.json", "constructor.json", "preprocessing.json"


@dataclasses.dataclass
class TrainerState:
    """Where a training stands.

    Attributes:
        epoch: Epochs done.
        step: Optimiser steps done.
        best_epoch: Epoch (from 1) with the best validation metric; 0 before the first.
        best: Its metric.
        finished: Whether the training ended, at its last epoch or early.
        history: One record an epoch: losses, validation metrics, examples, seconds.
    """

    epoch: int = 0
    step: int = 0
    best_epoch: int = 0
    best: float | None = None
    finished: bool = False
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)


class TrainedModel(NamedTuple):
    """A finished training, as `read_model` gives it.

    Attributes:
        weights: State dict on the CPU.
        constructor: Arguments that rebuild the network.
        preprocessing: What turns raw columns into its inputs (vocabularies, bucket edges).
        summary: `Fitted` as a dict: metrics, epochs, history.
    """

    weights: dict[str, torch.Tensor]
    constructor: dict[str, Any]
    preprocessing: dict[str, Any]
    summary: dict[str, Any]


def epoch_name(training: str, epoch: int) -> str:
    """Artifact of one epoch's checkpoint."""
    return f"checkpoints/{training}/epoch-{epoch:04d}"


def model_name(training: str) -> str:
    """Artifact of the finished model."""
    return f"models/{training}"


def _save_weights(model: torch.nn.Module, path: Path) -> None:
    # Safetensors refuses shared and strided memory.
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}, str(path))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True, allow_nan=False), encoding="utf-8")


def write_checkpoint(
    artifacts: ArtifactStore,
    training: str,
    model: torch.nn.Module,
    optimizer_state: dict[str, Any],
    state: TrainerState,
) -> None:
    """Writes the checkpoint of ``state.epoch`` and drops those that are neither best nor last."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        _save_weights(model, local / WEIGHTS)
        torch.save(optimizer_state, local / OPTIMIZER)
        _write_json(local / STATE, dataclasses.asdict(state))
        artifacts.put(local, epoch_name(training, state.epoch))
    kept = {epoch_name(training, state.epoch), epoch_name(training, state.best_epoch)}
    for name in artifacts.names(f"checkpoints/{training}"):
        if name not in kept:
            artifacts.remove(name)


def restore(
    artifacts: ArtifactStore, training: str, model: torch.nn.Module
) -> tuple[TrainerState, dict[str, Any] | None]:
    """Loads the newest whole checkpoint, if there is one.

    Returns:
        Where the training stands, and the optimiser's state; None if there is no checkpoint.
    """
    found = artifacts.names(f"checkpoints/{training}")
    if not found:
        return TrainerState(), None
    with artifacts.local(found[-1]) as local:
        model.load_state_dict(load_file(str(local / WEIGHTS)))
        optimizer_state = torch.load(local / OPTIMIZER, weights_only=True, map_location="cpu")
        return TrainerState(**json.loads((local / STATE).read_text(encoding="utf-8"))), optimizer_state


def restore_epoch(artifacts: ArtifactStore, training: str, epoch: int, model: torch.nn.Module) -> None:
    """Loads the weights of one kept epoch."""
    with artifacts.local(epoch_name(training, epoch)) as local:
        model.load_state_dict(load_file(str(local / WEIGHTS)))


def write_model(
    artifacts: ArtifactStore,
    training: str,
    model: torch.nn.Module,
    *,
    constructor: dict[str, Any],
    preprocessing: dict[str, Any],
    summary: dict[str, Any],
) -> None:
    """Writes the finished model."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder)
        _save_weights(model, local / WEIGHTS)
        _write_json(local / CONSTRUCTOR, constructor)
        _write_json(local / PREPROCESSING, preprocessing)
        _write_json(local / STATE, summary)
        artifacts.put(local, model_name(training))


def read_summary(artifacts: ArtifactStore, training: str) -> dict[str, Any] | None:
    """`Fitted` of a finished training as a dict, or None if it has not finished."""
    if not artifacts.exists(model_name(training)):
        return None
    with artifacts.local(model_name(training)) as local:
        return dict(json.loads((local / STATE).read_text(encoding="utf-8")))


def read_model(artifacts: ArtifactStore, training: str) -> TrainedModel:
    """Reads a finished model.

    Raises:
        FileNotFoundError: If the training has not finished.
    """
    with artifacts.local(model_name(training)) as local:

        def plain(name: str) -> dict[str, Any]:
            return dict(json.loads((local / name).read_text(encoding="utf-8")))

        return TrainedModel(load_file(str(local / WEIGHTS)), plain(CONSTRUCTOR), plain(PREPROCESSING), plain(STATE))
