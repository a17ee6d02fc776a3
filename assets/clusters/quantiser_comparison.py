"""Quantisers side by side: input is the table of embeddings; on demand, and nothing is published."""

import datetime as dt
from typing import Any

import dagster as dg
import pyarrow as pa
import pydantic

from assets.clusters.codebooks import CodebooksConfig, clustering_job
from assets.clusters.quality_report import comparison_metadata
from assets.failures import data_errors_are_final
from assets.policies import FRESH_YEARLY, GPU_POOL, ON_DEMAND_TAG, RETRY_TRANSIENT, on_demand
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables
from models.identity import version_of
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS, QUANTISER_COMPARISON

CODE_VERSION = "1"
METHODS = ("rq_kmeans", "rq_vae", "scikit_learn")


class ComparisonConfig(CodebooksConfig):
    """Knobs of the quantisers, as of the codebooks, and what is compared."""

    methods: list[str] = pydantic.Field([*METHODS], description="What is fitted.")
    held_share: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of the items that no fit sees.")


def comparison_job(config: ComparisonConfig, tables: Tables, ray_jobs: RayJobs) -> Any:
    """The job's config.

    Raises:
        ValueError: If a method is unknown, or there is none.
    """
    if not config.methods or not set(config.methods) <= set(METHODS):
        raise ValueError(f"methods is {config.methods}: give some of {', '.join(METHODS)}.")
    from ray_jobs.clusters import quantiser_comparison

    return quantiser_comparison.Config(
        clustering=clustering_job(config, tables, ray_jobs),
        methods=tuple(config.methods),
        held_share=config.held_share,
        seed=config.seed,
    )


@dg.asset(
    key=["clusters", "quantiser_comparison"],
    group_name="clusters",
    kinds={"ray", "pytorch", "deltalake"},
    deps=[["clusters", "item_embeddings"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=on_demand("compare_quantisers"),
    freshness_policy=FRESH_YEARLY,
    pool=GPU_POOL,
    metadata=definition_metadata(QUANTISER_COMPARISON),
    tags=ON_DEMAND_TAG,
)
@data_errors_are_final
def quantiser_comparison(
    context: dg.AssetExecutionContext, config: ComparisonConfig, tables: Tables, ray_jobs: RayJobs
) -> dg.MaterializeResult:
    """Quantisers side by side on the same embeddings: error, utilisation, entropy, unique codes and time.

    One row a level of RQ-KMeans, RQ-VAE and scikit-learn's residual k-means, all of the same widths, fitted on nine in
    ten items. Read by whoever chooses `method` of `clusters/codebooks`. On demand, by the job `compare_quantisers`.
    If this is red: the sentence names the knob or the embeddings; run the job again, a training resumes where it was.
    """
    report = Report(QUANTISER_COMPARISON)
    embeddings = tables.version(ITEM_EMBEDDINGS)
    version = version_of(embeddings=embeddings, code=CODE_VERSION, config=config.model_dump())
    if tables.is_current(QUANTISER_COMPARISON, version):
        said = comparison_metadata(tables.read(QUANTISER_COMPARISON).to_pylist())
        return report.unchanged(tables, version, {"training_runs": 0} | said)
    result = ray_jobs.run(context, "clusters.quantiser_comparison", comparison_job(config, tables, ray_jobs))
    created = {"created_timestamp": dt.datetime.now(dt.UTC)}
    lines = [line.model_dump() | created for line in result.lines]
    data = pa.Table.from_pylist(lines, QUANTISER_COMPARISON.schema)
    written = tables.write(QUANTISER_COMPARISON, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata={"training_runs": len(config.methods), "items": result.num_items, "items_held": result.num_held}
        | comparison_metadata(lines),
    )
