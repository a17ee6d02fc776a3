"""What the ledger keeps, as plain values that assets, jobs and the ledger's twins share."""

import dataclasses
import datetime as dt
import getpass
import socket
from typing import Any, Literal

import dagster as dg

Status = Literal["candidate", "rejected", "promoted"]
Kind = Literal["promote", "rollback"]

# The online experiment in which whatever passed the gate meets the champion.
AB_EXPERIMENT = "champion_vs_challenger"


@dataclasses.dataclass(frozen=True)
class CandidateRecord:
    """One trained candidate.

    Attributes:
        name: Name below `ranking/`, e.g. ``dlrm_captions``.
        version: Identity of what was trained: data, code and parameters.
        model_name: Registered MLflow model, e.g. ``ranker_dlrm_captions``.
        model_version: Its version in the registry.
        artifact: The trained ranker in the artifact store.
        feature_service: Feast service that gives its inputs.
        mlflow_run_id: Run that trained it.
        dagster_run_id: Run that made it a candidate.
        data_versions: Versions of the tables that it learned from and was judged on.
        metrics: Metric name to value.
        status: What the gate (or a rollback) made of it.
        status_reason: Why, in one sentence; empty for a candidate that nothing was decided about.
        created: When the ledger first saw it (UTC); None before that.
    """

    name: str
    version: str
    model_name: str
    model_version: str
    artifact: str
    feature_service: str
    mlflow_run_id: str
    dagster_run_id: str
    data_versions: dict[str, str]
    metrics: dict[str, float]
    status: Status = "candidate"
    status_reason: str = ""
    created: dt.datetime | None = None

    @property
    def label(self) -> str:
        """How people call it: name and version."""
        return f"{self.name}@{self.version}"


@dataclasses.dataclass(frozen=True)
class Pointer:
    """A candidate in the registry of promoted models.

    Attributes:
        registry_version: Version of the registered model `ranker`.
        candidate: Candidate name.
        candidate_version: Candidate version.
    """

    registry_version: str
    candidate: str
    candidate_version: str

    @property
    def label(self) -> str:
        """How people call it."""
        return f"{self.candidate}@{self.candidate_version}"


@dataclasses.dataclass(frozen=True)
class PromotionRecord:
    """One move of the alias `champion`; never changed once written.

    Attributes:
        key: Identity of the move. The same key is written once, so that a repeated step appends nothing.
        kind: ``promote`` or ``rollback``.
        model: Registered model whose alias moved.
        before: Champion before the move; None if there was none.
        after: Champion after it.
        previous: Where the alias `previous` points after it.
        who: User or schedule that caused it.
        reason: Why, in one sentence.
        report: Gate report; for a rollback what was found.
        dagster_run_id: Run that made the move.
        forced: Whether the gate was overridden.
        created: When (UTC); None before it is written.
        number: Place in the ledger, from 1; 0 before it is written.
    """

    key: str
    kind: Kind
    model: str
    before: Pointer | None
    after: Pointer
    previous: Pointer | None
    who: str
    reason: str
    report: dict[str, Any]
    dagster_run_id: str
    forced: bool = False
    created: dt.datetime | None = None
    number: int = 0


@dataclasses.dataclass(frozen=True)
class ExperimentRecord:
    """One online experiment.

    Attributes:
        name: Its name.
        salt: What makes its assignment independent of every other experiment's.
        arms: Weights of each phase, oldest first: ``[{"control": 0.5, "treatment": 0.5}, ...]``.
        started: When its first phase was written (UTC); None before that.
    """

    name: str
    salt: str
    arms: tuple[dict[str, float], ...]
    started: dt.datetime | None = None


def started_by(run: dg.DagsterRun) -> str:
    """Who or what started a run: a schedule, a sensor or (Dagster has no login) the process's user."""
    for tag, kind in (
        ("dagster/schedule_name", "schedule"),
        ("dagster/sensor_name", "sensor"),
        ("user", "user"),
    ):
        if tag in run.tags:
            return f"{kind} {run.tags[tag]}"
    return f"user {getpass.getuser()} on {socket.gethostname()}"
