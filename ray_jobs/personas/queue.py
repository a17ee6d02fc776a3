"""What readers and workers need of the queue of persona refreshes, whatever keeps it."""

import datetime as dt
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

# Outcomes of a finished refresh.
REFRESHED, UNCHANGED, UNSAFE, INELIGIBLE = "refreshed", "unchanged", "unsafe", "ineligible"
SERVED = (REFRESHED, UNCHANGED)
PRIORITIES = {"missing": 0, "stale": 1}


class QueueUnavailableError(ConnectionError):
    """The queue's database does not answer now: one sentence. What is in it is safe."""


class Wanted(NamedTuple):
    """A refresh that somebody asks for.

    Attributes:
        user_id: User.
        reason: ``missing`` goes before ``stale``.
        clusters: Digest of the clusters of the history that the asker saw.
        persona_version: Version that is in force.
    """

    user_id: str
    reason: Literal["missing", "stale"]
    clusters: str = ""
    persona_version: str = ""


class Lease(NamedTuple):
    """A row that a worker may work at.

    Attributes:
        id: The row.
        user_id: Whose persona.
        fence: Tells this lease from those before and after it.
        generation: Tells the request from one that came while it was worked at.
        attempts: Leases of this request, this one included.
        clusters: As in `Wanted`.
        persona_version: As in `Wanted`.
    """

    id: int
    user_id: str
    fence: int
    generation: int
    attempts: int
    clusters: str
    persona_version: str


class Stats(NamedTuple):
    """What is in the queue.

    Attributes:
        depth: Requests that wait, or whose worker was lost.
        due: Of these, those that a worker would get now.
        leased: Requests that are worked at.
        failed: Dead letters.
        oldest_seconds: Age of the oldest request that is not finished; 0 if there is none.
    """

    depth: int
    due: int
    leased: int
    failed: int
    oldest_seconds: float


class Freshness(NamedTuple):
    """How many users' personas are as they should be.

    Attributes:
        users: Users that asked for a persona lately and have enough history for one.
        stale: Of these, those who wait, were given up, or whose last refresh was unsafe or of another version.
    """

    users: int
    stale: int

    @property
    def share_stale(self) -> float:
        """Share of the users; 0 without users."""
        return self.stale / self.users if self.users else 0.0


class DeadLetter(NamedTuple):
    """A request that was given up: the row, when, after how many attempts and why."""

    id: int
    finished: dt.datetime
    attempts: int
    error: str


class RefreshQueue(ABC):
    """What readers and workers need of a queue; moments are the clock's unless they are given."""

    @abstractmethod
    def enqueue(self, wanted: Iterable[Wanted], now: dt.datetime | None = None) -> list[bool]:
        """Asks for refreshes. Returns, one a request, whether there is now something to do that was not before."""

    @abstractmethod
    def lease(self, most: int, owner: str, seconds: float, now: dt.datetime | None = None) -> list[Lease]:
        """Takes up to ``most`` due rows; those whose lease has ended are taken over."""

    @abstractmethod
    def renew(self, leases: Iterable[Lease], seconds: float, now: dt.datetime | None = None) -> list[Lease]:
        """Prolongs leases. Returns those that are still held."""

    @abstractmethod
    def complete(self, leases: Sequence[tuple[Lease, str, str]], now: dt.datetime | None = None) -> list[bool]:
        """Ends leases with an outcome and a remark. Returns, one a lease, whether it was still held.

        A row that was asked for again meanwhile, for other clusters or another version, waits again.
        """

    @abstractmethod
    def fail(self, lease: Lease, error: str, *, retryable: bool, now: dt.datetime | None = None) -> bool:
        """Ends a lease without result: tried again later, or a dead letter. Returns whether it was still held."""

    @abstractmethod
    def release(self, leases: Iterable[Lease], pause: float = 0.0, now: dt.datetime | None = None) -> int:
        """Gives leases back, due after a pause in seconds; they count as no attempt. Returns how many were held."""

    @abstractmethod
    def recover(self, owner: str) -> int:
        """Gives back what a former process of the same name held. Returns how many rows."""

    @abstractmethod
    def remove(self, user_ids: Iterable[str]) -> int:
        """Removes users; a worker that holds one of them loses its lease. Returns how many rows went."""

    @abstractmethod
    def stats(self, now: dt.datetime | None = None) -> Stats:
        """Counts and ages."""
