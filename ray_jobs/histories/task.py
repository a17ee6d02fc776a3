"""What every training of a long-history model shares, and the objective `click`: which candidates does a user like?"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch.utils import _pytree as pytree

from models.long_history.crosses import NUM_CROSSES, Running, history_crosses, item_crosses
from models.long_history.families import FAMILIES
from models.long_history.histories import Blocks, cut_blocks, events_before, history_batch, windows
from models.long_history.inputs import History, HistoryModelConfig, Items
from models.long_history.vocabulary import fit_vocabulary
from models.ranking.bootstrap import Interval, interval, resampled_auc, user_weights
from models.ranking.metrics import auc
from ray_jobs.histories.data import (
    SPLIT_NAMES,
    Codes,
    Inputs,
    catalogue_of,
    encode_events,
    encode_examples,
    known_items,
    read_codes,
    read_events,
    read_examples,
)
from ray_jobs.training_task import Loss, Task, TrainingOptions, fitting_batch
from ray_jobs.warehouse import Warehouse

# Of an epoch on small data; see `fitting_batch`.
SMALLEST_BATCH, STEPS_AN_EPOCH = 4, 64
RESAMPLES = 200
CROSSES = "num_crosses"
"""Constructor argument of models that read crosses; 0 in a job's arguments leaves them out."""
POOL = 32
"""Batches whose blocks are sorted by history length together, so that padding is rare and order stays random."""


class HistoryConfig(Protocol):
    """What a task reads of a job's config."""

    @property
    def warehouse(self) -> Warehouse:
        """Where the tables are."""

    @property
    def inputs(self) -> Inputs:
        """Versions of the tables."""

    @property
    def training(self) -> TrainingOptions:
        """How it is trained."""

    @property
    def family(self) -> str:
        """Name out of `FAMILIES`."""

    @property
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments of the network that the vocabulary does not give."""

    @property
    def history_events(self) -> int:
        """Most events of a history."""

    @property
    def block_examples(self) -> int:
        """Most examples that share one history."""

    @property
    def batch_blocks(self) -> int:
        """Most histories in a batch."""

    @property
    def min_item_events(self) -> int:
        """Items with fewer events share one embedding."""


class HistoryTask(Task):
    """Tables, vocabulary and network. What is foretold, the objectives say.

    Args:
        config: The job's.
    """

    config: HistoryConfig

    def fit(self, events: pl.DataFrame, learned: pl.DataFrame, codes: Codes, users: pl.Series) -> None:
        """Fits the vocabulary and encodes events and catalogue.

        Args:
            events: All events, as `read_events` gives them.
            learned: Those of the training split: a vocabulary of later items would be knowledge from the future.
            codes: Semantic IDs.
            users: All users, sorted.
        """
        self.vocabulary = fit_vocabulary(
            learned["item_id"].to_arrow(),
            learned["action"].to_arrow(),
            learned["value"].cast(pl.Float64).fill_null(float("nan")).to_numpy(),
            codes.level_sizes,
            self.config.min_item_events,
        )
        self.known = known_items(self.vocabulary, codes)
        self.catalogue = catalogue_of(self.vocabulary, codes, self.known)
        self.events = encode_events(events, users, self.vocabulary, self.known)

    def network_config(self) -> HistoryModelConfig:
        """Constructor arguments of the network."""
        words = self.vocabulary
        return FAMILIES[self.config.family].config(
            num_items=len(words.items) + 1,
            num_codes=words.num_codes,
            num_actions=len(words.actions) + 1,
            num_values=words.num_values,
            **self.data_arguments() | self.config.arguments,
        )

    def data_arguments(self) -> dict[str, Any]:
        """Constructor arguments that follow from the data, beside the vocabulary's sizes."""
        return {}

    def build_model(self) -> torch.nn.Module:
        """See `Task.build_model`."""
        return FAMILIES[self.config.family].build(**self.constructor())

    def constructor(self) -> dict[str, Any]:
        """See `Task.constructor`."""
        return dataclasses.asdict(self.network_config())

    def preprocessing(self) -> dict[str, Any]:
        """See `Task.preprocessing`."""
        return {
            "vocabulary": self.vocabulary.to_json(),
            "history_events": self.config.history_events,
            "block_examples": self.config.block_examples,
            "semantic_ids": self.config.inputs.semantic_ids,
        }

    def batches_of(self, lengths: np.ndarray, epoch: int, rank: int, world: int) -> Iterator[np.ndarray]:
        """Batches of histories of these lengths for one rank: random, with those of a length together."""
        size = fitting_batch(
            self.config.batch_blocks, len(lengths) // world, smallest=SMALLEST_BATCH, steps=STEPS_AN_EPOCH
        )
        rng = np.random.default_rng([self.config.training.seed, epoch])
        order = rng.permutation(len(lengths))
        if world > 1:  # all ranks alike, down to the last batch
            if len(order) < world:
                raise ValueError(f"{len(order)} histories are too few for {world} workers: train with fewer.")
            order = order[: len(order) // world * world]
        pool = size * world * POOL
        order = np.concatenate(
            [part[np.argsort(lengths[part], kind="stable")] for part in np.split(order, range(pool, len(order), pool))]
        )
        mine = order[rank::world]
        batches = np.split(mine, range(size, len(mine), size))
        for at in rng.permutation(len(batches)):
            yield batches[at]


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


class Clicks(NamedTuple):
    """What a model says of a split.

    Attributes:
        labels: 0 or 1.
        logits: Logits.
        users: Users.
        requests: First example of the block; examples of a block are scored against one history.
    """

    labels: np.ndarray
    logits: np.ndarray
    users: np.ndarray
    requests: np.ndarray


class ClickTask(HistoryTask):
    """Binary cross-entropy of labelled examples, in blocks of a user that share one history (VISTA, 3.2)."""

    stage = "history"
    metric = "auc"

    def __init__(self, config: HistoryConfig):
        self.config = config
        events, examples = (
            read_events(config.warehouse, config.inputs.raw_interactions),
            read_examples(config.warehouse, config.inputs.splits),
        )
        if not (examples["split"] == 0).any():
            raise ValueError("No example is in the split `train`: check interactions/splits.")
        codes = read_codes(config.warehouse, config.inputs.semantic_ids)
        learned = examples.filter((pl.col("split") == 0) & ~pl.col("sampled"))
        self.base_rate = float(learned["label"].to_numpy().mean()) if len(learned) else 0.0
        keys = ["user_id", "item_id", "timestamp"]
        users = pl.concat([events["user_id"], examples["user_id"]]).unique().sort()
        self.fit(events, events.join(learned.select(keys), how="semi", on=keys), codes, users)
        self.examples = encode_examples(examples, users, self.known)
        self.observed = ~examples["sampled"].to_numpy()
        fields = {field.name for field in dataclasses.fields(FAMILIES[config.family].config)}
        self.crossed = CROSSES in fields and config.arguments.get(CROSSES) != 0
        if self.crossed:
            rated = encode_examples(examples.filter(~pl.col("sampled")), users, self.known)
            self.seen = Running(self.events.items, self.events.times, np.ones(len(self.events.items)))
            self.likes = Running(rated.items, rated.times, rated.labels)
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

    def data_arguments(self) -> dict[str, Any]:
        """See `HistoryTask.data_arguments`."""
        return {CROSSES: NUM_CROSSES} if self.crossed else {}

    def num_examples(self, world: int) -> int:
        """See `Task.num_examples`."""
        train = self.blocks["train"]
        return int((train.stops - train.starts).sum()) // world

    def train_batches(self, epoch: int, rank: int, world: int) -> Iterator[Batch]:
        """See `Task.train_batches`."""
        blocks = self.blocks["train"]
        for chosen in self.batches_of(blocks.history_stops - blocks.history_starts, epoch, rank, world):
            yield self.batch(blocks, chosen)

    def batch(self, blocks: Blocks, chosen: np.ndarray) -> Batch:
        """The batch of the ``chosen`` blocks."""
        history = history_batch(
            self.events, self.catalogue, blocks.history_starts[chosen], blocks.history_stops[chosen]
        )
        places, real = windows(blocks.starts[chosen], blocks.stops[chosen])
        rows = np.where(real, self.examples.items[places], 0)
        candidates = self.catalogue.take(rows)
        if self.crossed:
            times = self.examples.times[places]
            of_items = torch.from_numpy(item_crosses(self.seen, self.likes, self.base_rate, rows, times))
            crosses = torch.cat([of_items, history_crosses(history, candidates)], -1)
            candidates = candidates._replace(crosses=crosses)
        return Batch(
            history,
            candidates,
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

    def predict(
        self,
        model: Any,
        split: str,
        shuffled: bool = False,
        missed: int | None = None,
        through: Callable[[Any], Any] | None = None,
    ) -> Clicks:
        """What ``model`` says of one split's examples.

        Args:
            model: The network.
            split: The split.
            shuffled: Whether every user is given another one's history, as of the same moment: a placebo.
            missed: Newest events before each example that the model has not seen; None: examples of a block share the
                history before the first of them, as in training.
            through: What an encoding goes through before it is used, e.g. a cache.
        """
        blocks, device = self.blocks[split], next(model.parameters()).device
        if missed is not None:
            blocks = self.apart(blocks, missed)
        if shuffled:
            blocks = self.shuffle(blocks)
        order = np.argsort(blocks.history_stops - blocks.history_starts, kind="stable")
        labels, logits, requests = [np.zeros(0, np.float32)], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        for chosen in np.split(order, range(256, len(order), 256)):
            if not len(chosen):
                continue
            batch = self.batch(blocks, chosen)
            moved = pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), batch)
            if through is None:
                scores = model(moved.history, moved.candidates).logits_BC.float().cpu()
            else:
                scores = model.score(through(model.encode_history(moved.history)), moved.candidates).float().cpu()
            real = batch.real_BC
            labels.append(batch.labels_BC[real].numpy())
            logits.append(scores[real].numpy())
            requests.append(np.repeat(blocks.starts[chosen], real.sum(-1).numpy()))
        first = np.concatenate(requests)
        return Clicks(np.concatenate(labels), np.concatenate(logits), self.examples.users[first], first)

    def apart(self, blocks: Blocks, missed: int) -> Blocks:
        """Every example of ``blocks`` alone, with the history before it but for the newest ``missed`` events."""
        places = np.concatenate([np.zeros(0, np.int64), *map(np.arange, blocks.starts, blocks.stops)])
        users = self.examples.users[places]
        stops = events_before(self.events, users, self.examples.times[places])
        first = self.events.offsets[users]
        stops = np.maximum(stops - missed, first)
        return Blocks(places, places + 1, np.maximum(first, stops - self.config.history_events), stops)

    def shuffle(self, blocks: Blocks) -> Blocks:
        """Blocks with the histories of other users, each as of the block's moment."""
        others = other_users(self.examples.users[blocks.starts], len(self.events.offsets) - 1)
        stops = events_before(self.events, others, self.examples.times[blocks.starts])
        starts = np.maximum(self.events.offsets[others], stops - self.config.history_events)
        return blocks._replace(history_starts=starts, history_stops=stops)

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """AUC and log loss of the split `valid`; 0.5 and 0 if it is empty."""
        labels, logits, *_ = self.predict(model, "valid")
        return {"auc": auc_or_half(labels, logits), "logloss": log_loss(labels, logits), "valid_examples": len(labels)}

    def click_metrics(self, model: torch.nn.Module, split: str) -> dict[str, float]:
        """AUC of a split with its interval over users, who are drawn whole, and its log loss."""
        labels, logits, users, _ = self.predict(model, split)
        value, low, high = auc_over_users(labels, logits, users)
        return {
            f"{split}_auc": value,
            f"{split}_auc_low": low,
            f"{split}_auc_high": high,
            f"{split}_logloss": log_loss(labels, logits),
            f"{split}_examples": len(labels),
        }


def other_users(users: np.ndarray, num_users: int) -> np.ndarray:
    """Another user for each, the same for the same user; oneself where there is nobody else."""
    order = np.random.default_rng(0).permutation(num_users)
    next_of = np.empty(num_users, np.int64)
    next_of[order] = np.roll(order, -1)
    return next_of[users]


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
