"""The comparison of history models: every family is tuned alike on validation, trained under seeds, and tested once.

Every training is kept under the identity of all that it depends on: a killed run loses the trainings in flight, and
what is there is found by a later run, be it for more seeds or for another family.
"""

import functools
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import pydantic

from models.identity import version_of
from models.long_history.families import check_arguments, variant_of
from models.ranking.ablation import over_seeds
from models.ranking.evaluation import Estimates
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.distinct import Distinct
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.histories.cells import (
    CLICK,
    DECIDES,
    FLOORS,
    NEXT_ITEM,
    PEER,
    Scored,
    read_cell,
    score_cell,
    score_floor,
    tune_cell,
    tune_peer,
)
from ray_jobs.histories.data import Inputs
from ray_jobs.histories.peers.recbole_environment import PeerOptions, make_environment
from ray_jobs.histories.results import SHUFFLED, Line, Result, Trained, Trial, Tuned, lines_of, trained_of, with_costs
from ray_jobs.histories.training import Config as Training
from ray_jobs.histories.training import Objective
from ray_jobs.progress import Progress, note
from ray_jobs.tasks import in_order, remote
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

FOLDER = "history_models"
LEARNED_POSITIONS = 200
"""SASRec's default."""
SCORING_VERSION = "2"


GRID = tuple(Trial(learning_rate=rate, dropout=dropout) for dropout in (0.1, 0.4) for rate in (2e-3, 5e-3))
# RecBole's SASRec has far more steps an epoch, and its authors' dropout is 0.5.
PEER_GRID = tuple(Trial(learning_rate=rate, dropout=dropout) for dropout in (0.2, 0.5) for rate in (1e-3, 5e-4))


class Config(pydantic.BaseModel, frozen=True):
    """The comparison."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where trainings and scores are kept.")
    inputs: Inputs = pydantic.Field(description="Versions of the tables that are read.")
    objectives: Distinct[Objective] = pydantic.Field((NEXT_ITEM, CLICK), min_length=1, description="What is learned.")
    families: Distinct[str] = pydantic.Field(
        ("sasrec", "hstu", "vista", "vista_causal", "din", "sim", "twin", "mtgr"),
        min_length=1,
        description="Families and variants of them, in order.",
    )
    seeds: Distinct[int] = pydantic.Field((0, 1, 2, 3, 4), min_length=1, description="Seeds, the same for each.")
    grid: Distinct[Trial] = pydantic.Field(GRID, min_length=1, description="Trials of each family, on its first seed.")
    peer_grid: Distinct[Trial] = pydantic.Field(PEER_GRID, min_length=1, description="Trials of RecBole's SASRec.")
    peer_python: str | None = pydantic.Field(None, description="Python of RecBole's environment; None: leave it out.")
    peer_seeds: Distinct[int] = pydantic.Field((0, 1, 2, 3, 4), min_length=1, description="Seeds of RecBole's SASRec.")
    width: int = pydantic.Field(32, ge=1, description="Width of a token, of all families.")
    heads: int = pydantic.Field(2, ge=1, description="Attention heads.")
    layers: int = pydantic.Field(2, ge=1, description="Blocks.")
    history_events: int = pydantic.Field(200, ge=1, description="Most events of a history.")
    block_examples: int = pydantic.Field(16, ge=1, description="Examples that share a history.")
    batch_blocks: int = pydantic.Field(64, ge=1, description="Most histories in a batch.")
    num_negatives: int = pydantic.Field(64, ge=1, description="As for a training.")
    valid_users: int | None = pydantic.Field(None, description="As for a training.")
    epochs: dict[Objective, int] = pydantic.Field(
        {NEXT_ITEM: 20, CLICK: 8}, description="Most epochs; the best on validation is kept."
    )
    patience: int = pydantic.Field(3, ge=1, description="Epochs without a better metric before it stops.")
    arguments: dict[str, dict[str, Any]] = pydantic.Field(
        default_factory=dict, description="Constructor arguments of a family, or of `objective/family`."
    )
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users and seeds.")
    cpus: int = pydantic.Field(1, ge=1, description="CPUs, and threads, of a training.")
    gpus: float = pydantic.Field(0.0, ge=0, description="GPUs of a training; a fraction shares one.")

    @pydantic.model_validator(mode="after")
    def _possible(self) -> "Config":
        for name in self.families:
            variant_of(name)
        if "sim_hard" in self.families and self.inputs.semantic_ids is None:
            raise ValueError("sim_hard finds events by the first code of their semantic ID: let items have them.")
        if missing := set(self.objectives) - set(self.epochs):
            raise ValueError(f"epochs has no number for {', '.join(sorted(missing))}.")
        for key, given in self.arguments.items():
            objective, _, name = key.rpartition("/")
            if objective and objective not in (CLICK, NEXT_ITEM):
                raise ValueError(
                    f"arguments has {key!r}: begin it with {CLICK}/ or {NEXT_ITEM}/, or name a model alone."
                )
            check_arguments(name, given)
        return self

    def training(self, objective: Objective, family: str, trial: Trial, seed: int) -> Training:
        """One training."""
        device: Literal["cpu", "cuda"] = "cuda" if self.gpus else "cpu"
        click = objective == CLICK
        variant = variant_of(family)
        common = {"width": self.width, "heads": self.heads, "layers": self.layers, "dropout": trial.dropout}
        if variant.family == "sasrec" and self.history_events > LEARNED_POSITIONS:
            common["max_positions"] = self.history_events
        return Training(
            warehouse=self.warehouse,
            artifacts=self.artifacts,
            inputs=self.inputs,
            family=variant.family,
            objective=objective,
            arguments=common
            | variant.arguments
            | self.arguments.get(family, {})
            | self.arguments.get(f"{objective}/{family}", {}),
            training=TrainingOptions(
                epochs=self.epochs[objective],
                patience=self.patience,
                learning_rate=trial.learning_rate,
                warmup_steps=20,
                epoch_decay=0.7 if click else 0.95,
                weight_decay=0.1 if click else 0.01,
                seed=seed,
                device=device,
            ),
            history_events=self.history_events,
            block_examples=self.block_examples,
            batch_blocks=self.batch_blocks,
            num_negatives=self.num_negatives,
            valid_users=self.valid_users,
        )

    def peer(self, trial: Trial, seed: int) -> PeerOptions:
        """A training of RecBole's SASRec: of the same sizes."""
        assert self.peer_python is not None
        return PeerOptions(
            python=self.peer_python,
            width=self.width,
            heads=self.heads,
            layers=self.layers,
            history_events=self.history_events,
            dropout=trial.dropout,
            learning_rate=trial.learning_rate,
            epochs=self.epochs[NEXT_ITEM],
            patience=self.patience,
            seed=seed,
            threads=self.cpus,
        )

    def artifact_of(self, training: Training) -> str:
        """Place of a training's scores."""
        return f"{FOLDER}/{SCORING_VERSION}/{training.name}"

    def artifact_of_peer(self, options: PeerOptions) -> str:
        """Place of the peer's scores."""
        version = version_of(inputs=self.inputs.model_dump(), **options.model_dump(exclude={"python", "threads"}))
        return f"{FOLDER}/{SCORING_VERSION}/{PEER}-{version}"

    def artifact_of_floor(self, objective: Objective, name: str) -> str:
        """Place of a floor's scores."""
        version = version_of(
            inputs=self.inputs.model_dump(), history_events=self.history_events, block_examples=self.block_examples
        )
        return f"{FOLDER}/{SCORING_VERSION}/{objective}-{name}-{version}"


class Chosen(NamedTuple):
    """The trial of a family that did best on validation."""

    objective: Objective
    model: str
    trial: Trial


def run(config: Config) -> Result:
    """Tunes, trains what is missing, tests, and compares."""
    started = time.monotonic()
    trained = _Counter()
    tuned = [*_tune(config, trained), *_tune_peer(config, trained)]
    chosen = [Chosen(cast(Objective, t.objective), t.model, t.trial) for t in tuned if t.chosen]
    lines: list[Line] = []
    trainings: list[Trained] = []
    seeds = _test(config, chosen, trained)
    for objective in config.objectives:
        found: dict[str, Estimates] = {}
        numbers: dict[str, int] = {}
        for name in FLOORS:
            at = config.artifact_of_floor(objective, name)
            found[name], numbers[name] = read_cell(config.artifacts, at, objective, config.resamples).found, 1
        for (where, model), each in seeds.items():
            if where != objective:
                continue
            for name, part in ((model, "found"), (model + SHUFFLED, "placebo")):
                estimates = [getattr(scored, part) for scored in each.values()]
                if all(estimates):
                    found[name], numbers[name] = over_seeds(estimates, config.seeds[0]), len(estimates)
            trainings += [trained_of(objective, model, seed, scored) for seed, scored in each.items()]
        lines += lines_of(objective, found, numbers)
    return Result(
        lines=with_costs(lines, tuned, trainings),
        tuned=tuned,
        trainings=trainings,
        num_trained=trained.new,
        num_found=trained.found,
        seconds=round(time.monotonic() - started, 1),
    )


class _Counter:
    """Trainings that were run, and that were there."""

    def __init__(self) -> None:
        self.new = self.found = 0

    def add(self, found: bool) -> None:
        self.found += found
        self.new += not found


def _model_of(training: Training) -> str:
    return f"models/{training.name}"


def _tune(config: Config, trained: _Counter) -> list[Tuned]:
    """Trains every trial of every family on the first seed."""
    cells = [
        (objective, family, trial, config.training(objective, family, trial, config.seeds[0]))
        for objective in config.objectives
        for family in config.families
        for trial in config.grid
    ]
    for *_, training in cells:
        trained.add(config.artifacts.exists(_model_of(training)))
    note(FOLDER, f"{len(cells)} trials on validation, {trained.found} of them are there")
    task = remote(config, tune_cell)
    calls = [functools.partial(task, training, config.cpus) for *_, training in cells]
    metrics = in_order(calls, Progress(FOLDER, len(cells), "trials"))
    return _judged([(o, family, trial, m[DECIDES[o]]) for (o, family, trial, _), m in zip(cells, metrics, strict=True)])


def _tune_peer(config: Config, trained: _Counter) -> list[Tuned]:
    if config.peer_python is None or NEXT_ITEM not in config.objectives:
        return []
    data = config.training(NEXT_ITEM, config.families[0], config.grid[0], config.seeds[0])
    options = [config.peer(trial, config.peer_seeds[0]) for trial in config.peer_grid]
    there = [config.artifacts.exists(config.artifact_of_peer(each)) for each in options]
    for found in there:
        trained.add(found)
    if not all(there):
        make_environment(Path(config.peer_python).parent.parent)
    task = remote(config, tune_peer)
    calls = [functools.partial(task, data, each, config.artifact_of_peer(each)) for each in options]
    metrics = in_order(calls, Progress(FOLDER, len(calls), "trials of RecBole's SASRec"))
    return _judged(
        [(NEXT_ITEM, PEER, t, m[DECIDES[NEXT_ITEM]]) for t, m in zip(config.peer_grid, metrics, strict=True)]
    )


def _judged(trials: list[tuple[Any, str, Trial, float]]) -> list[Tuned]:
    """Marks the best trial of each objective and model; of equals, the first."""
    best: dict[tuple[str, str], int] = {}
    for at, (objective, model, _, value) in enumerate(trials):
        if not math.isfinite(value):
            raise ValueError(
                f"The trial of {model} for {objective} came to {value} on valid: lower the learning rates."
            )
        held = best.setdefault((objective, model), at)
        if value > trials[held][3]:
            best[objective, model] = at
    return [
        Tuned(objective=o, model=model, trial=trial, valid=value, chosen=best[o, model] == at)
        for at, (o, model, trial, value) in enumerate(trials)
    ]


def _test(config: Config, chosen: Sequence[Chosen], trained: _Counter) -> dict[tuple[str, str], dict[int, Scored]]:
    """Trains the chosen trials under every seed, scores the test split, and resamples. By objective and model."""
    peers = [c for c in chosen if c.model == PEER]
    cells = [
        (c.objective, c.model, seed, config.training(c.objective, c.model, c.trial, seed))
        for seed in config.seeds
        for c in chosen
        if c.model != PEER
    ]
    calls: list[Callable[[], Any]] = []
    places: list[tuple[Objective, str, int, str]] = []
    tune, score, floor, peer = (remote(config, f) for f in (_train_and_score, score_cell, score_floor, tune_peer))
    for objective, model, seed, training in cells:
        at = config.artifact_of(training)
        places.append((objective, model, seed, at))
        there = config.artifacts.exists(_model_of(training))
        if seed != config.seeds[0]:
            trained.add(there)
        if not config.artifacts.exists(at):
            calls.append(functools.partial(score if there else tune, training, at, config.cpus))
    for objective in config.objectives:
        data = config.training(objective, config.families[0], config.grid[0], config.seeds[0])
        for name in FLOORS:
            at = config.artifact_of_floor(objective, name)
            if not config.artifacts.exists(at):
                calls.append(functools.partial(floor, data, name, at))
    for c in peers:
        data = config.training(NEXT_ITEM, config.families[0], config.grid[0], config.seeds[0])
        for seed in config.peer_seeds:
            options = config.peer(c.trial, seed)
            at = config.artifact_of_peer(options)
            places.append((NEXT_ITEM, PEER, seed, at))
            if seed != config.peer_seeds[0]:
                trained.add(config.artifacts.exists(at))
            if not config.artifacts.exists(at):
                calls.append(functools.partial(peer, data, options, at))
    in_order(calls, Progress(FOLDER, len(calls), "trainings and scorings"))
    read = remote(config, read_cell)
    calls = [functools.partial(read, config.artifacts, at, o, config.resamples) for o, _, _, at in places]
    found: dict[tuple[str, str], dict[int, Scored]] = {}
    scored = in_order(calls, Progress(f"{FOLDER}: bootstrap", len(calls), "models"))
    for (objective, model, seed, _), each in zip(places, scored, strict=True):
        found.setdefault((objective, model), {})[seed] = each
    return found


def _train_and_score(training: Training, at: str, threads: int) -> None:
    tune_cell(training, threads)
    score_cell(training, at, threads)


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
