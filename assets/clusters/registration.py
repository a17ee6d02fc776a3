"""How a version of the semantic IDs is told to MLflow: one run and one registered version, with aliases by use."""

import dataclasses
from typing import Any

import dagster as dg

from assets.model_aliases import serve
from assets.resources import Tables, Tracking
from assets.run_inputs import log_dataset, partition_tag
from assets.source_revision import source_revision
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS

EXPERIMENT = "semantic_ids"
REGISTERED = "semantic_ids"
SERVING, PREVIOUS = "serving", "previous"
FOLDER = "semantic_ids"


def register(
    context: dg.AssetExecutionContext, tracking: Tracking, tables: Tables, version: str, assessment: Any, done: Any
) -> str:
    """Logs a version with its map, registers it and gives it the alias `serving`, each unless it has it.

    Called before the table is switched: what serves is always in the registry.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: Where the map is.
        version: Version of the semantic IDs.
        assessment: `ray_jobs.clusters.codebook_artifacts.Assessment` of its codebooks.
        done: `ray_jobs.clusters.semantic_id_encoding.Result`.

    Returns:
        Address of the run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    client = mlflow.MlflowClient()
    known = client.search_model_versions(f"name = '{REGISTERED}' and tags.semantic_id_version = '{version}'")
    if not known:
        _log(mlflow, context, tracking, tables, version, assessment, done)
        known = client.search_model_versions(f"name = '{REGISTERED}' and tags.semantic_id_version = '{version}'")
    serve(client, REGISTERED, SERVING, PREVIOUS, str(known[0].version))
    run = client.get_run(known[0].run_id)
    return tracking.run_url(run.info.experiment_id, run.info.run_id)


def metrics_of(assessment: Any) -> dict[str, float]:
    """Quality of an assessment as MLflow metrics."""
    quality = assessment.quality
    said = {
        "unique_rate": quality.unique_rate,
        "collided": quality.collided,
        "largest_group": quality.largest_group,
        "error": quality.levels[-1].error,
        "fit_seconds": assessment.seconds,
    }
    for number, level in enumerate(quality.levels):
        said |= {
            f"level_{number}/{name}": getattr(level, name)
            for name in ("utilisation", "entropy", "entropy_ratio", "error")
        }
    return {name: float(value) for name, value in said.items()}


def _log(
    mlflow: Any,
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    version: str,
    assessment: Any,
    done: Any,
) -> None:
    from ray_jobs.clusters.codebook_artifacts import load_codebooks

    codebooks = load_codebooks(tables.artifacts(), assessment.serving)
    widths = "x".join(map(str, codebooks.spec.widths))
    tags = {
        "semantic_id_version": version,
        "codebook_version": codebooks.spec.version,
        "embeddings_version": tables.version(ITEM_EMBEDDINGS),
        "method": codebooks.quantiser.method,
        "widths": widths,
        "collision_digits": str(done.digits),
    }
    with tracking.run(
        context,
        EXPERIMENT,
        f"{codebooks.quantiser.method} {widths} {source_revision()} {version[-8:]}",
        params=tags | {"items": done.num_items, "bounds": str(dataclasses.asdict(assessment.bounds))},
        tags=tags | partition_tag(context) | {"status": "published"},
        note=(
            f"**What it is**: semantic IDs of {done.num_items:,} items, {widths} codes and {done.digits} digits.\n\n"
            f"**Verdict**: {done.unique_rate:.2%} of the items have codes of their own; since the last "
            f"version {done.num_moved:,} items moved, {done.num_new:,} are new, {done.num_gone:,} are gone."
        ),
    ) as run:
        mlflow.log_metrics(metrics_of(assessment))
        mlflow.log_metrics({"published_unique_rate": done.unique_rate, "items_separated": done.num_separated})
        mlflow.log_metrics({"ids_moved": done.num_moved, "ids_new": done.num_new, "ids_gone": done.num_gone})
        log_dataset(mlflow, tables, ITEM_EMBEDDINGS, ("catalogue",))
        with tables.artifacts().local(done.artifact) as local:
            mlflow.log_artifacts(str(local), FOLDER)
        client = mlflow.MlflowClient()
        if not client.search_registered_models(f"name = '{REGISTERED}'"):
            client.create_registered_model(
                REGISTERED, description="Semantic IDs: codebooks, encoder, form and item map; see `serving`."
            )
        client.create_model_version(
            REGISTERED,
            f"{run.info.artifact_uri}/{FOLDER}",
            run.info.run_id,
            tags=tags,
            description=f"Semantic IDs {version}; ray_jobs.clusters.semantic_id_maps.read_semantic_ids reads them.",
        )
