"""Job: quantisers side by side on the same embeddings. No semantic ID moves."""

import dataclasses
import sys
import time
from typing import Any, Literal

import numpy as np
import pydantic

from models.semantic_ids.peers import plain_residual_kmeans, scikit_learn
from models.semantic_ids.quality import measure
from models.semantic_ids.quantiser import Quantiser
from ray_jobs.clusters.clustering import Config as Clustering
from ray_jobs.clusters.clustering import fit_quantiser, rqvae_job
from ray_jobs.clusters.rqvae_training import train_rqvae
from ray_jobs.embedding_store import item_vectors
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.progress import note

Method = Literal["rq_kmeans", "rq_vae", "scikit_learn"]


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    clustering: Clustering = pydantic.Field(description="Knobs of the quantisers; all get the same widths.")
    methods: tuple[Method, ...] = pydantic.Field(("rq_kmeans", "rq_vae", "scikit_learn"), description="What to fit.")
    held_share: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of the items that no fit sees.")
    seed: int = pydantic.Field(0, description="Seed of that share.")


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
    items, x_ND = item_vectors(config.clustering.warehouse, config.clustering.embeddings)
    order = np.random.default_rng(config.seed).permutation(len(x_ND))
    held = np.sort(order[: int(config.held_share * len(x_ND))])
    fitted = np.setdiff1d(order, held)
    skipped = tuple(items[i] for i in held)
    widths = config.clustering.quantiser.planned_widths(len(fitted))
    lines: list[Line] = []
    for method in config.methods:
        started = time.monotonic()
        quantiser = _fit(method, config.clustering, x_ND[fitted], widths, skipped)
        seconds = time.monotonic() - started
        lines += _lines(method, quantiser, x_ND, fitted, held, widths, seconds)
        note("quantisers", f"{method}: error {lines[-1].error:.3f}, unique rate {lines[-1].unique_rate:.2%}")
    return Result(lines=lines, num_items=len(x_ND), num_held=len(held))


def _fit(
    method: Method, config: Clustering, x_ND: np.ndarray, widths: tuple[int, ...], skipped: tuple[str, ...]
) -> Quantiser:
    """Fits a method on all items but the skipped ones."""
    import ray

    if method == "rq_vae":
        knobs = dataclasses.replace(config.rqvae, widths=widths, levels=len(widths))
        return train_rqvae(rqvae_job(config, quantiser=knobs, skipped=skipped))[0]
    if method == "rq_kmeans":
        return fit_quantiser(x_ND, config.model_copy(update={"method": method}))
    task: Any = ray.remote(num_cpus=config.num_cpus)(plain_residual_kmeans)
    found: Quantiser = ray.get(task.remote(x_ND, widths, scikit_learn))
    return found


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
