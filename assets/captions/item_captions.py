"""Item captions: inputs are the items; the version is theirs with prompt, model and parameters."""

import dagster as dg
import numpy as np
import pydantic

from assets.captions.charts import examples_markdown, histogram
from assets.failures import data_errors_are_final
from assets.policies import LLM_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import LanguageModel, RayJobs, Tables
from models.identity import version_of
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS

CODE_VERSION = "1"


class Captioning(dg.Config):
    """Knobs of the job that a run may set; none of them changes a caption."""

    batch_size: int = pydantic.Field(64, description="Contents that an actor captions and stores at once.")
    num_actors: int = pydantic.Field(0, description="Actors that generate; 0 chooses by the engine.")
    cpus_per_actor: float = pydantic.Field(0.0, description="CPUs of an actor; 0 chooses by the engine.")
    gpus_per_actor: float = pydantic.Field(0.0, description="GPUs of an actor; 0 chooses by the engine.")


@dg.asset(
    key=["captions", "item_captions"],
    group_name="captions",
    kinds={"ray", "llm", "deltalake"},
    deps=[["interactions", "items"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    pool=LLM_POOL,
    tags={"cost-class": "llm"},
    metadata=definition_metadata(ITEM_CAPTIONS),
)
@data_errors_are_final
def item_captions(
    context: dg.AssetExecutionContext,
    config: Captioning,
    tables: Tables,
    ray_jobs: RayJobs,
    language_model: LanguageModel,
) -> dg.MaterializeResult:
    """Caption of every item: one sentence, a mood and tags that a language model wrote from what is known of it.

    One row an item. `captions/caption_tokens` and `clusters/item_embeddings` read it. Captions are kept by content in
    the store `captions/caption_store`: equal content is paid for once, and a killed run goes on where it stood. What
    no attempt could caption is in `captions/dead_letters` with its reason.
    If this is red: the model could not be loaded or reached (the error names it); run `rematerialize_failed`.
    """
    from ray_jobs import caption_plan, captioning

    report = Report(ITEM_CAPTIONS)
    job = captioning.Config(warehouse=tables.warehouse(), engine=language_model.engine(), **config.model_dump())
    version = version_of(items=tables.version(ITEMS), captions=job.caption_version, code=CODE_VERSION)
    if tables.is_current(ITEM_CAPTIONS, version):
        return report.unchanged(
            tables,
            version,
            {"llm_calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0, "cache_hit_rate": 1.0},
        )
    done = ray_jobs.run(context, "captioning", job)
    data = caption_plan.item_captions(job)
    written = tables.write(ITEM_CAPTIONS, data, version)
    items = tables.read(ITEMS, ["item_id", "title"])
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    words = np.array([len(c.split()) for c in data["caption"].to_pylist()], int)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata={
            "llm_calls": done.llm_calls,
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "usd": done.usd,
            "cache_hit_rate": round(done.cache_hit_rate, 4),
            "contents": done.num_contents,
            "contents_cached": done.num_cached,
            "contents_generated": done.num_generated,
            "dead_letters": done.num_dead_letters + done.num_dead_before,
            "items_without_caption": done.num_items - data.num_rows,
            "job_seconds": done.seconds,
            "tokens_per_second": round(done.completion_tokens / max(done.seconds, 1e-9), 1),
            "caption_version": done.caption_version,
            "model": f"{job.engine.identity['model']}@{job.engine.revision}",
            "prompt": job.prompt,
            "examples": dg.MetadataValue.md(examples_markdown(data, titles)),
            "caption_lengths": histogram(words, title="Length of captions", label="words"),
        },
    )
