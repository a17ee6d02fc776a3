"""Trains VISTA by Ray Train: which candidates does a user like, given a summary of what came before?"""

import sys
from typing import Any, Literal

import pydantic
import torch

from models.identity import version_of
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.histories.data import Inputs
from ray_jobs.histories.task import ClickTask
from ray_jobs.training import Fitted, fit_as
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

CODE_VERSION = "3"
"""Bump when the network, its inputs or its training change."""
Family = Literal["vista", "vista_causal"]
USUAL: Family = "vista"


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

    family: Family = pydantic.Field(USUAL, description="`vista`, or `vista_causal`: new events extend its cache.")
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
    def arguments(self) -> dict[str, Any]:
        """Constructor arguments of the network that the vocabulary does not give."""
        return self.network.model_dump()

    @property
    def name(self) -> str:
        """Version of the training: inputs, parameters and code, but not where or on how many workers it runs."""
        where = {"warehouse", "artifacts", "workers", "use_gpu", "acceleration", "cpus_per_worker"}
        where |= {"family"} if self.family == USUAL else set()
        return "vista-" + version_of(code=CODE_VERSION, **self.model_dump(mode="json", exclude=where))


class Result(pydantic.BaseModel, frozen=True):
    """What a training came to."""

    fitted: Fitted = pydantic.Field(description="The finished training.")


class VistaTask(ClickTask):
    """User-aggregated click prediction with the reconstruction loss (arXiv 2510.22049, 3.2)."""

    stage = "vista"

    def preprocessing(self) -> dict[str, Any]:
        """See `Task.preprocessing`; the family stands there where it is not the usual one, as in the name."""
        family = self.config.family
        return super().preprocessing() | ({} if family == USUAL else {"family": family})

    def final_metrics(self, model: torch.nn.Module) -> dict[str, float]:
        """Intervals of the AUC of `valid` and of `test`, over users drawn whole."""
        return self.click_metrics(model, "valid") | self.click_metrics(model, "test")


def build_task(config: Config) -> VistaTask:
    """The task, in a worker."""
    return VistaTask(config)


def run(config: Config) -> Result:
    """Trains, or returns the finished training of the same name."""
    return Result(fitted=fit_as(build_task, config))


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
