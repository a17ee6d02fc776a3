"""Item captions: inputs are items and images; the version is theirs with prompt, schema, model and parameters."""

from typing import Any

import dagster as dg
import pydantic

from assets.captions.charts import caption_figures, examples_markdown
from assets.captions.exchanges import log_run
from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import LLM_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Interpreter, RayJobs, Tables, Tracking
from models.identity import version_of
from ray_jobs.tables.captions import ITEM_CAPTIONS, ITEM_IMAGES
from ray_jobs.tables.interactions import ITEMS

CODE_VERSION = "2"
NOTHING_SPENT = {"llm_calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "usd": 0.0, "cache_hit_rate": 1.0}


class Captioning(Knobs):
    """Knobs of the job that a run may set; none of them changes a caption."""

    batch_size: int = pydantic.Field(64, description="Contents that an actor captions and stores at once.")
    num_actors: int = pydantic.Field(0, description="Actors that generate; 0 chooses by the engine.")
    cpus_per_actor: float = pydantic.Field(0.0, description="CPUs of an actor; 0 chooses by the engine.")
    gpus_per_actor: float = pydantic.Field(0.0, description="GPUs of an actor; 0 chooses by the engine.")
    canaries: int = pydantic.Field(8, description="Most items whose changed contents are captioned as a check.")
    traces: int = pydantic.Field(20, description="Exchanges with the model that are kept in MLflow.")
    replay: bool = pydantic.Field(False, description="Try contents again that were given up.")


def captioning_config(tables: Tables, interpreter: Interpreter, run_id: str, knobs: dict[str, Any]) -> Any:
    """The job's config."""
    from ray_jobs.captions import captioning

    return captioning.Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        interpreter=interpreter.interpreter(),
        token_budget=interpreter.caption_token_budget,
        usd_budget=interpreter.caption_usd_budget,
        run_id=run_id,
        **knobs,
    )


@dg.asset(
    key=["captions", "item_captions"],
    group_name="captions",
    kinds={"ray", "llm", "deltalake"},
    deps=[["interactions", "items"], ["captions", "item_images"]],
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
    interpreter: Interpreter,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Interpretation of every item: caption, subjects, style, setting, mood, text in the image and tags.

    One row an item. `captions/caption_tokens`, `captions/caption_embeddings` and `clusters/item_embeddings` read it.
    Interpretations are kept by content in `captions/interpretations`: equal content is paid for once, and a killed run
    goes on where it stood. Every request is in `captions/call_ledger`; what no attempt could interpret is in
    `captions/caption_dead_letters` with its reason (`replay_dead_letters` tries it again).
    If this is red: the model could not be loaded or reached, or the budget is spent (the error says which); run
    `rematerialize_failed`.
    """
    from ray_jobs.captions import canaries as caption_canaries
    from ray_jobs.captions import captioning
    from ray_jobs.captions import plan as caption_plan

    report = Report(ITEM_CAPTIONS)
    job = captioning_config(tables, interpreter, context.run.run_id, config.model_dump())
    todo = caption_plan.plan(job)
    version = _version(tables, job, len(todo.items) - tables.warehouse().num_rows(ITEM_CAPTIONS))
    asks = len(todo.wanted) > 0 or caption_canaries.is_unwatched(job, todo)
    if not asks and tables.is_current(ITEM_CAPTIONS, version):
        return report.unchanged(tables, version, NOTHING_SPENT)
    done = ray_jobs.run(context, "captions.captioning", job) if asks else captioning.nothing_to_do(job, todo)
    data = caption_plan.item_captions(job, todo.items)
    version = _version(tables, job, done.num_items - data.num_rows)
    written = tables.write(ITEM_CAPTIONS, data, version)
    run_url = log_run(context, tracking, job, done)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata={
            **{name: getattr(done, name) for name in NOTHING_SPENT if name != "cache_hit_rate"},
            "cache_hit_rate": round(done.cache_hit_rate, 4),
            "failed_calls": done.failed_calls,
            "contents": done.num_contents,
            "contents_cached": done.num_cached,
            "contents_generated": done.num_generated,
            "canaries": done.num_canaries,
            "dead_letters": done.num_dead_letters + done.num_dead_before,
            "items_without_caption": done.num_items - data.num_rows,
            "items_with_image": data.num_rows - data["pixel_digest"].null_count,
            "job_seconds": done.seconds,
            "tokens_per_second": round(done.completion_tokens / max(done.seconds, 1e-9), 1),
            "caption_version": done.caption_version,
            "model": f"{job.interpreter.engine.identity['model']}@{job.interpreter.engine.revision}",
            "prompt": job.prompt,
            "examples": dg.MetadataValue.md(examples_markdown(tables, data)),
            **caption_figures(data),
            **run_url,
        },
    )


def _version(tables: Tables, job: Any, num_missing: int) -> str:
    """Items that got a caption since, out of the dead letters, make another version of the same inputs."""
    return version_of(
        items=tables.version(ITEMS),
        images=tables.version(ITEM_IMAGES),
        captions=job.caption_version,
        code=CODE_VERSION,
        missing=num_missing,
    )
