"""SQL databases that jobs and the platform share: one way to open SQLite or PostgreSQL, and moments in UTC."""

import datetime as dt
import functools
import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

BUSY_SECONDS = 30


class UtcTimestamp(sa.types.TypeDecorator[dt.datetime]):
    """A moment in UTC. SQLite has no time zones: there it is stored without and read back with UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        """Converts to UTC and refuses a moment without time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("The ledger takes moments with a time zone only.")
        moment = value.astimezone(dt.UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: dt.datetime | None, dialect: Any) -> dt.datetime | None:
        """Gives the moment its time zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


def _with_driver(url: str) -> sa.URL:
    """Psycopg 3 for PostgreSQL, whichever way the URL names it."""
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    return parsed


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turns a SQLite file's write-ahead log on, waiting for its turn.

    SQLite does not call its busy handler for this switch: of several that open a new file at once, all but one would
    be refused immediately, whatever their time-out.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _tune_sqlite(engine: sa.Engine) -> None:
    """Readers beside one writer, writers wait for each other, and transactions that cover DDL too."""

    @sa.event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        # Python's sqlite3 would begin transactions itself, late and not before DDL.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000}")
        connection.execute("PRAGMA foreign_keys=ON")
        _use_wal(connection)

    @sa.event.listens_for(engine, "begin")
    def began(connection: sa.Connection) -> None:
        # A transaction that starts as a reader cannot wait for its turn to write.
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def make_engine(url: str) -> sa.Engine:
    """An engine for a ledger's URL, not migrated. Its errors show no values: among them are ids of users."""
    parsed = _with_driver(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
        _tune_sqlite(engine)
        return engine
    return sa.create_engine(parsed, pool_pre_ping=True, pool_size=2, hide_parameters=True)


@functools.lru_cache(maxsize=8)
def shared_engine(url: str) -> sa.Engine:
    """This process's engine for a URL; whoever owns the database has migrated it."""
    return make_engine(url)
