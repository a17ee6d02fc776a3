"""Fair timing on a shared machine: one process, alternating order, medians and spread."""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds of the repeats of one contender."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the repeats."""
        return statistics.median(self.seconds)

    def text(self, amount: float, unit: str) -> str:
        """``amount`` of ``unit`` a second, with the slowest and the fastest repeat."""
        low, high = amount / max(self.seconds), amount / min(self.seconds)
        return f"{amount / self.median:,.1f} {unit}/s [{low:,.1f}, {high:,.1f}]"


def alternate(contenders: Mapping[str, Callable[[], object]], repeats: int, warm: bool = False) -> dict[str, Timing]:
    """Times contenders in turns, every second round in reverse order, so that a busy minute hits all of them.

    Args:
        contenders: What to time, by name.
        repeats: Rounds.
        warm: Whether each was called already; else each is called once before anything is timed.
    """
    for run in () if warm else contenders.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats):
        for name in list(contenders) if turn % 2 == 0 else reversed(list(contenders)):
            started = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def machine() -> str:
    """Cores, load and versions, as every figure has to name them."""
    import torch

    load = " ".join(f"{x:.1f}" for x in os.getloadavg())
    return f"{os.cpu_count()} cores, load {load}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
