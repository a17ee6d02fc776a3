"""Checks of the stage `experiments`."""

import json

import dagster as dg

from assets.expectations import Expect
from assets.experiments.decisions import PROMOTED, REFUSED, is_carried, label_of, rules_markdown, standing_row
from assets.quality import table_checks
from assets.resources import Ledger, Tables
from ray_jobs.tables.experiments import ASSIGNMENT, CHALLENGER, CHAMPION, EXPERIMENT_CANDIDATES

STATUSES = ["candidate", "rejected", "promoted"]

candidates_checks = table_checks(
    EXPERIMENT_CANDIDATES,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="status", value_set=STATUSES),
        Expect("ColumnValueLengthsToBeBetween", column="run_id", min_value=1),
        Expect("ColumnDistinctValuesToContainSet", column="is_current", value_set=[True]),
    ],
)

assignment_checks = table_checks(
    ASSIGNMENT,
    min_rows=1,
    semantic=[
        Expect("ColumnValuesToBeBetween", column="weight", min_value=0, max_value=1, strict_min=True),
        Expect("ColumnSumToBeBetween", column="weight", min_value=0.999999, max_value=1.000001),
        Expect("ColumnValuesToBeBetween", column="num_users", min_value=0),
    ],
)

challenger_checks = table_checks(
    CHALLENGER,
    min_rows=1,
    max_rows=1,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="decision", value_set=["promote", "keep", "reject"]),
        Expect("ColumnValuesToBeBetween", column="test_auc", min_value=0, max_value=1),
        Expect("ColumnValuesToBeBetween", column="ece", min_value=0, max_value=1),
    ],
)

champion_checks = table_checks(
    CHAMPION,
    min_rows=0,
    max_rows=3,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="alias", value_set=["champion", "challenger", "previous"]),
        Expect("ColumnValuesToMatchRegex", column="registry_version", regex="^[0-9]+$"),
    ],
)


@dg.asset_check(
    asset=["experiments", "challenger"],
    name="gate",
    blocking=True,
    description="The challenger beats champion and floor on test AUC with the interval above zero, and is "
    "calibrated. Passes when nothing challenges; warns when the challenger was refused, which is a night like "
    "any other; blocks when a promotion stands that its own rules do not carry.",
)
def gate(tables: Tables) -> dg.AssetCheckResult:
    """Holds back a promotion that the evidence does not carry."""
    row = standing_row(tables) or {}
    rules = json.loads(row["rules"])
    failed = [r for r in rules if not r["ok"]]
    uncarried = row["decision"] == PROMOTED and not is_carried(row)
    shown = (
        "valid_auc",
        "baseline_valid_auc",
        "test_auc",
        "ece",
        "gain",
        "gain_low",
        "gain_high",
        "floor_gain",
        "floor_gain_low",
        "floor_gain_high",
        "num_examples",
        "num_users",
    )
    return dg.AssetCheckResult(
        passed=row["decision"] != REFUSED and not uncarried,
        severity=dg.AssetCheckSeverity.ERROR if uncarried else dg.AssetCheckSeverity.WARN,
        description=f"{label_of(row)} stands as promoted, but its rules do not carry that: materialize "
        "experiments/challenger again."
        if uncarried
        else row["reason"],
        metadata={name: row[name] for name in shown if row[name] is not None}
        | {
            "decision": row["decision"],
            "verdict": dg.MetadataValue.md(rules_markdown(row)),
            "threshold": "; ".join(r["threshold"] for r in failed or rules),
            "failing_sample": json.dumps(failed[:1]),
        },
    )


@dg.asset_check(
    asset=["experiments", "assignment"],
    name="sample_ratio",
    blocking=True,
    description="Users fall into the arms as the weights say (chi-square; a p-value below 0.001 is a mismatch).",
)
def sample_ratio(tables: Tables) -> dg.AssetCheckResult:
    """Tells a broken assignment from chance."""
    from models.experimentation.assignment import SRM_THRESHOLD, sample_ratio_test

    rows = tables.read(ASSIGNMENT).to_pylist()
    found = sample_ratio_test({r["arm"]: r["num_users"] for r in rows}, {r["arm"]: r["weight"] for r in rows})
    worst = max(rows, key=lambda r: abs(r["share"] - r["weight"]))
    sample = (
        f"arm {worst['arm']} has {worst['num_users']:,} users, a share of {worst['share']:.4f} instead "
        f"of {worst['weight']:.4f}"
    )
    return dg.AssetCheckResult(
        passed=not found.mismatch,
        severity=dg.AssetCheckSeverity.ERROR,
        description=None
        if not found.mismatch
        else (
            f"Sample ratio mismatch in {worst['experiment']}: {sample} (p = {found.p_value:.2g}); read no "
            "result of this experiment."
        ),
        metadata={
            "p_value": found.p_value,
            "statistic": found.statistic,
            "threshold": SRM_THRESHOLD,
            "num_users": sum(r["num_users"] for r in rows),
            "failing_sample": sample,
        },
    )


@dg.asset_check(
    asset=["experiments", "champion"],
    name="promotion_recorded",
    blocking=False,
    description="The champion that serves is the one that the ledger's last promotion or rollback made.",
)
def promotion_recorded(tables: Tables, ledger: Ledger) -> dg.AssetCheckResult:
    """Compares the table of aliases with the append-only record."""
    serving = [r for r in tables.read(CHAMPION).to_pylist() if r["alias"] == "champion"]
    moves = ledger.promotions()
    observed = f"{serving[0]['candidate']}@{serving[0]['candidate_version']}" if serving else "none"
    recorded = moves[-1].after.label if moves else "none"
    return dg.AssetCheckResult(
        passed=observed == recorded,
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if observed == recorded
        else (
            f"The alias champion points to {observed}, but the ledger says {recorded}: launch "
            "rollback_model and name the right "
            "version."
        ),
        metadata={
            "observed": observed,
            "threshold": recorded,
            "num_promotions": len(moves),
            "failing_sample": observed if observed != recorded else "",
        },
    )
