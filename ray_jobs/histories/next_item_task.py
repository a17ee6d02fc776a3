"""The objective `next_item`: which item comes next, judged by leave-one-out with full ranking."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils import _pytree as pytree

from models.long_history.evaluation import rank_metrics
from models.long_history.families import FAMILIES
from models.long_history.histories import history_batch, offsets_of, windows
from models.long_history.inputs import Items
from models.long_history.interface import NextItemModel
from models.long_history.leave_one_out import (
    FEWEST_EVENTS,
    AnchoredBlocks,
    Targets,
    cut_anchored_blocks,
    cut_windows,
    held_out,
    met_before,
    own_earlier_items,
    train_stops,
)
from models.long_history.objectives import BlockBatch, NextItemBatch, NextItemLoss
from models.ranking.full_ranking import Exclusions, full_ranks
from models.ranking.softmax_choices import softmax_choices
from ray_jobs.histories.data import SPLIT_NAMES, Codes, read_codes, read_events, user_numbers
from ray_jobs.histories.task import HistoryConfig, HistoryTask, other_users
from ray_jobs.training_task import Loss

USERS_AT_ONCE = 128
TRAIN, VALID = SPLIT_NAMES[:2]


class NextItemConfig(HistoryConfig, Protocol):
    """What the task reads of a job's config beside that."""

    @property
    def full_softmax(self) -> int:
        """Largest catalogue whose items are all in the softmax."""

    @property
    def num_sampled(self) -> int:
        """Items sampled from larger ones, a batch."""

    @property
    def num_negatives(self) -> int:
        """Items that a block's targets are told from, where every one of them has to be scored by the network."""

    @property
    def candidates_at_once(self) -> int:
        """Candidates scored in one pass in evaluation."""

    @property
    def valid_users(self) -> int | None:
        """Users that decide after each epoch."""


class Ranks(NamedTuple):
    """Ranks of a split's targets.

    Attributes:
        users: User of each target.
        ranks: Rank from 1; 0: the user had the item before.
    """

    users: np.ndarray
    ranks: np.ndarray


class NextItemTask(HistoryTask):
    """Cross-entropy over the catalogue: at every place of the history if the model can, else for blocks of targets."""

    stage = "history"
    metric = "ndcg_at_10"
    config: NextItemConfig

    def __init__(self, config: NextItemConfig):
        self.config = config
        frame = read_events(config.warehouse, config.inputs.raw_interactions)
        users = frame["user_id"].unique().sort()
        numbers = user_numbers(frame["user_id"], users)
        learned = np.arange(len(frame)) < train_stops(offsets_of(numbers, len(users)))[numbers]
        codes = with_items(read_codes(config.warehouse, config.inputs.semantic_ids), frame["item_id"])
        self.fit(frame, frame.filter(pl.Series(learned)), codes, users)
        self.counts_I = np.bincount(self.events.items[learned], minlength=len(self.catalogue.ids))
        self.seen_S = np.flatnonzero(self.counts_I)
        self.by_states = issubclass(FAMILIES[config.family].model, NextItemModel)
        if not self.num_examples(1):
            raise ValueError("No user has two events to learn from: check interactions/raw_interactions.")
        if not len(self.targets(VALID).users):
            raise ValueError(
                f"No user has {FEWEST_EVENTS} events, one each to learn from, to choose by and to test: compare the "
                "objective `click`, or bring longer histories."
            )
        for split in SPLIT_NAMES[1:]:
            if met_before(self.events, self.targets(split)).all():
                raise ValueError(
                    f"No user has a {split} target that is new to them, and full ranking leaves out what a user had "
                    "before: compare the objective `click` on data of repeats."
                )

    @property
    def num_items(self) -> int:
        """Items of the catalogue."""
        return len(self.catalogue.ids) - 1

    def build_model(self) -> torch.nn.Module:
        """The network with its loss; see `NextItemLoss`."""
        network: Any = super().build_model()
        return NextItemLoss(network)

    def num_examples(self, world: int) -> int:
        """See `Task.num_examples`."""
        counts = train_stops(self.events.offsets) - self.events.offsets[:-1]
        return int(np.maximum(counts - 1, 0).sum()) // world

    def train_batches(self, epoch: int, rank: int, world: int) -> Iterator[NextItemBatch | BlockBatch]:
        """See `Task.train_batches`."""
        rng = np.random.default_rng([self.config.training.seed, epoch, 1])
        if self.by_states:
            limit = self.config.history_events
            found = cut_windows(self.events, limit, rng.integers(1, limit + 1, len(self.events.offsets) - 1))
            for chosen in self.batches_of(found.stops - found.starts, epoch, rank, world):
                yield self._windows(found.starts[chosen], found.stops[chosen], rng)
            return
        size = self.config.block_examples
        phases = rng.integers(1, size + 1, len(self.events.offsets) - 1)
        blocks = cut_anchored_blocks(self.events, size, self.config.history_events, phases)
        for chosen in self.batches_of(blocks.starts - blocks.history_starts, epoch, rank, world):
            yield self._blocks(AnchoredBlocks(*(column[chosen] for column in blocks)), rng)

    def _windows(self, starts: np.ndarray, stops: np.ndarray, rng: np.random.Generator) -> NextItemBatch:
        places, real = windows(starts, stops)
        targets = self.events.items[places[real] + 1]
        found = softmax_choices(
            targets, self.seen_S, self.counts_I, self.config.full_softmax, self.config.num_sampled, rng
        )
        return NextItemBatch(
            history_batch(self.events, self.catalogue, starts, stops),
            self.catalogue.take(found.items),
            torch.from_numpy(found.correction.astype(np.float32)),
            torch.from_numpy(np.searchsorted(found.items, targets)),
        )

    def _blocks(self, blocks: AnchoredBlocks, rng: np.random.Generator) -> BlockBatch:
        places, real = windows(blocks.starts, blocks.stops)
        targets = np.where(real, self.events.items[places], 0)
        history = history_batch(self.events, self.catalogue, blocks.history_starts, blocks.starts)
        num = self.config.num_negatives
        if len(self.seen_S) <= num:
            rows, correction = np.broadcast_to(self.seen_S, (len(targets), len(self.seen_S))), 0.0
            at = np.where(real, np.searchsorted(self.seen_S, targets), 0)
        else:
            drawn = self.seen_S[rng.integers(0, len(self.seen_S), (len(targets), num))]
            rows, correction = np.concatenate([targets, drawn], 1), float(np.log(len(self.seen_S) / num))
            at = np.broadcast_to(np.arange(targets.shape[1]), targets.shape)
        return BlockBatch(
            history,
            self.catalogue.take(np.ascontiguousarray(rows)),
            torch.from_numpy(np.ascontiguousarray(at)),
            torch.from_numpy(real),
            correction,
        )

    def loss(self, model: torch.nn.Module, batch: NextItemBatch | BlockBatch) -> Loss:
        """See `Task.loss`."""
        entropy, auxiliary = model(batch)
        num = len(batch.targets_N) if isinstance(batch, NextItemBatch) else int(batch.real_BC.sum())
        return Loss(entropy + auxiliary, num, {"cross_entropy": entropy, "reconstruction": auxiliary})

    def targets(self, split: str) -> Targets:
        """The targets of a split."""
        return held_out(self.events, split, self.config.history_events)

    def rank(
        self,
        model: torch.nn.Module,
        split: str,
        shuffled: bool = False,
        most_users: int | None = None,
    ) -> Ranks:
        """Ranks of a split's targets among all items that their users did not have before.

        Args:
            model: `NextItemLoss`, or its network.
            split: ``valid`` or ``test``.
            shuffled: Whether every user is given another one's history: a placebo.
            most_users: Most users, spread evenly; None: all.
        """
        found = self.targets(split)
        if most_users is not None and len(found.users) > most_users:
            kept = np.unique(np.linspace(0, len(found.users) - 1, most_users).astype(np.int64))
            found = Targets(*(column[kept] for column in found))
        starts, stops = found.starts, found.places
        if shuffled:
            others = other_users(found.users, len(self.events.offsets) - 1)
            # What was held out of others is not theirs to give either.
            stops = train_stops(self.events.offsets)[others]
            starts = np.maximum(self.events.offsets[others], stops - self.config.history_events)
        scores = self._scorer(model, starts, stops)
        return Ranks(found.users, rank_targets(self, scores, found))

    def _scorer(self, model: torch.nn.Module, starts: np.ndarray, stops: np.ndarray) -> Any:
        network: Any = model.network if isinstance(model, NextItemLoss) else model
        device = next(network.parameters()).device
        everything = _to(self.catalogue.take(np.arange(1, self.num_items + 1)), device)
        vectors_ID = network.item_vectors(everything) if self.by_states else None

        def scores(rows: np.ndarray) -> np.ndarray:
            made = []
            for part in np.split(rows, range(USERS_AT_ONCE, len(rows), USERS_AT_ONCE)):
                history = _to(history_batch(self.events, self.catalogue, starts[part], stops[part]), device)
                if vectors_ID is not None:
                    last = (history.lengths_B - 1).clamp(min=0)
                    states = network.states(history)[torch.arange(len(part), device=device), last]
                    made.append((states @ vectors_ID.T).float().cpu().numpy())
                    continue
                encoding = network.encode_history(history)
                step = self.config.candidates_at_once
                chunks = [
                    network.score(encoding, _rows(everything, at, at + step, len(part)))
                    for at in range(0, self.num_items, step)
                ]
                made.append(torch.cat(chunks, 1).float().cpu().numpy())
            return np.concatenate(made)

        return scores

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Metrics of the split `valid`; 0 if nobody has a target there."""
        return self._metrics(self.rank(model, VALID, most_users=self.config.valid_users).ranks)

    def final_metrics(self, model: torch.nn.Module) -> dict[str, float]:
        """Metrics of all of `valid`. The test split is not looked at in training."""
        found = self._metrics(self.rank(model, VALID).ranks)
        return {f"valid_{name}": value for name, value in found.items()}

    def _metrics(self, ranks: np.ndarray) -> dict[str, float]:
        ranked = ranks[ranks > 0]
        return {k: float(v.mean()) if len(v) else 0.0 for k, v in rank_metrics(ranked).items()}


def rank_targets(task: NextItemTask, scores: Any, targets: Targets) -> np.ndarray:
    """Ranks of targets by anybody's scores, by the one rule: no item of the user's own past, ties count against it.

    Args:
        task: Who knows the events.
        scores: Gives the scores of all items (rows x items) of some of the targets.
        targets: The targets.
    """
    excluded: Exclusions = own_earlier_items(task.events, targets)
    return full_ranks(scores, task.events.items[targets.places] - 1, excluded, None, task.num_items)


def with_items(codes: Codes, items: pl.Series) -> Codes:
    """Semantic IDs with rows, all unknown, for items that have none: every item of the events can be ranked."""
    every = items.unique().sort().to_arrow().cast(pa.string())
    every = every.combine_chunks() if isinstance(every, pa.ChunkedArray) else every
    new = every.filter(pc.invert(pc.is_in(every, value_set=codes.items)))
    rows = np.full((len(new), codes.codes.shape[1]), -1, np.int64)
    return Codes(
        pa.concat_arrays([codes.items, new]),
        np.vstack([codes.codes.reshape(len(codes.items), -1), rows])
        if codes.codes.shape[1]
        else np.zeros((len(codes.items) + len(new), 0), np.int64),
        codes.level_sizes,
    )


def _to(tree: Any, device: torch.device) -> Any:
    return pytree.tree_map_only(torch.Tensor, lambda x: x.to(device), tree)


def _rows(items: Items, start: int, stop: int, num_users: int) -> Items:
    """Some of the catalogue as candidates of every user."""
    ids, codes = items.ids[start:stop], items.codes[start:stop]
    return Items(ids.expand(num_users, -1), codes.expand(num_users, -1, -1))
