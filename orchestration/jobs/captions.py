"""Jobs around captions: a dry run, a new revision beside the old, and dead letters tried again."""

import dagster as dg

from assets.captions.item_captions import Captioning, captioning_config
from assets.failures import data_errors_are_final
from assets.resources import Interpreter, RayJobs, Tables

replay_dead_letters = dg.define_asset_job(
    "replay_dead_letters",
    selection=dg.AssetSelection.assets(["captions", "item_images"], ["captions", "item_captions"]),
    config={
        "ops": {
            "captions__item_images": {"config": {"replay": True}},
            "captions__item_captions": {"config": {"replay": True}},
        }
    },
    description="Reads quarantined images again and asks again for contents that were given up. What was captioned is "
    "not asked for. Run refresh_daily afterwards for what follows.",
    tags={"intent": "mend", "dagster/max_runtime": "14400"},
)


@dg.op(description="Says what captioning would ask for and cost; asks for nothing.")
@data_errors_are_final
def preview(context: dg.OpExecutionContext, tables: Tables, interpreter: Interpreter) -> None:
    """See the description."""
    from ray_jobs.captions.plan import plan

    job = captioning_config(tables, interpreter, context.run.run_id, {})
    # A budget that nothing could be held against is told here, and not by the run that it was meant for.
    job.highest_price()
    todo = plan(job)
    context.log.info(f"{todo.sentence()}; caption version {job.caption_version}. Nothing was asked.")
    context.add_output_metadata(
        {
            "items": todo.items.height,
            "contents": todo.num_contents,
            "cached": todo.num_cached,
            "dead_letters": todo.num_dead,
            "to_write": todo.wanted.height,
            "with_image": todo.num_images,
            "prompt_tokens": todo.prompt_tokens,
            "completion_tokens": todo.completion_tokens,
            "usd": todo.usd,
            "token_budget": job.token_budget,
            "usd_budget": job.usd_budget,
            "caption_version": job.caption_version,
        }
    )


@dg.job(
    tags={"intent": "inspect"},
    description="A dry run of captioning: rows, tokens and money, before anything is spent.",
)
def preview_captions() -> None:
    """See the description."""
    preview()


@dg.op(description="Captions every item under the configured revision, and leaves the published captions as they are.")
@data_errors_are_final
def stage(
    context: dg.OpExecutionContext, config: Captioning, tables: Tables, ray_jobs: RayJobs, interpreter: Interpreter
) -> None:
    """See the description."""
    from ray_jobs.captions.plan import compare_revisions, item_captions

    job = captioning_config(tables, interpreter, context.run.run_id, config.model_dump())
    done = ray_jobs.run(context, "captions.captioning", job)
    compared = compare_revisions(job, item_captions(job))
    context.log.info(
        f"Captions of version {done.caption_version} stand beside those of version {compared.published}: "
        f"{compared.num_both:,} items have both, {compared.same_words:.2f} of their words are the same. Materialize "
        "captions/item_captions to publish them at once."
    )
    context.add_output_metadata(
        {**compared._asdict(), "caption_version": done.caption_version, "llm_calls": done.llm_calls, "usd": done.usd}
    )


@dg.job(
    tags={"intent": "refresh", "dagster/max_runtime": "14400"},
    description="Captions every item under a new prompt or model beside the published captions, and compares the two. "
    "Readers keep the old revision until captions/item_captions is materialized.",
)
def stage_captions() -> None:
    """See the description."""
    stage()
