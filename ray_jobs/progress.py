"""Progress lines of long jobs: how far, how fast, how long still."""

import logging
import time
from typing import Any

logger = logging.getLogger("belvedere.progress")


class Progress:
    """Logs ``stage: done/total unit, rates, ETA`` at most every few seconds, and at the end.

    Args:
        stage: What is being done, e.g. ``captions``.
        total: How many units there are.
        unit: Name of the unit, e.g. ``items``.
        every: Least seconds between two lines.
    """

    def __init__(self, stage: str, total: int, unit: str, every: float = 5.0):
        self.stage, self.total, self.unit, self.every = stage, total, unit, every
        self.done = 0
        self.counts: dict[str, int] = {}
        self.started = self.said = time.monotonic()

    def add(self, done: int, **counts: int) -> None:
        """Counts ``done`` more units, and more of other things (``tokens=...``)."""
        self.done += done
        for name, count in counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        now = time.monotonic()
        if now - self.said >= self.every or self.done >= self.total:
            self.said = now
            logger.info(self.line(now - self.started))

    def line(self, seconds: float) -> str:
        """The line after ``seconds`` of work."""
        parts = [f"{self.stage}: {self.done:,}/{self.total:,} {self.unit}"]
        if seconds > 0 and self.done:
            parts += [f"{n:,} {what} ({n / seconds:,.0f}/s)" for what, n in self.counts.items()]
            left = seconds / self.done * max(self.total - self.done, 0)
            parts.append(f"{seconds:,.0f} s" if self.done >= self.total else f"ETA {left:,.0f} s")
        return ", ".join(parts)


def note(stage: str, message: str, **fields: Any) -> None:
    """Logs one line of a stage."""
    logger.info("%s: %s%s", stage, message, "".join(f", {k} {v}" for k, v in fields.items()))
