"""Twins of the Ray cluster: jobs run in the step on a local cluster, or are submitted to a remote one through Pipes."""

import importlib
import logging
import sys
from typing import Any

import dagster as dg
import pydantic

from assets.failures import failure
from assets.resources import RayJobs
from ray_jobs.entrypoint import RESULT


class LocalRayJobs(RayJobs):
    """Runs jobs in the step's process, on a Ray cluster that is started once and shared by all steps."""

    address: str = pydantic.Field(default="", description="`host:6379` of a running cluster to join; empty starts one.")
    num_cpus: int = pydantic.Field(default=2, description="CPUs of a started cluster.")
    object_store_mib: int = pydantic.Field(default=256, description="Object store of a started cluster, in MiB.")

    def run(
        self, context: dg.AssetExecutionContext | dg.OpExecutionContext, job: str, config: pydantic.BaseModel
    ) -> Any:
        """See `RayJobs.run`."""
        self._join()
        try:
            return importlib.import_module(f"ray_jobs.{job}").run(config)
        except Exception as error:
            final = failure(error, f"Ray job {job}")
            if final is None:
                raise
            raise final from error

    def _join(self) -> None:
        import ray

        if ray.is_initialized():
            return
        if self.address:
            ray.init(address=self.address, namespace="belvedere", logging_level=logging.WARNING)
            return
        # "local" so that a laptop's run never joins somebody else's cluster. It ends with the run's process.
        ray.init(
            address="local",
            num_cpus=self.num_cpus,
            object_store_memory=self.object_store_mib * 2**20,
            include_dashboard=False,
            namespace="belvedere",
            logging_level=logging.WARNING,
            log_to_driver=True,
        )


class SubmittedRayJobs(RayJobs):
    """Submits jobs to a Ray cluster; their logs and end follow the Dagster run through Pipes."""

    address: str = pydantic.Field(description="`http://host:8265` of the cluster's job server.")
    python: str = pydantic.Field(default=sys.executable, description="Python interpreter on the cluster's nodes.")
    poll_seconds: float = pydantic.Field(default=1.0, description="Seconds between two looks at the job's state.")
    env_vars: dict[str, str] = pydantic.Field(default_factory=dict, description="Environment of the jobs.")

    def run(
        self, context: dg.AssetExecutionContext | dg.OpExecutionContext, job: str, config: pydantic.BaseModel
    ) -> Any:
        """See `RayJobs.run`."""
        from dagster_ray import PipesRayJobClient

        try:
            client = PipesRayJobClient(address=self.address, poll_interval=self.poll_seconds)
            finished = client.run(
                context=context,
                extras={"config": config.model_dump(mode="json")},
                submit_job_params={
                    "entrypoint": f"{self.python} -m ray_jobs.{job}",
                    "runtime_env": {"env_vars": dict(self.env_vars)},
                },
            )
        except ConnectionError as error:
            raise ConnectionError(
                f"The Ray job server at {self.address} does not answer: start it, or unset "
                "BELVEDERE_RAY_JOBS_ADDRESS to run on this machine."
            ) from error
        messages = [m for m in finished.get_custom_messages() if isinstance(m, dict) and RESULT in m]
        if not messages:
            raise dg.Failure(f"Ray job {job} ended without a result; its log above tells why.", allow_retries=False)
        outcome = messages[-1][RESULT]
        if "error" in outcome:
            raise dg.Failure(f"Ray job {job}: {outcome['error']}", allow_retries=outcome["transient"])
        return importlib.import_module(f"ray_jobs.{job}").Result.model_validate(outcome["value"])
