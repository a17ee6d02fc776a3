"""The asset `experiments/candidates`."""

import datetime as dt
import json

import dagster as dg
import pyarrow as pa

from assets.experiments.records import CandidateRecord
from assets.failures import data_errors_are_final
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Ledger, Tables
from models.identity import version_of
from ray_jobs.tables.experiments import EXPERIMENT_CANDIDATES
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.ranking import LEADERBOARD, RANKERS

CODE_VERSION = "1"


def rankers(tables: Tables) -> list[dict]:
    """What each candidate of today is, by name: the rows of `ranking/rankers`."""
    return sorted(tables.read(RANKERS).to_pylist(), key=lambda row: row["candidate"])


def numbers(metrics: str) -> dict[str, float]:
    """The numbers of a candidate's metrics, as the ledger keeps them."""
    return {k: float(v) for k, v in json.loads(metrics).items() if isinstance(v, int | float)}


@dg.asset(
    key=["experiments", "candidates"],
    group_name="experiments",
    kinds={"sqlalchemy", "mlflow"},
    deps=[["ranking", "leaderboard"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(EXPERIMENT_CANDIDATES),
    tags={"tier": "gold"},
)
@data_errors_are_final
def candidates(context: dg.AssetExecutionContext, tables: Tables, ledger: Ledger) -> dg.MaterializeResult:
    """Every candidate that was ever trained, with what was decided about it.

    One row a candidate and version, as the ledger holds it; the newest version of each is `is_current`. Read
    by `experiments/challenger` and by whoever asks what was tried. **If this is red**: the leaderboard and
    `ranking/rankers` disagree (materialize `ranking/leaderboard`), or the ledger's database does not answer.
    """
    report = Report(EXPERIMENT_CANDIDATES)
    today = rankers(tables)
    version = version_of(rankers=[[r["candidate"], r["ranker_version"]] for r in today], code=CODE_VERSION)
    known = {(c.name, c.version) for c in ledger.candidates()}
    current = {(r["candidate"], r["ranker_version"]) for r in today}
    if current <= known and tables.is_current(EXPERIMENT_CANDIDATES, version):
        return report.unchanged(tables, version, metadata={"new_candidates": 0})
    warehouse = tables.warehouse()
    data = {t.name: warehouse.version(t) or "" for t in (SPLITS, TRAINING_SET, LEADERBOARD)}
    new = sum(
        ledger.record_candidate(
            CandidateRecord(
                name=r["candidate"],
                version=r["ranker_version"],
                model_name=r["model_name"],
                model_version=r["model_version"],
                artifact=r["artifact"],
                feature_service=r["feature_service"],
                mlflow_run_id=r["run_id"],
                dagster_run_id=context.run.run_id,
                data_versions=data,
                metrics=numbers(r["metrics"]),
            )
        )
        for r in today
    )
    created = dt.datetime.now(dt.UTC)
    rows = [
        {
            "candidate": c.name,
            "candidate_version": c.version,
            "model_name": c.model_name,
            "model_version": c.model_version,
            "run_id": c.mlflow_run_id,
            "artifact": c.artifact,
            "status": c.status,
            "status_reason": c.status_reason,
            "is_current": (c.name, c.version) in current,
            "metrics": json.dumps(c.metrics, sort_keys=True),
            "first_seen": c.created,
            "created_timestamp": created,
        }
        for c in ledger.candidates()
    ]
    table = pa.Table.from_pylist(rows, EXPERIMENT_CANDIDATES.schema)
    written = tables.write(EXPERIMENT_CANDIDATES, table, version)
    statuses = {s: sum(r["status"] == s for r in rows) for s in ("candidate", "rejected", "promoted")}
    return report.result(
        version=version,
        data=table,
        committed=written.committed,
        metadata={"new_candidates": new, **{f"num_{name}": count for name, count in statuses.items()}},
    )
