"""Counters of what a process answered."""

import threading
from collections import Counter


class Counts:
    """Counters that several threads add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted: Counter[str] = Counter()

    def add(self, **more: int) -> None:
        """Adds to counters by name."""
        with self._lock:
            self._counted.update(more)

    def as_dict(self) -> dict[str, int]:
        """The counters so far."""
        with self._lock:
            return dict(self._counted)
