"""A code location with one job that sleeps on Ray: on a cluster of its own, on a joined one, or submitted to one."""

import os
import sys

import dagster as dg

from assets.resources import RayJobs
from orchestration.resources.ray_jobs import LocalRayJobs, SubmittedRayJobs
from tests.orchestration.resources import sleeping_job

sys.modules["ray_jobs.sleeping_job"] = sleeping_job
ADDRESS = os.environ.get("SLEEPING_ADDRESS", "")


@dg.asset(retry_policy=dg.RetryPolicy(max_retries=2, delay=0.1))
def sleeper(context: dg.AssetExecutionContext, ray_jobs: RayJobs) -> None:
    """Sleeps."""
    ray_jobs.run(context, "sleeping_job", sleeping_job.Config(folder=os.environ["SLEEPING_FOLDER"]))


defs = dg.Definitions(
    assets=[sleeper],
    jobs=[dg.define_asset_job("sleep", [sleeper])],
    resources={
        "ray_jobs": SubmittedRayJobs(address=ADDRESS, python=os.environ["SLEEPING_PYTHON"], poll_seconds=0.2)
        if ADDRESS.startswith("http")
        else LocalRayJobs(address=ADDRESS, num_cpus=2)
    },
    executor=dg.in_process_executor,
)
