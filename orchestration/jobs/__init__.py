"""Jobs, named by what an on-call engineer wants to happen."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from orchestration.jobs.captions import preview_captions, replay_dead_letters, stage_captions
from orchestration.jobs.compare_history_models import compare_history_models, sweep_summaries
from orchestration.jobs.compare_quantisers import compare_quantisers
from orchestration.jobs.content_ablation import content_ablation
from orchestration.jobs.distil_personas import distil_personas
from orchestration.jobs.forget_user import forget_user
from orchestration.jobs.promote_model import promote_model
from orchestration.jobs.quarantine import export_quarantine_job, replay_quarantine_job
from orchestration.jobs.refresh import rebuild_clusters, refresh_daily, refresh_summaries, rematerialize_failed
from orchestration.jobs.refresh_personas import refresh_personas
from orchestration.jobs.rollback_model import rollback_model

JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    refresh_daily,
    refresh_summaries,
    rematerialize_failed,
    rebuild_clusters,
    export_quarantine_job,
    replay_quarantine_job,
    preview_captions,
    stage_captions,
    replay_dead_letters,
    content_ablation,
    compare_quantisers,
    compare_history_models,
    sweep_summaries,
    refresh_personas,
    distil_personas,
    promote_model,
    rollback_model,
    forget_user,
]
