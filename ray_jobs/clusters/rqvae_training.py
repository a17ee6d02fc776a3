"""Trains an RQ-VAE by Ray Train: which encoder, codes and decoder lose least of the item embeddings?

Shape letters: N items, B rows, D embedding, R components of the quantiser's space, L levels.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pydantic
import torch

from models.identity import version_of
from models.semantic_ids.rqvae import RqVae, RqVaeNetwork
from models.semantic_ids.rqvae_config import RqVaeConfig
from models.semantic_ids.spec import check_vectors
from models.semantic_ids.transform import Whitening, fit_whitening
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.embedding_store import item_vectors
from ray_jobs.training import Fitted, fit_as
from ray_jobs.training_task import Loss, Task, TrainingOptions, fitting_batch
from ray_jobs.warehouse import Warehouse

CODE_VERSION = "1"
"""Bump when the network or its training changes."""
SMALLEST_BATCH, STEPS_AN_EPOCH = 64, 8
EVALUATED = 8192
"""Rows of a batch of the evaluation."""


class Config(pydantic.BaseModel, frozen=True):
    """A training of the RQ-VAE."""

    warehouse: Warehouse = pydantic.Field(description="Where the embeddings are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where checkpoints and the model go.")
    embeddings: str = pydantic.Field(description="Version of the table of embeddings.")
    quantiser: RqVaeConfig = pydantic.Field(RqVaeConfig(), description="Knobs of the quantiser.")
    training: TrainingOptions = pydantic.Field(
        TrainingOptions(epochs=200, patience=20, learning_rate=2e-3, warmup_steps=20, weight_decay=1e-4),
        description="How it is trained.",
    )
    batch_size: int = pydantic.Field(1024, ge=1, description="Most items of a batch.")
    valid_share: float = pydantic.Field(
        0.1, gt=0, lt=1, description="Share of the items that training does not see, by whose error it stops."
    )
    skipped: tuple[str, ...] = pydantic.Field((), description="Items that training sees in no way; for comparisons.")
    workers: int = pydantic.Field(0, ge=0, description="Ray Train workers; 0 trains in the job's own process.")
    use_gpu: bool = pydantic.Field(False, description="Whether each worker gets a GPU.")
    acceleration: Acceleration = pydantic.Field(Acceleration(), description="How its steps are computed.")
    cpus_per_worker: float = pydantic.Field(1.0, gt=0, description="CPUs of each worker.")

    @property
    def name(self) -> str:
        """Version of the training: inputs, parameters and code, but not where or on how many workers it runs."""
        where = {"warehouse", "artifacts", "workers", "use_gpu", "acceleration", "cpus_per_worker"}
        return "rqvae-" + version_of(code=CODE_VERSION, **self.model_dump(mode="json", exclude=where))


class RqVaeTask(Task):
    """Reconstruction through three levels of codes, with codebook and commitment losses."""

    stage = "semantic IDs, rq_vae"
    metric = "error"
    mode = "min"

    def __init__(self, config: Config):
        self.config = config
        items, x_ND = item_vectors(config.warehouse, config.embeddings)
        x_ND = x_ND[~np.isin(items, config.skipped)]
        check_vectors(x_ND)
        knobs = config.quantiser
        self.widths = knobs.planned_widths(len(x_ND))
        held_N = np.zeros(len(x_ND), bool)
        rng = np.random.default_rng(config.training.seed)
        held_N[rng.permutation(len(x_ND))[: int(config.valid_share * len(x_ND))]] = True
        self.whitening = fit_whitening(x_ND[~held_N], strength=knobs.whitening, components=knobs.components)
        z_NR = self.whitening.apply(x_ND)
        # Inputs of unit variance, on average over the components.
        self.scale = max(float(np.sqrt((z_NR[~held_N] ** 2).mean())), 1e-9)
        self.z_NR = torch.from_numpy((z_NR / self.scale).astype(np.float32))
        self.train = np.flatnonzero(~held_N)
        # A catalogue too small to hold anything back stops by what it learns from.
        self.valid = np.flatnonzero(held_N) if held_N.any() else self.train

    def constructor(self) -> dict[str, Any]:
        """See `Task.constructor`."""
        knobs = self.config.quantiser
        return {
            "inputs": self.z_NR.shape[1],
            "widths": list(self.widths),
            "hidden": list(knobs.hidden),
            "latent": knobs.latent,
            "commitment": knobs.commitment,
            "gradient": knobs.gradient,
            "revive_after": knobs.revive_after,
        }

    def preprocessing(self) -> dict[str, Any]:
        """See `Task.preprocessing`."""
        arrays = {name: array.tolist() for name, array in self.whitening.arrays().items()}
        return {"arrays": arrays, "scale": self.scale}

    def build_model(self) -> RqVaeNetwork:
        """See `Task.build_model`. Every worker starts the codebooks from the same rows, and so alike."""
        network = RqVaeNetwork(**self.constructor())
        rng = np.random.default_rng([self.config.training.seed, 1])
        rows = np.sort(rng.permutation(self.train)[: self.config.quantiser.start_items])
        network.start(self.z_NR[rows], self.config.training.seed)
        return network

    def num_examples(self, world: int) -> int:
        """See `Task.num_examples`."""
        return len(self.train) // world

    def train_batches(self, epoch: int, rank: int, world: int) -> Iterator[torch.Tensor]:
        """See `Task.train_batches`."""
        rng = np.random.default_rng([self.config.training.seed, 2, epoch])
        order = rng.permutation(self.train)
        mine = order[: max(len(order) // world, 1) * world][rank::world]
        size = fitting_batch(self.config.batch_size, len(mine), smallest=SMALLEST_BATCH, steps=STEPS_AN_EPOCH)
        for rows in np.split(mine, range(size, len(mine), size)):
            yield self.z_NR[rows]

    def loss(self, model: torch.nn.Module, batch: torch.Tensor) -> Loss:
        """See `Task.loss`."""
        output = model(batch)
        # A sum over components: their mean lets the quantisation losses win, and the codes collapse
        # (EdoardoBotta/RQ-VAE-Recommender, issue 65 and pull request 66).
        reconstruction = (output.decoded_BR.float() - batch).square().sum(1).mean()
        total = reconstruction + output.quantisation
        return Loss(total, len(batch), {"reconstruction": reconstruction, "quantisation": output.quantisation})

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        """Squared reconstruction error of the items held back, over their variance."""
        device, lost = next(model.parameters()).device, 0.0
        z_NR = self.z_NR[self.valid]
        for z_BR in z_NR.split(EVALUATED):
            lost += float((model(z_BR.to(device)).decoded_BR.float().cpu() - z_BR).double().square().sum())
        variance = float((z_NR - self.z_NR[self.train].mean(0)).double().square().sum())
        return {"error": lost / variance if variance > 1e-9 else 0.0}


def build_task(config: Config) -> RqVaeTask:
    """The task, in a worker."""
    return RqVaeTask(config)


def load_rqvae(artifacts: ArtifactStore, name: str) -> RqVae:
    """Loads a trained RQ-VAE by the name of its training."""
    trained = read_model(artifacts, name)
    network = RqVaeNetwork(**trained.constructor)
    network.load_state_dict(trained.weights)
    arrays = {name: np.asarray(array, np.float32) for name, array in trained.preprocessing["arrays"].items()}
    return RqVae(network, Whitening.from_arrays(arrays), trained.preprocessing["scale"], trained.constructor)


def train_rqvae(config: Config) -> tuple[RqVae, Fitted]:
    """Trains, or finds the finished training of the same name."""
    fitted = fit_as(build_task, config)
    return load_rqvae(config.artifacts, fitted.name), fitted
