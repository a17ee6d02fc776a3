"""The job `refresh_personas`: drains the queue of persona refreshes once."""

import dagster as dg

from assets.failures import data_errors_are_final
from assets.personas.refreshing import (
    KEY,
    Means,
    RefreshConfig,
    ask_for_written,
    observed,
    refresh_config,
    tokens_today,
)
from assets.policies import LLM_POOL
from assets.resources import Features, LanguageModel, Ledger, RayJobs, Tables, TextEncoder, Tracking


# In the pool of the language model, so that it and the asset never write the same text at the same time.
@dg.op(description="Has workers refresh every persona that is due.", pool=LLM_POOL)
@data_errors_are_final
def drain_persona_queue(
    context: dg.OpExecutionContext,
    config: RefreshConfig,
    tables: Tables,
    features: Features,
    ledger: Ledger,
    ray_jobs: RayJobs,
    language_model: LanguageModel,
    text_encoder: TextEncoder,
    tracking: Tracking,
) -> None:
    """See the description."""
    means = Means(tables, features, ledger, language_model, text_encoder, tracking)
    job = refresh_config(means, config, context.run.run_id)
    if config.replay:
        context.log.info(f"{job.queue.replay():,} dead letters are queued again.")
    if config.warm:
        context.log.info(f"{ask_for_written(tables, job):,} users of personas/user_personas are queued.")
    counts: dict[str, int | float] = {}
    try:
        counts = ray_jobs.run(context, "personas.refresh", job).counts._asdict()
    finally:
        state = observed(job.queue, job.freshness.max_age_seconds, job.writing.persona_version)
        state["tokens_today"] = tokens_today(tables)
        context.log_event(dg.AssetObservation(KEY, metadata=state | counts))
    context.log.info(
        f"{counts['refreshed']:,} personas refreshed ({counts['cached']:,} from texts that were there), "
        f"{counts['unchanged']:,} unchanged, {counts['unsafe']:,} unsafe, {counts['failed']:,} given up; "
        f"{state['queue_depth']:,} wait."
    )
    context.add_output_metadata(state | counts)


@dg.job(
    tags={"intent": "refresh", "dagster/max_runtime": "14400"},
    description="Writes the personas that requests found stale or missing. Users whose clusters have not changed cost "
    "nothing; unsafe texts are kept back; what a killed worker held goes to the next.",
)
def refresh_personas() -> None:
    """See the description."""
    drain_persona_queue()
