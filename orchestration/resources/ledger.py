"""Twins of the ledger: an SQLite file on this machine, or PostgreSQL."""

import contextlib
import dataclasses
import datetime as dt
from collections.abc import Iterator
from typing import Any

import pydantic

from assets.experiments.records import CandidateRecord, ExperimentRecord, Pointer, PromotionRecord
from orchestration.resources.forget_book import ForgetBook
from ray_jobs.personas.sql_queue import PersonaQueue


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _pointer(kept: dict[str, str] | None) -> Pointer | None:
    return Pointer(**kept) if kept else None


def insert_once(session: Any, model: Any, values: dict[str, Any], unique: list[str]) -> bool:
    """Inserts a row unless its unique columns are taken; atomic, so that of two writers one wins."""
    from sqlalchemy.dialects import postgresql, sqlite

    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(model).values(**values).on_conflict_do_nothing(index_elements=unique)
    # Not `rowcount`: psycopg's is -1 for the ORM's inserts.
    return session.execute(statement.returning(model.id)).first() is not None


class SqlLedger(ForgetBook):
    """The ledger on any database that its migrations know."""

    url: str = pydantic.Field(description="SQLAlchemy URL.")

    @contextlib.contextmanager
    def session(self) -> Iterator[Any]:
        """See `Ledger.session`. The database is made and migrated on first use."""
        from sqlalchemy import orm

        from orchestration.ledger.database import ready_engine

        with orm.Session(ready_engine(self.url)) as session, session.begin():
            yield session

    def persona_queue(self) -> PersonaQueue:
        """See `Ledger.persona_queue`."""
        from orchestration.ledger.database import ready_engine

        ready_engine(self.url)
        return PersonaQueue(url=self.url)

    def record_candidate(self, record: CandidateRecord) -> bool:
        """See `Ledger.record_candidate`."""
        from orchestration.ledger.models import Candidate

        with self.session() as session:
            values = dataclasses.asdict(record) | {"created": record.created or _now()}
            return insert_once(session, Candidate, values, ["name", "version"])

    def candidates(self) -> list[CandidateRecord]:
        """See `Ledger.candidates`."""
        import sqlalchemy as sa

        from orchestration.ledger.models import Candidate

        names = [field.name for field in dataclasses.fields(CandidateRecord)]
        with self.session() as session:
            rows = session.scalars(sa.select(Candidate).order_by(Candidate.id)).all()
            return [CandidateRecord(**{name: getattr(row, name) for name in names}) for row in rows]

    def set_status(self, name: str, version: str, status: str, reason: str) -> None:
        """See `Ledger.set_status`."""
        import sqlalchemy as sa

        from orchestration.ledger.models import Candidate

        with self.session() as session:
            found = session.scalar(sa.select(Candidate).where(Candidate.name == name, Candidate.version == version))
            if found is None:
                raise KeyError(f"The ledger has no candidate {name}@{version}.")
            found.status, found.status_reason = status, reason

    def append_promotion(self, record: PromotionRecord) -> bool:
        """See `Ledger.append_promotion`."""
        from orchestration.ledger.models import Promotion

        values = dataclasses.asdict(record) | {"created": record.created or _now()}
        values.pop("number")
        with self.session() as session:
            return insert_once(session, Promotion, values, ["key"])

    def promotions(self) -> list[PromotionRecord]:
        """See `Ledger.promotions`."""
        import sqlalchemy as sa

        from orchestration.ledger.models import Promotion

        plain = ("key", "kind", "model", "who", "reason", "report", "dagster_run_id", "forced", "created")
        with self.session() as session:
            rows = session.scalars(sa.select(Promotion).order_by(Promotion.id)).all()
            return [
                PromotionRecord(
                    before=_pointer(row.before),
                    after=Pointer(**row.after),
                    previous=_pointer(row.previous),
                    number=row.id,
                    **{name: getattr(row, name) for name in plain},
                )
                for row in rows
            ]

    def record_experiment(self, record: ExperimentRecord) -> ExperimentRecord:
        """See `Ledger.record_experiment`."""
        import sqlalchemy as sa

        from orchestration.ledger.models import Experiment

        phases = [[[arm, weight] for arm, weight in phase.items()] for phase in record.arms]
        with self.session() as session:
            values = {
                "name": record.name,
                "salt": record.salt,
                "arms": phases,
                "started": record.started or _now(),
            }
            insert_once(session, Experiment, values, ["name"])
            kept = session.scalar(sa.select(Experiment).where(Experiment.name == record.name).with_for_update())
            if kept.salt != record.salt or phases[: len(kept.arms)] != kept.arms[: len(phases)]:
                raise ValueError(
                    f"Experiment {record.name} already runs with another salt or other arms: append a "
                    "phase, or give "
                    "the new experiment a new name."
                )
            if len(phases) > len(kept.arms):
                kept.arms = phases
            return _experiment(kept)

    def experiment(self, name: str) -> ExperimentRecord | None:
        """See `Ledger.experiment`."""
        import sqlalchemy as sa

        from orchestration.ledger.models import Experiment

        with self.session() as session:
            kept = session.scalar(sa.select(Experiment).where(Experiment.name == name))
            return None if kept is None else _experiment(kept)


def _experiment(kept: Any) -> ExperimentRecord:
    return ExperimentRecord(kept.name, kept.salt, tuple(dict(map(tuple, phase)) for phase in kept.arms), kept.started)


class SqliteLedger(SqlLedger):
    """The ledger in a file of this machine (WAL: readers beside one writer)."""


class PostgresLedger(SqlLedger):
    """The ledger in PostgreSQL."""


def ledger_twin(url: str) -> SqlLedger:
    """The twin for a URL."""
    return SqliteLedger(url=url) if url.startswith("sqlite") else PostgresLedger(url=url)
