"""Fair timing on a shared machine: one process, alternating order, medians and spread."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds of the repeats of one contender, and what the process computed in them: waiting for a core is none."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)

    @property
    def cpu(self) -> float:
        """Median of the process's CPU seconds."""
        return statistics.median(self.cpu_seconds)

    def text(self, amount: float, unit: str) -> str:
        """``amount`` of ``unit`` a second, with the slowest and the fastest repeat."""
        low, high = amount / max(self.seconds), amount / min(self.seconds)
        return f"{amount / self.median:,.1f} {unit}/s [{low:,.1f}, {high:,.1f}]"


def alternate(
    contenders: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True
) -> dict[str, Timing]:
    """Times contenders in turns, every second round in reverse order, so that a busy minute hits all of them.

    Args:
        contenders: What to time, by name.
        repeats: Rounds.
        warm_up: Whether to call each once before anything is timed.
    """
    for run in contenders.values() if warm_up else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name in list(contenders) if turn % 2 == 0 else reversed(list(contenders)):
            started, computed = time.perf_counter(), time.process_time()
            contenders[name]()
            seconds[name].append(time.perf_counter() - started)
            cpu[name].append(time.process_time() - computed)
    return {name: Timing(tuple(taken), tuple(cpu[name])) for name, taken in seconds.items()}


def machine() -> str:
    """Cores, load and versions, as every figure has to name them."""
    import torch

    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{os.cpu_count()} cores, load {load}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
