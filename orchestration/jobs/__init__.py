"""Jobs, named by what an on-call engineer wants to happen."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from orchestration.jobs.promote_model import promote_model
from orchestration.jobs.quarantine import export_quarantine_job, replay_quarantine_job
from orchestration.jobs.refresh import rebuild_clusters, refresh_daily, rematerialize_failed
from orchestration.jobs.rollback_model import rollback_model

JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    refresh_daily,
    rematerialize_failed,
    rebuild_clusters,
    export_quarantine_job,
    replay_quarantine_job,
    promote_model,
    rollback_model,
]
