"""The one training loop: Ray Train workers, whole checkpoints, resume, early stopping. A task says what is trained.

A job writes a `Task` (network, batches, loss, evaluation), a module-level function that builds it from the job's
config, and calls `fit_as`::

    def build_task(config: Config) -> Task: ...      # runs in every worker; reads its own tables

    fitted = fit_as(build_task, config)      # `fit` with each argument, if the config is not a `Trainable`
    model = read_model(config.artifacts, fitted.name)   # weights, constructor, preprocessing (ray_jobs.checkpoints)

Its name is the version of the training: of its inputs, parameters and code. A finished training of that name is
returned at once, an interrupted one resumes after its last whole epoch. Random numbers are a function of (seed,
epoch, rank), set anew at every epoch, so that a resumed training is bit-equal to an uninterrupted one.
"""

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pydantic
import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import (
    TrainerState,
    model_name,
    read_summary,
    restore,
    restore_epoch,
    write_checkpoint,
    write_model,
)
from ray_jobs.filesystems import filesystem_at
from ray_jobs.progress import logger
from ray_jobs.training_network import TrainedNetwork
from ray_jobs.training_task import Task, Trainable, TrainingOptions

SAY_EVERY = 5.0


class Fitted(pydantic.BaseModel, frozen=True):
    """A finished training."""

    name: str = pydantic.Field(description="Version of the training.")
    artifact: str = pydantic.Field(description="Artifact of the model.")
    best_epoch: int = pydantic.Field(description="Epoch whose weights were kept, from 1.")
    epochs: int = pydantic.Field(description="Epochs in all.")
    epochs_run: int = pydantic.Field(description="Epochs run by this call.")
    resumed_from_epoch: int = pydantic.Field(description="Last epoch of the checkpoint it resumed from; 0: none.")
    metrics: dict[str, float] = pydantic.Field(description="Validation metrics of the best epoch.")
    final_metrics: dict[str, float] = pydantic.Field(description="What `Task.final_metrics` gave.")
    num_parameters: int = pydantic.Field(description="Parameters of the network.")
    history: list[dict[str, float]] = pydantic.Field(description="One record an epoch.")
    seconds: float = pydantic.Field(description="Training time of all epochs.")
    trained: bool = pydantic.Field(description="False if the finished model was there and nothing ran.")


def fit_as(build: Callable[[Any], Task], config: Trainable) -> Fitted:
    """`fit` as the config says."""
    return fit(
        build,
        config,
        name=config.name,
        artifacts=config.artifacts,
        options=config.training,
        workers=config.workers,
        use_gpu=config.use_gpu,
        cpus_per_worker=config.cpus_per_worker,
        acceleration=config.acceleration,
    )


def fit(
    build: Callable[[Any], Task],
    config: Any,
    *,
    name: str,
    artifacts: ArtifactStore,
    options: TrainingOptions,
    workers: int = 0,
    use_gpu: bool = False,
    cpus_per_worker: float = 1.0,
    acceleration: Acceleration | None = None,
    max_failures: int = 0,
) -> Fitted:
    """Trains to the end, or picks up where an earlier call of the same name was interrupted.

    Args:
        build: Module-level function that makes the task from ``config``; runs in every worker.
        config: Its argument (a pydantic model).
        name: Version of the training: inputs, parameters, code.
        artifacts: Where checkpoints and the model go; every worker must reach it.
        options: How it is trained.
        workers: Ray Train workers; 0 trains in this process (Ray Train's local mode), 2 or more together.
        use_gpu: Whether each worker gets a GPU.
        cpus_per_worker: CPUs of each worker; threads of this process without workers.
        acceleration: How workers train together, and whether steps are compiled.
        max_failures: How often lost workers are replaced before the training fails.

    Raises:
        RuntimeError: If a worker failed; says the first cause.
    """
    done = read_summary(artifacts, name)
    if done is not None:
        return Fitted(**done | {"trained": False, "epochs_run": 0})
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    loop = {"build": build, "config": config, "name": name, "artifacts": artifacts, "options": options}
    loop["acceleration"] = acceleration or Acceleration()
    # Ray Train restores its own idea of a run from a folder of the same name; ours is in the checkpoints.
    run_name, scratch = uuid.uuid4().hex[:8], f"ray_train/{name}"
    fs, path = filesystem_at(artifacts.uri(scratch), artifacts.storage_options)
    train: Any = _train
    trainer_of = lambda relay: TorchTrainer(  # noqa: E731
        train,
        train_loop_config=loop | {"relay": relay},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker=({"CPU": cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})) if workers else None,
        ),
        run_config=RunConfig(
            name=run_name,
            storage_path=path,
            storage_filesystem=fs,
            failure_config=FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        result: Any = _with_lines(trainer_of) if workers else _here(trainer_of, int(cpus_per_worker))
    finally:
        artifacts.remove(scratch)
    return Fitted(**result.return_value)


def _here(trainer_of: Callable[[Any], Any], threads: int) -> Any:
    """Runs a trainer in this process, on as many threads as a worker would have.

    Threads that wait for each other by spinning make an epoch many times slower where other processes need the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(threads, 1))
    try:
        return trainer_of(None).fit()
    finally:
        torch.set_num_threads(before)


class _Relay:
    """A Ray actor that carries progress lines from the workers to the driver."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def take(self) -> list[str]:
        taken, self.lines = self.lines, []
        return taken


def _with_lines(trainer_of: Callable[[Any], Any]) -> Any:
    """Runs a trainer with real workers in a thread, and logs their lines in this one.

    Ray Train takes over SIGINT when it runs in the main thread and never gives it back; this way an interrupt
    reaches the caller. It then ends the relay, and a worker that cannot speak to its driver any more stops.
    """
    import ray
    from ray.train import TrainingFailedError

    relay: Any = ray.remote(num_cpus=0)(_Relay).remote()
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(trainer_of(relay).fit())
        except BaseException as error:  # handed to the caller's thread, below
            outcome.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(timeout=0.5)
            for line in ray.get(relay.take.remote()):
                logger.info(line)
        for line in ray.get(relay.take.remote()):
            logger.info(line)
    finally:
        ray.kill(relay)
    if isinstance(outcome[0], TrainingFailedError):
        failures = getattr(outcome[0], "worker_failures", None)
        cause = next(iter(failures.values())) if failures else outcome[0]
        cause = getattr(cause, "_base_exc", cause)
        raise RuntimeError(f"Training failed: {str(cause).strip().splitlines()[0]}") from cause
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def seed_all(*parts: int) -> None:
    """Seeds every generator from ``parts``, e.g. (seed, epoch, rank)."""
    words = np.random.SeedSequence(list(parts)).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]))
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


class Say:
    """Says a progress line at most every few seconds: through the relay where there is one, else by the log."""

    def __init__(self, relay: Any, rank: int):
        self.relay, self.rank, self.said = relay, rank, time.monotonic()

    def __call__(self, line: str, force: bool = False) -> None:
        """Says ``line`` if it is time, or if it must be said."""
        now = time.monotonic()
        if self.rank or not (force or now - self.said >= SAY_EVERY):
            return
        self.said = now
        if self.relay is None:
            logger.info(line)
        else:
            import ray

            ray.get(self.relay.say.remote(line))


def _train(loop: dict[str, Any]) -> dict[str, Any]:
    """Train function of every Ray Train worker. Returns `Fitted` as a dict (rank 0's is what counts)."""
    import ray.train
    from ray.train.torch import get_device

    world, rank = ray.train.get_context().get_world_size(), ray.train.get_context().get_world_rank()
    options: TrainingOptions = loop["options"]
    name, artifacts = loop["name"], loop["artifacts"]
    device = get_device() if options.device == "auto" else torch.device(options.device)
    task: Task = loop["build"](loop["config"])
    seed_all(options.seed)
    model = task.build_model().to(device)
    state, optimizer_state = restore(artifacts, name, model)
    network = TrainedNetwork(
        task, model, options, loop["acceleration"], rank=rank, world=world, optimizer_state=optimizer_state
    )
    resumed, say = state.epoch, Say(loop["relay"], rank)
    if resumed:
        say(f"{task.stage}: resumes after epoch {resumed}/{options.epochs}", force=True)
    while not state.finished:
        epoch = state.epoch + 1
        seed_all(options.seed, epoch, rank)
        record, steps = _epoch(task, network.steps, network.optimizer, options, epoch, state, rank, world, device, say)
        optimizer_state = network.gather()
        valid = _evaluate(task, model, rank, task.evaluate)
        _advance(state, task, options, {"epoch": float(epoch)} | record | valid, steps, valid)
        if rank == 0:
            write_checkpoint(artifacts, name, model, optimizer_state, state)
        left = (options.epochs - epoch) * record["seconds"]
        say(
            f"{task.stage}: epoch {epoch}/{options.epochs}, loss {record['loss']:.4f}, valid {task.metric} "
            f"{valid[task.metric]:.4f}, {int(record['examples']):,} examples "
            f"({record['examples'] / max(record['seconds'], 1e-9):,.0f}/s), "
            + (f"best epoch {state.best_epoch}, done" if state.finished else f"ETA {left:,.0f} s"),
            force=True,
        )
        ray.train.report(valid)
    if rank:
        return {}
    restore_epoch(artifacts, name, state.best_epoch, model)
    final = _evaluate(task, model, rank, task.final_metrics, alone=True)
    best = state.history[state.best_epoch - 1]
    fitted = Fitted(
        name=name,
        artifact=model_name(name),
        best_epoch=state.best_epoch,
        epochs=state.epoch,
        epochs_run=state.epoch - resumed,
        resumed_from_epoch=resumed,
        metrics=best,
        final_metrics=final,
        num_parameters=sum(p.numel() for p in model.parameters()),
        history=state.history,
        seconds=round(sum(r["seconds"] for r in state.history), 3),
        trained=True,
    ).model_dump()
    write_model(
        artifacts, name, model, constructor=task.constructor(), preprocessing=task.preprocessing(), summary=fitted
    )
    return fitted


def _epoch(
    task: Task,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
    epoch: int,
    state: TrainerState,
    rank: int,
    world: int,
    device: torch.device,
    say: Say,
) -> tuple[dict[str, float], int]:
    """Runs one epoch. Returns its record (means over all ranks) and the number of optimiser steps."""
    started, steps, total = time.monotonic(), 0, task.num_examples(world)
    sums: dict[str, torch.Tensor] = {}
    model.train()
    for batch in task.train_batches(epoch, rank, world):
        batch = pytree.tree_map_only(torch.Tensor, lambda x: x.to(device, non_blocking=True), batch)
        steps += 1
        warm = min(1.0, (state.step + steps) / max(options.warmup_steps, 1))
        rate = options.learning_rate * warm * options.epoch_decay ** (epoch - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with _precision(options, device):
            loss = task.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
        optimizer.step()
        # Kept on the device: reading a value at every step would stall a GPU.
        weight = float(loss.num_examples)
        for part, value in {"loss": loss.total, **loss.parts}.items():
            sums[part] = sums.get(part, torch.zeros((), device=device)) + value.detach().float() * weight
        sums["examples"] = sums.get("examples", torch.zeros((), device=device)) + weight
        if time.monotonic() - say.said >= SAY_EVERY:
            done, spent = float(sums["examples"]), time.monotonic() - started
            left = spent / done * (total * (options.epochs - epoch + 1) - done)
            say(
                f"{task.stage}: epoch {epoch}/{options.epochs}, loss {float(sums['loss']) / done:.4f}, "
                f"{int(done):,}/{total:,} examples ({done / spent:,.0f}/s), ETA {left:,.0f} s"
            )
    if world > 1:
        for value in sums.values():
            dist.all_reduce(value)
    examples = float(sums.pop("examples", 0.0))
    if not examples:
        raise ValueError(f"There is nothing to train {task.stage} on: its training split is empty.")
    record = {part: float(value) / examples for part, value in sums.items()}
    if not np.isfinite(list(record.values())).all():
        raise ValueError(f"The loss of {task.stage} became non-finite in epoch {epoch}: lower the learning rate.")
    return record | {"examples": examples, "seconds": round(time.monotonic() - started, 3)}, steps


def _advance(
    state: TrainerState,
    task: Task,
    options: TrainingOptions,
    record: dict[str, float],
    steps: int,
    valid: dict[str, float],
) -> None:
    """Moves ``state`` past one epoch: history, best epoch, early stopping."""
    if task.metric not in valid:
        raise ValueError(f"The task {task.stage} stops on {task.metric}, which its evaluation lacks: {sorted(valid)}.")
    value = valid[task.metric]
    if not np.isfinite(value):
        raise ValueError(
            f"The {task.metric} of {task.stage} on the validation split is not finite: look at that split."
        )
    better = state.best is None or (value > state.best if task.mode == "max" else value < state.best)
    state.epoch += 1
    state.step += steps
    state.history.append(record)
    if better:
        state.best, state.best_epoch = value, state.epoch
    state.finished = state.epoch >= options.epochs or state.epoch - state.best_epoch >= options.patience


def _evaluate(
    task: Task,
    model: torch.nn.Module,
    rank: int,
    metrics: Callable[[torch.nn.Module], dict[str, float]],
    alone: bool = False,
) -> dict[str, float]:
    """Metrics as rank 0 sees them; the other ranks wait for them unless it is ``alone``."""
    found: list[dict[str, float]] = [{}]
    if rank == 0:
        model.eval()
        with torch.inference_mode():
            found = [{k: float(v) for k, v in metrics(model).items()}]
    if dist.is_initialized() and not alone:
        dist.broadcast_object_list(found, src=0)
    return found[0]


@contextlib.contextmanager
def _precision(options: TrainingOptions, device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, torch.bfloat16, enabled=options.amp == "bf16"):
        yield
