"""The ledger's engine: made and migrated once a process, on SQLite or PostgreSQL."""

import functools
from pathlib import Path

import alembic.command
import alembic.config
import sqlalchemy as sa

from ray_jobs.databases import make_engine

MIGRATIONS = Path(__file__).parent / "migrations"
# Any fixed number: whoever upgrades a PostgreSQL ledger holds this lock.
UPGRADE_LOCK = 20_261_122


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
