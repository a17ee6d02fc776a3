"""The asset `experiments/assignment`."""

import datetime as dt
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from assets.experiments.records import AB_EXPERIMENT, ExperimentRecord
from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Ledger, Tables
from models.identity import version_of
from ray_jobs.tables.experiments import ASSIGNED_USERS, ASSIGNMENT
from ray_jobs.tables.interactions import SPLITS

CODE_VERSION = "1"
EVEN = {"control": 0.5, "treatment": 0.5}


class AssignmentConfig(Knobs):
    """One online experiment."""

    experiment: str = pydantic.Field(AB_EXPERIMENT, min_length=1, description="Its name.")
    salt: str = pydantic.Field(
        "", description="Salt of the hash; derived from the name by default, fixed once it runs."
    )
    arms: dict[str, float] = pydantic.Field(
        {},
        description="Weights. Other ones than now begin a new phase and move as few users as possible. "
        "Empty: as they are; even between `control` and `treatment` for a new experiment.",
    )
    store_users: bool = pydantic.Field(False, description="Also write the arm of every known user (pii).")


def _experiment(ledger: Ledger, config: AssignmentConfig) -> ExperimentRecord:
    from models.experimentation.assignment import Allocation, check_salt

    known = ledger.experiment(config.experiment)
    salt = check_salt(config.salt or (known.salt if known else version_of(experiment=config.experiment)))
    phases = known.arms if known else ()
    if config.arms and (not phases or config.arms != phases[-1]):
        phases = (*phases, config.arms)
    phases = phases or (EVEN,)
    Allocation.of(*phases)
    return ledger.record_experiment(ExperimentRecord(config.experiment, salt, phases))


@dg.asset(
    key=["experiments", "assignment"],
    group_name="experiments",
    kinds={"python", "sqlalchemy"},
    deps=[["interactions", "splits"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(ASSIGNMENT),
    tags={"pii": "true"},
)
@data_errors_are_final
def assignment(
    context: dg.AssetExecutionContext, config: AssignmentConfig, tables: Tables, ledger: Ledger
) -> dg.MaterializeResult:
    """How the known users fall into the arms of the running experiment.

    One row an arm. Assignment itself is a function, `sha256(salt + ":" + user id)` against the arms' shares
    (see `models.experimentation.assignment`), so serving needs no table; users are stored only on request.
    Guarded by the check `sample_ratio`. **If this is red**: the ratio is off, so no result of the experiment
    may be read, or the Launchpad's arms or salt contradict the ledger.
    """
    from models.experimentation.assignment import Allocation, assign, count_users, sample_ratio_test

    report = Report(ASSIGNMENT)
    record = _experiment(ledger, config)
    version = version_of(
        splits=tables.version(SPLITS),
        salt=record.salt,
        code=CODE_VERSION,
        experiment=record.name,
        arms=[list(phase.items()) for phase in record.arms],
    )
    warehouse, store = tables.warehouse(), config.store_users
    if tables.is_current(ASSIGNMENT, version) and not (store and not tables.is_current(ASSIGNED_USERS, version)):
        return report.unchanged(tables, version)
    allocation = Allocation.of(*record.arms)
    counts = count_users(record.salt, allocation, (part["user_id"] for part in warehouse.batches(SPLITS, ["user_id"])))
    weights, total = allocation.weights(), sum(counts.values())
    ratio, now = sample_ratio_test(counts, weights), dt.datetime.now(dt.UTC)
    rows = _arm_rows(record, counts, weights, ratio.p_value, now)
    data = pa.Table.from_pylist(rows, ASSIGNMENT.schema)
    if store:
        users = pc.unique(tables.read(SPLITS, ["user_id"])["user_id"])
        arms = pa.array(assign(record.salt, allocation, users), pa.string())
        stored = {"user_id": users, "arm": arms}
        tables.write(ASSIGNED_USERS, _with_experiment(stored, record.name, now), version)
    written = tables.write(ASSIGNMENT, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata={
            "num_users": total,
            "num_arms": len(rows),
            "phase": len(record.arms),
            "p_value": ratio.p_value,
            "users_stored": total if store else 0,
        },
    )


def _arm_rows(
    record: ExperimentRecord, counts: dict[str, int], weights: dict[str, float], p_value: float, now: dt.datetime
) -> list[dict[str, Any]]:
    """One row an arm: its weight, and the users who fell into it."""
    total = max(sum(counts.values()), 1)
    common = {"experiment": record.name, "salt": record.salt, "phase": len(record.arms), "p_value": p_value}
    return [
        common
        | {
            "arm": arm,
            "weight": weight,
            "num_users": counts[arm],
            "share": counts[arm] / total,
            "created_timestamp": now,
        }
        for arm, weight in weights.items()
    ]


def _with_experiment(columns: dict[str, Any], name: str, now: dt.datetime) -> pa.Table:
    """Rows of `ASSIGNED_USERS`."""
    num_rows = len(columns["user_id"])
    return pa.table(
        {"experiment": pa.array([name] * num_rows, pa.string()), **columns, "created_timestamp": [now] * num_rows}
    )
