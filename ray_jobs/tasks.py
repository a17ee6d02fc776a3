"""Runs the cells of an experiment as Ray tasks, and ends them with whoever waits for them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ray_jobs.progress import Progress


class Devices(Protocol):
    """What a task of an experiment gets."""

    @property
    def cpus(self) -> int:
        """CPUs."""

    @property
    def gpus(self) -> float:
        """GPUs."""


def remote(config: Devices, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs as a Ray task.

    Args:
        config: What each call gets.
        function: The function.
    """
    import ray

    made: Any = ray.remote(function).options(num_cpus=config.cpus, num_gpus=config.gpus)
    run: Callable[..., Any] = made.remote
    return run


def in_order(calls: Sequence[Callable[[], Any]], progress: Progress) -> list[Any]:
    """Results of tasks, in the order of the calls. Whatever ends the caller ends the tasks that it still waits for."""
    import ray

    tasks = [call() for call in calls]
    waiting = list(tasks)
    try:
        while waiting:
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            ray.get(done)
            progress.add(1)
        return list(ray.get(tasks))
    finally:
        for task in waiting:
            ray.cancel(task, force=True)
