"""Checks of captions as features: sound and healthy token sets, unit vectors, and captions that tell items apart."""

import math

import dagster as dg
import numpy as np
import polars as pl

from assets.captions.charts import markdown_table
from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from ray_jobs.tables.captions import (
    CAPTION_EMBEDDINGS,
    CAPTION_HEALTH,
    CAPTION_RETRIEVAL,
    CAPTION_TOKENS,
    ITEM_CAPTIONS,
)

# Poor items carry hardly any content into a ranker; equal sets cannot be told apart by it; sets that a harmless edit of
# the item changes are noise.
MAX_POOR_SHARE, MAX_DUPLICATE_SETS, MIN_STABILITY = 0.2, 0.2, 0.5
MAX_NORM_ERROR = 0.01
SAMPLE = 5

caption_tokens_checks = table_checks(
    CAPTION_TOKENS,
    semantic=[Expect("ColumnUniqueValueCountToBeBetween", column="token_version", min_value=1, max_value=1)],
)
caption_embeddings_checks = table_checks(
    CAPTION_EMBEDDINGS,
    semantic=[Expect("ColumnUniqueValueCountToBeBetween", column="embedding_version", min_value=1, max_value=1)],
)


@dg.asset_check(
    asset=dg.AssetKey(["captions", "caption_tokens"]),
    name="sets",
    blocking=True,
    description="Tokens are sorted sets without padding, each with its term and a weight above 0, for every caption.",
)
def tokens_are_sets(tables: Tables) -> dg.AssetCheckResult:
    """Embedding bags count what they get: a repeated or padding id would weigh more than it says."""
    rows = pl.DataFrame(tables.read(CAPTION_TOKENS, ["item_id", "token_ids", "tokens", "weights"]))
    ids = pl.col("token_ids")
    bad = rows.filter(
        (ids.list.unique().list.len() != ids.list.len())
        | (ids.list.sort() != ids)
        | (ids.list.min() < 1)
        | (ids.list.len() != pl.col("tokens").list.len())
        | (ids.list.len() != pl.col("weights").list.len())
        | (pl.col("weights").list.min() <= 0)
    )
    captioned = tables.warehouse().num_rows(ITEM_CAPTIONS)
    passed = bad.is_empty() and rows.height == captioned
    sample = ", ".join(bad["item_id"].head(SAMPLE))
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "bad_rows": bad.height,
            "threshold": 0,
            "rows": rows.height,
            "captions": captioned,
            "failing_sample": sample,
        },
        description=None
        if passed
        else (
            f"{bad.height:,} token sets are not sorted sets without padding (e.g. of {sample or 'none'}), and "
            f"{rows.height:,} sets stand for {captioned:,} captions: materialize captions/caption_tokens again."
        ),
    )


def _measures(tables: Tables) -> dict[str, float]:
    """Measures of the token sets that there are now; none if they were never measured."""
    if not tables.warehouse().exists(CAPTION_HEALTH):
        return {}
    version = tables.version(CAPTION_TOKENS)
    rows = tables.read(CAPTION_HEALTH, ["measure", "value", "created_timestamp"], [("tokens_version", "=", version)])
    return dict(pl.DataFrame(rows).sort("created_timestamp").select("measure", "value").iter_rows())


@dg.asset_check(
    asset=dg.AssetKey(["captions", "caption_tokens"]),
    name="health",
    description=f"At most {MAX_POOR_SHARE:.0%} of the items have fewer than three informative tokens (those that at "
    f"most a fifth of the items have; trigrams together count as one), at most {MAX_DUPLICATE_SETS:.0%} have "
    "the same set of tokens as another item, and a harmless edit of an item leaves its set alike: mean Jaccard index "
    f"at least {MIN_STABILITY}.",
)
def tokens_are_healthy(tables: Tables) -> dg.AssetCheckResult:
    """Warns of tokens that say little, say the same of many items, or something else each time."""
    found = _measures(tables)
    if not found:
        return dg.AssetCheckResult(
            passed=False,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"threshold": "", "failing_sample": ""},
            description="The tokens of this version were never measured: materialize captions/caption_tokens again.",
        )
    poor = found["poor_items"] / max(found["items"], 1)
    duplicates, stability = found.get("duplicate_sets", 0.0), found.get("recaption_jaccard", math.nan)
    wrong = []
    if poor > MAX_POOR_SHARE:
        wrong.append(
            f"{poor:.1%} of the items have fewer than three informative tokens (threshold {MAX_POOR_SHARE:.0%})"
        )
    if duplicates > MAX_DUPLICATE_SETS:
        wrong.append(f"{duplicates:.1%} share their tokens with another item (threshold {MAX_DUPLICATE_SETS:.0%})")
    if stability < MIN_STABILITY:
        wrong.append(f"re-captioned items keep {stability:.0%} of their tokens (threshold {MIN_STABILITY:.0%})")
    return dg.AssetCheckResult(
        passed=not wrong,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "poor_share": round(poor, 4),
            "duplicate_sets": round(duplicates, 4),
            "recaption_jaccard": "not measured: no canary was captioned twice"
            if math.isnan(stability)
            else round(stability, 4),
            "threshold": f"{MAX_POOR_SHARE}, {MAX_DUPLICATE_SETS}, {MIN_STABILITY}",
            "failing_sample": ", ".join(_poorest(tables)) if poor > MAX_POOR_SHARE else "",
        },
        description=f"{'; '.join(wrong)}: change prompt or model, or max_share and min_items." if wrong else None,
    )


def _poorest(tables: Tables) -> list[str]:
    from ray_jobs.captions.health import informative

    rows = pl.DataFrame(tables.read(CAPTION_TOKENS, ["item_id", "tokens"]))
    return (
        rows.with_columns(informative(rows).alias("count")).sort("count", "item_id")["item_id"].head(SAMPLE).to_list()
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "caption_embeddings"]),
    name="unit_length",
    blocking=True,
    description="Every embedding is finite and of unit length, and there is one for every caption.",
)
def embeddings_have_unit_length(tables: Tables) -> dg.AssetCheckResult:
    """Vectors that are not numbers, or not normalised, would spoil every distance downstream."""
    from ray_jobs.embedding_store import as_matrix

    bad, rows = [], 0
    for part in tables.warehouse().batches(CAPTION_EMBEDDINGS, ["item_id", "embedding"]):
        rows += part.num_rows
        wrong = ~(np.abs(np.linalg.norm(as_matrix(part["embedding"]), axis=1) - 1) <= MAX_NORM_ERROR)
        bad += [item for item, is_wrong in zip(part["item_id"].to_pylist(), wrong, strict=True) if is_wrong]
    captioned = tables.warehouse().num_rows(ITEM_CAPTIONS)
    passed = not bad and rows == captioned
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "bad_rows": len(bad),
            "rows": rows,
            "captions": captioned,
            "threshold": MAX_NORM_ERROR,
            "failing_sample": ", ".join(bad[:SAMPLE]),
        },
        description=None
        if passed
        else (
            f"{len(bad):,} embeddings are not of unit length, and {rows:,} stand for {captioned:,} captions: see that "
            "the text encoder's checkpoint is whole, and materialize captions/caption_embeddings again."
        ),
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "caption_embeddings"]),
    name="retrieval",
    description="Captions find their own items better than captions of other items of the same category do. Of at most "
    "500 sampled items, each caption seeks its item among up to 100 of one category, by the cosine of the caption's "
    "embedding and that of title, categories and description. The control seeks with captions of other candidates: "
    "what it reaches comes of the category alone. Warns unless the 95 % bootstrap interval of the difference in mean "
    "reciprocal rank lies above 0. A caption that only repeats the title finds its item, too: this measures that "
    "captions differ as their items do, not that they add anything.",
)
def captions_find_their_items(tables: Tables) -> dg.AssetCheckResult:
    """Catches generic captions, which every check of form lets pass."""
    from ray_jobs.captions.retrieval import discrimination

    places = pl.DataFrame(tables.read(CAPTION_RETRIEVAL))
    if places.height < 2:
        return dg.AssetCheckResult(
            passed=True,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"threshold": 0.0, "sampled_items": places.height, "failing_sample": ""},
            description="Fewer than two items share a category with another, so that there is nothing to tell apart.",
        )
    found, compared = discrimination(places)
    passed = found.lift_low > 0
    worst = places.sort(pl.col("rank") / pl.col("candidates"), "item_id", descending=[True, False])["item_id"]
    table = markdown_table(
        ["sought with", "R@1", "R@10", "MRR"], [[name, *(f"{v:.3f}" for v in row)] for name, row in compared.items()]
    )
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            **{name: round(value, 4) for name, value in found._asdict().items()},
            "threshold": 0.0,
            "sampled_items": places.height,
            "median_candidates": float(np.median(places["candidates"].to_numpy())),
            "compared": dg.MetadataValue.md(table),
            "failing_sample": ", ".join(worst.head(SAMPLE)),
        },
        description=None
        if passed
        else (
            f"Captions find their items no better than captions of other items of the category do (difference in mean "
            f"reciprocal rank {found.lift:+.4f}, interval {found.lift_low:+.4f} to {found.lift_high:+.4f}): they are "
            "generic; change prompt or model."
        ),
    )
