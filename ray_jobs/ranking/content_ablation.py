"""The content experiment: trains every arm under every seed and split rule, and says what content is worth.

One Ray task a training, with data that were read once. What a training scored is kept at once, under the identity of
everything that it depends on: a killed run loses the trainings in flight, and a second run trains nothing. More seeds
or resamples later cost only what is new.
"""

import functools
import sys
import time
from typing import Any, Literal

import pydantic

from models.identity import version_of
from models.language.caption_tokens import TokenConfig
from models.ranking.ablation import CONTENTS, NONE, PLACEBOS, Arm, over_seeds, verdict
from models.ranking.evaluation import (
    ALL,
    AUC,
    ENTROPY,
    HIT_RATE,
    LOG_LOSS,
    NDCG,
    Estimates,
    Row,
    Rules,
    differences,
    figures,
)
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.progress import Progress, note
from ray_jobs.ranking.ablation_training import Cell, Evaluated, Recipe, crosses_of, evaluate_cell, train_cell
from ray_jobs.ranking.content_arms import read_contents, read_split, tokens_of
from ray_jobs.ranking.training import Network
from ray_jobs.tasks import in_order, remote
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

SLICES = ("new_items", "tail_items")
METRICS = (AUC, ENTROPY, LOG_LOSS, NDCG, HIT_RATE)
FOLDER = "content_ablation"


class Config(pydantic.BaseModel, frozen=True):
    """The experiment."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where scores are kept.")
    inputs: dict[str, str] = pydantic.Field(description="Version of each table that is read.")
    code: str = pydantic.Field(description="Version of the code that trains.")
    training_set: str | None = pydantic.Field(None, description="Version of the training set that is expected.")
    split_rules: tuple[Literal["global_time", "leave_one_out"], ...] = pydantic.Field(
        ("global_time", "leave_one_out"), description="How examples are split."
    )
    contents: tuple[str, ...] = pydantic.Field(
        (*CONTENTS, *PLACEBOS), description="What the arms know of an item's content; `none` is always among them."
    )
    item_ids: tuple[bool, ...] = pydantic.Field((True, False), description="Whether items have IDs beside it.")
    seeds: tuple[int, ...] = pydantic.Field((0, 1, 2, 3, 4), min_length=1, description="Seeds, the same in each arm.")
    tokens: TokenConfig = pydantic.Field(TokenConfig(), description="How titles and captions become tokens.")
    network: Network = pydantic.Field(Network(), description="Sizes and regularisation of all arms.")
    training: TrainingOptions = pydantic.Field(
        TrainingOptions(epochs=30, patience=3, learning_rate=5e-3, weight_decay=1e-2),
        description="How all arms are trained; the epoch with the best AUC on validation is kept.",
    )
    num_recent: int = pydantic.Field(20, ge=1, description="Recent items that are read.")
    batch_size: int = pydantic.Field(2048, ge=1, description="Most examples in a batch.")
    interest_weight: float = pydantic.Field(1.0, ge=0, description="Weight of the interest head's loss.")
    full_softmax: int = pydantic.Field(5000, ge=0, description="As for candidates.")
    num_sampled: int = pydantic.Field(4096, ge=1, description="As for candidates.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users and seeds.")
    cpus: int = pydantic.Field(1, ge=1, description="CPUs, and threads, of a training.")
    gpus: float = pydantic.Field(0.0, ge=0, description="GPUs of a training; a fraction shares one.")

    def arms(self) -> list[Arm]:
        """The arms, each after the one that it is compared with."""
        contents = dict.fromkeys((NONE, *self.contents))
        return [Arm(content, ids) for ids in self.item_ids for content in contents]

    def cells(self) -> list[Cell]:
        """All trainings: a whole seed of every arm before the next."""
        return [Cell(rule, arm, seed) for seed in self.seeds for rule in self.split_rules for arm in self.arms()]

    def recipe(self) -> Recipe:
        """How each is trained."""
        device: Literal["cpu", "cuda"] = "cuda" if self.gpus else "cpu"
        return Recipe(
            self.network,
            self.training.model_copy(update={"device": device}),
            self.num_recent,
            self.batch_size,
            self.interest_weight,
            self.full_softmax,
            self.num_sampled,
            self.cpus,
            bool(self.gpus),
        )

    def artifact(self, cell: Cell) -> str:
        """Place of a training's scores: the identity of all that they depend on."""
        version = version_of(
            inputs=self.inputs,
            code=self.code,
            tokens=self.tokens.model_dump(),
            network=self.network.model_dump(),
            training=self.training.model_dump(exclude={"seed", "device"}),
            sizes=[self.num_recent, self.batch_size, self.interest_weight, self.full_softmax, self.num_sampled],
        )
        return f"{FOLDER}/{version}/{cell.name}"


class Line(pydantic.BaseModel, frozen=True):
    """One figure of an arm; see `ray_jobs.tables.ranking.CONTENT_ABLATION`."""

    split_rule: str
    arm: str
    item_ids: bool
    slice: str
    metric: str
    baseline: str
    value: float
    low: float
    high: float
    relative: float | None
    num_seeds: int
    num_examples: int
    num_users: int
    counts: bool | None = None
    verdict: str | None = None


class Trained(pydantic.BaseModel, frozen=True):
    """One training, with its metrics on the whole test split by name."""

    split_rule: str
    arm: str
    item_ids: bool
    seed: int
    metrics: dict[str, float]


class Result(pydantic.BaseModel, frozen=True):
    """What came out."""

    lines: list[Line] = pydantic.Field(description="Figures and paired differences.")
    trainings: list[Trained] = pydantic.Field(description="Every training.")
    left_out: list[str] = pydantic.Field(description="Figures that were left out, and why.")
    num_trained: int = pydantic.Field(description="Trainings that this call ran.")
    num_found: int = pydantic.Field(description="Trainings of earlier calls.")
    seconds: float = pydantic.Field(description="Time of this call.")


def run(config: Config) -> Result:
    """Trains what is missing, and judges all of it."""
    started = time.monotonic()
    cells = config.cells()
    missing = [cell for cell in cells if not config.artifacts.exists(config.artifact(cell))]
    note(FOLDER, f"{len(cells)} trainings, of which {len(cells) - len(missing)} are there")
    if missing:
        _train(config, missing)
    lines: list[Line] = []
    trainings: list[Trained] = []
    left_out: list[str] = []
    evaluated = _evaluate(config, cells)
    for rule in config.split_rules:
        found: dict[Arm, Estimates] = {}
        for arm in config.arms():
            each = [evaluated[Cell(rule, arm, seed)] for seed in config.seeds]
            found[arm] = over_seeds([e.found for e in each], config.seeds[0])
            trainings += [_trained(Cell(rule, arm, s), e) for s, e in zip(config.seeds, each, strict=True)]
        left_out += [f"{rule}: {line}" for line in each[0].left_out]
        lines += [line for arm in found for line in _lines(config, rule, arm, found)]
    return Result(
        lines=lines,
        trainings=trainings,
        left_out=left_out,
        num_trained=len(missing),
        num_found=len(cells) - len(missing),
        seconds=round(time.monotonic() - started, 1),
    )


def _train(config: Config, missing: list[Cell]) -> None:
    """Runs one task a training; each keeps its scores itself."""
    import ray

    recipe, contents = config.recipe(), ray.put(read_contents(config.warehouse, config.split_rules, config.tokens))
    rules = {cell.rule: None for cell in missing}
    data = {rule: ray.put(read_split(config.warehouse, rule, config.training_set)) for rule in rules}
    train = remote(config, train_cell)
    cross: Any = ray.remote(crosses_of).options(num_cpus=1)
    crossed: dict[tuple[str, int], Any] = {}

    def call(cell: Cell) -> Any:
        key = (tokens_of(cell.arm), cell.seed if cell.arm.content in PLACEBOS else -1)
        if key[0] and key not in crossed:
            crossed[key] = cross.remote(cell.arm, cell.seed, data[cell.rule], contents, recipe)
        ours = crossed[key] if key[0] else None
        at = config.artifact(cell)
        return train(cell, data[cell.rule], contents, ours, recipe, config.artifacts, at)

    in_order([functools.partial(call, cell) for cell in missing], Progress(FOLDER, len(missing), "trainings"))


def _evaluate(config: Config, cells: list[Cell]) -> dict[Cell, Evaluated]:
    """Resamples every training over users, in tasks."""
    import ray

    rules = Rules(resamples=config.resamples, metrics=METRICS)
    task: Any = ray.remote(_evaluated).options(num_cpus=1)
    calls = [functools.partial(task.remote, cell, config.artifacts, config.artifact(cell), rules) for cell in cells]
    return dict(in_order(calls, Progress("content_ablation: bootstrap", len(cells), "trainings")))


def _evaluated(cell: Cell, artifacts: ArtifactStore, at: str, rules: Rules) -> tuple[Cell, Evaluated]:
    return cell, evaluate_cell(artifacts, at, SLICES, rules)


def _trained(cell: Cell, evaluated: Evaluated) -> Trained:
    metrics = {f"test/{metric}": e.value for (where, metric), e in evaluated.found.items() if where == ALL}
    metrics |= {f"slice/{where}/{metric}": e.value for (where, metric), e in evaluated.found.items() if where != ALL}
    metrics |= {name: float(value) for name, value in evaluated.told.items()}
    return Trained(
        split_rule=cell.rule, arm=cell.arm.content, item_ids=cell.arm.item_ids, seed=cell.seed, metrics=metrics
    )


def _lines(config: Config, rule: str, arm: Arm, found: dict[Arm, Estimates]) -> list[Line]:
    """Figures of an arm, and its differences to the arm without content and to its placebos, with a verdict each."""
    mine = found[arm]
    made = [_line(config, rule, arm, row, None) for row in figures(mine)]
    placebos = {p.content: found[p] for p in arm.placebos if p in found}
    for name, theirs in (({NONE: found[arm.baseline]} if arm.content != NONE else {}) | placebos).items():
        for row in differences(mine, theirs, name):
            base = theirs[row.slice, row.metric].value
            made.append(_line(config, rule, arm, row, row.value / base if base else None))
    if arm.content == NONE or arm.content in PLACEBOS:
        return made
    against = {
        name: {row.slice: row for row in differences(theirs, found[arm.baseline], NONE) if row.metric == AUC}
        for name, theirs in placebos.items()
    }
    judged = []
    for line in made:
        if line.metric == AUC and line.baseline == NONE:
            row = Row(**{name: getattr(line, name) for name in Row._fields})
            shown = {name: rows[row.slice] for name, rows in against.items() if row.slice in rows}
            said = verdict(arm, row, line.relative or 0.0, shown, len(config.seeds))
            line = line.model_copy(update={"counts": said.counts, "verdict": f"{rule}, {said.sentence}"})
        judged.append(line)
    return judged


def _line(config: Config, rule: str, arm: Arm, row: Row, relative: float | None) -> Line:
    return Line(
        split_rule=rule,
        arm=arm.content,
        item_ids=arm.item_ids,
        relative=relative,
        num_seeds=len(config.seeds),
        **row._asdict(),
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
