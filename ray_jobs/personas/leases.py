"""What a worker does with the queue beside its work: holds leases while it works, and waits while it is away."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ray_jobs.personas.queue import Lease, QueueUnavailableError, RefreshQueue

logger = logging.getLogger("belvedere.personas")
Value = TypeVar("Value")


class Holding:
    """Prolongs leases in a thread of its own, for as long as the ``with`` block runs.

    Args:
        queue: The queue.
        leases: The leases.
        seconds: How long each is prolonged; three times as often.
    """

    def __init__(self, queue: RefreshQueue, leases: Sequence[Lease], seconds: float):
        self.queue, self.seconds = queue, seconds
        self._held = {lease.id: lease for lease in leases}
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __enter__(self) -> "Holding":
        threading.Thread(target=self._work, name="persona-leases", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def finished(self, leases: Sequence[Lease]) -> None:
        """Prolongs these no more."""
        with self._lock:
            for lease in leases:
                self._held.pop(lease.id, None)

    def _work(self) -> None:
        while not self._over.wait(self.seconds / 3):
            with self._lock:
                held = list(self._held.values())
            try:
                self.queue.renew(held, self.seconds)
            except Exception as error:
                # If it stays away for too long the leases end, and whoever takes over finds what was written.
                # Whatever it is, this thread must live: the queue may be back the next time.
                said = error if isinstance(error, QueueUnavailableError) else type(error).__name__
                logger.warning("personas: leases could not be prolonged: %s", said)


def patiently(call: Callable[[], Value], seconds: float) -> Value:
    """Calls until the queue answers.

    Args:
        call: What is asked of the queue.
        seconds: Patience.

    Raises:
        QueueUnavailableError: If it does not answer for so long.
    """
    until, pause = time.monotonic() + seconds, 0.1
    while True:
        try:
            return call()
        except QueueUnavailableError as error:
            if time.monotonic() + pause > until:
                raise
            logger.warning("personas: waiting: %s", error)
            time.sleep(pause)
            pause = min(pause * 2, 5.0)
