"""Job: quantisers side by side on the same embeddings. No semantic ID moves."""

import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pydantic

from models.semantic_ids.peers import plain_residual_kmeans, scikit_learn
from models.semantic_ids.quality import measure
from models.semantic_ids.quantiser import Quantiser
from models.semantic_ids.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans
from models.semantic_ids.rqvae_config import RqVaeConfig
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.embedding_store import as_matrix
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.progress import note
from ray_jobs.rqvae_training import Config as RqVaeJob
from ray_jobs.rqvae_training import train_rqvae
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

Method = Literal["rq_kmeans", "rq_vae", "scikit_learn"]


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the embeddings are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where checkpoints of the RQ-VAE go.")
    embeddings: str = pydantic.Field(description="Version of the table of embeddings.")
    methods: tuple[Method, ...] = pydantic.Field(("rq_kmeans", "rq_vae", "scikit_learn"), description="What to fit.")
    quantiser: ResidualKMeansConfig = pydantic.Field(ResidualKMeansConfig(), description="Knobs of `rq_kmeans`.")
    rqvae: RqVaeConfig = pydantic.Field(RqVaeConfig(), description="Knobs of `rq_vae`; its widths are the others'.")
    training: TrainingOptions = pydantic.Field(
        RqVaeJob.model_fields["training"].default, description="How `rq_vae` is trained."
    )
    held_share: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of the items that no fit sees.")
    seed: int = pydantic.Field(0, description="Seed of that share.")
    workers: int = pydantic.Field(0, ge=0, description="Ray Train workers of `rq_vae`; 0: the job's own process.")
    use_gpu: bool = pydantic.Field(False, description="Whether each of them gets a GPU.")


class Line(pydantic.BaseModel, frozen=True):
    """One level of one quantiser; see `ray_jobs.tables.clusters.QUANTISER_COMPARISON`."""

    method: str
    level: int
    width: int
    used: int
    utilisation: float
    entropy: float
    entropy_ratio: float
    error: float
    held_error: float
    unique_rate: float
    collided: int
    largest_group: int
    seconds: float


class Result(pydantic.BaseModel, frozen=True):
    """What came out."""

    lines: list[Line] = pydantic.Field(description="Every level of every quantiser.")
    num_items: int = pydantic.Field(description="Items of the catalogue.")
    num_held: int = pydantic.Field(description="Items that no fit saw.")


def run(config: Config) -> Result:
    """Fits and measures all quantisers."""
    columns = ["item_id", "embedding"]
    data = config.warehouse.read(ITEM_EMBEDDINGS, columns, expect_version=config.embeddings).sort_by("item_id")
    x_ND = as_matrix(data["embedding"])
    order = np.random.default_rng(config.seed).permutation(len(x_ND))
    held = np.sort(order[: int(config.held_share * len(x_ND))])
    fitted = np.setdiff1d(order, held)
    skipped = tuple(data["item_id"].take(held).to_pylist())
    widths = config.quantiser.planned_widths(len(fitted))
    lines: list[Line] = []
    for method in config.methods:
        started = time.monotonic()
        quantiser = _fits(config, x_ND[fitted], widths, skipped)[method]()
        seconds = time.monotonic() - started
        lines += _lines(method, quantiser, x_ND, fitted, held, widths, seconds)
        note("quantisers", f"{method}: error {lines[-1].error:.3f}, unique rate {lines[-1].unique_rate:.2%}")
    return Result(lines=lines, num_items=len(x_ND), num_held=len(held))


def _fits(
    config: Config, x_ND: np.ndarray, widths: tuple[int, ...], skipped: tuple[str, ...]
) -> dict[str, Callable[[], Quantiser]]:
    """How each method is fitted."""
    import ray

    def task(function: Any, *arguments: Any) -> Quantiser:
        found: Quantiser = ray.get(ray.remote(num_cpus=1)(function).remote(*arguments))
        return found

    def rqvae() -> Quantiser:
        knobs = config.rqvae.__class__(**vars(config.rqvae) | {"widths": widths, "levels": len(widths)})
        job = RqVaeJob(
            warehouse=config.warehouse,
            artifacts=config.artifacts,
            embeddings=config.embeddings,
            quantiser=knobs,
            training=config.training,
            skipped=skipped,
            workers=config.workers,
            use_gpu=config.use_gpu,
        )
        return train_rqvae(job)[0]

    return {
        "rq_kmeans": lambda: task(fit_residual_kmeans, x_ND, config.quantiser),
        "rq_vae": rqvae,
        "scikit_learn": lambda: task(plain_residual_kmeans, x_ND, widths, scikit_learn),
    }


def _lines(
    method: str,
    quantiser: Quantiser,
    x_ND: np.ndarray,
    fitted: np.ndarray,
    held: np.ndarray,
    widths: tuple[int, ...],
    seconds: float,
) -> list[Line]:
    """Figures of a quantiser: error of fitted and held items, the rest over the whole catalogue."""
    codes_NL = quantiser.encode(x_ND)
    whole = measure(quantiser, x_ND, codes_NL, widths)
    seen = measure(quantiser, x_ND[fitted], codes_NL[fitted], widths)
    unseen = measure(quantiser, x_ND[held], codes_NL[held], widths) if len(held) else seen
    return [
        Line(
            method=method,
            level=number,
            width=level.width,
            used=level.used,
            utilisation=level.utilisation,
            entropy=level.entropy,
            entropy_ratio=level.entropy_ratio,
            error=seen.levels[number].error,
            held_error=unseen.levels[number].error,
            unique_rate=whole.unique_rate,
            collided=whole.collided,
            largest_group=whole.largest_group,
            seconds=round(seconds, 3),
        )
        for number, level in enumerate(whole.levels)
    ]


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
