"""Checks of the stage `features`."""

import dagster as dg

from assets.expectations import Expect
from assets.features.consistency import SAMPLE, lost_rows, offline_and_online
from assets.quality import standing_evaluation, table_checks
from assets.resources import Features, Tables
from models.identity import version_of
from ray_jobs.tables.features import ITEM_POPULARITY, ONLINE_PUBLICATIONS, TRAINING_SET, USER_ACTIVITY
from ray_jobs.tables.interactions import SPLITS

SUITE = "1"
SAMPLED_ENTITIES = 200

COUNTS = [
    Expect("ColumnValuesToBeBetween", column="num_events", min_value=1),
    Expect("ColumnValuesToBeBetween", column="num_likes", min_value=0),
    Expect("ColumnPairValuesAToBeGreaterThanB", column_A="num_events", column_B="num_likes", or_equal=True),
]

item_popularity_checks = table_checks(ITEM_POPULARITY, semantic=COUNTS)

user_activity_checks = table_checks(USER_ACTIVITY, semantic=COUNTS)

training_set_checks = table_checks(
    TRAINING_SET,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="label", value_set=[0, 1]),
        Expect("ColumnValuesToBeInSet", column="split", value_set=["train", "valid", "test"]),
        # An example that counts more events of its user than there were before it has seen itself or the future.
        Expect(
            "ColumnPairValuesAToBeGreaterThanB",
            column_A="position",
            column_B="user_num_events",
            or_equal=True,
            ignore_row_if="either_value_is_missing",
        ),
    ],
)

online_store_checks = table_checks(
    ONLINE_PUBLICATIONS,
    min_rows=6,
    semantic=[
        Expect("ColumnValuesToBeBetween", column="rows", min_value=0),
        Expect("ColumnValuesToMatchRegex", column="version", regex="^[0-9a-f]{16}$"),
    ],
)


@dg.asset_check(
    asset=["features", "training_set"],
    name="no_rows_lost",
    blocking=True,
    additional_deps=[["interactions", "splits"]],
    description="The join gave back every example once, and no other: rows, label sums and ids agree.",
)
def no_rows_lost(context: dg.AssetCheckExecutionContext, tables: Tables) -> dg.AssetCheckResult:
    """Compares the training set with the examples that it was made of."""
    key = dg.AssetCheckKey(dg.AssetKey(["features", "training_set"]), "no_rows_lost")
    version = version_of(training_set=tables.version(TRAINING_SET), splits=tables.version(SPLITS))
    if (stands := standing_evaluation(context, key, version, SUITE)) is not None:
        return dg.AssetCheckResult(passed=True, severity=dg.AssetCheckSeverity.ERROR, metadata=dict(stands.metadata))
    found = lost_rows(tables.warehouse())
    return dg.AssetCheckResult(
        passed=found["ok"],
        severity=dg.AssetCheckSeverity.ERROR,
        description=None
        if found["ok"]
        else (
            f"The training set has {found['rows_out']:,} rows with {found['label_sum_out']:,} positives for "
            f"{found['rows_in']:,} examples with {found['label_sum_in']:,}; e.g. {found['failing_sample']}."
        ),
        metadata={k: v for k, v in found.items() if k != "ok"} | {"threshold": 0, "version": version, "suite": SUITE},
    )


@dg.asset_check(
    asset=["features", "online_store"],
    name="offline_equals_online",
    blocking=True,
    description="Feast's online store and its offline join give the same features of sampled entities.",
)
def offline_equals_online(
    context: dg.AssetCheckExecutionContext, tables: Tables, features: Features
) -> dg.AssetCheckResult:
    """Compares online and offline features of the same entities at the watermark."""
    key = dg.AssetCheckKey(dg.AssetKey(["features", "online_store"]), "offline_equals_online")
    version = tables.version(ONLINE_PUBLICATIONS)
    if (stands := standing_evaluation(context, key, version, SUITE)) is not None:
        return dg.AssetCheckResult(passed=True, severity=dg.AssetCheckSeverity.ERROR, metadata=dict(stands.metadata))
    held = {row["view"]: row for row in tables.read(ONLINE_PUBLICATIONS).to_pylist()}
    found = offline_and_online(features, held, SAMPLED_ENTITIES)
    differences = found["differences"]
    first = differences[0] if differences else None
    return dg.AssetCheckResult(
        passed=first is None,
        severity=dg.AssetCheckSeverity.ERROR,
        description=None
        if first is None
        else (
            f"{len(differences):,} of {found['compared']:,} values differ, e.g. {first['view']}.{first['feature']} of "
            f"{first['entity']}: offline {first['offline']}, online {first['online']}."
        ),
        metadata={
            "entities": found["entities"],
            "values_compared": found["compared"],
            "differing": len(differences),
            "threshold": 0,
            "failing_sample": differences[:SAMPLE],
            "version": version,
            "suite": SUITE,
        },
    )
