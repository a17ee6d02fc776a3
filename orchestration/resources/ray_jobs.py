"""Twins of the Ray cluster: jobs run in the step on a local cluster, or are submitted to a remote one through Pipes."""

import importlib
import logging
import sys
from typing import Any

import dagster as dg
import pydantic
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._utils.interrupts import raise_interrupts_as

from assets.failures import failure, transient_failure
from assets.resources import RayJobs
from orchestration.quiet import TELEMETRY_OFF
from ray_jobs.entrypoint import RESULT, name_causes


class RunTerminated(BaseException):
    """The run was terminated.

    Not Dagster's own interruption: a step with a retry policy is tried again after that, and its Ray work with it.
    """

    def __init__(self) -> None:
        super().__init__("The run was terminated; what it finished stands.")


class LocalRayJobs(RayJobs):
    """Runs jobs in the step's process, on a Ray cluster that is started once and shared by all steps."""

    address: str = pydantic.Field(default="", description="`host:6379` of a running cluster to join; empty starts one.")
    num_cpus: int = pydantic.Field(default=2, description="CPUs of a started cluster.")
    object_store_mib: int = pydantic.Field(default=256, description="Object store of a started cluster, in MiB.")

    def run(
        self, context: dg.AssetExecutionContext | dg.OpExecutionContext, job: str, config: pydantic.BaseModel
    ) -> Any:
        """See `RayJobs.run`."""
        self.join()
        name_causes()
        try:
            # Ray swallows whatever else a signal raises while it waits, and the run could not be terminated.
            with raise_interrupts_as(KeyboardInterrupt):
                return importlib.import_module(f"ray_jobs.{job}").run(config)
        except KeyboardInterrupt as interrupt:
            import ray

            # Ends the cluster that was started, or on one that was joined what this run has there.
            ray.shutdown()
            raise RunTerminated from interrupt
        except (dg.Failure, dg.RetryRequested):
            raise
        except Exception as error:
            doing = f"Ray job {job}"
            raise failure(error, doing) or transient_failure(error, doing) from error

    def join(self) -> None:
        """Joins the configured cluster, or starts one, unless this process has one."""
        import ray

        if ray.is_initialized():
            return
        if self.address:
            ray.init(
                address=self.address,
                namespace="belvedere",
                logging_level=logging.WARNING,
                # Workers have the environment of their node, not of this process.
                runtime_env={"env_vars": TELEMETRY_OFF},
            )
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
    env_vars: dict[str, str] = pydantic.Field(
        default_factory=dict, description="Environment of the jobs, beside the switches of telemetry."
    )

    def run(
        self, context: dg.AssetExecutionContext | dg.OpExecutionContext, job: str, config: pydantic.BaseModel
    ) -> Any:
        """See `RayJobs.run`."""
        from dagster_ray import PipesRayJobClient

        try:
            client = PipesRayJobClient(address=self.address, poll_interval=self.poll_seconds)
            self._end_orphans(context, client.client)
            finished = client.run(
                context=context,
                extras={"config": config.model_dump(mode="json")},
                submit_job_params={
                    "entrypoint": f"{self.python} -m ray_jobs.{job}",
                    "runtime_env": {"env_vars": TELEMETRY_OFF | self.env_vars},
                },
            )
        except DagsterExecutionInterruptedError as interrupt:
            raise RunTerminated from interrupt
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

    def _end_orphans(self, context: dg.AssetExecutionContext | dg.OpExecutionContext, client: Any) -> None:
        """Ends jobs of runs that have ended: a run whose process was killed could not end its own."""
        for other in client.list_jobs():
            run = context.instance.get_run_by_id((other.metadata or {}).get("dagster/run-id", ""))
            if run is not None and run.is_finished and not other.status.is_terminal():
                context.log.warning(f"Ending Ray job {other.submission_id}: its run {run.run_id} has ended.")
                client.stop_job(other.submission_id)
