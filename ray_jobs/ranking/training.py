"""Trains one candidate ranker (or fits a floor), calibrates it on validation and scores validation and test.

Everything is found again by name: a finished ranker is not trained twice, an interrupted training resumes after its
last whole epoch, and predictions are written once.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pydantic

from models.ranking import content
from models.ranking.calibration import Platt, fit_platt
from models.ranking.evaluation import Rules
from models.ranking.examples import Preprocessing
from models.ranking.floors import FLOORS, Events
from models.ranking.scoring import DLRM_KIND, Ranker, build_scorer
from models.vista.cache import CacheFormat
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.newest import Newest
from ray_jobs.progress import note
from ray_jobs.ranking.data import SUMMARY, TOKENS, Items, of_split, read_examples, read_items, read_met
from ray_jobs.ranking.evaluation import Figure, evaluated, predicted, request_latency
from ray_jobs.ranking.files import read_ranker, write_ranker
from ray_jobs.ranking.task import Knobs, RankerTask, labelled, network_config
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.ranking import predictions
from ray_jobs.training import Fitted, fit
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

TRAINING = "training.json"


class Network(pydantic.BaseModel, frozen=True):
    """Sizes and regularisation of a DLRM-style ranker; chosen on validation."""

    width: int = pydantic.Field(32, ge=1, description="Width of embeddings.")
    hidden: int = pydantic.Field(64, ge=2, description="Width of the MLPs.")
    token_buckets: int = pydantic.Field(8192, ge=1, description="Rows of the hashed table of caption tokens.")
    dropout: float = pydantic.Field(0.4, ge=0, lt=1, description="Dropout.")
    unknown_user: float = pydantic.Field(
        0.6, ge=0, le=1, description="Share of training rows in which the user is made unknown."
    )
    unknown_item: float = pydantic.Field(0.1, ge=0, lt=1, description="The same for items.")
    token_dropout: float = pydantic.Field(
        0.3, ge=0, lt=1, description="Share of caption tokens that are left out in training."
    )


class Config(pydantic.BaseModel, frozen=True):
    """One candidate."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where checkpoints and the ranker go.")
    candidate: str = pydantic.Field(description="Name of the candidate.")
    version: str = pydantic.Field(description="Identity of the candidate: inputs, code and parameters.")
    kind: Literal["dlrm", "popularity", "item_knn", "markov_chain"] = pydantic.Field(description="What is fitted.")
    inputs: tuple[Literal["tokens", "summary"], ...] = pydantic.Field((), description="Inputs beside ids and counts.")
    training_set: str | None = pydantic.Field(None, description="Version of the training set that is expected.")
    num_recent: int = pydantic.Field(20, ge=1, description="Recent items that are read.")
    newest: Newest = pydantic.Field(Newest(), description="Events of a user that are read.")
    max_tokens: int = pydantic.Field(64, ge=1, description="Most caption tokens of an item.")
    max_users: int = pydantic.Field(1_000_000, ge=1, description="Most users with an embedding of their own.")
    network: Network = pydantic.Field(Network(), description="Sizes of the network.")
    training: TrainingOptions = pydantic.Field(
        TrainingOptions(epochs=30, patience=3, learning_rate=5e-3, weight_decay=1e-2), description="How it is trained."
    )
    batch_size: int = pydantic.Field(2048, ge=1, description="Most examples in a batch.")
    interest_weight: float = pydantic.Field(1.0, ge=0, description="Weight of the interest head's loss.")
    full_softmax: int = pydantic.Field(
        5000, ge=0, description="Largest catalogue over which the interest head sees every item at every step."
    )
    num_sampled: int = pydantic.Field(4096, ge=1, description="Items it samples from larger ones.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users.")
    workers: int = pydantic.Field(0, ge=0, description="Ray Train workers; 0 trains in the job's own process.")
    use_gpu: bool = pydantic.Field(False, description="Whether each worker gets a GPU.")
    acceleration: Acceleration = pydantic.Field(Acceleration(), description="How its steps are computed.")

    @property
    def artifact(self) -> str:
        """The candidate's place in the artifact store."""
        return f"rankers/{self.candidate}/{self.version}"

    @property
    def training_name(self) -> str:
        """Name of the training, for its checkpoints."""
        return f"ranker-{self.candidate}-{self.version}"


class Result(pydantic.BaseModel, frozen=True):
    """What became of a candidate."""

    artifact: str = pydantic.Field(description="The ranker in the artifact store.")
    rows: int = pydantic.Field(description="Rows of the table of predictions.")
    committed: bool = pydantic.Field(description="Whether predictions were written by this call.")
    trained: bool = pydantic.Field(description="Whether this call trained or fitted anything.")
    figures: list[Figure] = pydantic.Field(description="Every metric with its interval.")
    left_out: list[str] = pydantic.Field(description="Figures that were left out, and why.")
    metrics: dict[str, float] = pydantic.Field(description="All of that, and more, by MLflow name.")
    history: list[dict[str, float]] = pydantic.Field(description="One record an epoch; empty for floors.")
    best_epoch: int = pydantic.Field(description="Epoch whose weights were kept; 0 for floors.")
    num_parameters: int = pydantic.Field(description="Numbers that were learned.")
    seconds: float = pydantic.Field(description="Training time.")
    content_versions: dict[str, str] = pydantic.Field(
        description="Versions of the content that it was trained on, by the column that carries them."
    )
    split_rows: dict[str, int] = pydantic.Field(description="Examples of each split.")
    window: tuple[str, str] = pydantic.Field(description="First and last day of the examples.")


def build_task(config: Config) -> RankerTask:
    """The training task; runs in every Ray Train worker."""
    data, items = read_data(config)
    preprocessing = fit_preprocessing(config, data, items)
    n = config.network
    network = network_config(preprocessing, items, config.inputs, **n.model_dump())
    return RankerTask(
        labelled(of_split(data, "train"), preprocessing),
        labelled(of_split(data, "valid"), preprocessing),
        items,
        preprocessing,
        network,
        Knobs(config.batch_size, config.interest_weight, config.full_softmax, config.num_sampled, config.training.seed),
    )


def read_data(config: Config) -> tuple[pa.Table, Items]:
    """The feature rows and the catalogue that a candidate reads."""
    data = read_examples(config.warehouse, config.inputs, config.training_set, config.newest)
    return data, read_items(config.warehouse, TOKENS in config.inputs, config.max_tokens)


def fit_preprocessing(config: Config, data: pa.Table, items: Items) -> Preprocessing:
    """Vocabularies and scales of the training period."""
    train = of_split(data, "train")
    return Preprocessing.fit(
        train,
        items.ids,
        num_recent=config.num_recent,
        num_tokens=items.tokens_IT.shape[1],
        summary_shape=summary_shape(train) if SUMMARY in config.inputs else (0, 0),
        content_versions=content_versions(config, train, items),
        max_users=config.max_users,
    )


def content_versions(config: Config, train: pa.Table, items: Items) -> dict[str, str]:
    """Versions of the content that the candidate reads, by the column that carries them.

    Raises:
        ContentVersionError: If rows carry several versions, or the training set others than the catalogue.
    """
    found = {}
    if TOKENS in config.inputs:
        known = content.TOKENS
        of_rows = content.only_version(content.carried(train, known), known, TRAINING_SET.name)
        if of_rows not in ("", items.token_version):
            raise content.ContentVersionError(
                f"{TRAINING_SET.name} carries {known.what} of version {of_rows}, but {known.table} holds version "
                f"{items.token_version}: materialize {TRAINING_SET.name} again."
            )
        found[known.version] = items.token_version
    if SUMMARY in config.inputs:
        known = content.SUMMARY
        found[known.version] = content.only_version(content.carried(train, known), known, TRAINING_SET.name)
    return found


def summary_shape(train: pa.Table) -> tuple[int, int]:
    """Tokens and width of the VISTA summaries in these rows.

    Raises:
        ValueError: If no row has one.
    """
    present = train.filter(train["user_summary"].is_valid()).slice(0, 1)
    if not present.num_rows:
        raise ValueError(
            "No example of the training period has a VISTA summary: materialize vista/user_summaries and "
            "features/training_set, or give the dataset longer histories."
        )
    form = CacheFormat.of_version(present[content.SUMMARY.version][0].as_py() or "")
    return form.shape(len(present["user_summary"][0].as_py()), len(present["user_summary_scales"][0].as_py()))


def run(config: Config) -> Result:
    """Makes the candidate, or finds it, and writes its predictions."""
    started, data_and_items = time.monotonic(), read_data(config)
    data, items = data_and_items
    trained = not config.artifacts.exists(config.artifact)
    if trained:
        make_ranker(config, data, items)
    with config.artifacts.local(config.artifact) as folder:
        ranker = read_ranker(folder)
        told = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    note(config.candidate, "scores validation and test", seconds=round(time.monotonic() - started, 1))
    met = read_met(config.warehouse, config.training_set)
    table = predicted(ranker, data, items, config.version, met=met)
    written = config.warehouse.write(predictions(config.candidate), table, config.version)
    figures, left_out, metrics = evaluated(table, Rules(config.resamples))
    metrics["train/base_rate"] = ranker.preprocessing.base_rate
    days = sorted(str(v.date()) for v in (data["event_timestamp"][i].as_py() for i in _extremes(data)))
    return Result(
        artifact=config.artifact,
        rows=written.rows,
        committed=written.committed,
        trained=trained,
        figures=figures,
        left_out=left_out,
        metrics=metrics | request_latency(ranker, data) | {"cost/train_seconds": told["seconds"]},
        content_versions=ranker.preprocessing.content_versions,
        split_rows={s: of_split(data, s).num_rows for s in ("train", "valid", "test")},
        window=(days[0], days[-1]),
        **told,
    )


def _extremes(data: pa.Table) -> list[int]:
    times = data["event_timestamp"].cast(pa.int64()).to_numpy()
    return [int(times.argmin()), int(times.argmax())]


def make_ranker(config: Config, data: pa.Table, items: Items) -> None:
    """Trains or fits, calibrates on validation, and keeps the whole ranker as one artifact."""
    if config.kind == DLRM_KIND:
        ranker, told = _train(config)
    else:
        ranker, told = _fit_floor(config, data, items)
    valid = of_split(data, "valid")
    logit = ranker.scorer.like(ranker.preprocessing.transform(valid))
    calibrated = Ranker(
        ranker.kind,
        ranker.config,
        ranker.preprocessing,
        fit_platt(logit, valid["label"].to_numpy().astype(np.float64)),
        ranker.scorer,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_ranker(calibrated, Path(folder))
        (Path(folder) / TRAINING).write_text(json.dumps(told, sort_keys=True), encoding="utf-8")
        config.artifacts.put(Path(folder), config.artifact)


def _train(config: Config) -> tuple[Ranker, dict[str, Any]]:
    fitted: Fitted = fit(
        build_task,
        config,
        name=config.training_name,
        artifacts=config.artifacts,
        options=config.training,
        workers=config.workers,
        use_gpu=config.use_gpu,
        acceleration=config.acceleration,
    )
    kept = read_model(config.artifacts, config.training_name)
    preprocessing = Preprocessing.from_json(kept.preprocessing)
    scorer = build_scorer(DLRM_KIND, kept.constructor, {k: v.numpy() for k, v in kept.weights.items()})
    return Ranker(DLRM_KIND, kept.constructor, preprocessing, Platt(1.0, 0.0), scorer), {
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "num_parameters": fitted.num_parameters,
        "seconds": fitted.seconds,
    }


def _fit_floor(config: Config, data: pa.Table, items: Items) -> tuple[Ranker, dict[str, Any]]:
    started = time.monotonic()
    train, preprocessing = of_split(data, "train"), fit_preprocessing(config, data, items)
    x = preprocessing.transform(train)
    events = Events(
        x.user_N, x.item_N, train["label"].to_numpy().astype(np.int64), ~train["sampled"].to_numpy(zero_copy_only=False)
    )
    floor = FLOORS[config.kind].fit(events, len(items.ids))
    return Ranker(config.kind, {}, preprocessing, Platt(1.0, 0.0), floor), {
        "history": [],
        "best_epoch": 0,
        "num_parameters": int(sum(a.size for a in floor.arrays.values())),
        "seconds": round(time.monotonic() - started, 3),
    }


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
