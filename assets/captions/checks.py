"""Checks of the stage `captions`: contracts of its tables, coverage, dead letters, and sound token sets."""

import collections

import dagster as dg
import polars as pl

from assets.quality import Expect, table_checks
from assets.resources import Tables
from ray_jobs.tables.captions import CAPTION_DEAD_LETTERS, CAPTION_TOKENS, ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS

MIN_COVERAGE = 0.9
MAX_DEAD_SHARE = 0.05
# One sentence for many items says that the model repeats itself, not that the items are alike.
MAX_SAME_CAPTION = 0.05
MIN_TOKENS, MAX_POOR_SHARE = 3, 0.2
SAMPLE = 5

item_captions_checks = table_checks(
    ITEM_CAPTIONS,
    semantic=[
        Expect("ColumnUniqueValueCountToBeBetween", column="caption_version", min_value=1, max_value=1),
        Expect("ColumnValueLengthsToBeBetween", column="caption", min_value=8, max_value=400),
        Expect("ColumnValuesToNotMatchRegex", column="caption", regex=r"</?item>|<\|"),
        Expect("ColumnValuesToMatchRegex", column="mood", regex=r"^[a-z-]+$"),
    ],
)
caption_tokens_checks = table_checks(
    CAPTION_TOKENS,
    semantic=[
        Expect("ColumnUniqueValueCountToBeBetween", column="token_version", min_value=1, max_value=1),
    ],
)


def _uncaptioned(tables: Tables) -> tuple[list[str], int]:
    """Items without a caption, and the number of all items."""
    items = set(tables.read(ITEMS, ["item_id"])["item_id"].to_pylist())
    captioned = set(tables.read(ITEM_CAPTIONS, ["item_id"])["item_id"].to_pylist())
    return sorted(items - captioned), len(items)


@dg.asset_check(
    asset=dg.AssetKey(["captions", "item_captions"]),
    name="coverage",
    blocking=True,
    description="Nearly every item of the catalogue has a caption.",
)
def items_are_captioned(tables: Tables) -> dg.AssetCheckResult:
    """Blocks what follows when too many items would enter without content."""
    missing, num_items = _uncaptioned(tables)
    coverage = 1 - len(missing) / max(num_items, 1)
    passed = coverage >= MIN_COVERAGE
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "coverage": round(coverage, 4),
            "threshold": MIN_COVERAGE,
            "items": num_items,
            "items_without_caption": len(missing),
            "failing_sample": ", ".join(missing[:SAMPLE]),
        },
        description=None
        if passed
        else (
            f"Only {coverage:.1%} of {num_items:,} items have a caption (threshold {MIN_COVERAGE:.0%}), e.g. not "
            f"{', '.join(missing[:SAMPLE])}: see the reasons in captions/dead_letters."
        ),
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "item_captions"]),
    name="dead_letters",
    description="Few contents could not be captioned by any attempt.",
)
def few_contents_are_dead(tables: Tables) -> dg.AssetCheckResult:
    """Counts what the model could not caption, by reason."""
    missing, num_items = _uncaptioned(tables)
    reasons: collections.Counter[str] = collections.Counter()
    if tables.warehouse().exists(CAPTION_DEAD_LETTERS):
        # Of earlier prompts and models there are dead letters, too: only items that have no caption now count.
        gone = set(missing)
        rows = tables.read(CAPTION_DEAD_LETTERS, ["item_id", "reason"]).to_pylist()
        reasons.update({r["item_id"]: r["reason"] for r in rows if r["item_id"] in gone}.values())
    share = reasons.total() / max(num_items, 1)
    passed = share <= MAX_DEAD_SHARE
    said = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "dead_letters": reasons.total(),
            "share": round(share, 4),
            "threshold": MAX_DEAD_SHARE,
            "reasons": said,
            "failing_sample": ", ".join(missing[:SAMPLE]),
        },
        description=None if passed else f"{share:.1%} of the items are dead letters ({said}): change prompt or model.",
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "item_captions"]), name="distinct", description="No caption is shared by many items."
)
def captions_differ(tables: Tables) -> dg.AssetCheckResult:
    """A model that writes one sentence for everything passes every check of form."""
    counts = collections.Counter(c.lower() for c in tables.read(ITEM_CAPTIONS, ["caption"])["caption"].to_pylist())
    ((caption, most),) = counts.most_common(1) or [("", 0)]
    share = most / max(counts.total(), 1)
    passed = share <= MAX_SAME_CAPTION or most <= 2
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "most_frequent_share": round(share, 4),
            "threshold": MAX_SAME_CAPTION,
            "failing_sample": caption,
            "distinct_share": round(len(counts) / max(counts.total(), 1), 4),
        },
        description=None if passed else f"{most:,} items have the caption '{caption}': change prompt or model.",
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "caption_tokens"]),
    name="sets",
    blocking=True,
    description="Tokens are sorted sets without padding, each with what it stands for, for every caption.",
)
def tokens_are_sets(tables: Tables) -> dg.AssetCheckResult:
    """Embedding bags count what they get: a repeated or padding id would weigh more than it says."""
    rows = pl.from_arrow(tables.read(CAPTION_TOKENS, ["item_id", "token_ids", "tokens"]))
    assert isinstance(rows, pl.DataFrame)
    ids = pl.col("token_ids")
    bad = rows.filter(
        (ids.list.unique().list.len() != ids.list.len())
        | (ids.list.sort() != ids)
        | (ids.list.min() < 1)
        | (ids.list.len() != pl.col("tokens").list.len())
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


@dg.asset_check(
    asset=dg.AssetKey(["captions", "caption_tokens"]),
    name="informative",
    description="Most items have at least three tokens.",
)
def tokens_say_something(tables: Tables) -> dg.AssetCheckResult:
    """Items with hardly a token carry no content into the ranker."""
    data = tables.read(CAPTION_TOKENS, ["item_id", "token_ids"])
    sizes = data["token_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    poor = data["item_id"].filter(sizes < MIN_TOKENS).to_pylist()
    share = len(poor) / max(data.num_rows, 1)
    passed = share <= MAX_POOR_SHARE
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "poor_share": round(share, 4),
            "threshold": MAX_POOR_SHARE,
            "min_tokens": MIN_TOKENS,
            "failing_sample": ", ".join(poor[:SAMPLE]),
        },
        description=None if passed else f"{share:.1%} of the items have fewer than {MIN_TOKENS} tokens.",
    )
