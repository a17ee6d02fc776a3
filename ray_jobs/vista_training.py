"""Trains VISTA by Ray Train: which candidates does a user like, given a summary of what came before?"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pydantic
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from models.identity import version_of
from models.long_history.histories import Blocks, cut_blocks, history_batch, windows
from models.long_history.inputs import History, Items
from models.long_history.vocabulary import Vocabulary, fit_vocabulary
from models.ranking.bootstrap import Interval, interval, resampled_auc, user_weights
from models.ranking.metrics import auc
from models.vista.model import Vista, VistaConfig
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import TrainedModel, read_model
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.history_data import (
    SPLIT_NAMES,
    Inputs,
    catalogue_of,
    encode_events,
    encode_examples,
    known_items,
    read_codes,
    read_events,
    read_examples,
)
from ray_jobs.training import Fitted, fit
from ray_jobs.training_task import Loss, Task, TrainingOptions, fitting_batch
from ray_jobs.warehouse import Warehouse

CODE_VERSION = "3"
# Of an epoch on small data; see `fitting_batch`.
SMALLEST_BATCH, STEPS_AN_EPOCH = 4, 64
"""Bump when the network, its inputs or its training change."""
RESAMPLES = 200
POOL = 32
"""Batches whose blocks are sorted by history length together, so that padding is rare and order stays random."""


class Network(pydantic.BaseModel, frozen=True):
    """Sizes of the network; see `VistaConfig`."""

    num_seeds: int = pydantic.Field(16, ge=1, description="Summary tokens of a user.")
    width: int = pydantic.Field(32, ge=1, description="Width of a token.")
    heads: int = pydantic.Field(2, ge=1, description="Attention heads.")
    layers: int = pydantic.Field(2, ge=1, description="Blocks of stage 1.")
    target_layers: int = pydantic.Field(1, ge=1, description="Blocks of stage 2.")
    attention: str = pydantic.Field(
        "quasi_linear", pattern="^(quasi_linear|softmax)$", description="Attention of stage 1."
    )
    reconstruction_weight: float = pydantic.Field(0.1, ge=0, description="Weight of the reconstruction loss.")
    reconstruction_events: int = pydantic.Field(32, ge=2, description="Newest events that the decoder sees.")
    stop_gradient: bool = pydantic.Field(True, description="Whether reconstruction targets are constants.")
    dropout: float = pydantic.Field(0.1, ge=0, lt=1, description="Dropout.")
    item_dropout: float = pydantic.Field(0.1, ge=0, lt=1, description="Share of items hidden in training.")
    embedding_std: float = pydantic.Field(0.1, gt=0, description="Spread of new embeddings.")


class Config(pydantic.BaseModel, frozen=True):
    """A training of VISTA."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where checkpoints and the model go.")
    inputs: Inputs = pydantic.Field(description="Versions of the tables it learns from.")
    network: Network = pydantic.Field(default_factory=Network, description="Sizes of the network.")
    training: TrainingOptions = pydantic.Field(
        TrainingOptions(epochs=4, patience=2, learning_rate=5e-3, warmup_steps=20, epoch_decay=0.6, weight_decay=0.1),
        description="How it is trained.",
    )
    history_events: int = pydantic.Field(128, ge=1, description="Most events of a history; the newest are kept.")
    block_examples: int = pydantic.Field(16, ge=1, description="Examples of a user that share one history.")
    batch_blocks: int = pydantic.Field(64, ge=1, description="Most blocks in a batch.")
    min_item_events: int = pydantic.Field(2, ge=1, description="Items with fewer events share one embedding.")
    workers: int = pydantic.Field(0, ge=0, description="Ray Train workers; 0 trains in the job's own process.")
    use_gpu: bool = pydantic.Field(False, description="Whether each worker gets a GPU.")
    acceleration: Acceleration = pydantic.Field(Acceleration(), description="How its steps are computed.")
    cpus_per_worker: float = pydantic.Field(1.0, gt=0, description="CPUs of each worker.")

    @property
    def name(self) -> str:
        """Version of the training: inputs, parameters and code, but not where or on how many workers it runs."""
        where = {"warehouse", "artifacts", "workers", "use_gpu", "acceleration", "cpus_per_worker"}
        return "vista-" + version_of(code=CODE_VERSION, **self.model_dump(mode="json", exclude=where))


class Result(pydantic.BaseModel, frozen=True):
    """What a training came to."""

    fitted: Fitted = pydantic.Field(description="The finished training.")


class Batch(NamedTuple):
    """One batch: B blocks of at most C candidates.

    Attributes:
        history: Histories.
        candidates: Candidates, B x C.
        labels_BC: 0 or 1.
        real_BC: Which candidates are no padding.
    """

    history: History
    candidates: Items
    labels_BC: torch.Tensor
    real_BC: torch.Tensor


class VistaTask(Task):
    """User-aggregated click prediction with the reconstruction loss (arXiv 2510.22049, 3.2)."""

    stage = "vista"
    metric = "auc"

    def __init__(self, config: Config):
        self.config = config
        events, examples = (
            read_events(config.warehouse, config.inputs.raw_interactions),
            read_examples(config.warehouse, config.inputs.splits),
        )
        if not (examples["split"] == 0).any():
            raise ValueError("No example is in the split `train`: check interactions/splits.")
        codes = read_codes(config.warehouse, config.inputs.semantic_ids)
        # Only what training rows show: a vocabulary of later items would be knowledge from the future.
        learned = examples.filter((pl.col("split") == 0) & ~pl.col("sampled"))
        seen = events.join(
            learned.select("user_id", "item_id", "timestamp"), how="semi", on=["user_id", "item_id", "timestamp"]
        )
        self.vocabulary = fit_vocabulary(
            seen["item_id"].to_arrow(),
            seen["action"].to_arrow(),
            seen["value"].cast(pl.Float64).fill_null(float("nan")).to_numpy(),
            codes.level_sizes,
            config.min_item_events,
        )
        users = pl.concat([events["user_id"], examples["user_id"]]).unique().sort()
        known = known_items(self.vocabulary, codes)
        self.catalogue = catalogue_of(self.vocabulary, codes, known)
        self.events = encode_events(events, users, self.vocabulary, known)
        self.examples = encode_examples(examples, users, known)
        blocks = cut_blocks(
            self.events,
            self.examples.users,
            self.examples.splits,
            self.examples.times,
            config.block_examples,
            config.history_events,
        )
        split = self.examples.splits[blocks.starts]
        self.blocks = {n: Blocks(*(column[split == i] for column in blocks)) for i, n in enumerate(SPLIT_NAMES)}

    def build_model(self) -> Vista:
        """See `Task.build_model`."""
        return Vista(self.vista_config())

    def vista_config(self) -> VistaConfig:
        """Constructor arguments of the network."""
        words = self.vocabulary
        sizes = self.config.network.model_dump()
        return VistaConfig(
            num_items=len(words.items) + 1,
            num_codes=words.num_codes,
            num_actions=len(words.actions) + 1,
            num_values=words.num_values,
            **sizes,
        )

    def constructor(self) -> dict[str, Any]:
        """See `Task.constructor`."""
        return dataclasses.asdict(self.vista_config())

    def preprocessing(self) -> dict[str, Any]:
        """See `Task.preprocessing`."""
        return {
            "vocabulary": self.vocabulary.to_json(),
            "history_events": self.config.history_events,
            "block_examples": self.config.block_examples,
            "semantic_ids": self.config.inputs.semantic_ids,
        }

    def num_examples(self, world: int) -> int:
        """See `Task.num_examples`."""
        train = self.blocks["train"]
        return int((train.stops - train.starts).sum()) // world

    def train_batches(self, epoch: int, rank: int, world: int) -> Iterator[Batch]:
        """See `Task.train_batches`."""
        blocks = self.blocks["train"]
        lengths = blocks.history_stops - blocks.history_starts
        size = fitting_batch(
            self.config.batch_blocks, len(lengths) // world, smallest=SMALLEST_BATCH, steps=STEPS_AN_EPOCH
        )
        rng = np.random.default_rng([self.config.training.seed, epoch])
        order = rng.permutation(len(lengths))
        if world > 1:  # all ranks alike, down to the last batch
            order = order[: max(len(order) // world, 1) * world]
        pool = size * world * POOL
        order = np.concatenate(
            [part[np.argsort(lengths[part], kind="stable")] for part in np.split(order, range(pool, len(order), pool))]
        )
        mine = order[rank::world]
        batches = np.split(mine, range(size, len(mine), size))
        for at in rng.permutation(len(batches)):
            yield self.batch(blocks, batches[at])

    def batch(self, blocks: Blocks, chosen: np.ndarray) -> Batch:
        """The batch of the ``chosen`` blocks."""
        history = history_batch(
            self.events, self.catalogue, blocks.history_starts[chosen], blocks.history_stops[chosen]
        )
        places, real = windows(blocks.starts[chosen], blocks.stops[chosen])
        return Batch(
            history,
            self.catalogue.take(np.where(real, self.examples.items[places], 0)),
            torch.from_numpy(self.examples.labels[places]),
            torch.from_numpy(real),
        )

    def loss(self, model: torch.nn.Module, batch: Batch) -> Loss:
        """See `Task.loss`."""
        output = model(batch.history, batch.candidates)
        click = F.binary_cross_entropy_with_logits(
            output.logits_BC.float()[batch.real_BC], batch.labels_BC[batch.real_BC]
        )
        return Loss(
            click + output.auxiliary, int(batch.real_BC.sum()), {"click": click, "reconstruction": output.auxiliary}
        )

    def predict(self, model: torch.nn.Module, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, logits and users of one split's examples."""
        blocks, device = self.blocks[split], next(model.parameters()).device
        order = np.argsort(blocks.history_stops - blocks.history_starts, kind="stable")
        labels, logits, users = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for chosen in np.split(order, range(256, len(order), 256)):
            if not len(chosen):
                continue
            batch = self.batch(blocks, chosen)
            moved = pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), batch)
            scores = model(moved.history, moved.candidates).logits_BC.float().cpu()
            real = batch.real_BC
            labels.append(batch.labels_BC[real].numpy())
            logits.append(scores[real].numpy())
            owner = torch.from_numpy(self.examples.users[blocks.starts[chosen]])
            users.append(owner[:, None].expand(real.shape)[real].numpy())
        return np.concatenate(labels), np.concatenate(logits), np.concatenate(users)

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """AUC and log loss of the split `valid`; 0.5 and 0 if it is empty."""
        labels, logits, _ = self.predict(model, "valid")
        return {"auc": auc_or_half(labels, logits), "logloss": log_loss(labels, logits), "valid_examples": len(labels)}

    def final_metrics(self, model: torch.nn.Module) -> dict[str, float]:
        """Intervals of the AUC of `valid` and of `test`, over users drawn whole."""
        found: dict[str, float] = {}
        for split in ("valid", "test"):
            labels, logits, users = self.predict(model, split)
            value, low, high = auc_over_users(labels, logits, users)
            found |= {
                f"{split}_auc": value,
                f"{split}_auc_low": low,
                f"{split}_auc_high": high,
                f"{split}_logloss": log_loss(labels, logits),
                f"{split}_examples": len(labels),
            }
        return found


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy; 0 without examples."""
    return float(np.mean(np.logaddexp(0, logits) - labels * logits)) if len(labels) else 0.0


def auc_or_half(labels: np.ndarray, logits: np.ndarray) -> float:
    """AUC; 0.5 where a class is missing, since nothing can be told apart there."""
    return float(np.nan_to_num(auc(logits, labels)[0], nan=0.5))


def auc_over_users(labels: np.ndarray, logits: np.ndarray, users: np.ndarray) -> Interval:
    """AUC with its interval over users, who are drawn whole."""
    present, owner = np.unique(users, return_inverse=True)
    if not len(present):
        return Interval(0.5, 0.5, 0.5)
    drawn = resampled_auc(logits, labels, owner, user_weights(len(present), RESAMPLES, seed=0))
    return interval(auc_or_half(labels, logits), drawn)


def build_task(config: Config) -> VistaTask:
    """The task, in a worker."""
    return VistaTask(config)


class LoadedVista(NamedTuple):
    """A trained VISTA.

    Attributes:
        model: The network, in eval mode.
        vocabulary: What encodes its inputs.
        preprocessing: The rest of it: ``history_events``, ``block_examples``, ``semantic_ids``.
    """

    model: Vista
    vocabulary: Vocabulary
    preprocessing: dict[str, Any]


def load_vista(artifacts: ArtifactStore, name: str) -> LoadedVista:
    """Loads a trained VISTA by its version."""
    trained: TrainedModel = read_model(artifacts, name)
    model = Vista(VistaConfig(**trained.constructor))
    model.load_state_dict(trained.weights)
    return LoadedVista(model.eval(), Vocabulary(**trained.preprocessing["vocabulary"]), trained.preprocessing)


def run(config: Config) -> Result:
    """Trains, or returns the finished training of the same name."""
    return Result(
        fitted=fit(
            build_task,
            config,
            name=config.name,
            artifacts=config.artifacts,
            options=config.training,
            workers=config.workers,
            use_gpu=config.use_gpu,
            acceleration=config.acceleration,
            cpus_per_worker=config.cpus_per_worker,
        )
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
