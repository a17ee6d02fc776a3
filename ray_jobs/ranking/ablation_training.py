"""One training of the content experiment: as the candidates of `ranking` are trained, with its test scores kept."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from models.ranking import content
from models.ranking.ablation import Arm
from models.ranking.calibration import Platt, fit_platt
from models.ranking.crosses import TokenCrosses, vocabulary_of
from models.ranking.evaluation import Estimates, Rules, estimate
from models.ranking.examples import Preprocessing
from models.ranking.scoring import DLRM_KIND, Ranker, build_scorer
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.ranking.content_arms import Contents, inputs_of, with_content, with_tokens
from ray_jobs.ranking.data import Items, of_split
from ray_jobs.ranking.evaluation import predicted, scored_of, slice_masks
from ray_jobs.ranking.task import Knobs, Labelled, RankerTask, labelled, network_config
from ray_jobs.ranking.training import Network
from ray_jobs.training import fit
from ray_jobs.training_task import TrainingOptions

SCORES, TRAINING = "scores.parquet", "training.json"
KEPT = ("example_id", "user_id", "label", "score", "rank", "slices")


class Cell(NamedTuple):
    """One training of the experiment."""

    rule: str
    arm: Arm
    seed: int

    @property
    def name(self) -> str:
        """Its place below the experiment's artifacts."""
        return f"{self.rule}/{self.arm.name}/seed-{self.seed}"


class Recipe(NamedTuple):
    """How all arms are trained: the same for each.

    Attributes:
        network: Sizes and regularisation.
        options: Training options; the seed is the cell's.
        num_recent: Recent items that are read.
        batch_size: Most examples in a batch.
        interest_weight: Weight of the interest head's loss.
        full_softmax: Largest catalogue over which the interest head sees every item at every step.
        num_sampled: Items it samples from larger ones.
        threads: Threads of a training.
        use_gpu: Whether it has a GPU.
    """

    network: Network
    options: TrainingOptions
    num_recent: int
    batch_size: int
    interest_weight: float
    full_softmax: int
    num_sampled: int
    threads: int
    use_gpu: bool


def _preprocessing(data: pa.Table, items: Items, recipe: Recipe) -> Preprocessing:
    return Preprocessing.fit(
        of_split(data, "train"),
        items.ids,
        num_recent=recipe.num_recent,
        num_tokens=items.tokens_IT.shape[1],
        content_versions={content.TOKENS.version: items.token_version},
    )


def crosses_of(arm: Arm, seed: int, data: pa.Table, contents: Contents, recipe: Recipe) -> np.ndarray:
    """Crosses of all feature rows (N, C) with an arm's tokens: the same under every rule, with and without IDs.

    Args:
        arm: The arm.
        seed: Seed of the training.
        data: Feature rows under any rule.
        contents: Content of the catalogue.
        recipe: How it is trained.
    """
    items = with_content(contents, arm, seed)
    data = with_tokens(data, items)
    x = _preprocessing(data, items, recipe).transform(data)
    return TokenCrosses(items.tokens_IT, vocabulary_of(items.tokens_IT, items.weights_IT))(x)


def _crossed(part: Labelled, crosses: np.ndarray | None, rows: np.ndarray) -> Labelled:
    return part if crosses is None else part._replace(x=part.x._replace(crosses_NC=crosses[rows]))


def train_cell(
    cell: Cell,
    data: pa.Table,
    contents: Contents,
    crosses: np.ndarray | None,
    recipe: Recipe,
    artifacts: ArtifactStore,
    at: str,
) -> str:
    """Trains one cell, scores the test split and keeps the scores.

    Args:
        cell: The training.
        data: Feature rows under the cell's rule.
        contents: Content of the catalogue.
        crosses: What `crosses_of` gave; None: the arm has no tokens.
        recipe: How it is trained.
        artifacts: Where the scores go.
        at: Name of the artifact.

    Returns:
        Name of the cell.
    """
    torch.set_num_threads(recipe.threads)
    # Its notes on local mode would be said by every training.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    items = with_content(contents, cell.arm, cell.seed)
    data = with_tokens(data, items)
    preprocessing = _preprocessing(data, items, recipe)
    network = network_config(
        preprocessing, items, inputs_of(cell.arm), item_ids=cell.arm.item_ids, **recipe.network.model_dump()
    )
    split = np.asarray(data["split"].to_numpy(zero_copy_only=False), str)
    train, valid = (
        _crossed(labelled(of_split(data, name), preprocessing), crosses, split == name) for name in ("train", "valid")
    )
    knobs = Knobs(recipe.batch_size, recipe.interest_weight, recipe.full_softmax, recipe.num_sampled, cell.seed)
    task = RankerTask(train, valid, items, preprocessing, network, knobs)
    ranker, told = _fit(cell, task, recipe)
    logit = ranker.scorer.like(task.valid)
    calibration = fit_platt(logit, valid.label_N.astype(np.float64))
    ranker = Ranker(ranker.kind, ranker.config, preprocessing, calibration, ranker.scorer)
    _keep(predicted(ranker, data, items, at, splits=("test",)), told, artifacts, at)
    return cell.name


def _fit(cell: Cell, task: RankerTask, recipe: Recipe) -> tuple[Ranker, dict[str, Any]]:
    """Runs the training loop; its checkpoints are of no use afterwards, since an interrupted cell is trained again."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = ArtifactStore(folder)
        fitted = fit(
            lambda _: task,
            None,
            name="cell",
            artifacts=scratch,
            options=recipe.options.model_copy(update={"seed": cell.seed}),
            use_gpu=recipe.use_gpu,
            cpus_per_worker=recipe.threads,
        )
        kept = read_model(scratch, "cell")
    scorer = build_scorer(DLRM_KIND, kept.constructor, {k: v.numpy() for k, v in kept.weights.items()})
    return Ranker(DLRM_KIND, kept.constructor, task.fitted, Platt(1.0, 0.0), scorer), {
        "valid_auc": fitted.metrics["auc"],
        "best_epoch": fitted.best_epoch,
        "epochs": fitted.epochs,
        "num_parameters": fitted.num_parameters,
        "seconds": fitted.seconds,
    }


def _keep(table: pa.Table, told: dict[str, Any], artifacts: ArtifactStore, at: str) -> None:
    """Keeps scores without the names of users: a number a user is enough for the bootstrap."""
    rows = pl.DataFrame(table).select(KEPT).with_columns(pl.col("user_id").rank("dense"))
    with tempfile.TemporaryDirectory() as folder:
        rows.write_parquet(Path(folder) / SCORES)
        (Path(folder) / TRAINING).write_text(json.dumps(told, sort_keys=True), encoding="utf-8")
        artifacts.put(Path(folder), at)


class Evaluated(NamedTuple):
    """A kept cell.

    Attributes:
        found: Metrics on slices, resampled over users.
        left_out: What could not be told, and why.
        told: What is known of the training.
    """

    found: Estimates
    left_out: list[str]
    told: dict[str, Any]


def evaluate_cell(artifacts: ArtifactStore, at: str, slices: tuple[str, ...], rules: Rules) -> Evaluated:
    """Resamples a kept cell over users.

    Args:
        artifacts: Where it was kept.
        at: Name of the artifact.
        slices: Slices beside the whole test split.
        rules: How figures are made.
    """
    with artifacts.local(at) as folder:
        table = pl.read_parquet(folder / SCORES).to_arrow()
        told = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    masks = slice_masks(table)
    found, left_out = estimate(scored_of(table), {name: masks[name] for name in slices}, rules)
    return Evaluated(found, left_out, told)
