"""The whole lineage on lifelong histories in a home of its own, with the memory of all its processes.

    python -m benchmarks.long_lineage --users 20 --events 200000

Memory is the proportional set size (PSS) of every process that the run starts, summed: pages that several map (Ray's
object store, libraries) count once. It is read from the kernel every second, and each reading is booked to the
asset that is being made, or whose checks run.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

MIB = 1024
STARTED = re.compile(r"^· (\S+) \.\.\.$")
BEFORE = "(before the first asset)"


class Reading(NamedTuple):
    """Memory at one moment, in KiB.

    Attributes:
        total: Of all processes.
        shared: The part of it that is shared memory, Ray's object store above all.
        largest: Largest processes with what they are called.
    """

    total: int
    shared: int
    largest: list[tuple[int, str]]


def _fields(rollup: str) -> dict[str, int]:
    rows = (line.split() for line in rollup.splitlines()[1:])
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


def read_memory(home: str) -> Reading:
    """Memory of every process that was started with this ``BELVEDERE_HOME``, whoever its parent is by now."""
    mark = f"BELVEDERE_HOME={home}\0".encode()
    found, shared = [], 0
    for process in Path("/proc").iterdir():
        # Processes end while they are looked at.
        with contextlib.suppress(OSError, ValueError, IndexError):
            if process.name.isdigit() and mark in (process / "environ").read_bytes():
                fields = _fields((process / "smaps_rollup").read_text())
                name = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found.append((fields["Pss"], name[:60]))
                shared += fields["Pss_Shmem"]
    return Reading(sum(size for size, _ in found), shared, sorted(found, reverse=True)[:4])


class Watch:
    """Reads memory until it is told to stop, and books each reading to the stage at work."""

    def __init__(self, home: str, every_seconds: float = 1.0):
        self.stage, self.peaks, self.seconds = BEFORE, {BEFORE: Reading(0, 0, [])}, {BEFORE: 0.0}
        self._home, self._every, self._done = home, every_seconds, threading.Event()
        self._since = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def enter(self, stage: str) -> None:
        """Says that ``stage`` begins."""
        now = time.monotonic()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self._since
        self.stage, self._since = stage, now

    def _run(self) -> None:
        while not self._done.wait(self._every):
            stage, reading = self.stage, read_memory(self._home)
            if reading.total > self.peaks.get(stage, Reading(0, 0, [])).total:
                self.peaks[stage] = reading

    def stop(self) -> None:
        """Ends the watch."""
        self.enter(self.stage)
        self._done.set()
        self._thread.join()


def run(home: str, dataset: str) -> tuple[int, Watch]:
    """Runs the lineage on ``dataset`` in ``home``, and returns its exit code and what was measured."""
    environment = os.environ | {"BELVEDERE_HOME": home, "BELVEDERE_DATASET": dataset, "DAGSTER_HOME": os.getcwd()}
    watch = Watch(home)
    command = [sys.executable, "-m", "orchestration.run"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if begun := STARTED.match(line.strip()):
                watch.enter(begun.group(1))
        code = process.wait()
    watch.stop()
    return code, watch


def report(watch: Watch) -> str:
    """The measured figures as a table."""
    lines = ["| asset, with its checks | seconds | peak MiB | of it shared |", "|---|---:|---:|---:|"]
    for stage, seconds in watch.seconds.items():
        peak = watch.peaks.get(stage)
        sizes = f"{peak.total // MIB:,} | {peak.shared // MIB:,}" if peak else "not read | "
        lines.append(f"| {stage} | {seconds:,.0f} | {sizes} |")
    stage, most = max(watch.peaks.items(), key=lambda found: found[1].total)
    whole = sum(watch.seconds.values())
    lines.append(f"| **in all** | **{whole:,.0f}** | **{most.total // MIB:,}** | {most.shared // MIB:,} |")
    lines.append(f"\nThe peak was in {stage}:")
    lines += [f"- {size // MIB:,} MiB: `{name}`" for size, name in most.largest]
    return "\n".join(lines)


def main() -> int:
    """Draws the dataset, runs the lineage on it and prints the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--users", type=int, default=20, help="users")
    parser.add_argument("--events", type=int, default=200_000, help="events of each user")
    parser.add_argument("--items", type=int, default=500, help="items of the catalogue")
    parser.add_argument("--days", type=int, default=365, help="days that the events span")
    parser.add_argument("--home", default="", help="a new home to keep; a temporary one by default")
    parser.add_argument("--limit-gib", type=float, default=4.0, help="exit code 1 above this")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="belvedere-long-") as scratch:
        home = Path(asked.home or scratch).resolve()
        if home.exists() and any(home.iterdir()):
            parser.error(f"{home} is not empty: name a new folder, so that every stage is made.")
        dataset = (
            f"synthetic:{home}/datasets/lifelong?users={asked.users}&items={asked.items}"
            f"&events={asked.users * asked.events}&days={asked.days}&repeats=true"
        )
        code, watch = run(str(home), dataset)
    print(report(watch))
    peak = max(reading.total for reading in watch.peaks.values()) / MIB / 1024
    print(f"\n{asked.users} users x {asked.events:,} events: peak {peak:.2f} GiB, limit {asked.limit_gib:.2f} GiB.")
    return code or int(peak > asked.limit_gib)


if __name__ == "__main__":
    sys.exit(main())
