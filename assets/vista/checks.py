"""Checks of the stage `vista`: contracts of its tables, whether the model learned, whether the cache is faithful."""

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from models.vista.cache import CacheFormat
from ray_jobs.tables.interactions import RAW_INTERACTIONS
from ray_jobs.tables.vista import USER_SUMMARIES, VISTA_MODELS

FLOOR = 0.5
# By precision: mean and largest error of a token relative to its length, largest change of a logit. A token that is
# rounded to 127 levels loses about 1/440 of its largest value: below 1% as a rule; to 7 levels, 18 times as much.
BOUNDS = {
    "int8": (0.02, 0.1, 0.1),
    "int4": (0.2, 0.4, 0.5),
    "fp16": (0.001, 0.005, 0.01),
    "fp32": (1e-6, 1e-6, 1e-4),
}
SAMPLE = 5
ROWS_AT_ONCE = 65_536

SUMMARIZER = dg.AssetKey(["vista", "summarizer"])
SUMMARIES = dg.AssetKey(["vista", "user_summaries"])

summarizer_checks = table_checks(
    VISTA_MODELS,
    max_rows=1,
    semantic=[
        Expect("ColumnValuesToBeBetween", column="valid_auc", min_value=0, max_value=1),
        Expect("ColumnValuesToBeBetween", column="test_auc", min_value=0, max_value=1),
        Expect("ColumnValuesToBeBetween", column="best_epoch", min_value=1),
        Expect("ColumnPairValuesAToBeGreaterThanB", column_A="epochs", column_B="best_epoch", or_equal=True),
    ],
)
user_summaries_checks = table_checks(
    USER_SUMMARIES,
    semantic=[
        Expect("ColumnUniqueValueCountToBeBetween", column="summary_version", min_value=1, max_value=1),
        Expect("ColumnValuesToBeBetween", column="num_events", min_value=1),
        Expect("CompoundColumnsToBeUnique", column_list=["user_id", "num_events"]),
    ],
)


@dg.asset_check(
    asset=SUMMARIZER,
    name="auc_above_floor",
    blocking=True,
    description="The model tells liked from not liked on `valid` better than a coin.",
)
def model_is_above_the_floor(tables: Tables) -> dg.AssetCheckResult:
    """An error if the whole interval is at or below 0.5; a warning if the interval only reaches down to it."""
    row = tables.read(VISTA_MODELS).to_pylist()[0]
    value, low, high = row["valid_auc"], row["valid_auc_low"], row["valid_auc_high"]
    worthless = row["valid_examples"] > 0 and high <= FLOOR
    told = (
        "`valid` has no examples, so nothing can be said"
        if not row["valid_examples"]
        else f"AUC on valid is {value:.4f} ({low:.4f} to {high:.4f}), not clearly above {FLOOR}"
    )
    return dg.AssetCheckResult(
        passed=low > FLOOR,
        severity=dg.AssetCheckSeverity.ERROR if worthless else dg.AssetCheckSeverity.WARN,
        description=None if low > FLOOR else f"{told}: look at the training curve and at interactions/splits.",
        metadata={
            "valid_auc": value,
            "valid_auc_low": low,
            "valid_auc_high": high,
            "threshold": FLOOR,
            "valid_examples": row["valid_examples"],
        },
    )


@dg.asset_check(
    asset=SUMMARIES,
    name="quantisation_error",
    blocking=True,
    description="Rounding changes neither tokens nor logits by more than their bounds.",
)
def summaries_are_faithful(tables: Tables) -> dg.AssetCheckResult:
    """Reads what the export measured of every token against its exact value."""
    from ray_jobs.vista.export import read_statistics

    found = read_statistics(tables.artifacts(), tables.version(USER_SUMMARIES))
    limits = BOUNDS[CacheFormat.of_version(found.content_version).precision]
    bounds = dict(zip(("relative_error_mean", "relative_error_max", "logit_error_max"), limits, strict=True))
    broken = {name: getattr(found, name) for name, bound in bounds.items() if getattr(found, name) > bound}
    return dg.AssetCheckResult(
        passed=not broken,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"The cache is too coarse: {broken} above {bounds}; export it with a finer `precision` or more "
        "`scales_per_token`."
        if broken
        else None,
        metadata={name: getattr(found, name) for name in [*bounds, "logit_error_mean"]}
        | {f"threshold_{name}": bound for name, bound in bounds.items()},
    )


@dg.asset_check(
    asset=SUMMARIES,
    name="values_are_whole",
    blocking=True,
    description="Every summary has the size of its model's, and every scale is finite.",
)
def values_are_whole(tables: Tables) -> dg.AssetCheckResult:
    """Sizes by the model's row and the format; scales finite and not negative."""
    model = tables.read(VISTA_MODELS, ["num_tokens", "width"]).to_pylist()[0]
    num_tokens, width = model["num_tokens"], model["width"]
    parts = []
    # In parts: all summaries at once are the largest thing that the platform keeps.
    columns = ["summary", "scales", "summary_version"]
    for data in tables.warehouse().batches(USER_SUMMARIES, columns, num_rows=ROWS_AT_ONCE):
        form = CacheFormat.of_version(data["summary_version"][0].as_py())
        sizes = pc.binary_length(data["summary"]).to_numpy()
        counts = pc.list_value_length(data["scales"]).to_numpy()
        values = pc.list_flatten(data["scales"]).to_numpy()
        owner = np.repeat(np.arange(len(counts)), counts)
        wrong = (sizes != form.row_bytes(num_tokens, width)) | (counts != num_tokens * form.scales)
        wrong[owner[~(np.isfinite(values) & (values >= 0))]] = True
        parts.append(wrong)
    bad = np.concatenate([np.zeros(0, bool), *parts])
    sample = np.flatnonzero(bad)[:SAMPLE].tolist()
    return dg.AssetCheckResult(
        passed=not bad.any(),
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{int(bad.sum())} summaries are of a wrong size or not finite, e.g. rows {sample}: materialize "
        "vista/user_summaries again."
        if sample
        else None,
        metadata={"bad_rows": int(bad.sum()), "threshold": 0, "failing_sample": str(sample)},
    )


@dg.asset_check(
    asset=SUMMARIES,
    name="one_latest_for_every_user",
    blocking=True,
    description="Every user with events has exactly one latest summary, which saw all of them.",
)
def every_user_has_one_latest(tables: Tables) -> dg.AssetCheckResult:
    """Compares users and numbers of events with `interactions/raw_interactions`."""
    latest = tables.read(USER_SUMMARIES, ["user_id", "num_events"], filters=[("is_latest", "=", True)])
    events = tables.read(RAW_INTERACTIONS, ["user_id"]).group_by("user_id").aggregate([([], "count_all")])
    twice = latest.num_rows - pc.count_distinct(latest["user_id"]).as_py()
    joined: pa.Table = events.join(latest, "user_id", join_type="full outer")
    wrong = joined.filter(pc.fill_null(pc.not_equal(joined["count_all"], joined["num_events"]), True))
    return dg.AssetCheckResult(
        passed=not wrong.num_rows and not twice,
        severity=dg.AssetCheckSeverity.ERROR,
        description=f"{wrong.num_rows} users lack a latest summary of all their events, {twice} have two: materialize "
        "vista/user_summaries again."
        if wrong.num_rows or twice
        else None,
        metadata={"users": events.num_rows, "users_wrong": wrong.num_rows, "users_twice": twice, "threshold": 0},
    )
