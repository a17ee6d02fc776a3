"""The ledger's engine: made and migrated once a process, on SQLite or PostgreSQL."""

import functools
import sqlite3
import time
from pathlib import Path
from typing import Any

import alembic.command
import alembic.config
import sqlalchemy as sa

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_SECONDS = 30
# Any fixed number: whoever upgrades a PostgreSQL ledger holds this lock.
UPGRADE_LOCK = 20_261_122


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
    """An engine for a ledger's URL, not migrated."""
    parsed = _with_driver(url)
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
        _tune_sqlite(engine)
        return engine
    return sa.create_engine(parsed, pool_pre_ping=True, pool_size=2)


def alembic_config(connection: sa.Connection | None = None) -> alembic.config.Config:
    """Alembic's configuration of the migrations that ship with the package."""
    config = alembic.config.Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(engine: sa.Engine) -> bool:
    """Brings the database to the newest schema in one transaction; safe when several processes do so at once.

    Returns:
        Whether anything had to be done.
    """
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(UPGRADE_LOCK)))
        config = alembic_config(connection)
        wanted = ScriptDirectory.from_config(config).get_current_head()
        if MigrationContext.configure(connection).get_current_revision() == wanted:
            return False
        alembic.command.upgrade(config, "head")
    return True


@functools.lru_cache(maxsize=8)
def ready_engine(url: str) -> sa.Engine:
    """The engine of a ledger, migrated on first use in this process.

    Raises:
        ConnectionError: If the database does not answer.
    """
    engine = make_engine(url)
    try:
        upgrade(engine)
    except sa.exc.OperationalError as error:
        shown = engine.url.render_as_string(hide_password=True)
        raise ConnectionError(
            f"The ledger at {shown} does not answer: start the database or set BELVEDERE_LEDGER_URL."
        ) from error
    return engine
