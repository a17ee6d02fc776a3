"""A job that would run for an hour: its Ray tasks tell their processes, and whether these report home."""

import os
import sys
import time
from pathlib import Path

import pydantic

from ray_jobs.entrypoint import serve_pipes


class Config(pydantic.BaseModel, frozen=True):
    """Where the tasks tell their processes."""

    folder: str


class Result(pydantic.BaseModel, frozen=True):
    """Nothing: the job is ended before."""


def run(config: Config) -> Result:
    """Keeps two Ray workers."""
    import ray

    @ray.remote(num_cpus=1)
    def sleep() -> None:
        (Path(config.folder) / str(os.getpid())).write_text(os.environ.get("MLFLOW_DISABLE_TELEMETRY", ""))
        time.sleep(3600)

    ray.get([sleep.remote() for _ in range(2)])
    return Result()


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
