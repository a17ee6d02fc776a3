"""Stage 1 on histories of a thousand to a million events: time is linear, memory does not grow.

Two contenders: bidirectional VISTA by `stream_summary`, a pass a layer, and causal VISTA by `extend`, one pass.
Histories are made part by part and never whole, as a store reads them. Before anything is timed, the summary of 10,000
events in parts is proven equal to the one computed at once. Peak memory is the highest resident size of a fresh process
beyond what it had before the history began, so that libraries and weights do not hide it. Its allocator gives large
blocks back at once: what counts is what is in use at a time, not how the heap happens to be cut.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.long_history import synthetic
from benchmarks.long_history.claims import Finding, Options, prove_equal
from benchmarks.measuring import alternate
from models.long_history.families import FAMILIES
from models.long_history.inputs import History
from models.long_history.parts import part
from models.vista.streaming import stream_summary

NAMES = {"vista": "bidirectional, streamed", "vista_causal": "causal, extended"}
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
SHAPE = {"width": 32, "heads": 2, "layers": 2, "num_seeds": 16}
LINEAR, STEADY = 11.0, 1.5
PROOF_PART = 700


def summarizer(family: str) -> Callable[[Callable[[], Iterator[History]], int], Tensor]:
    """Summary of a history that is given in parts, by its length."""
    torch.manual_seed(0)
    model = FAMILIES[family].build(**synthetic.SIZES, **SHAPE).eval()
    if family == "vista":
        return lambda parts, length: stream_summary(model, parts, torch.tensor([length]))

    @torch.no_grad()
    def extended(parts: Callable[[], Iterator[History]], length: int) -> Tensor:
        state = model.empty_state(1)
        for events in parts():
            state = model.extend(state, events)
        return model.read(state)

    return extended


def prove(family: str, length: int) -> float:
    """Largest difference of the summary in parts from the one at once."""
    torch.manual_seed(0)
    model = FAMILIES[family].build(**synthetic.SIZES, **SHAPE).eval()
    history = synthetic.whole(length)
    with torch.no_grad():
        whole = model.encode_history(history)
    parts = [part(history, start, start + PROOF_PART) for start in range(0, length, PROOF_PART)]
    return prove_equal(NAMES[family], summarizer(family)(lambda: iter(parts), length), whole, relative=1e-3)


def peak_memory(family: str, length: int, threads: int) -> float:
    """MiB by which one summary raises the resident size of a fresh process, at its highest."""
    command = [sys.executable, "-m", __name__, family, str(length), str(threads)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def resident(field: str) -> float:
    """MiB of this process, now (VmRSS) or at its highest (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def measure(options: Options) -> list[Finding]:
    """See the module."""
    lengths = [options.size(length) for length in LENGTHS]
    found = []
    for family, name in NAMES.items():
        difference = prove(family, options.size(10_000))
        summary = summarizer(family)
        runs = {str(length): partial(summary, partial(synthetic.parts, length), length) for length in lengths}
        timed = alternate(runs, options.repeats, warm_up=False)
        ratio = timed[str(lengths[-1])].cpu / timed[str(lengths[-2])].cpu
        each = ", ".join(
            f"{int(length):,}: {timing.cpu:.3f} s [{min(timing.cpu_seconds):.3f}, {max(timing.cpu_seconds):.3f}]"
            for length, timing in timed.items()
        )
        found.append(
            Finding(
                f"stage 1, {name}: CPU time at {lengths[-1]:,} events over {lengths[-2]:,}",
                f"<= {LINEAR:g}",
                ratio,
                ratio <= LINEAR,
                f"{each}; in parts = at once within {difference:.0e}",
            )
        )
        small, large = (
            sorted(peak_memory(family, length, options.threads) for _ in range(min(options.repeats, 3)))
            for length in lengths[-2:]
        )
        ratio = large[len(large) // 2] / small[len(small) // 2]
        found.append(
            Finding(
                f"stage 1, {name}: peak memory at {lengths[-1]:,} events over {lengths[-2]:,}",
                f"<= {STEADY:g}",
                ratio,
                ratio <= STEADY,
                " against ".join(f"{x[len(x) // 2]:.1f} MiB [{x[0]:.1f}, {x[-1]:.1f}]" for x in (large, small)),
            )
        )
    return found


def main() -> None:
    """Prints the peak memory of one summary, in this process."""
    options = argparse.ArgumentParser(description=main.__doc__)
    options.add_argument("family", choices=list(NAMES))
    options.add_argument("length", type=int)
    options.add_argument("threads", type=int)
    said = options.parse_args()
    torch.set_num_threads(said.threads)
    summary = summarizer(said.family)
    # Kernels and allocators are set up by a short one first.
    summary(lambda: synthetic.parts(10), 10)
    # Sets the highest resident size back to the present one.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    summary(lambda: synthetic.parts(said.length), said.length)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
