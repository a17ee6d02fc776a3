"""The asset `experiments/challenger`."""

import dagster as dg
import pyarrow as pa

from assets.experiments.candidates import rankers
from assets.experiments.decisions import (
    REFUSED,
    GateConfig,
    comparison_config,
    decision_row,
    label_of,
    rules_markdown,
    standing_row,
    state_before,
    state_now,
)
from assets.failures import data_errors_are_final
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Ledger, RayJobs, Tables, Tracking
from models.identity import version_of
from ray_jobs.tables.experiments import CHALLENGER

CODE_VERSION = "2"


@dg.asset(
    key=["experiments", "challenger"],
    group_name="experiments",
    kinds={"python", "mlflow"},
    deps=[["experiments", "candidates"], ["ranking", "leaderboard"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(CHALLENGER),
    tags={"tier": "gold"},
)
@data_errors_are_final
def challenger(
    context: dg.AssetExecutionContext,
    config: GateConfig,
    tables: Tables,
    ledger: Ledger,
    ray_jobs: RayJobs,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The best candidate by AUC on validation, with what the gate found out about it on test.

    One row. Test predictions are read for this one candidate only, and once: `keep` when it is the champion,
    was decided against before, or is not surely better on validation; else `promote` or `reject`. Guarded by
    the check `gate`, read by `experiments/champion`. **If this is red**: a ranker's table and
    `ranking/rankers` disagree; materialize `ranking/leaderboard`.
    """
    report = Report(CHALLENGER)
    common = {
        "rankers": [[r["candidate"], r["ranker_version"]] for r in rankers(tables)],
        "code": CODE_VERSION,
        "gate": config.model_dump(),
    }
    state = state_now(ledger)
    version = version_of(state=state.identity(), **common)
    stood = version_of(state=state_before(tables, ledger).identity(), **common)
    current = next((v for v in (version, stood) if tables.is_current(CHALLENGER, v)), None)
    if current is None:
        from assets.experiments.outcome import tell_registry
        from assets.experiments.plots import intervals
        from models.experimentation.gate import decide
        from ray_jobs.experiments.comparison import evidence_of

        result = ray_jobs.run(context, "experiments.comparison", comparison_config(tables, ledger, state, config))
        verdict = decide(evidence_of(result), config.max_ece)
        row = decision_row(result, verdict, config.floor)
        tell_registry(tracking, ledger, row, verdict)
        data = pa.Table.from_pylist([row], CHALLENGER.schema)
        written = tables.write(CHALLENGER, data, version)
        told = [
            (name, row[p], row[f"{p}_low"], row[f"{p}_high"])
            for name, p in (
                ("validation, to baseline", "valid_gain"),
                ("test, to champion", "gain"),
                ("test, to floor", "floor_gain"),
            )
            if row[p] is not None
        ]
        done = report.result(
            version=version,
            data=data,
            committed=written.committed,
            metadata={
                "verdict": dg.MetadataValue.md(rules_markdown(row)),
                "num_contenders": len(result.valid_auc),
                **{f"valid_auc_{name}": value for name, value in result.valid_auc.items()},
                **({"gains": dg.MetadataValue.md(intervals(told, "gain in AUC"))} if told else {}),
            },
        )
    else:
        row = standing_row(tables) or {}
        done = report.unchanged(tables, current, metadata={"verdict": dg.MetadataValue.md(rules_markdown(row))})
    if row["decision"] == REFUSED and label_of(row) not in state.decided_against:
        ledger.set_status(row["challenger"], row["challenger_version"], "rejected", row["reason"])
    return done
