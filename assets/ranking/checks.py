"""Checks of the stage `ranking`. Predictions block: promotion follows."""

import dagster as dg
import numpy as np
import polars as pl

from assets.expectations import Expect
from assets.quality import table_checks
from assets.ranking.candidates import ranker_row
from assets.ranking.specs import CANDIDATES, CandidateSpec
from assets.resources import Tables
from models.ranking.evaluation import SLICES
from ray_jobs.tables.ranking import LEADERBOARD, RANKERS, predictions

MAX_ECE = 0.1


def _prediction_checks(spec: CandidateSpec) -> dg.AssetChecksDefinition:
    return table_checks(
        predictions(spec.name),
        min_rows=2,
        semantic=[
            Expect("ColumnValuesToBeBetween", column="score", min_value=0, max_value=1),
            Expect("ColumnValuesToBeBetween", column="rank", min_value=1),
            Expect("ColumnValuesToBeInSet", column="label", value_set=[0, 1]),
            Expect("ColumnDistinctValuesToEqualSet", column="split", value_set=["valid", "test"]),
            Expect("ColumnUniqueValueCountToBeBetween", column="ranker_version", min_value=1, max_value=1),
        ],
    )


def _registration_check(spec: CandidateSpec) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=dg.AssetKey(["ranking", spec.name]),
        name="registered",
        blocking=True,
        description="The table holds the predictions of the very ranker that is registered in MLflow.",
    )
    def registered(tables: Tables) -> dg.AssetCheckResult:
        """See the description."""
        row = ranker_row(tables, spec.name) or {}
        found = tables.read(predictions(spec.name), columns=["ranker_version"])["ranker_version"].unique().to_pylist()
        wanted = str(row.get("ranker_version"))
        return dg.AssetCheckResult(
            passed=found == [wanted],
            severity=dg.AssetCheckSeverity.ERROR,
            description=None
            if found == [wanted]
            else (f"Predictions are of version {found}, the registered ranker is {wanted}: materialize it again."),
            metadata={
                "observed": str(found),
                "threshold": wanted,
                "failing_sample": str([v for v in found if v != wanted]),
                "model_version": str(row.get("model_version")),
            },
        )

    return registered


def _calibration_check(spec: CandidateSpec) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=dg.AssetKey(["ranking", spec.name]),
        name="calibrated",
        description=(
            f"Probabilities can be used as such: expected calibration error on test at most {MAX_ECE}. The promotion "
            "gate has its own bound; this one warns early, and with few examples the error is overestimated."
        ),
    )
    def calibrated(tables: Tables) -> dg.AssetCheckResult:
        """See the description."""
        from models.ranking.metrics import calibration_error, equal_mass_bins

        data = tables.read(
            predictions(spec.name), columns=["split", "label", "score"], filters=[("split", "=", "test")]
        )
        p, label = data["score"].to_numpy(), data["label"].to_numpy().astype(float)
        bins = equal_mass_bins(p)
        ece = calibration_error(p, label, bins)
        gaps = {int(b): round(float((p - label)[bins == b].mean()), 4) for b in np.unique(bins)}
        worst = sorted(gaps.items(), key=lambda kv: -abs(kv[1]))[:3]
        return dg.AssetCheckResult(
            passed=bool(ece <= MAX_ECE),
            severity=dg.AssetCheckSeverity.WARN,
            description=None
            if ece <= MAX_ECE
            else (
                f"Expected calibration error {ece:.3f} of {spec.name} is above {MAX_ECE}: do not serve its "
                f"probabilities."
            ),
            metadata={
                "observed": round(float(ece), 5),
                "threshold": MAX_ECE,
                "num_examples": data.num_rows,
                "failing_sample": f"bins with the largest mean gap of probability and label: {worst}",
            },
        )

    return calibrated


(popularity_checks, item_knn_checks, markov_chain_checks, dlrm_checks, dlrm_captions_checks, dlrm_vista_checks) = (
    _prediction_checks(spec) for spec in CANDIDATES
)
(
    popularity_registered,
    item_knn_registered,
    markov_chain_registered,
    dlrm_registered,
    dlrm_captions_registered,
    dlrm_vista_registered,
) = (_registration_check(spec) for spec in CANDIDATES)
(
    popularity_calibrated,
    item_knn_calibrated,
    markov_chain_calibrated,
    dlrm_calibrated,
    dlrm_captions_calibrated,
    dlrm_vista_calibrated,
) = (_calibration_check(spec) for spec in CANDIDATES)

leaderboard_checks = table_checks(
    LEADERBOARD,
    min_rows=len(CANDIDATES),
    semantic=[
        Expect("ColumnValuesToBeInSet", column="candidate", value_set=[spec.name for spec in CANDIDATES]),
        Expect("ColumnValuesToBeInSet", column="slice", value_set=["all", *SLICES]),
        Expect("ColumnPairValuesAToBeGreaterThanB", column_A="high", column_B="low", or_equal=True),
    ],
)


@dg.asset_check(
    asset=dg.AssetKey(["ranking", "leaderboard"]),
    description="Learned candidates beat popularity on AUC, with the whole interval above zero.",
)
def models_beat_popularity(tables: Tables) -> dg.AssetCheckResult:
    """See the description. A warning: a dataset without taste to learn is no error of the platform."""
    data = pl.DataFrame(tables.read(LEADERBOARD))
    learned = [spec.name for spec in CANDIDATES if not spec.is_floor]
    found = data.filter(
        (pl.col("slice") == "all")
        & (pl.col("metric") == "auc")
        & (pl.col("baseline") == "popularity")
        & pl.col("candidate").is_in(learned)
    )
    weak = found.filter(pl.col("low") <= 0)
    return dg.AssetCheckResult(
        passed=weak.is_empty() and not found.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        description="No AUC could be compared, because the test split holds one class only: give it more events."
        if found.is_empty()
        else None
        if weak.is_empty()
        else (
            f"{', '.join(weak['candidate'])} {'does' if weak.height == 1 else 'do'} not surely beat "
            f"popularity: do not promote."
        ),
        metadata={
            "observed": str(found.select("candidate", "value", "low", "high").rows()),
            "threshold": 0.0,
            "failing_sample": str(weak.select("candidate", "value", "low", "high").rows()),
        },
    )


@dg.asset_check(
    asset=dg.AssetKey(["ranking", "leaderboard"]),
    blocking=True,
    description="Every candidate stands on the leaderboard in the version that is registered.",
)
def every_candidate_is_current(tables: Tables) -> dg.AssetCheckResult:
    """See the description."""
    registered = {r["candidate"]: r["ranker_version"] for r in tables.read(RANKERS).to_pylist()}
    board = tables.read(LEADERBOARD, columns=["candidate", "ranker_version"])
    shown = dict(pl.DataFrame(board).unique().iter_rows())
    wrong = sorted(
        spec.name for spec in CANDIDATES if shown.get(spec.name) != registered.get(spec.name) or spec.name not in shown
    )
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.ERROR,
        description=None
        if not wrong
        else f"{', '.join(wrong)}: other versions are registered; materialize ranking/leaderboard.",
        metadata={
            "observed": int(np.sum([n in shown for n in registered])),
            "threshold": len(CANDIDATES),
            "failing_sample": str(wrong),
        },
    )
