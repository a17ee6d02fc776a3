"""Jobs that make data again: `refresh_daily`, `refresh_summaries`, `rebuild_clusters` and `rematerialize_failed`."""

import dagster as dg
import pydantic

from assets.knobs import Knobs
from assets.resources import tag_process
from orchestration.refresh import ROUTINE, materialize, reap_lost_runs, unfinished

refresh_daily = dg.define_asset_job(
    "refresh_daily",
    selection=ROUTINE,
    description="Takes in one day of events and refreshes everything that follows from it. What has not changed is "
    "verified and costs nothing. Pick the day as partition.",
    tags={"intent": "refresh", "dagster/max_runtime": "14400"},
)

refresh_summaries = dg.define_asset_job(
    "refresh_summaries",
    selection=dg.AssetSelection.assets(["vista", "user_summaries"], ["features", "online_store"]),
    config={"ops": {"vista__user_summaries": {"config": {"incremental": True}}}},
    description="Brings VISTA's summaries up to date by new events alone, in the table and online. Users without new "
    "events cost nothing; the result is that of a whole export.",
    tags={"intent": "refresh", "dagster/max_runtime": "14400"},
)

rebuild_clusters = dg.define_asset_job(
    "rebuild_clusters",
    selection=dg.AssetSelection.groups("clusters").downstream() & ROUTINE,
    config={"ops": {"clusters__codebooks": {"config": {"rebuild": True}}}},
    description="Fits the codebooks anew and refreshes everything that carries semantic IDs. The Launchpad takes "
    "another seed or other widths (ops: clusters__codebooks); the same ones give the same codebooks again.",
    tags={"intent": "rebuild", "dagster/max_runtime": "14400"},
)


class RematerializeFailedConfig(Knobs):
    """What to do with what the last attempts left undone."""

    dry_run: bool = pydantic.Field(False, description="Only log what would be made.")


@dg.op(description="Makes what the last attempts left undone, and what follows from it.")
def rematerialize_what_failed(context: dg.OpExecutionContext, config: RematerializeFailedConfig) -> None:
    """Finds failed, lost and missing assets and makes them in a run of their own."""
    from orchestration.definitions import defs

    code_location = defs()
    tag_process(context.instance, context.run)
    for run_id in reap_lost_runs(context.instance):
        context.log.warning(f"Run {run_id} had lost its process and is now marked as failed.")
    left = unfinished(context.instance, code_location)
    if not left.assets:
        context.log.info("Nothing is left undone: every asset's last attempt succeeded.")
        return
    # What follows is verified too; it costs nothing where its inputs turn out unchanged.
    graph = code_location.resolve_asset_graph()
    wanted = (dg.AssetSelection.assets(*left.assets).downstream() & ROUTINE).resolve(graph)
    days = sorted(day for missing in left.partitions.values() for day in missing)
    context.log.info(
        f"Making {len(wanted)} assets: {', '.join(sorted(k.to_user_string() for k in wanted))}; {len(days)} days."
    )
    if config.dry_run:
        return
    result = materialize(
        context.instance,
        code_location,
        wanted,
        days=(days[0], days[-1]) if days else None,
        tags={"intent": "rematerialize_failed", "parent_run": context.run.run_id},
    )
    context.instance.add_run_tags(context.run.run_id, {"child_run": result.run_id})
    if not result.success:
        raise dg.Failure(
            f"Run {result.run_id} failed again; its first failed step tells the cause.", allow_retries=False
        )


@dg.job(
    description="Makes again whatever failed, was lost or is missing, and nothing that is good. Resumes captions from "
    "the store and trainings from their checkpoints.",
    tags={"intent": "mend", "dagster/max_runtime": "14400"},
)
def rematerialize_failed() -> None:
    """See the description."""
    rematerialize_what_failed()
