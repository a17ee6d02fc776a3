"""A tiny training task for tests of the loop, and a program that trains it (killed half-way by a test)."""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pydantic
import torch
import torch.nn.functional as F

from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.training import Fitted, fit
from ray_jobs.training_task import Loss, Task, TrainingOptions


class ToyConfig(pydantic.BaseModel, frozen=True):
    """``stop_after``: breaks after it. ``pace``: seconds a batch. ``metric``: what `evaluate` gives, by epoch."""

    num_examples: int = 64
    dropout: float = 0.5
    stop_after: int = 0
    pace: float = 0.0
    metric: tuple[float, ...] = ()
    learning_rate_blows_up: bool = False
    journal: str = ""


class ToyTask(Task):
    """Learns the sign of a sum, with dropout so that random numbers matter."""

    stage = "toy"

    def __init__(self, config: ToyConfig):
        rng = np.random.default_rng(0)
        self.config = config
        self.x = torch.from_numpy(rng.normal(size=(config.num_examples, 4)).astype(np.float32))
        self.y = (self.x.sum(1) > 0).float()
        self.evaluated = 0

    def build_model(self):
        dropout = torch.nn.Dropout(self.config.dropout)
        made = torch.nn.Sequential(torch.nn.Linear(4, 8), dropout, torch.nn.ReLU(), torch.nn.Linear(8, 1))
        # As models of several objectives have: no loss reaches it.
        made.unreached = torch.nn.Parameter(torch.zeros(3))
        return made

    def num_examples(self, world):
        return len(self.y) // world

    def train_batches(self, epoch, rank, world):
        if self.config.stop_after and epoch > self.config.stop_after:
            raise ValueError(f"The toy broke in epoch {epoch}.")
        if self.config.journal:
            with open(self.config.journal, "a") as journal:
                journal.write(f"{epoch}\n")
        order = np.random.default_rng(epoch).permutation(len(self.y))
        size = 16 // world  # the ranks' batches are one process's, shared out
        for chosen in np.split(order[rank::world], range(size, len(order) // world, size)):
            time.sleep(self.config.pace)
            yield self.x[chosen], self.y[chosen]

    def loss(self, model, batch):
        x, y = batch
        cost = F.binary_cross_entropy_with_logits(model(x).squeeze(-1), y)
        return Loss(cost * (float("nan") if self.config.learning_rate_blows_up else 1), len(y), {"cost": cost})

    def evaluate(self, model):
        self.evaluated += 1
        if self.config.metric:
            return {"auc": self.config.metric[self.evaluated - 1]}
        hits = ((model(self.x).squeeze(-1) > 0).float() == self.y).float().mean()
        return {"auc": float(hits)}

    def final_metrics(self, model):
        return {"checksum": float(sum(p.double().sum() for p in model.parameters()))}

    def constructor(self):
        return {"width": 8}


def build_toy(config: ToyConfig) -> ToyTask:
    return ToyTask(config)


def train_toy(
    root: Path,
    name: str = "toy",
    config: ToyConfig | None = None,
    workers: int = 0,
    acceleration: Acceleration | None = None,
    **options,
) -> Fitted:
    return fit(
        build_toy,
        config or ToyConfig(),
        name=name,
        artifacts=ArtifactStore(str(root)),
        options=TrainingOptions(**{"epochs": 5, "patience": 9, "learning_rate": 0.05, "seed": 3} | options),
        workers=workers,
        acceleration=acceleration,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_toy(Path(sys.argv[1]), config=ToyConfig(pace=float(sys.argv[2]), journal=os.environ.get("TOY_JOURNAL", "")))
