"""Checks of `vista/history_models`."""

from typing import Any

import dagster as dg

from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from assets.vista.history_models import MODELS, OBJECTIVES, VARIANTS
from assets.vista.history_report import FLOORS, SHUFFLED
from assets.vista.history_sweeps import SWEEPS
from ray_jobs.tables.history import HISTORY_MODELS, HISTORY_SWEEPS

DECIDES = {"next_item": "ndcg_at_10", "click": "auc"}
PEER = "recbole_sasrec"
KEY = dg.AssetKey(["vista", "history_models"])
KNOWN = [*MODELS, *VARIANTS, *(model + SHUFFLED for model in (*MODELS, *VARIANTS)), *FLOORS, PEER]

history_models_checks = table_checks(
    HISTORY_MODELS,
    min_rows=1,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="objective", value_set=list(OBJECTIVES)),
        Expect("ColumnValuesToBeInSet", column="model", value_set=KNOWN),
        Expect("ColumnValuesToBeBetween", column="num_seeds", min_value=1),
        Expect("ColumnPairValuesAToBeGreaterThanB", column_A="high", column_B="low", or_equal=True),
    ],
)

history_sweeps_checks = table_checks(
    HISTORY_SWEEPS,
    min_rows=1,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="sweep", value_set=list(SWEEPS)),
        Expect("ColumnValuesToBeBetween", column="cost", min_value=0),
        Expect("ColumnValuesToBeBetween", column="num_seeds", min_value=1),
        Expect("ColumnPairValuesAToBeGreaterThanB", column_A="high", column_B="low", or_equal=True),
    ],
)


def _differences(tables: Tables, shuffled: bool) -> list[dict[str, Any]]:
    """Differences of models, or of placebos, to floors in the metric that decides."""
    return [
        x
        for x in tables.read(HISTORY_MODELS).to_pylist()
        if x["metric"] == DECIDES[x["objective"]]
        and x["baseline"] in FLOORS
        and x["model"].endswith(SHUFFLED) == shuffled
    ]


def _result(wrong: list[dict[str, Any]], observed: list[dict[str, Any]], said: str) -> dg.AssetCheckResult:
    """A warning: an experiment that went against the hypothesis is a result."""
    shown = ("objective", "model", "baseline", "value", "low", "high")
    names = sorted({f"{x['model']} ({x['objective']}, {x['baseline']})" for x in wrong})
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{', '.join(names)}: {said}" if wrong else None,
        metadata={
            "observed": str([[x[name] for name in shown] for x in observed]),
            "threshold": 0.0,
            "failing_sample": str([[x[name] for name in shown] for x in wrong[:5]]),
        },
    )


@dg.asset_check(asset=KEY, description="Every model beats every floor of its objective: its whole interval is above.")
def models_beat_floors(tables: Tables) -> dg.AssetCheckResult:
    """See the description."""
    found = _differences(tables, shuffled=False)
    return _result(
        [x for x in found if x["low"] <= 0], found, "not shown to beat this floor; do not build on it before it does."
    )


@dg.asset_check(
    asset=KEY, description="With other users' histories no model beats popularity: what else it knows leaks."
)
def placebos_do_nothing(tables: Tables) -> dg.AssetCheckResult:
    """See the description."""
    found = [x for x in _differences(tables, shuffled=True) if x["baseline"] == FLOORS[0]]
    wrong = [x for x in found if x["low"] > 0]
    return _result(wrong, found, "beats popularity with histories of other users, so look for a leak.")


@dg.asset_check(asset=KEY, description="Every model of an objective was trained under the same number of seeds.")
def every_seed_is_there(tables: Tables) -> dg.AssetCheckResult:
    """Floors have no seeds, and RecBole's SASRec may have others."""
    rows = tables.read(HISTORY_MODELS, ["objective", "model", "num_seeds"]).to_pylist()
    found: dict[str, dict[int, set[str]]] = {}
    for x in rows:
        if x["model"] not in (*FLOORS, PEER):
            found.setdefault(x["objective"], {}).setdefault(x["num_seeds"], set()).add(x["model"])
    uneven = {objective: seeds for objective, seeds in found.items() if len(seeds) > 1}
    return dg.AssetCheckResult(
        passed=not uneven,
        severity=dg.AssetCheckSeverity.ERROR,
        description="Models of one objective have different numbers of seeds: run compare_history_models again."
        if uneven
        else None,
        metadata={"observed": str(found), "threshold": 1, "failing_sample": str(uneven)},
    )
