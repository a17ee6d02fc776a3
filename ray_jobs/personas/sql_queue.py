"""The queue of persona refreshes: one row a user, leased by workers, in the ledger's database.

A row is never lost: whoever holds it holds a lease that ends, and a lease that was taken over is worth nothing any
more (its fence has changed). The table's migration is the ledger's; that the table is there is the ledger's duty too.
"""

import contextlib
import datetime as dt
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pydantic
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from ray_jobs.databases import UtcTimestamp, shared_engine
from ray_jobs.personas.queue import (
    INELIGIBLE,
    PRIORITIES,
    SERVED,
    DeadLetter,
    Freshness,
    Lease,
    QueueUnavailableError,
    RefreshQueue,
    Stats,
    Wanted,
)

MAX_ERROR = 300

PERSONA_REFRESH = sa.Table(
    "persona_refresh",
    sa.MetaData(),
    sa.Column("id", sa.Integer(), nullable=False),
    sa.Column("user_id", sa.Text(), nullable=False),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("priority", sa.Integer(), nullable=False),
    sa.Column("clusters", sa.String(64), nullable=False),
    sa.Column("persona_version", sa.String(64), nullable=False),
    sa.Column("generation", sa.Integer(), nullable=False),
    sa.Column("enqueued", UtcTimestamp(), nullable=False),
    sa.Column("not_before", UtcTimestamp(), nullable=False),
    sa.Column("attempts", sa.Integer(), nullable=False),
    sa.Column("fence", sa.Integer(), nullable=False),
    sa.Column("lease_owner", sa.String(200), nullable=True),
    sa.Column("lease_until", UtcTimestamp(), nullable=True),
    sa.Column("finished", UtcTimestamp(), nullable=True),
    sa.Column("outcome", sa.String(16), nullable=False),
    sa.Column("error", sa.Text(), nullable=False),
    sa.PrimaryKeyConstraint("id", name="pk_persona_refresh"),
    sa.UniqueConstraint("user_id", name="uq_persona_refresh_user_id"),
    sa.CheckConstraint(
        "state IN ('queued', 'leased', 'done', 'failed')", name=sa.schema.conv("ck_persona_refresh_state")
    ),
    sa.Index("ix_persona_refresh_state", "state", "priority", "enqueued"),
    # An id that came back would make an old lease fit a new row.
    sqlite_autoincrement=True,
)
C = PERSONA_REFRESH.c


class PersonaQueue(pydantic.BaseModel, RefreshQueue, frozen=True):
    """The queue on SQLite or PostgreSQL. JSON-serialisable: it travels in job configs."""

    url: str = pydantic.Field(description="SQLAlchemy URL of the ledger.", repr=False)
    max_attempts: int = pydantic.Field(6, ge=1, description="Leases of a request before it is a dead letter.")
    backoff_seconds: float = pydantic.Field(60.0, ge=0, description="Pause before the second attempt; it doubles.")
    max_backoff_seconds: float = pydantic.Field(3600.0, ge=0, description="Longest pause.")
    again_after_seconds: float = pydantic.Field(
        3600.0, ge=0, description="How long a finished refresh answers requests for the same clusters and version."
    )

    @contextlib.contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        try:
            with shared_engine(self.url).begin() as connection:
                yield connection
        except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
            shown = shared_engine(self.url).url.render_as_string(hide_password=True)
            raise QueueUnavailableError(
                f"The queue of persona refreshes at {shown} does not answer: start the ledger's database."
            ) from error

    def enqueue(self, wanted: Iterable[Wanted], now: dt.datetime | None = None) -> list[bool]:
        """See `RefreshQueue.enqueue`."""
        now, asked = now or _now(), list(wanted)
        news = [False] * len(asked)
        with self._begin() as connection:
            # In one order everywhere, so that two transactions never wait for each other.
            for place in sorted(range(len(asked)), key=lambda p: asked[p].user_id):
                news[place] = self._enqueue(connection, asked[place], now)
        return news

    def _enqueue(self, connection: sa.Connection, wanted: Wanted, now: dt.datetime) -> bool:
        opened: dict[str, Any] = {
            **{k: getattr(wanted, k) for k in ("reason", "clusters", "persona_version")},
            **{"state": "queued", "priority": PRIORITIES[wanted.reason], "enqueued": now, "not_before": now},
            **{"attempts": 0, "lease_owner": None, "lease_until": None, "finished": None, "outcome": "", "error": ""},
        }
        values = opened | {"user_id": wanted.user_id, "generation": 1, "fence": 0}
        dialect: Any = postgresql if connection.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(PERSONA_REFRESH).values(**values).on_conflict_do_nothing(index_elements=["user_id"])
        if connection.execute(insert.returning(C.id)).first() is not None:
            return True
        mine = sa.select(PERSONA_REFRESH).where(C.user_id == wanted.user_id).with_for_update()
        row = connection.execute(mine).first()
        if row is None:  # Removed in between.
            return self._enqueue(connection, wanted, now)
        other = (row.clusters, row.persona_version) != (wanted.clusters, wanted.persona_version)
        again = row.finished is not None and row.finished <= now - dt.timedelta(seconds=self.again_after_seconds)
        # It was served and is no more: the online store has lost it.
        lost = wanted.reason == "missing" and row.outcome in SERVED
        if row.state in ("queued", "leased"):
            if not other:
                return False
            # A lease is under way for what was asked before; its end will find another generation and queue again.
            changed = {"clusters": wanted.clusters, "persona_version": wanted.persona_version}
            changed |= {"generation": row.generation + 1} if row.state == "leased" else {}
            new = row.state == "leased"
        elif other or (row.state == "done" and (again or lost)):
            changed, new = opened | {"generation": row.generation + 1}, True
        else:
            return False
        connection.execute(sa.update(PERSONA_REFRESH).where(C.id == row.id).values(**changed))
        return new

    def lease(self, most: int, owner: str, seconds: float, now: dt.datetime | None = None) -> list[Lease]:
        """See `RefreshQueue.lease`."""
        now = now or _now()
        with self._begin() as connection:
            found = [row for select in due_rows(most, now) for row in connection.execute(select).all()]
            rows = sorted(found, key=lambda r: (r.priority, r.enqueued, r.id))[:most]
            # Whoever held it never came back to say why: such a row may be what kills workers.
            spent = [r.id for r in rows if r.attempts >= self.max_attempts]
            if spent:
                said = f"Its worker ended {self.max_attempts} times without a result."
                self._bury(connection, C.id.in_(spent), said, now)
            taken = [r for r in rows if r.attempts < self.max_attempts]
            until = now + dt.timedelta(seconds=seconds)
            if taken:
                held = {"state": "leased", "lease_owner": owner, "lease_until": until}
                counted = {"fence": C.fence + 1, "attempts": C.attempts + 1}
                connection.execute(
                    sa.update(PERSONA_REFRESH).where(C.id.in_([r.id for r in taken])).values(**held, **counted)
                )
        return [
            Lease(r.id, r.user_id, r.fence + 1, r.generation, r.attempts + 1, r.clusters, r.persona_version)
            for r in taken
        ]

    def _bury(self, connection: sa.Connection, which: Any, error: str, now: dt.datetime) -> None:
        gone = {"state": "failed", "finished": now, "error": error[:MAX_ERROR]}
        connection.execute(sa.update(PERSONA_REFRESH).where(which).values(**gone, lease_owner=None, lease_until=None))

    def renew(self, leases: Iterable[Lease], seconds: float, now: dt.datetime | None = None) -> list[Lease]:
        """See `RefreshQueue.renew`."""
        until, asked = (now or _now()) + dt.timedelta(seconds=seconds), sorted(leases, key=lambda held: held.user_id)
        with self._begin() as connection:
            mine = self._mine(connection, asked)
            self._end(connection, list(mine), {"lease_until": until}, free=False)
        return [lease for lease in asked if lease.id in mine]

    def complete(self, leases: Sequence[tuple[Lease, str, str]], now: dt.datetime | None = None) -> list[bool]:
        """See `RefreshQueue.complete`."""
        now, ended = now or _now(), dict[tuple[str, str], list[int]]()
        with self._begin() as connection:
            mine = self._mine(connection, [lease for lease, _, _ in leases])
            for lease, outcome, remark in leases:
                if lease.id in mine and not self._again(connection, mine[lease.id], lease, now):
                    ended.setdefault((outcome, remark[:MAX_ERROR]), []).append(lease.id)
            for (outcome, remark), ids in ended.items():
                self._end(connection, ids, {"state": "done", "finished": now, "outcome": outcome, "error": remark})
        return [lease.id in mine for lease, _, _ in leases]

    def fail(self, lease: Lease, error: str, *, retryable: bool, now: dt.datetime | None = None) -> bool:
        """See `RefreshQueue.fail`."""
        now = now or _now()
        with self._begin() as connection:
            row = self._mine(connection, [lease]).get(lease.id)
            if row is None:
                return False
            if self._again(connection, row, lease, now):
                return True
            if not retryable or row.attempts >= self.max_attempts:
                self._bury(connection, C.id == row.id, error, now)
                return True
            pause = min(self.backoff_seconds * 2 ** (row.attempts - 1), self.max_backoff_seconds)
            # Jitter: what failed together shall not come back together.
            later = now + dt.timedelta(seconds=pause * random.uniform(1.0, 1.25))
            self._end(connection, [row.id], {"state": "queued", "not_before": later, "error": error[:MAX_ERROR]})
        return True

    def release(self, leases: Iterable[Lease], pause: float = 0.0, now: dt.datetime | None = None) -> int:
        """See `RefreshQueue.release`."""
        due = (now or _now()) + dt.timedelta(seconds=pause)
        with self._begin() as connection:
            mine = self._mine(connection, list(leases))
            self._end(connection, list(mine), {"state": "queued", "attempts": C.attempts - 1, "not_before": due})
        return len(mine)

    def recover(self, owner: str) -> int:
        """See `RefreshQueue.recover`."""
        with self._begin() as connection:
            mine = sa.and_(C.state == "leased", C.lease_owner == owner)
            free = sa.update(PERSONA_REFRESH).where(mine).values(state="queued", lease_owner=None, lease_until=None)
            # A new fence, in case that the former process is not quite dead.
            return len(connection.execute(free.values(fence=C.fence + 1).returning(C.id)).all())

    def stats(self, now: dt.datetime | None = None) -> Stats:
        """See `RefreshQueue.stats`."""
        now = now or _now()
        waits = sa.or_(C.state == "queued", sa.and_(C.state == "leased", C.lease_until <= now))
        with self._begin() as connection:
            row = connection.execute(
                sa.select(
                    *[sa.func.count(sa.case((which, 1))) for which in (waits, _due(now))],
                    sa.func.count(sa.case((sa.and_(C.state == "leased", C.lease_until > now), 1))),
                    sa.func.count(sa.case((C.state == "failed", 1))),
                    sa.type_coerce(sa.func.min(C.enqueued).filter(C.state != "failed"), UtcTimestamp()),
                ).where(C.state.in_(("queued", "leased", "failed")))  # By the index: most rows are done.
            ).one()
        waiting, due, leased, failed, since = tuple(row)
        oldest = (now - since).total_seconds() if since is not None else 0.0
        return Stats(waiting, due, leased, failed, max(oldest, 0.0))

    def freshness(
        self, max_age_seconds: float, persona_version: str | None = None, now: dt.datetime | None = None
    ) -> Freshness:
        """Counts users whose persona is stale, by what became of their last refresh.

        Whoever was refreshed longer ago than that has asked for nothing since, and is not counted.

        Args:
            max_age_seconds: Age from which a persona is stale.
            persona_version: The version in force; any by default.
            now: The moment; the clock's by default.
        """
        oldest = (now or _now()) - dt.timedelta(seconds=max_age_seconds)
        good = [C.state == "done", C.outcome.in_(SERVED)]
        good += [C.persona_version == persona_version] if persona_version is not None else []
        counts = sa.select(sa.func.count(), sa.func.count(sa.case((sa.not_(sa.and_(*good)), 1))))
        with self._begin() as connection:
            asked = sa.or_(C.state != "done", C.finished > oldest)
            return Freshness(*connection.execute(counts.where(asked, C.outcome != INELIGIBLE)).one())

    def dead_letters(self, most: int = 100) -> list[DeadLetter]:
        """The newest requests that were given up, without their users."""
        asked = sa.select(C.id, C.finished, C.attempts, C.error).where(C.state == "failed")
        with self._begin() as connection:
            return [DeadLetter(*r) for r in connection.execute(asked.order_by(C.finished.desc()).limit(most))]

    def replay(self, now: dt.datetime | None = None) -> int:
        """Queues every dead letter again, as if it had just been asked for. Returns how many."""
        now = now or _now()
        fresh = {"state": "queued", "enqueued": now, "not_before": now, "attempts": 0, "finished": None, "error": ""}
        with self._begin() as connection:
            again = sa.update(PERSONA_REFRESH).where(C.state == "failed").values(**fresh)
            return len(connection.execute(again.returning(C.id)).all())

    def prune(self, seconds: float, now: dt.datetime | None = None) -> int:
        """Removes rows that were done so long ago that they answer no request any more. Returns how many.

        Args:
            seconds: Age from which a persona is stale: who asks then asks anew.
            now: The moment; the clock's by default.
        """
        oldest = (now or _now()) - dt.timedelta(seconds=max(seconds, self.again_after_seconds))
        with self._begin() as connection:
            gone = sa.delete(PERSONA_REFRESH).where(C.state == "done", C.finished <= oldest)
            return int(connection.execute(gone).rowcount)

    def remove(self, user_ids: Iterable[str]) -> int:
        """See `RefreshQueue.remove`."""
        with self._begin() as connection:
            gone = sa.delete(PERSONA_REFRESH).where(C.user_id.in_(list(user_ids)))
            return len(connection.execute(gone.returning(C.id)).all())

    def _mine(self, connection: sa.Connection, leases: Sequence[Lease]) -> dict[int, Any]:
        """The rows of leases that are still held, by id; locked in one order everywhere."""
        fences = {lease.id: lease.fence for lease in leases}
        asked = sa.select(PERSONA_REFRESH).where(C.id.in_(list(fences)), C.state == "leased").order_by(C.user_id)
        rows = connection.execute(asked.with_for_update()).all() if fences else []
        return {row.id: row for row in rows if row.fence == fences[row.id]}

    def _end(self, connection: sa.Connection, ids: Sequence[int], values: dict[str, Any], free: bool = True) -> None:
        ended = values | ({"lease_owner": None, "lease_until": None} if free else {})
        if ids:
            connection.execute(sa.update(PERSONA_REFRESH).where(C.id.in_(ids)).values(**ended))

    def _again(self, connection: sa.Connection, row: Any, lease: Lease, now: dt.datetime) -> bool:
        """Queues a row again that was asked for anew while it was worked at."""
        if row.generation == lease.generation:
            return False
        self._end(connection, [row.id], {"state": "queued", "attempts": 0, "not_before": now, "error": ""})
        return True


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def due_rows(most: int, now: dt.datetime) -> list[sa.Select[Any]]:
    """What a worker may lease, the most urgent first: rows that wait, and rows whose lease has ended.

    Two selects, as each of them goes along the index and ends after ``most`` rows; one for both sorts all that are due.
    """
    return [
        sa.select(PERSONA_REFRESH)
        .where(which)
        .order_by(C.priority, C.enqueued, C.id)
        .limit(most)
        .with_for_update(skip_locked=True)
        for which in (_waits(now), _ended(now))
    ]


def _waits(now: dt.datetime) -> Any:
    return sa.and_(C.state == "queued", C.not_before <= now)


def _ended(now: dt.datetime) -> Any:
    return sa.and_(C.state == "leased", C.lease_until <= now)


def _due(now: dt.datetime) -> Any:
    return sa.or_(_waits(now), _ended(now))
