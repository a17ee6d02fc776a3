"""Job: the codebooks of semantic IDs. Fits them when it must, keeps them when it can, and says how good they are.

Standing codebooks are kept while they serve: new items get codes without a fit, and no trained model loses the meaning
of its tokens. They are fitted anew when the embedding space or a parameter changes, when the catalogue has grown or the
error has drifted past its bound, or when a rebuild is asked for. A fit that collapses never replaces codebooks that
work.
"""

import datetime as dt
import sys
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pydantic

from models.identity import version_of
from models.semantic_ids.quality import CollapseBounds, Quality, collapse_reasons, measure
from models.semantic_ids.quantiser import Quantiser
from models.semantic_ids.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans
from models.semantic_ids.rqvae_config import RqVaeConfig
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.clusters.codebook_artifacts import (
    Assessment,
    Codebooks,
    Provenance,
    load_codebooks,
    save_assessment,
    save_codebooks,
)
from ray_jobs.embedding_store import item_vectors
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.progress import note
from ray_jobs.tables.clusters import CODEBOOKS
from ray_jobs.warehouse import Warehouse

if TYPE_CHECKING:
    from ray_jobs.clusters import rqvae_training

FITTED, KEPT, REJECTED = "fitted", "kept", "rejected"


class RqVaeTraining(pydantic.BaseModel, frozen=True):
    """How an RQ-VAE is trained; see `ray_jobs.clusters.rqvae_training.Config`, whose defaults hold for the rest."""

    epochs: int = pydantic.Field(200, ge=1, description="Most epochs.")
    patience: int = pydantic.Field(20, ge=1, description="Epochs without a lower error before it stops.")
    learning_rate: float = pydantic.Field(2e-3, gt=0, description="Learning rate.")
    batch_size: int = pydantic.Field(1024, ge=1, description="Most items of a batch.")
    seed: int = pydantic.Field(0, description="Seed of weights, order and items held back.")


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where codebooks are kept.")
    embeddings: str = pydantic.Field(description="Version of the table of embeddings.")
    identity: str = pydantic.Field(description="Of embedding space, parameters and code.")
    method: Literal["rq_kmeans", "rq_vae"] = pydantic.Field("rq_kmeans", description="The quantiser.")
    quantiser: ResidualKMeansConfig = pydantic.Field(ResidualKMeansConfig(), description="Knobs of `rq_kmeans`.")
    rqvae: RqVaeConfig = pydantic.Field(RqVaeConfig(), description="Knobs of `rq_vae`.")
    training: RqVaeTraining = pydantic.Field(RqVaeTraining(), description="How `rq_vae` is trained.")
    bounds: CollapseBounds = pydantic.Field(description="What semantic IDs must reach to be published.")
    max_growth: float = pydantic.Field(0.25, ge=0, description="Growth of the catalogue that standing codebooks bear.")
    max_drift: float = pydantic.Field(0.05, ge=0, description="Growth of the error (share of variance) that they bear.")
    rebuild: bool = pydantic.Field(False, description="Fit anew in any case.")
    num_cpus: float = pydantic.Field(1, gt=0, description="CPUs that the fit of `rq_kmeans` reserves.")
    workers: int = pydantic.Field(0, ge=0, description="Ray Train workers of `rq_vae`; 0: the job's own process.")
    use_gpu: bool = pydantic.Field(False, description="Whether each of them gets a GPU.")
    acceleration: Acceleration = pydantic.Field(Acceleration(), description="How their steps are computed.")

    @property
    def knobs(self) -> ResidualKMeansConfig | RqVaeConfig:
        """Knobs of the chosen quantiser."""
        return self.quantiser if self.method == "rq_kmeans" else self.rqvae

    @property
    def question(self) -> str:
        """Digest of everything that decides the answer, beside embeddings and standing codebooks."""
        return version_of(identity=self.identity, bounds=self.bounds, growth=self.max_growth, drift=self.max_drift)


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    version: str
    action: str
    reason: str
    widths: tuple[int, ...]
    collapsed: tuple[str, ...]
    committed: bool


def why_fit(standing: Codebooks | None, now: Quality | None, config: Config, num_items: int) -> str | None:
    """Why codebooks have to be fitted anew, in one sentence, or None if the standing ones do.

    Args:
        standing: Codebooks of the table, if there are any.
        now: Their quality on the catalogue of today; None where they can't encode it.
        config: The job's knobs.
        num_items: Items of the catalogue of today.
    """
    if standing is None:
        return "There were no codebooks."
    if standing.provenance.identity != config.identity or now is None:
        return "The embedding space, a parameter or the code has changed."
    if config.rebuild:
        return "A rebuild was asked for."
    grown = num_items / standing.provenance.num_items - 1
    if grown > config.max_growth:
        return f"The catalogue has grown by {grown:.0%} since the last fit (bound {config.max_growth:.0%})."
    if collapsed := collapse_reasons(now, config.bounds):
        return f"The standing codebooks no longer tell the catalogue apart. {collapsed[0]}"
    error, fitted = now.levels[-1].error, standing.quality.levels[-1].error
    if error > fitted + config.max_drift:
        return f"The reconstruction error has drifted from {fitted:.3f} to {error:.3f} (bound {config.max_drift} more)."
    return None


def assess(quantiser: Quantiser, x_ND: np.ndarray, planned: tuple[int, ...]) -> Quality:
    """Quality of the codes that a quantiser gives to the catalogue."""
    return measure(quantiser, x_ND, quantiser.encode(x_ND), planned)


def fit_quantiser(x_ND: np.ndarray, config: Config) -> Quantiser:
    """Fits the chosen quantiser: k-means in a Ray task, a network by Ray Train.

    Args:
        x_ND: Embeddings of the catalogue, by item id.
        config: The job's knobs.
    """
    import ray

    if config.method == "rq_kmeans":
        task: Any = ray.remote(num_cpus=config.num_cpus)(fit_residual_kmeans)
        found: Quantiser = ray.get(task.remote(ray.put(x_ND), config.quantiser))
        return found
    from ray_jobs.clusters.rqvae_training import train_rqvae

    return train_rqvae(rqvae_job(config))[0]


def rqvae_job(config: Config, **changes: Any) -> "rqvae_training.Config":
    """The training of the RQ-VAE that a config asks for.

    Args:
        config: The job's knobs.
        **changes: Fields of the training that differ.
    """
    from ray_jobs.clusters import rqvae_training

    standard = rqvae_training.Config.model_fields["training"].default
    return rqvae_training.Config(
        **{
            "warehouse": config.warehouse,
            "artifacts": config.artifacts,
            "embeddings": config.embeddings,
            "quantiser": config.rqvae,
            "training": standard.model_copy(update=config.training.model_dump(exclude={"batch_size"})),
            "batch_size": config.training.batch_size,
            "workers": config.workers,
            "use_gpu": config.use_gpu,
            "acceleration": config.acceleration,
        }
        | changes
    )


def decide(x_ND: np.ndarray, standing: Codebooks | None, config: Config) -> tuple[Codebooks, Assessment]:
    """Keeps the standing codebooks or fits new ones.

    Args:
        x_ND: Embeddings of the catalogue, by item id.
        standing: Codebooks of the table, if there are any.
        config: The job's knobs.

    Returns:
        The codebooks that serve from now on, and the assessment.
    """
    import ray

    measured: Any = ray.remote(num_cpus=config.num_cpus)(assess)
    shared, now = ray.put(x_ND), None
    if standing is not None and standing.provenance.identity == config.identity:
        now = ray.get(measured.remote(standing.quantiser, shared, standing.provenance.planned_widths))
    reason = why_fit(standing, now, config, len(x_ND))
    if reason is None:
        assert standing is not None
        assert now is not None
        kept = standing.spec.version
        return standing, Assessment(
            kept, kept, config.question, KEPT, "Nothing called for a fit.", now, (), config.bounds, 0.0
        )
    started = time.monotonic()
    quantiser = fit_quantiser(x_ND, config)
    seconds = time.monotonic() - started
    planned = config.knobs.planned_widths(len(x_ND))
    quality = ray.get(measured.remote(quantiser, shared, planned))
    version = version_of(identity=config.identity, embeddings=config.embeddings)
    fitted = Codebooks(
        quantiser, quantiser.spec(version), Provenance(config.identity, config.embeddings, len(x_ND), planned), quality
    )
    collapsed = tuple(collapse_reasons(quality, config.bounds))
    serving = standing if collapsed and standing is not None else fitted
    action = REJECTED if collapsed else FITTED
    return serving, Assessment(
        version, serving.spec.version, config.question, action, reason, quality, collapsed, config.bounds, seconds
    )


def codebook_rows(codebooks: Codebooks, codes_NL: np.ndarray) -> pa.Table:
    """Rows of `CODEBOOKS`."""
    level, code, centroid, items = [], [], [], []
    for i, centroids_KR in enumerate(codebooks.quantiser.centroids):
        level += [i] * len(centroids_KR)
        code += list(range(len(centroids_KR)))
        centroid += centroids_KR.tolist()
        items += np.bincount(codes_NL[:, i], minlength=len(centroids_KR)).tolist()
    columns: dict[str, Any] = {"level": level, "code": code, "centroid": centroid, "items": items}
    columns |= {
        "codebook_version": [codebooks.spec.version] * len(level),
        "created_timestamp": [dt.datetime.now(dt.UTC)] * len(level),
    }
    return pa.table(columns, schema=CODEBOOKS.schema)


def run(config: Config) -> Result:
    """Writes `CODEBOOKS`, the codebooks' artifact and the assessment."""
    x_ND = item_vectors(config.warehouse, config.embeddings)[1]
    found = config.warehouse.version(CODEBOOKS)
    standing = load_codebooks(config.artifacts, found) if found else None
    serving, assessment = decide(x_ND, standing, config)
    version = serving.spec.version
    committed = False
    if version != found:
        save_codebooks(config.artifacts, serving, config.knobs)
        rows = codebook_rows(serving, serving.quantiser.encode(x_ND))
        committed = config.warehouse.write(CODEBOOKS, rows, version).committed
    # Last, because it is what tells a later run that there is nothing to do.
    save_assessment(config.artifacts, config.embeddings, assessment)
    note("codebooks", f"{assessment.action}: {assessment.reason}", widths=serving.spec.widths)
    return Result(
        version=version,
        action=assessment.action,
        reason=assessment.reason,
        widths=serving.spec.widths,
        collapsed=assessment.collapsed,
        committed=committed,
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
