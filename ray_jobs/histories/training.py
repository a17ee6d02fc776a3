"""Trains any model of long histories by Ray Train, to foretell likes or the next item."""

import sys
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic

from models.identity import version_of
from models.long_history.families import FAMILIES, check_arguments
from models.long_history.interface import HistoryModel
from models.long_history.vocabulary import Vocabulary
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.histories.data import SPLIT_NAMES, Inputs
from ray_jobs.histories.next_item_task import NextItemTask
from ray_jobs.histories.task import ClickTask, HistoryConfig
from ray_jobs.training import Fitted, fit_as
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

CODE_VERSION = "2"
"""Bump when a network, its inputs or its training change."""
WRAPPED = "network."
Objective = Literal["click", "next_item"]


class Config(pydantic.BaseModel, frozen=True):
    """A training of a model of long histories."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where checkpoints and the model go.")
    inputs: Inputs = pydantic.Field(description="Versions of the tables it learns from.")
    family: str = pydantic.Field(description="The model, by its name in `models.long_history.families`.")
    arguments: dict[str, Any] = pydantic.Field(
        default_factory=dict, description="Its constructor arguments beside the vocabulary's sizes."
    )
    objective: Objective = pydantic.Field(description="`click`: labelled examples. `next_item`: what comes next.")
    training: TrainingOptions = pydantic.Field(TrainingOptions(), description="How it is trained.")
    history_events: int = pydantic.Field(200, ge=1, description="Most events of a history; the newest are kept.")
    block_examples: int = pydantic.Field(16, ge=1, description="Examples of a user that share one history.")
    batch_blocks: int = pydantic.Field(64, ge=1, description="Most histories in a batch.")
    min_item_events: int = pydantic.Field(1, ge=1, description="Items with fewer events share one embedding.")
    full_softmax: int = pydantic.Field(
        20_000, ge=0, description="Largest catalogue whose items are all in the softmax over states."
    )
    num_sampled: int = pydantic.Field(4096, ge=1, description="Items sampled from larger ones, a batch.")
    num_negatives: int = pydantic.Field(
        128, ge=1, description="Items that a block's targets are told from, by models that score each with the history."
    )
    candidates_at_once: int = pydantic.Field(256, ge=1, description="Candidates scored in one pass in evaluation.")
    valid_users: int | None = pydantic.Field(None, ge=1, description="Users who decide after each epoch; None: all.")
    workers: int = pydantic.Field(0, ge=0, description="Ray Train workers; 0 trains in the job's own process.")
    use_gpu: bool = pydantic.Field(False, description="Whether each worker gets a GPU.")
    acceleration: Acceleration = pydantic.Field(Acceleration(), description="How its steps are computed.")
    cpus_per_worker: float = pydantic.Field(1.0, gt=0, description="CPUs of each worker.")

    @pydantic.model_validator(mode="after")
    def _possible(self) -> "Config":
        if self.family not in FAMILIES:
            raise ValueError(f"There is no model {self.family!r} of long histories: give one of {', '.join(FAMILIES)}.")
        check_arguments(self.family, self.arguments)
        return self

    @property
    def name(self) -> str:
        """Version of the training: inputs, parameters and code, but not where or on how many workers it runs."""
        where = {
            "warehouse",
            "artifacts",
            "workers",
            "use_gpu",
            "acceleration",
            "cpus_per_worker",
            "candidates_at_once",
        }
        return "history-" + version_of(code=CODE_VERSION, **self.model_dump(mode="json", exclude=where))


class Result(pydantic.BaseModel, frozen=True):
    """What a training came to."""

    fitted: Fitted = pydantic.Field(description="The finished training.")


class HistoryClickTask(ClickTask):
    """Likes, for the comparison of models: the test split is not looked at in training."""

    def __init__(self, config: HistoryConfig):
        super().__init__(config)
        for at, split in enumerate(SPLIT_NAMES):
            if len(np.unique(self.examples.labels[self.examples.splits == at])) < 2:
                raise ValueError(
                    f"The examples of the split {split} do not have both labels, so that AUC says nothing: check "
                    "`label` in interactions/splits, or give the split more days."
                )

    def final_metrics(self, model: Any) -> dict[str, float]:
        """Metrics of `valid`."""
        return self.click_metrics(model, "valid")


HistoryTaskOf = HistoryClickTask | NextItemTask


def build_task(config: Config) -> HistoryTaskOf:
    """The task, in a worker."""
    return HistoryClickTask(config) if config.objective == "click" else NextItemTask(config)


def train(config: Config, task: HistoryTaskOf | None = None) -> Fitted:
    """Trains, or returns the finished training of the same name.

    Args:
        config: The training.
        task: Its task, if the caller has built it already and trains in this process.
    """
    return fit_as(build_task if task is None else lambda _: task, config)


class LoadedHistoryModel(NamedTuple):
    """A trained model.

    Attributes:
        model: The network, in eval mode.
        vocabulary: What encodes its inputs.
        preprocessing: The rest of it.
        summary: `Fitted` as a dict.
    """

    model: HistoryModel
    vocabulary: Vocabulary
    preprocessing: dict[str, Any]
    summary: dict[str, Any]


def load_history_model(artifacts: ArtifactStore, family: str, name: str) -> LoadedHistoryModel:
    """Loads a trained model by its version."""
    trained = read_model(artifacts, name)
    model = FAMILIES[family].build(**trained.constructor)
    model.load_state_dict({k.removeprefix(WRAPPED): v for k, v in trained.weights.items()})
    return LoadedHistoryModel(
        model.eval(), Vocabulary(**trained.preprocessing["vocabulary"]), trained.preprocessing, trained.summary
    )


def run(config: Config) -> Result:
    """Trains, or returns the finished training of the same name."""
    return Result(fitted=train(config))


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
