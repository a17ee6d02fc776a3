"""Item embeddings: inputs are items and captions; the version is theirs with the encoder's revision."""

import dagster as dg

from assets.failures import data_errors_are_final
from assets.policies import GPU_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, TextEncoder
from models.identity import version_of
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS
from ray_jobs.tables.interactions import ITEMS

CODE_VERSION = "2"


@dg.asset(
    key=["clusters", "item_embeddings"],
    group_name="clusters",
    kinds={"ray", "huggingface", "deltalake"},
    deps=[["interactions", "items"], ["captions", "item_captions"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    pool=GPU_POOL,
    metadata=definition_metadata(ITEM_EMBEDDINGS),
)
@data_errors_are_final
def item_embeddings(
    context: dg.AssetExecutionContext, tables: Tables, ray_jobs: RayJobs, text_encoder: TextEncoder
) -> dg.MaterializeResult:
    """Dense embedding of every item, from its title, categories, description and caption.

    One row an item. `clusters/codebooks` learns from it, `clusters/semantic_ids` encodes it. Texts are encoded once:
    the store `clusters/embedding_store` keeps them by content.
    If this is red: the encoder could not be loaded (the error names it) or a Ray worker was lost; run
    `rematerialize_failed`, what was encoded is kept.
    """
    report = Report(ITEM_EMBEDDINGS)
    encoder = text_encoder.encoder()
    captions = sorted(set(tables.read(ITEM_CAPTIONS, ["caption_version"])["caption_version"].to_pylist()))
    space = version_of(captions=captions, encoder=encoder.identity, code=CODE_VERSION)
    version = version_of(space=space, items=tables.version(ITEMS), captions=tables.version(ITEM_CAPTIONS))
    if tables.is_current(ITEM_EMBEDDINGS, version):
        return report.unchanged(tables, version, {"texts_encoded": 0, "cache_hit_rate": 1.0})
    from ray_jobs.clusters import item_embedding

    done = ray_jobs.run(
        context,
        "clusters.item_embedding",
        item_embedding.Config(warehouse=tables.warehouse(), encoder=encoder, version=version, embedding_version=space),
    )
    return report.result(
        version=version,
        data=tables.read(ITEM_EMBEDDINGS),
        committed=done.committed,
        metadata={
            "texts_encoded": done.num_encoded,
            "texts_distinct": done.num_texts,
            "cache_hit_rate": round(1 - done.num_encoded / max(done.num_texts, 1), 4),
            "items_without_caption": done.num_without_caption,
            "dimension": done.dimension,
            "encoder": f"{encoder.identity['model']}@{encoder.revision}",
        },
    )
