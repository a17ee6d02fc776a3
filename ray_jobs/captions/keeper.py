"""Keeps what comes, as it comes, without the keeping slowing down what it comes from."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class Keeper:
    """Hands what is taken to ``keep``: at once if ``keep`` has rested as long as it last took, else soon after.

    So at most half of the time goes into keeping, however slow the store is, and nothing waits longer than two
    writes, or the first rest, even if nothing else comes. What could not be kept is tried again with what comes next.

    Args:
        keep: Writes a batch durably; is never called by two threads at a time.
        at_first: Seconds of rest before the first write.
    """

    def __init__(self, keep: Callable[[Sequence[Any]], None], at_first: float = 0.0):
        self._write = keep
        self._fresh: list[Any] = []
        self._lock = threading.Lock()
        self._due = time.monotonic() + at_first
        self._timer: threading.Timer | None = None

    def take(self, thing: Any) -> None:
        """Takes one thing, and keeps it now or soon.

        Raises:
            Exception: Whatever ``keep`` raised.
        """
        with self._lock:
            self._fresh.append(thing)
            rest = self._due - time.monotonic()
            if rest <= 0:
                self._keep()
            elif self._timer is None:
                self._timer = threading.Timer(rest, self._on_time)
                self._timer.daemon = True
                self._timer.start()

    def finish(self) -> None:
        """Keeps whatever is left; to be called at the end, whatever happened."""
        with self._lock:
            self._keep()

    def _on_time(self) -> None:
        with self._lock:
            self._keep()

    def _keep(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fresh:
            began = time.monotonic()
            self._write(self._fresh)
            self._fresh = []
            self._due = 2 * time.monotonic() - began
