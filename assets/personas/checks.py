"""Checks of the stage `personas`: what a persona claims must be in its user's own history, and what is new must not."""

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.personas import PERSONA_COVERAGE, PERSONA_STORE, USER_PERSONAS

KEY = dg.AssetKey(["personas", "user_personas"])
MAX_FAILED_SHARE = 0.1
EVENTS_AT_ONCE = 250_000

# A small dataset may have no user with enough history: `coverage` tells.
user_personas_checks = table_checks(
    USER_PERSONAS,
    min_rows=0,
    semantic=[
        Expect("ColumnValueLengthsToBeBetween", column="persona", min_value=20, max_value=2000),
        Expect("ColumnValuesToBeBetween", column="num_events", min_value=1),
        Expect("ColumnUniqueValueCountToBeBetween", column="persona_version", min_value=0, max_value=1),
    ],
)


def _history(tables: Tables, personas: pl.DataFrame) -> pl.DataFrame:
    of_them = pc.field("user_id").isin(pa.array(personas["user_id"].to_list(), pa.string())) & ~pc.field("sampled")
    met = pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String, "label": pl.Int8})
    # Whoever comes back to an item a thousand times has met it once.
    for part in tables.warehouse().batches(SPLITS, met.columns, of_them, num_rows=EVENTS_AT_ONCE):
        met = pl.concat([met, pl.DataFrame(part)]).unique(maintain_order=True)
    return met


def _told(name: str, wrong: pl.DataFrame, total: int) -> dg.AssetCheckResult:
    # The sample shows what is wrong, never whom it is about.
    sample = [str(row) for row in wrong.drop("user_id").head(5).iter_rows()]
    return dg.AssetCheckResult(
        passed=not wrong.height,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"claims": total, "wrong": wrong.height, "threshold": 0, "failing_sample": "; ".join(sample)},
        description=f"{wrong.height} of {total} {name}, e.g. {sample[0]}." if wrong.height else None,
    )


@dg.asset_check(
    asset=KEY,
    name="grounding",
    blocking=True,
    description="Every item that an interest cites is one that the user liked.",
)
def every_claim_is_in_the_history(tables: Tables) -> dg.AssetCheckResult:
    """A persona that cites what its user never liked would be made up."""
    personas = pl.DataFrame(tables.read(USER_PERSONAS, ["user_id", "interests"]))
    cited = (
        personas.explode("interests")
        .drop_nulls("interests")
        .unnest("interests")
        .select("user_id", "label", pl.col("evidence_item_ids").alias("item_id"))
    )
    empty = cited.filter(pl.col("item_id").list.len() == 0)
    cited = cited.explode("item_id").drop_nulls("item_id")
    liked = _history(tables, personas).filter(pl.col("label") == 1)
    wrong = pl.concat(
        [
            cited.join(liked, on=["user_id", "item_id"], how="anti"),
            empty.with_columns(pl.lit("no evidence").alias("item_id")),
        ]
    )
    return _told("cited items are not liked items of the user's history", wrong, cited.height)


@dg.asset_check(
    asset=KEY,
    name="novelty",
    blocking=True,
    description="No exploration is a cluster that the user's history has touched, and none comes twice.",
)
def explorations_are_new(tables: Tables) -> dg.AssetCheckResult:
    """An exploration of what the user knows already explores nothing."""
    personas = pl.DataFrame(tables.read(USER_PERSONAS, ["user_id", "explorations"]))
    explored = (
        personas.explode("explorations")
        .drop_nulls("explorations")
        .unnest("explorations")
        .select("user_id", "cluster", "label")
    )
    clusters = pl.DataFrame(tables.read(SEMANTIC_IDS, ["item_id", "cluster"]))
    touched = _history(tables, personas).join(clusters, on="item_id").select("user_id", "cluster").unique()
    known = explored.join(touched, on=["user_id", "cluster"], how="semi")
    twice = explored.filter(pl.struct("user_id", "cluster").is_duplicated())
    return _told("explorations are not new", pl.concat([known, twice]), explored.height)


@dg.asset_check(
    asset=KEY, name="coverage", description="Every user is accounted for, few personas failed, and the budget held."
)
def every_user_is_accounted_for(tables: Tables) -> dg.AssetCheckResult:
    """Users without a persona are counted, not hidden."""
    (row,) = tables.read(PERSONA_COVERAGE).to_pylist()
    written = pl.DataFrame(tables.read(USER_PERSONAS, ["content_key"]))
    paid = 0
    if written.height and tables.warehouse().exists(PERSONA_STORE):
        store = pl.DataFrame(tables.read(PERSONA_STORE, ["content_key", "prompt_tokens", "completion_tokens"]))
        store = store.unique("content_key").join(written, on="content_key", how="semi")
        paid = int(store.select(pl.col("prompt_tokens", "completion_tokens").sum()).sum_horizontal().item())
    parts = row["users_written"] + row["users_failed"] + row["users_over_budget"] + row["users_too_little_history"]
    tried = row["users_written"] + row["users_failed"]
    share = row["users_failed"] / tried if tried else 0.0
    told = []
    if parts != row["users"] or written.height != row["users_written"]:
        told.append(f"{row['users']} users, but {parts} are accounted for and {written.height} personas stand.")
    if paid > row["token_budget"]:
        told.append(
            f"The personas cost {paid:,} tokens, above the budget of {row['token_budget']:,}: set "
            "BELVEDERE_PERSONA_TOKEN_BUDGET lower, as this model needs more tokens than were planned."
        )
    if share > MAX_FAILED_SHARE:
        told.append(
            f"{share:.0%} of the personas could not be written (threshold {MAX_FAILED_SHARE:.0%}): see "
            "personas/dead_letters for the reasons."
        )
    return dg.AssetCheckResult(
        passed=not told,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(told) or None,
        metadata={
            "share_failed": round(share, 4),
            "threshold": MAX_FAILED_SHARE,
            "tokens_paid": paid,
            "failing_sample": " ".join(told),
            **{k: v for k, v in row.items() if k != "created_timestamp"},
        },
    )
