"""Semantic IDs: inputs are embeddings and codebooks; nothing is published that has collapsed."""

import dagster as dg

from assets.clusters.quality_report import histogram
from assets.clusters.registration import register
from assets.failures import data_errors_are_final
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, Tracking
from models.identity import version_of
from ray_jobs.tables.clusters import CODEBOOKS, ITEM_EMBEDDINGS, SEMANTIC_IDS

CODE_VERSION = "3"


@dg.asset(
    key=["clusters", "semantic_ids"],
    group_name="clusters",
    kinds={"ray", "mlflow", "deltalake"},
    deps=[["clusters", "item_embeddings"], ["clusters", "codebooks"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(SEMANTIC_IDS),
    tags={"tier": "gold"},
)
@data_errors_are_final
def semantic_ids(
    context: dg.AssetExecutionContext, tables: Tables, ray_jobs: RayJobs, tracking: Tracking
) -> dg.MaterializeResult:
    """Semantic ID of every item: one code a level, coarse to fine, and a digit that tells equal codes apart.

    One row an item. Rankers take it as features, personas take the coarsest code as the item's cluster. New items are
    encoded with the standing codebooks. Published blue/green: codebooks, form and item map of a version are one
    artifact, registered in MLflow; the commit of this table is the switch. Readers pin the version.
    If this is red: the codebooks have collapsed or do not fit the embeddings, as the message says; the table still
    holds the last good IDs. Mend `clusters/codebooks`, then run `rematerialize_failed`.
    """
    from ray_jobs.clusters import semantic_id_encoding, semantic_id_maps
    from ray_jobs.clusters.codebook_artifacts import load_assessment

    report = Report(SEMANTIC_IDS)
    embeddings, codebooks = tables.version(ITEM_EMBEDDINGS), tables.version(CODEBOOKS)
    version = semantic_ids_version(embeddings=embeddings, codebooks=codebooks)
    if tables.is_current(SEMANTIC_IDS, version):
        return report.unchanged(tables, version, {"ids_moved": 0, "ids_new": 0, "ids_gone": 0})
    assessment = load_assessment(tables.artifacts(), embeddings)
    # A blocking check only blocks its own run; this asset may also be run alone.
    if assessment is None or assessment.serving != codebooks:
        raise dg.Failure(
            "The codebooks were not assessed on these embeddings: materialize clusters/codebooks first.",
            allow_retries=False,
        )
    if assessment.collapsed:
        raise dg.Failure(
            f"Semantic IDs are not published. {assessment.collapsed[0]} The last good ones keep serving: "
            "mend clusters/item_embeddings, then materialize clusters/codebooks.",
            allow_retries=False,
        )
    done = ray_jobs.run(
        context,
        "clusters.semantic_id_encoding",
        semantic_id_encoding.Config(
            warehouse=tables.warehouse(),
            artifacts=tables.artifacts(),
            version=version,
            embeddings=embeddings,
            codebooks=codebooks,
        ),
    )
    data = semantic_id_maps.read_rows(tables.artifacts(), version)
    url = register(context, tracking, tables, version, assessment, done)
    written = tables.write(SEMANTIC_IDS, data, version)
    sizes = data["cluster"].value_counts().field("counts").to_numpy(zero_copy_only=False)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata={
            "ids_moved": done.num_moved,
            "ids_moved_to_another_cluster": done.num_moved_clusters,
            "ids_new": done.num_new,
            "ids_gone": done.num_gone,
            "items_with_another_last_code": done.num_separated,
            "items_with_digit_above_0": done.num_collided,
            "clusters": len(sizes),
            "largest_cluster": int(sizes.max()),
            "collision_digits": done.digits,
            "codebook_version": codebooks,
            "artifact": tables.artifacts().uri(done.artifact),
            "mlflow_run": dg.MetadataValue.url(url),
            "unique_rate": round(done.unique_rate, 4),
            "unique_rate_of_nearest_codes": round(assessment.quality.unique_rate, 4),
            "cluster_sizes": histogram(sizes, title="Items by cluster", unit="cluster"),
        },
    )


def semantic_ids_version(*, embeddings: str, codebooks: str) -> str:
    """Version of the semantic IDs that one version of the codebooks gives to one version of the embeddings."""
    return version_of(embeddings=embeddings, codebooks=codebooks, code=CODE_VERSION)
