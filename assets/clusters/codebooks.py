"""Codebooks: input is the table of embeddings; standing codebooks are kept while they serve."""

from collections.abc import Iterable
from typing import Any

import dagster as dg
import pydantic

from assets.clusters.quality_report import quality_metadata
from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables
from models.identity import version_of
from ray_jobs.tables.clusters import CODEBOOKS, ITEM_EMBEDDINGS

CODE_VERSION = "3"
METHODS = ("rq_kmeans", "rq_vae")


class CodebooksConfig(Knobs):
    """Knobs of the codebooks."""

    method: str = pydantic.Field("rq_kmeans", description="Quantiser: `rq_kmeans` or `rq_vae`.")
    levels: int = pydantic.Field(3, ge=1, description="Levels of a semantic ID.")
    widths: list[int] = pydantic.Field(default_factory=list, description="Codes of each level; by rule when empty.")
    max_width: int = pydantic.Field(1024, ge=1, description="Largest width that the rule chooses.")
    whitening: float = pydantic.Field(0.25, ge=0, le=1, description="0 leaves the space as it is, 1 whitens fully.")
    components: int = pydantic.Field(256, ge=1, description="Largest number of principal directions.")
    unit_residuals: bool = pydantic.Field(True, description="rq_kmeans: cluster directions of residuals.")
    balance: float = pydantic.Field(0.0, ge=0, description="rq_kmeans: most items of a code, in even shares; 0: any.")
    hidden: list[int] = pydantic.Field([256, 128], description="rq_vae: hidden layers of the encoder.")
    latent: int = pydantic.Field(64, ge=1, description="rq_vae: width of what is quantised.")
    commitment: float = pydantic.Field(0.25, ge=0, description="rq_vae: weight of the commitment loss.")
    gradient: str = pydantic.Field("rotation", description="rq_vae: `rotation` or `straight_through`.")
    revive_after: int = pydantic.Field(20, ge=0, description="rq_vae: idle batches before a code is revived; 0: never.")
    epochs: int = pydantic.Field(200, ge=1, description="rq_vae: most epochs.")
    patience: int = pydantic.Field(20, ge=1, description="rq_vae: epochs without a lower error before it stops.")
    learning_rate: float = pydantic.Field(2e-3, gt=0, description="rq_vae: learning rate.")
    batch_size: int = pydantic.Field(1024, ge=1, description="rq_vae: most items of a batch.")
    max_growth: float = pydantic.Field(0.25, ge=0, description="Growth of the catalogue that standing codebooks bear.")
    max_drift: float = pydantic.Field(0.05, ge=0, description="Growth of the error (share of variance) that they bear.")
    min_unique_rate: float = pydantic.Field(0.7, ge=0, le=1, description="Least share of items with own codes.")
    min_entropy_ratio: float = pydantic.Field(0.5, ge=0, le=1, description="Least share of a level's possible entropy.")
    rebuild: bool = pydantic.Field(False, description="Fit anew although nothing calls for it; moves semantic IDs.")
    seed: int = pydantic.Field(0, description="Seed of the fit.")


@dg.asset(
    key=["clusters", "codebooks"],
    group_name="clusters",
    kinds={"ray", "numpy", "deltalake"},
    deps=[["clusters", "item_embeddings"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(CODEBOOKS),
    tags={"tier": "gold"},
)
@data_errors_are_final
def codebooks(
    context: dg.AssetExecutionContext, config: CodebooksConfig, tables: Tables, ray_jobs: RayJobs
) -> dg.MaterializeResult:
    """Codebooks of the residual quantiser that turns an item's embedding into a semantic ID.

    One row a code of a level; weights and provenance are an artifact of the same version. Standing codebooks are kept
    while they serve, so that semantic IDs do not move under trained models. `clusters/semantic_ids` encodes with them.
    If this is red: the fit failed, or the check `collapse` found that items share codes; the old semantic IDs keep
    serving. Look at the embeddings first, then run `rebuild_clusters`.
    """
    from ray_jobs.clusters import clustering
    from ray_jobs.clusters.codebook_artifacts import load_assessment

    report = Report(CODEBOOKS)
    embeddings = tables.version(ITEM_EMBEDDINGS)
    job = clustering_job(config, tables, ray_jobs)
    standing = load_assessment(tables.artifacts(), embeddings)
    if (
        standing
        and not config.rebuild
        and standing.question == job.question
        and tables.is_current(CODEBOOKS, standing.serving)
    ):
        return report.unchanged(tables, standing.serving, {"training_runs": 0} | quality_metadata(standing))
    done = ray_jobs.run(context, "clusters.clustering", job)
    assessment = load_assessment(tables.artifacts(), embeddings)
    assert assessment is not None
    return report.result(
        version=done.version,
        data=tables.read(CODEBOOKS),
        committed=done.committed,
        metadata={"training_runs": int(done.action != clustering.KEPT), "method": config.method}
        | quality_metadata(assessment),
    )


def clustering_job(config: CodebooksConfig, tables: Tables, ray_jobs: RayJobs) -> Any:
    """The job's config.

    Raises:
        ValueError: If a knob is out of its range, or names no quantiser.
    """
    from models.semantic_ids.quality import CollapseBounds
    from models.semantic_ids.residual_kmeans import ResidualKMeansConfig
    from models.semantic_ids.rqvae_config import RqVaeConfig
    from ray_jobs.clusters import clustering

    if config.method not in METHODS:
        raise ValueError(f"method is {config.method!r}: give one of {', '.join(METHODS)}.")
    asked = config.model_dump() | {"widths": tuple(config.widths), "hidden": tuple(config.hidden)}

    def taken(fields: Iterable[str]) -> dict[str, Any]:
        return {name: asked[name] for name in fields if name in asked}

    kmeans = ResidualKMeansConfig(**taken(ResidualKMeansConfig.__dataclass_fields__))
    rqvae = RqVaeConfig(**taken(RqVaeConfig.__dataclass_fields__))
    training = clustering.RqVaeTraining(**taken(clustering.RqVaeTraining.model_fields))
    space = sorted(set(tables.read(ITEM_EMBEDDINGS, ["embedding_version"])["embedding_version"].to_pylist()))
    # Knobs of the quantiser that was not chosen change nothing.
    chosen = {"kmeans": kmeans} if config.method == "rq_kmeans" else {"rqvae": rqvae, "training": training.model_dump()}
    return clustering.Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        embeddings=tables.version(ITEM_EMBEDDINGS),
        identity=version_of(space=space, code=CODE_VERSION, **chosen),
        method=config.method,
        quantiser=kmeans,
        rqvae=rqvae,
        training=training,
        max_growth=config.max_growth,
        max_drift=config.max_drift,
        rebuild=config.rebuild,
        bounds=CollapseBounds(min_unique_rate=config.min_unique_rate, min_entropy_ratio=config.min_entropy_ratio),
        **ray_jobs.placement(),
    )
