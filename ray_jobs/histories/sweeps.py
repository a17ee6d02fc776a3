"""What summaries of histories may cost: quality by seeds, precision, staleness and length, beside the cost."""

import functools
import sys
import time
from typing import Annotated, Any, Literal

import pydantic

from models.identity import version_of
from models.ranking.ablation import over_seeds
from models.ranking.evaluation import figures
from models.vista.cache import Precision
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.distinct import Distinct
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.histories.cells import CLICK, Scored, read_cell
from ray_jobs.histories.data import Inputs
from ray_jobs.histories.sweep_cells import Point, score_point
from ray_jobs.histories.training import Config as Training
from ray_jobs.progress import Progress
from ray_jobs.tasks import in_order, remote
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

FOLDER = "history_sweeps"
SCORING_VERSION = "2"
Sweep = Literal["seeds", "precision", "staleness", "length"]
SEEDS: Sweep = "seeds"
PRECISION: Sweep = "precision"
STALENESS: Sweep = "staleness"
LENGTH: Sweep = "length"
SWEEPS: tuple[Sweep, ...] = (SEEDS, PRECISION, STALENESS, LENGTH)
EVERYTHING = 1_000_000
"""Events of a history when all of them are seen."""
COSTS: dict[str, str] = {
    SEEDS: "bytes_per_user",
    PRECISION: "bytes_per_user",
    STALENESS: "refreshes_per_1000_events",
    LENGTH: "encode_ms_per_user",
}


class Config(pydantic.BaseModel, frozen=True):
    """The sweeps."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where trainings and scores are kept.")
    inputs: Inputs = pydantic.Field(description="Versions of the tables that are read.")
    family: Literal["vista", "vista_causal"] = pydantic.Field("vista", description="Whose summaries.")
    sweeps: Distinct[Sweep] = pydantic.Field(SWEEPS, min_length=1, description="Which sweeps.")
    num_seeds: Distinct[pydantic.PositiveInt] = pydantic.Field(
        (4, 8, 16, 32, 64), min_length=1, description="Summary tokens, each trained."
    )
    precisions: Distinct[Precision] = pydantic.Field(
        ("fp32", "fp16", "int8", "int4"), min_length=1, description="What summaries are kept in."
    )
    missed: Distinct[pydantic.NonNegativeInt] = pydantic.Field(
        (0, 1, 5, 20, 100), min_length=1, description="Newest events not seen yet."
    )
    lengths: Distinct[Annotated[int, pydantic.Field(ge=1, le=EVERYTHING)]] = pydantic.Field(
        (10, 25, 50, 100, 200, EVERYTHING), min_length=1, description="Most events seen, each trained."
    )
    seeds: Distinct[int] = pydantic.Field((0, 1, 2, 3, 4), min_length=1, description="Seeds of trainings.")
    arguments: dict[str, Any] = pydantic.Field(
        {"width": 32, "heads": 2, "layers": 2, "dropout": 0.2, "num_seeds": 16}, description="The model in the middle."
    )
    training: TrainingOptions = pydantic.Field(
        TrainingOptions(epochs=8, patience=3, learning_rate=5e-3, warmup_steps=20, epoch_decay=0.7, weight_decay=0.1),
        description="How it is trained.",
    )
    history_events: int = pydantic.Field(200, ge=1, description="Most events of a history, but for the sweep of it.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users and seeds.")
    cpus: int = pydantic.Field(1, ge=1, description="CPUs, and threads, of a training.")
    gpus: float = pydantic.Field(0.0, ge=0, description="GPUs of a training; a fraction shares one.")

    def training_of(self, seed: int, history_events: int | None = None, **arguments: Any) -> Training:
        """A training with some of it changed."""
        return Training(
            warehouse=self.warehouse,
            artifacts=self.artifacts,
            inputs=self.inputs,
            family=self.family,
            objective="click",
            arguments=self.arguments | arguments,
            training=self.training.model_copy(update={"seed": seed}),
            history_events=self.history_events if history_events is None else history_events,
        )

    def points(self, seed: int) -> list[Point]:
        """Every point of every sweep; all are scored with histories as fresh as the sweep allows."""
        base = self.training_of(seed)
        made: dict[Sweep, list[Point]] = {
            SEEDS: [Point(SEEDS, str(k), k, self.training_of(seed, num_seeds=k), missed=0) for k in self.num_seeds],
            PRECISION: [
                Point(PRECISION, name, at, base, precision=name, missed=0) for at, name in enumerate(self.precisions)
            ],
            STALENESS: [Point(STALENESS, str(m), m, base, missed=m) for m in self.missed],
            LENGTH: [
                Point(LENGTH, "all" if n >= EVERYTHING else str(n), n, self.training_of(seed, n), missed=0)
                for n in self.lengths
            ],
        }
        return [point for sweep in self.sweeps for point in made[sweep]]

    def artifact_of(self, point: Point) -> str:
        """Place of a point's scores."""
        version = version_of(training=point.training.name, precision=point.precision, missed=point.missed)
        return f"{FOLDER}/{SCORING_VERSION}/{version}"


class Line(pydantic.BaseModel, frozen=True):
    """One metric at one point of a sweep; see `ray_jobs.tables.history.HISTORY_SWEEPS`."""

    sweep: str
    point: str
    place: float
    metric: str
    value: float
    low: float
    high: float
    cost_name: str
    cost: float
    num_seeds: int
    num_examples: int
    num_users: int


class Result(pydantic.BaseModel, frozen=True):
    """What came out."""

    lines: list[Line] = pydantic.Field(description="Metrics at every point.")
    num_scored: int = pydantic.Field(description="Points that this call scored.")
    seconds: float = pydantic.Field(description="Time of this call.")


def run(config: Config) -> Result:
    """Trains and scores what is missing, and resamples."""
    started = time.monotonic()
    points = [point for seed in config.seeds for point in config.points(seed)]
    missing = {config.artifact_of(p): p for p in points if not config.artifacts.exists(config.artifact_of(p))}
    # A training that several points share is run by the first of them, before the others need it.
    first: dict[str, tuple[str, Point]] = {}
    for at, point in missing.items():
        first.setdefault(point.training.name, (at, point))
    score = remote(config, score_point)
    ahead = [functools.partial(score, p, at, config.cpus) for at, p in first.values()]
    in_order(ahead, Progress(FOLDER, len(ahead), "trainings"))
    rest = [
        functools.partial(score, p, at, config.cpus) for at, p in missing.items() if first[p.training.name][0] != at
    ]
    in_order(rest, Progress(FOLDER, len(rest), "points"))
    read = remote(config, read_cell)
    calls = [functools.partial(read, config.artifacts, config.artifact_of(p), CLICK, config.resamples) for p in points]
    scored: list[Scored] = in_order(calls, Progress(f"{FOLDER}: bootstrap", len(calls), "points"))
    found: dict[tuple[str, str], list[tuple[Point, Scored]]] = {}
    for point, each in zip(points, scored, strict=True):
        found.setdefault((point.sweep, point.label), []).append((point, each))
    lines = [line for each in found.values() for line in _lines(each, config.seeds[0])]
    return Result(lines=lines, num_scored=len(missing), seconds=round(time.monotonic() - started, 1))


def _lines(each: list[tuple[Point, Scored]], seed: int) -> list[Line]:
    point = each[0][0]
    name = COSTS[point.sweep]
    costs = [1000 / (1 + point.place) if point.sweep == STALENESS else scored.told[name] for _, scored in each]
    made = []
    for row in figures(over_seeds([scored.found for _, scored in each], seed)):
        told = row._asdict()
        del told["slice"], told["baseline"]
        made.append(
            Line(
                sweep=point.sweep,
                point=point.label,
                place=point.place,
                cost_name=name,
                cost=sum(costs) / len(costs),
                num_seeds=len(each),
                **told,
            )
        )
    return made


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
