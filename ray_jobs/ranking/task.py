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

from models.ranking.crosses import NUM_CROSSES, TokenCrosses, vocabulary_of
from models.ranking.dlrm import DLRM, Batch, DLRMConfig
from models.ranking.examples import Examples, Preprocessing
from models.ranking.metrics import auc
from models.ranking.scoring import NeuralScorer, to_batch
from models.ranking.softmax_choices import softmax_choices
from ray_jobs.ranking.data import SUMMARY, TOKENS, Items
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


class Labelled(NamedTuple):
    """Examples of one split.

    Attributes:
        x: What the network reads of them.
        label_N: 1 liked, 0 not.
        observed_N: Whether it happened; a sampled negative did not.
    """

    x: Examples
    label_N: np.ndarray
    observed_N: np.ndarray


def labelled(data: pa.Table, preprocessing: Preprocessing) -> Labelled:
    """Feature rows as examples with their labels."""
    return Labelled(
        preprocessing.transform(data),
        np.asarray(data["label"].to_numpy(zero_copy_only=False), np.float32),
        ~np.asarray(data["sampled"].to_numpy(zero_copy_only=False), bool),
    )


class RankerTask(Task):
    """Trains a `DLRM`.

    Args:
        train: Examples of the training split.
        valid: Those of the validation split.
        items: The catalogue.
        preprocessing: What made them, fitted on the training split.
        config: Constructor arguments of the network.
        knobs: See there.
    """

    stage = "ranking"

    def __init__(
        self,
        train: Labelled,
        valid: Labelled,
        items: Items,
        preprocessing: Preprocessing,
        config: DLRMConfig,
        knobs: Knobs,
    ):
        self.items, self.fitted, self.config, self.knobs = items, preprocessing, config, knobs
        self.vocabulary = vocabulary_of(items.tokens_IT, items.weights_IT)
        self.train, self.label_N = self._crossed(train.x), train.label_N
        self.valid, self.valid_label_N = self._crossed(valid.x), valid.label_N
        observed = train.observed_N
        self.counts_I = np.bincount(self.train.item_N[observed], minlength=len(items.ids) + 1)
        self.counts_I[0] = 0
        self.seen_S = np.flatnonzero(self.counts_I)
        self.positive_N = (self.label_N > 0) & observed & (self.train.item_N > 0)
        self.likes_I = np.bincount(self.train.item_N[self.positive_N], minlength=len(items.ids) + 1)
        self.valid_positive_N = (self.valid_label_N > 0) & valid.observed_N & (self.counts_I[self.valid.item_N] > 0)

    def _crossed(self, x: Examples) -> Examples:
        """Examples with their crosses: made once, since no epoch changes them."""
        c = self.config
        if not c.num_crosses or x.crosses_NC.shape[1]:
            return x
        crosses = TokenCrosses(self.items.tokens_IT, self.vocabulary, c.decay, c.profile_tokens)
        return x._replace(crosses_NC=crosses(x))

    def build_model(self) -> nn.Module:
        """See `Task.build_model`."""
        model = DLRM(self.config)
        model.seen_I[torch.from_numpy(self.seen_S)] = True
        model.catalogue_IT.copy_(torch.tensor(self.items.tokens_IT))
        if self.config.content_width:
            model.content_IE.copy_(torch.tensor(self.items.content_IE))
        if self.config.num_crosses:
            model.token_V.copy_(torch.from_numpy(self.vocabulary.token_V))
            model.idf_V.copy_(torch.from_numpy(self.vocabulary.idf_V))
            scale_C = self.train.crosses_NC.std(0)
            model.cross_mean_C.copy_(torch.from_numpy(self.train.crosses_NC.mean(0)))
            model.cross_scale_C.copy_(torch.from_numpy(np.where(scale_C > 1e-6, scale_C, 1.0)))
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
        chosen, correction = softmax_choices(
            targets, self.seen_S, self.likes_I, self.knobs.full_softmax, self.knobs.num_sampled, rng
        )
        return RankerBatch(
            to_batch(self.train.take(rows)),
            torch.from_numpy(self.label_N[rows]),
            torch.from_numpy(positive),
            torch.from_numpy(np.searchsorted(chosen, targets)),
            torch.from_numpy(chosen),
            torch.from_numpy(correction.astype(np.float32)),
        )

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
    """Constructor arguments for the data at hand; content embeddings are read if the catalogue has them."""
    k, w = preprocessing.summary_shape if SUMMARY in inputs else (0, 0)
    with_tokens = TOKENS in inputs
    return DLRMConfig(
        num_users=len(preprocessing.users),
        num_items=len(items.ids),
        num_dense=preprocessing.num_dense,
        num_tokens=items.tokens_IT.shape[1] if with_tokens else 0,
        num_crosses=NUM_CROSSES if with_tokens else 0,
        vocabulary=len(vocabulary_of(items.tokens_IT).token_V) if with_tokens else 0,
        content_width=items.content_IE.shape[1],
        summary_tokens=k,
        summary_width=w,
        **sizes,
    )
