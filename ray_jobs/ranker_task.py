"""The training task of a DLRM-style ranker: likes on labelled examples, interest over the whole catalogue.

Shape letters as in `models.ranking.dlrm`; P positives, S items that they choose among.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from models.ranking.dlrm import DLRM, Batch, DLRMConfig
from models.ranking.examples import Preprocessing
from models.ranking.metrics import auc
from models.ranking.scoring import NeuralScorer, to_batch
from ray_jobs.ranker_data import SUMMARY, TOKENS, Items, of_split
from ray_jobs.training_task import Loss, Task, fitting_batch

# Of an epoch on small data; see `fitting_batch`.
SMALLEST_BATCH, STEPS_AN_EPOCH = 256, 16


class Knobs(NamedTuple):
    """What a ranker's training needs to know beside `TrainingOptions`.

    Attributes:
        batch_size: Most examples a batch.
        interest_weight: Weight of the interest head's loss.
        full_softmax: Largest catalogue over which the interest head sees every item at every step.
        num_sampled: Items it sees in larger ones.
        seed: Seed of the order and of sampled items.
    """

    batch_size: int
    interest_weight: float
    full_softmax: int
    num_sampled: int
    seed: int


class RankerBatch(NamedTuple):
    """A training batch. ``correction_S``: log of each item's chance to be sampled; 0 in the full softmax."""

    batch: Batch
    label_B: torch.Tensor
    positive_P: torch.Tensor
    target_P: torch.Tensor
    item_S: torch.Tensor
    correction_S: torch.Tensor


def _labels(data: pa.Table) -> np.ndarray:
    return np.asarray(data["label"].to_numpy(zero_copy_only=False), np.float32)


class RankerTask(Task):
    """Trains a `DLRM`.

    Args:
        data: Feature rows of all splits.
        items: The catalogue.
        preprocessing: Fitted on the training split.
        config: Constructor arguments of the network.
        knobs: See there.
    """

    stage = "ranking"

    def __init__(self, data: pa.Table, items: Items, preprocessing: Preprocessing, config: DLRMConfig, knobs: Knobs):
        self.items, self.fitted, self.config, self.knobs = items, preprocessing, config, knobs
        train, valid = of_split(data, "train"), of_split(data, "valid")
        self.train, self.label_N = preprocessing.transform(train), _labels(train)
        self.valid, self.valid_label_N = preprocessing.transform(valid), _labels(valid)
        observed = ~np.asarray(train["sampled"].to_numpy(zero_copy_only=False), bool)
        self.counts_I = np.bincount(self.train.item_N[observed], minlength=len(items.ids) + 1)
        self.counts_I[0] = 0
        self.seen_S = np.flatnonzero(self.counts_I)
        self.positive_N = (self.label_N > 0) & observed & (self.train.item_N > 0)
        self.likes_I = np.bincount(self.train.item_N[self.positive_N], minlength=len(items.ids) + 1)
        unsampled = ~np.asarray(valid["sampled"].to_numpy(zero_copy_only=False), bool)
        self.valid_positive_N = (self.valid_label_N > 0) & unsampled & (self.counts_I[self.valid.item_N] > 0)

    def build_model(self) -> nn.Module:
        """See `Task.build_model`."""
        model = DLRM(self.config)
        model.seen_I[torch.from_numpy(self.seen_S)] = True
        model.catalogue_IT.copy_(torch.from_numpy(self.items.tokens_IT))
        return model

    def num_examples(self, world: int) -> int:
        """See `Task.num_examples`."""
        return len(self.label_N) // world

    def train_batches(self, epoch: int, rank: int, world: int) -> Iterator[RankerBatch]:
        """See `Task.train_batches`."""
        order = np.random.default_rng([self.knobs.seed, epoch]).permutation(len(self.label_N))
        size = fitting_batch(self.knobs.batch_size, len(order) // world, smallest=SMALLEST_BATCH, steps=STEPS_AN_EPOCH)
        size = min(size, max(len(order) // world, 1))
        each = -(-len(order) // (size * world))
        # Ranks take turns; the last turn wraps around, so that all have as many.
        for turn in range(each):
            start = (turn * world + rank) * size
            rows = order[start : start + size]
            if world > 1:
                rows = np.take(order, np.arange(start, start + size), mode="wrap")
            yield self._batch(rows, np.random.default_rng([self.knobs.seed, epoch, rank, turn]))

    def _batch(self, rows: np.ndarray, rng: np.random.Generator) -> RankerBatch:
        positive = np.flatnonzero(self.positive_N[rows])
        targets = self.train.item_N[rows][positive]
        chosen, correction = self._choices(targets, rng)
        return RankerBatch(
            to_batch(self.train.take(rows)),
            torch.from_numpy(self.label_N[rows]),
            torch.from_numpy(positive),
            torch.from_numpy(np.searchsorted(chosen, targets)),
            torch.from_numpy(chosen),
            torch.from_numpy(correction.astype(np.float32)),
        )

    def _choices(self, targets: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Items of the softmax, sorted, with their correction.

        Small catalogues: all items of the training period. Large ones: the batch's own targets and uniform samples
        (mixed as in Yang et al. 2020, so that items that are rarely targets are seen as negatives too), each once
        and corrected by the log of its chance to be among them (Bengio and Senecal 2008).
        """
        if len(self.seen_S) <= self.knobs.full_softmax:
            return self.seen_S, np.zeros(len(self.seen_S))
        drawn = self.seen_S[rng.integers(0, len(self.seen_S), self.knobs.num_sampled)]
        chosen = np.unique(np.concatenate([targets, drawn]))
        share = self.likes_I[chosen] / max(self.likes_I.sum(), 1)
        expected = len(targets) * share + self.knobs.num_sampled / len(self.seen_S)
        # Not the log of the expected count: however often an item was drawn, the softmax holds it once.
        return chosen, np.log(-np.expm1(-expected))

    def loss(self, model: nn.Module, batch: RankerBatch) -> Loss:
        """See `Task.loss`."""
        like_B, interest_PS = model(batch.batch, batch.positive_P, batch.item_S)
        like = nn.functional.binary_cross_entropy_with_logits(like_B, batch.label_B)
        # Without a positive the mean would be over nothing: a sum that is zero keeps the gradient defined.
        interest = (
            nn.functional.cross_entropy(interest_PS - batch.correction_S, batch.target_P)
            if len(batch.target_P)
            else interest_PS.sum()
        )
        return Loss(
            like + self.knobs.interest_weight * interest,
            len(batch.label_B),
            {"like_loss": like, "interest_loss": interest},
        )

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """See `Task.evaluate`."""
        assert isinstance(model, DLRM)
        device = next(model.parameters()).device
        logit = NeuralScorer(model).like(self.valid)
        value = float(auc(logit, self.valid_label_N)[0])
        loss = nn.functional.binary_cross_entropy_with_logits(
            torch.from_numpy(logit), torch.from_numpy(self.valid_label_N).double()
        )
        return {
            "auc": value if np.isfinite(value) else 0.5,
            "valid_loss": float(loss),
            "valid_interest_loss": self._interest_loss(model, device),
        }

    def _interest_loss(self, model: DLRM, device: torch.device) -> float:
        rows = np.flatnonzero(self.valid_positive_N)[:: max(1, int(self.valid_positive_N.sum()) // 4096)]
        if not len(rows):
            return 0.0
        chosen = torch.from_numpy(self.seen_S).to(device)
        catalogue = model.catalogue()
        user = model.user(to_batch(self.valid.take(rows), device), catalogue)
        target = torch.from_numpy(np.searchsorted(self.seen_S, self.valid.item_N[rows])).to(device)
        return float(nn.functional.cross_entropy(model.interest_logits(user, catalogue, chosen), target))

    def constructor(self) -> dict[str, Any]:
        """See `Task.constructor`."""
        return dataclasses.asdict(self.config)

    def preprocessing(self) -> dict[str, Any]:
        """See `Task.preprocessing`."""
        return dataclasses.asdict(self.fitted)


def network_config(preprocessing: Preprocessing, items: Items, inputs: tuple[str, ...], **sizes: Any) -> DLRMConfig:
    """Constructor arguments for the data at hand."""
    k, w = preprocessing.summary_shape if SUMMARY in inputs else (0, 0)
    return DLRMConfig(
        num_users=len(preprocessing.users),
        num_items=len(items.ids),
        num_dense=preprocessing.num_dense,
        num_tokens=items.tokens_IT.shape[1] if TOKENS in inputs else 0,
        summary_tokens=k,
        summary_width=w,
        **sizes,
    )
