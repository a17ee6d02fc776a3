"""What is trained: the protocol between the training loop and a job's network, batches, loss and evaluation."""

import abc
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import pydantic
import torch

from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore


def fitting_batch(size: int, units: int, *, smallest: int, steps: int) -> int:
    """A batch size at which an epoch has enough steps, so that small data are learned from, too.

    Args:
        size: What large data get: the most.
        units: What an epoch has of whatever a batch is made of.
        smallest: The least.
        steps: Steps that an epoch has, if the smallest size allows.
    """
    return min(size, max(units // steps, smallest))


class Loss(NamedTuple):
    """What one batch costs.

    Attributes:
        total: Scalar to minimise, a mean over the batch's examples.
        num_examples: Examples in the batch.
        parts: Named scalars (means) that the history shows beside it.
    """

    total: torch.Tensor
    num_examples: int
    parts: dict[str, torch.Tensor] = {}  # noqa: RUF012


class Task(abc.ABC):
    """What is trained. Built once in every worker, by a module-level function of the job's config."""

    stage: ClassVar[str]
    """Label of progress lines, e.g. ``vista``."""
    metric: str = "auc"
    """Key of `evaluate` that decides early stopping and the best epoch."""
    mode: Literal["max", "min"] = "max"

    @abc.abstractmethod
    def build_model(self) -> torch.nn.Module:
        """The network, on the CPU. The random seed is set before."""

    @abc.abstractmethod
    def train_batches(self, epoch: int, rank: int, world: int) -> Iterable[Any]:
        """Batches of one epoch for one rank: any tree of CPU tensors.

        The order may depend on ``epoch`` (from 1) only, and every rank must give the same number of batches. An
        epoch is what the task says it is: cut it short where the data is endless, since checkpoints are by epoch.
        """

    @abc.abstractmethod
    def num_examples(self, world: int) -> int:
        """Examples of one epoch on one rank, for progress lines."""

    @abc.abstractmethod
    def loss(self, model: torch.nn.Module, batch: Any) -> Loss:
        """Loss of a batch on the training device. Call ``model(...)`` once and no other method: it may be DDP."""

    @abc.abstractmethod
    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Validation metrics, `metric` among them. Runs on rank 0, in eval mode, without gradients."""

    def final_metrics(self, model: torch.nn.Module) -> dict[str, float]:
        """Metrics of the best epoch that are reported once and decide nothing, e.g. those of the test split."""
        return {}

    @abc.abstractmethod
    def constructor(self) -> dict[str, Any]:
        """JSON arguments that rebuild the network."""

    def preprocessing(self) -> dict[str, Any]:
        """JSON of what turns raw columns into the network's inputs."""
        return {}

    def optimizer(self, model: torch.nn.Module, options: "TrainingOptions") -> torch.optim.Optimizer:
        """The optimiser; AdamW by default."""
        return torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)


class TrainingOptions(pydantic.BaseModel, frozen=True):
    """How a task is trained. Part of the training's version: everything here can change what is learned."""

    epochs: int = pydantic.Field(10, ge=1, description="Most epochs.")
    patience: int = pydantic.Field(2, ge=1, description="Epochs without a better metric before it stops.")
    learning_rate: float = pydantic.Field(1e-3, gt=0, description="Learning rate after the warm-up.")
    warmup_steps: int = pydantic.Field(0, ge=0, description="Steps over which the rate rises linearly.")
    epoch_decay: float = pydantic.Field(1.0, gt=0, le=1, description="Factor on the rate after every epoch.")
    weight_decay: float = pydantic.Field(1e-2, ge=0, description="Decoupled weight decay.")
    clip_norm: float = pydantic.Field(1.0, gt=0, description="Largest norm of the gradient.")
    seed: int = pydantic.Field(0, description="Seed of weights, dropout and order.")
    device: Literal["auto", "cpu", "cuda"] = pydantic.Field(
        "auto", description="`auto`: the worker's GPU if it was given one, else the CPU."
    )
    amp: Literal["off", "bf16"] = pydantic.Field("off", description="Automatic mixed precision.")


class Trainable(Protocol):
    """What `ray_jobs.training.fit_as` reads of a job's config, which is also what the task is made from."""

    @property
    def name(self) -> str:
        """Version of the training."""

    @property
    def artifacts(self) -> ArtifactStore:
        """Where checkpoints and the model go."""

    @property
    def training(self) -> TrainingOptions:
        """How it is trained."""

    @property
    def workers(self) -> int:
        """Ray Train workers."""

    @property
    def use_gpu(self) -> bool:
        """Whether each worker gets a GPU."""

    @property
    def cpus_per_worker(self) -> float:
        """CPUs of each worker."""

    @property
    def acceleration(self) -> Acceleration:
        """How workers train together."""
