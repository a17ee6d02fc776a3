"""Tables of the ledger."""

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, orm
from sqlalchemy.dialects.postgresql import JSONB

from ray_jobs.databases import UtcTimestamp
from ray_jobs.personas.sql_queue import PERSONA_REFRESH


class AppendOnlyError(RuntimeError):
    """Somebody tried to change or remove a record that only may be appended."""


Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(orm.DeclarativeBase):
    """Base of the ledger's models."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Candidate(Base):
    """One trained candidate with what was decided about it."""

    __tablename__ = "candidate"
    __table_args__ = (
        sa.UniqueConstraint("name", "version"),
        sa.CheckConstraint("status IN ('candidate', 'rejected', 'promoted')", name="status"),
    )

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    version: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    model_name: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    model_version: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    artifact: orm.Mapped[str] = orm.mapped_column(sa.String(500))
    feature_service: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    mlflow_run_id: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    dagster_run_id: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    data_versions: orm.Mapped[dict[str, str]] = orm.mapped_column(Json)
    metrics: orm.Mapped[dict[str, float]] = orm.mapped_column(Json)
    status: orm.Mapped[str] = orm.mapped_column(sa.String(16))
    status_reason: orm.Mapped[str] = orm.mapped_column(sa.Text())
    created: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())


class Promotion(Base):
    """One move of the alias `champion`. Rows are appended, never changed: a trigger holds that too."""

    __tablename__ = "promotion"
    __table_args__ = (
        sa.UniqueConstraint("key"),
        sa.CheckConstraint("kind IN ('promote', 'rollback')", name="kind"),
    )

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    key: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    kind: orm.Mapped[str] = orm.mapped_column(sa.String(16))
    model: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    before: orm.Mapped[dict[str, str] | None] = orm.mapped_column(Json)
    after: orm.Mapped[dict[str, str]] = orm.mapped_column(Json)
    previous: orm.Mapped[dict[str, str] | None] = orm.mapped_column(Json)
    who: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    reason: orm.Mapped[str] = orm.mapped_column(sa.Text())
    report: orm.Mapped[dict[str, Any]] = orm.mapped_column(Json)
    forced: orm.Mapped[bool] = orm.mapped_column()
    dagster_run_id: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    created: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())


class Experiment(Base):
    """One online experiment: its salt and the weights of each of its phases."""

    __tablename__ = "experiment"
    __table_args__ = (sa.UniqueConstraint("name"),)

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    salt: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    # A list of [arm, weight] pairs a phase: JSONB would not keep the order of an object's keys.
    arms: orm.Mapped[list[list[list[Any]]]] = orm.mapped_column(Json)
    started: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())


class Alert(Base):
    """One thing that went wrong, however often it was seen."""

    __tablename__ = "alert"
    __table_args__ = (sa.UniqueConstraint("dedupe_key"),)

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    dedupe_key: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    kind: orm.Mapped[str] = orm.mapped_column(sa.String(32))
    severity: orm.Mapped[str] = orm.mapped_column(sa.String(16))
    owner: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    asset: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    partition: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    cause: orm.Mapped[str] = orm.mapped_column(sa.Text())
    runbook: orm.Mapped[str] = orm.mapped_column(sa.Text())
    hint: orm.Mapped[str] = orm.mapped_column(sa.Text())
    link: orm.Mapped[str] = orm.mapped_column(sa.Text())
    first_seen: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())
    last_seen: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp(), index=True)
    count: orm.Mapped[int] = orm.mapped_column()
    deliveries: orm.Mapped[int] = orm.mapped_column()
    claimed: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())
    delivered: orm.Mapped[dt.datetime | None] = orm.mapped_column(UtcTimestamp())


class PersonaRefresh(Base):
    """One user whose persona is to be written anew, or was. Workers lease it by `ray_jobs.personas.sql_queue`."""

    # Their very table, so that there is no second description of it to keep up.
    __table__ = PERSONA_REFRESH.to_metadata(Base.metadata)


class Secret(Base):
    """A secret that the platform made for itself."""

    __tablename__ = "secret"
    __table_args__ = (sa.UniqueConstraint("name"),)

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    value: orm.Mapped[str] = orm.mapped_column(sa.String(128))


class ForgottenUser(Base):
    """One user who must not come back, by keyed digest; never the id."""

    __tablename__ = "forgotten_user"
    __table_args__ = (sa.UniqueConstraint("digest"),)

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    digest: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    request_id: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    created: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())


class ForgetRequest(Base):
    """A request to forget users, written before anything is removed; without a certificate it is unfinished."""

    __tablename__ = "forget_request"
    __table_args__ = (sa.UniqueConstraint("request_id"),)

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    request_id: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    users: orm.Mapped[list[str]] = orm.mapped_column(Json)
    reason: orm.Mapped[str] = orm.mapped_column(sa.Text())
    requested_by: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    done: orm.Mapped[dict[str, Any]] = orm.mapped_column(Json)
    models: orm.Mapped[list[str]] = orm.mapped_column(Json)
    created: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())


class ForgetCertificate(Base):
    """That users were removed, and where from. Rows are appended, never changed: a trigger holds that too."""

    __tablename__ = "forget_certificate"
    __table_args__ = (sa.UniqueConstraint("request_id"),)

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    request_id: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    users: orm.Mapped[list[str]] = orm.mapped_column(Json)
    reason: orm.Mapped[str] = orm.mapped_column(sa.Text())
    requested_by: orm.Mapped[str] = orm.mapped_column(sa.String(200))
    requested: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())
    completed: orm.Mapped[dt.datetime] = orm.mapped_column(UtcTimestamp())
    stores: orm.Mapped[list[dict[str, Any]]] = orm.mapped_column(Json)
    models: orm.Mapped[list[str]] = orm.mapped_column(Json)
    note: orm.Mapped[str] = orm.mapped_column(sa.Text())
    code_version: orm.Mapped[str] = orm.mapped_column(sa.String(64))
    dagster_run_id: orm.Mapped[str] = orm.mapped_column(sa.String(64))


APPEND_ONLY = (Promotion, ForgetCertificate)


def _refuse(*_: Any) -> None:
    raise AppendOnlyError(
        "Promotion records and certificates are append-only: append a new one instead of changing the past."
    )


for _model in APPEND_ONLY:
    event.listen(_model, "before_update", _refuse)
    event.listen(_model, "before_delete", _refuse)


@event.listens_for(orm.Session, "do_orm_execute")
def _refuse_bulk(state: orm.ORMExecuteState) -> None:
    """Mapper events don't see ``session.execute(update(...))``; this does."""
    if (state.is_update or state.is_delete) and any(m.class_ in APPEND_ONLY for m in state.all_mappers):
        _refuse()
