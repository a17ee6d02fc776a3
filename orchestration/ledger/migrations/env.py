"""Alembic runs this for every command.

The platform passes its own connection (`orchestration.ledger.database.upgrade`). From the command line, e.g.
to draft the next migration, the connection is that of the settings.
"""

from alembic import context
from sqlalchemy import Connection

from orchestration.ledger.database import make_engine
from orchestration.ledger.models import Base
from orchestration.settings import Settings


def _run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        compare_type=True,
        render_as_batch=True,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    with make_engine(Settings().ledger_url).begin() as opened:
        _run(opened)
