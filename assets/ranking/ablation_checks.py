"""Checks of `ranking/content_ablation`."""

import dagster as dg
import polars as pl

from assets.expectations import Expect
from assets.quality import table_checks
from assets.ranking.ablation_report import SLICES, TABLED
from assets.ranking.content_ablation import ARMS, PLACEBOS
from assets.resources import Tables
from ray_jobs.tables.ranking import CONTENT_ABLATION

content_ablation_checks = table_checks(
    CONTENT_ABLATION,
    min_rows=1,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="arm", value_set=[*ARMS, *PLACEBOS]),
        Expect("ColumnValuesToBeInSet", column="slice", value_set=list(SLICES)),
        Expect("ColumnValuesToBeInSet", column="metric", value_set=list(TABLED)),
        Expect("ColumnValuesToBeBetween", column="num_seeds", min_value=1),
        Expect("ColumnPairValuesAToBeGreaterThanB", column_A="high", column_B="low", or_equal=True),
    ],
)


@dg.asset_check(
    asset=dg.AssetKey(["ranking", "content_ablation"]),
    description="No placebo beside item IDs lifts AUC on the whole test split: a lift that it shares is not content's.",
)
def placebos_do_nothing(tables: Tables) -> dg.AssetCheckResult:
    """See the description. A warning: an experiment that went against the hypothesis is a result."""
    found = pl.DataFrame(tables.read(CONTENT_ABLATION)).filter(
        pl.col("arm").is_in(PLACEBOS)
        & pl.col("item_ids")
        & (pl.col("slice") == "all")
        & (pl.col("metric") == "auc")
        & (pl.col("baseline") == "none")
    )
    lifting = found.filter(pl.col("low") > 0)
    shown = ("split_rule", "arm", "value", "low", "high")
    return dg.AssetCheckResult(
        passed=lifting.is_empty(),
        severity=dg.AssetCheckSeverity.WARN,
        description=None
        if lifting.is_empty()
        else f"{', '.join(lifting['arm'].unique().sort())}: a placebo lifts AUC, so that no lift of its arm counts.",
        metadata={
            "observed": str(found.select(shown).rows()),
            "threshold": 0.0,
            "failing_sample": str(lifting.select(shown).rows()),
        },
    )
