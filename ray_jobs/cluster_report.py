"""What the Ray cluster is: the first question when a job hangs. Also the smallest job there is."""

import socket
import sys

import pydantic

from ray_jobs.entrypoint import serve_pipes


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the report."""

    num_tasks: int = pydantic.Field(2, ge=1, le=1000, description="Tasks that must run, to see that workers start.")
    fail_with: str = pydantic.Field("", description="Fail with this message, to see how a failure is told.")


class Result(pydantic.BaseModel, frozen=True):
    """The cluster as a driver sees it."""

    ray_version: str
    num_nodes: int
    num_cpus: float
    num_gpus: float
    hosts: list[str]


def run(config: Config) -> Result:
    """Runs ``num_tasks`` small tasks and returns what the cluster is."""
    import ray

    @ray.remote(num_cpus=1)
    def host(number: int) -> str:
        print(f"task {number} runs on {socket.gethostname()}")
        if config.fail_with:
            raise ValueError(config.fail_with)
        return socket.gethostname()

    hosts = ray.get([host.remote(i) for i in range(config.num_tasks)])
    resources = ray.cluster_resources()
    return Result(
        ray_version=ray.__version__,
        num_nodes=len(ray.nodes()),
        num_cpus=resources.get("CPU", 0.0),
        num_gpus=resources.get("GPU", 0.0),
        hosts=sorted(set(hosts)),
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
