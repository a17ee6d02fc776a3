"""The part of the ledger that is about forgotten users, for every database that it runs on."""

import contextlib
import dataclasses
import secrets
from typing import Any

from assets.forget_records import ForgetCertificate, ForgetRequest, StoreErasure
from assets.resources import Ledger
from models.forgetting import ForgetList, names

SECRET = "forget-list"
USER = "user_id"
IDS_AT_ONCE = 10_000


class ForgetBook(Ledger):
    """What a ledger of any database does about forgotten users."""

    def forget_list(self) -> ForgetList:
        """See `Ledger.forget_list`."""
        import sqlalchemy as sa

        from orchestration.ledger.models import ForgottenUser, Secret
        from orchestration.resources.ledger import insert_once

        with self.session() as session:
            insert_once(session, Secret, {"name": SECRET, "value": secrets.token_hex(32)}, ["name"])
            key = session.scalar(sa.select(Secret.value).where(Secret.name == SECRET))
            return ForgetList(bytes.fromhex(key), frozenset(session.scalars(sa.select(ForgottenUser.digest))))

    def begin_forgetting(self, request: ForgetRequest) -> ForgetRequest:
        """See `Ledger.begin_forgetting`."""
        import sqlalchemy as sa

        from orchestration.ledger import models
        from orchestration.resources.ledger import insert_once

        with self.session() as session:
            finished = sa.select(models.ForgetCertificate.request_id)
            kept = models.ForgetRequest
            for row in session.scalars(sa.select(kept).where(kept.request_id.not_in(finished)).order_by(kept.id)):
                if set(row.users) == set(request.users):
                    return ForgetRequest(
                        row.request_id,
                        tuple(row.users),
                        row.reason,
                        row.requested_by,
                        row.created,
                        row.done,
                        tuple(row.models),
                    )
            values = dataclasses.asdict(request) | {"users": list(request.users), "models": list(request.models)}
            session.add(kept(**values))
            for digest in request.users:
                added = {"digest": digest, "request_id": request.request_id, "created": request.created}
                insert_once(session, models.ForgottenUser, added, ["digest"])
            return request

    def note_forgetting(self, request_id: str, done: dict[str, Any], models: tuple[str, ...]) -> None:
        """See `Ledger.note_forgetting`."""
        import sqlalchemy as sa

        from orchestration.ledger.models import ForgetRequest

        with self.session() as session:
            row = session.scalar(sa.select(ForgetRequest).where(ForgetRequest.request_id == request_id))
            row.done, row.models = dict(done), list(models)

    def append_certificate(self, certificate: ForgetCertificate) -> bool:
        """See `Ledger.append_certificate`."""
        from orchestration.ledger import models
        from orchestration.resources.ledger import insert_once

        values = dataclasses.asdict(certificate) | {
            "users": list(certificate.users),
            "models": list(certificate.models),
            "stores": [dataclasses.asdict(store) for store in certificate.stores],
        }
        with self.session() as session:
            return insert_once(session, models.ForgetCertificate, values, ["request_id"])

    def certificates(self) -> list[ForgetCertificate]:
        """See `Ledger.certificates`."""
        import sqlalchemy as sa

        from orchestration.ledger import models

        names = [f.name for f in dataclasses.fields(ForgetCertificate)]
        with self.session() as session:
            rows = session.scalars(sa.select(models.ForgetCertificate).order_by(models.ForgetCertificate.id)).all()
            return [
                ForgetCertificate(
                    **{name: getattr(row, name) for name in names}
                    | {
                        "users": tuple(row.users),
                        "models": tuple(row.models),
                        "stores": tuple(StoreErasure(**store) for store in row.stores),
                    }
                )
                for row in rows
            ]

    def held_rows(self, user_ids: list[str]) -> dict[str, int]:
        """See `Ledger.held_rows`."""
        import sqlalchemy as sa

        with self.session() as session:
            found: dict[str, int] = {}
            for table in _tables_of_users(session):
                for ids in _parts(user_ids):
                    query = sa.select(sa.func.count()).select_from(table).where(table.c[USER].in_(ids))
                    found[table.name] = found.get(table.name, 0) + int(session.scalar(query))
            return found

    def erase_rows(self, user_ids: list[str]) -> None:
        """See `Ledger.erase_rows`."""
        with self.session() as session:
            engine = session.get_bind()
            if engine.dialect.name == "sqlite":
                session.connection().exec_driver_sql("PRAGMA secure_delete=ON")
            for table in _tables_of_users(session):
                for ids in _parts(user_ids):
                    session.execute(table.delete().where(table.c[USER].in_(ids)))
        # Deleted rows stay readable in an SQLite file's free pages, and in PostgreSQL's until a vacuum.
        if engine.dialect.name == "sqlite":
            with contextlib.closing(engine.raw_connection()) as connection:
                connection.cursor().execute("VACUUM")
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")

    def tables_with_text(self, text: str) -> list[str]:
        """See `Ledger.tables_with_text`."""
        import sqlalchemy as sa

        with self.session() as session:
            found = []
            for table in _reflected(session).sorted_tables:
                for column in (sa.cast(c, sa.Text) for c in table.columns):
                    cells = session.scalars(sa.select(column).where(column.contains(text, autoescape=True)))
                    if any(names(cell.encode(), text.encode()) for cell in cells):
                        found.append(table.name)
                        break
            return found


def _reflected(session: Any) -> Any:
    """The tables that stand, whoever declared them."""
    import sqlalchemy as sa

    metadata = sa.MetaData()
    metadata.reflect(session.connection())
    return metadata


def _tables_of_users(session: Any) -> list[Any]:
    return [table for table in _reflected(session).sorted_tables if USER in table.columns]


def _parts(user_ids: list[str]) -> list[list[str]]:
    return [user_ids[i : i + IDS_AT_ONCE] for i in range(0, len(user_ids), IDS_AT_ONCE)]
