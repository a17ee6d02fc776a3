"""Caption embeddings: inputs are the captions; the version is theirs with the encoder's revision."""

import dagster as dg

from assets.failures import data_errors_are_final
from assets.policies import GPU_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, TextEncoder
from models.identity import version_of
from ray_jobs.tables.captions import CAPTION_EMBEDDINGS, ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS

CODE_VERSION = "1"


@dg.asset(
    key=["captions", "caption_embeddings"],
    group_name="captions",
    kinds={"ray", "huggingface", "deltalake"},
    deps=[["interactions", "items"], ["captions", "item_captions"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    pool=GPU_POOL,
    metadata=definition_metadata(CAPTION_EMBEDDINGS),
)
@data_errors_are_final
def caption_embeddings(
    context: dg.AssetExecutionContext, tables: Tables, ray_jobs: RayJobs, text_encoder: TextEncoder
) -> dg.MaterializeResult:
    """Caption of every item as one dense vector, from the caption alone.

    One row an item. The content ablation compares it with the caption's tokens. Captions are encoded once: the store
    `clusters/embedding_store` keeps them by content. Beside it the table `captions/caption_retrieval` holds how well
    captions find their items among others of the same category, for the check `retrieval`.
    If this is red: the encoder could not be loaded (the error names it) or a Ray worker was lost; run
    `rematerialize_failed`, what was encoded is kept.
    """
    report = Report(CAPTION_EMBEDDINGS)
    encoder = text_encoder.encoder()
    captions = sorted(set(tables.read(ITEM_CAPTIONS, ["caption_version"])["caption_version"].to_pylist()))
    space = version_of(captions=captions, encoder=encoder.identity, code=CODE_VERSION)
    version = version_of(space=space, items=tables.version(ITEMS), captions=tables.version(ITEM_CAPTIONS))
    if tables.is_current(CAPTION_EMBEDDINGS, version):
        return report.unchanged(tables, version, {"texts_encoded": 0, "cache_hit_rate": 1.0})
    from ray_jobs.captions import embedding as caption_embedding

    done = ray_jobs.run(
        context,
        "captions.embedding",
        caption_embedding.Config(
            warehouse=tables.warehouse(), encoder=encoder, version=version, embedding_version=space
        ),
    )
    return report.result(
        version=version,
        data=tables.read(CAPTION_EMBEDDINGS),
        committed=done.committed,
        metadata={
            "texts_encoded": done.num_encoded,
            "texts_distinct": done.num_texts,
            "cache_hit_rate": round(1 - done.num_encoded / max(done.num_texts, 1), 4),
            "items_sought_by_caption": done.num_sampled,
            "dimension": done.dimension,
            "encoder": f"{encoder.identity['model']}@{encoder.revision}",
        },
    )
