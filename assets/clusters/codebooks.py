"""Codebooks: input is the table of embeddings; standing codebooks are kept while they serve."""

import dagster as dg
import pydantic

from assets.clusters.quality_report import quality_metadata
from assets.failures import data_errors_are_final
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables
from models.identity import version_of
from ray_jobs.tables.clusters import CODEBOOKS, ITEM_EMBEDDINGS

CODE_VERSION = "1"


class CodebooksConfig(dg.Config):
    """Knobs of the codebooks."""

    levels: int = pydantic.Field(3, ge=1, description="Levels of a semantic ID.")
    widths: list[int] = pydantic.Field(default_factory=list, description="Codes of each level; by rule when empty.")
    max_width: int = pydantic.Field(1024, ge=1, description="Largest width that the rule chooses.")
    whitening: float = pydantic.Field(0.5, ge=0, le=1, description="0 leaves the space as it is, 1 whitens fully.")
    components: int = pydantic.Field(128, ge=1, description="Largest number of principal directions.")
    max_growth: float = pydantic.Field(0.25, ge=0, description="Growth of the catalogue that standing codebooks bear.")
    max_drift: float = pydantic.Field(0.05, ge=0, description="Growth of the error (share of variance) that they bear.")
    min_unique_rate: float = pydantic.Field(0.7, ge=0, le=1, description="Least share of items with own codes.")
    min_entropy_ratio: float = pydantic.Field(0.5, ge=0, le=1, description="Least share of a level's possible entropy.")
    rebuild: bool = pydantic.Field(False, description="Fit anew although nothing calls for it; moves semantic IDs.")
    seed: int = pydantic.Field(0, description="Seed of the fit.")


@dg.asset(
    key=["clusters", "codebooks"],
    group_name="clusters",
    kinds={"ray", "scikitlearn", "deltalake"},
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
    from models.semantic_ids.quality import CollapseBounds
    from models.semantic_ids.residual_kmeans import ResidualKMeansConfig
    from ray_jobs import clustering
    from ray_jobs.codebook_artifacts import load_assessment

    report = Report(CODEBOOKS)
    embeddings = tables.version(ITEM_EMBEDDINGS)
    space = sorted(set(tables.read(ITEM_EMBEDDINGS, ["embedding_version"])["embedding_version"].to_pylist()))
    quantiser = ResidualKMeansConfig(
        levels=config.levels,
        widths=tuple(config.widths),
        max_width=config.max_width,
        whitening=config.whitening,
        components=config.components,
        seed=config.seed,
    )
    job = clustering.Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        embeddings=embeddings,
        quantiser=quantiser,
        identity=version_of(space=space, quantiser=quantiser, code=CODE_VERSION),
        max_growth=config.max_growth,
        max_drift=config.max_drift,
        rebuild=config.rebuild,
        bounds=CollapseBounds(min_unique_rate=config.min_unique_rate, min_entropy_ratio=config.min_entropy_ratio),
    )
    standing = load_assessment(tables.artifacts(), embeddings)
    if (
        standing
        and not config.rebuild
        and standing.question == job.question
        and tables.is_current(CODEBOOKS, standing.serving)
    ):
        return report.unchanged(tables, standing.serving, {"training_runs": 0} | quality_metadata(standing))
    done = ray_jobs.run(context, "clustering", job)
    assessment = load_assessment(tables.artifacts(), embeddings)
    assert assessment is not None
    return report.result(
        version=done.version,
        data=tables.read(CODEBOOKS),
        committed=done.committed,
        metadata={"training_runs": int(done.action != clustering.KEPT)} | quality_metadata(assessment),
    )
