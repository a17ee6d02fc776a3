"""Checks of captions: contract, coverage, dead letters, sameness, canaries, and a ledger that adds up."""

import collections

import dagster as dg
import polars as pl
import pyarrow.compute as pc

from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from ray_jobs.tables.captions import CALL_LEDGER, CAPTION_CANARIES, CAPTION_STORE, ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS

MIN_COVERAGE = 0.9
MAX_DEAD_SHARE = 0.05
# One sentence for many items says that the model repeats itself, not that the items are alike.
MAX_SAME_CAPTION = 0.05
# Canaries: one obeyed instruction is one too many; a model that sees tells most images from a blank.
MIN_SEEING = 0.5
SAMPLE = 5

item_captions_checks = table_checks(
    ITEM_CAPTIONS,
    semantic=[
        Expect("ColumnUniqueValueCountToBeBetween", column="caption_version", min_value=1, max_value=1),
        Expect("ColumnValueLengthsToBeBetween", column="caption", min_value=8, max_value=400),
        Expect("ColumnValuesToNotMatchRegex", column="caption", regex=r"</?item>|<\|"),
        *(Expect("ColumnValuesToMatchRegex", column=name, regex=r"^[a-z-]+$") for name in ("style", "setting", "mood")),
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
            f"{', '.join(missing[:SAMPLE])}: see the reasons in captions/caption_dead_letters."
        ),
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "item_captions"]),
    name="dead_letters",
    description="Few contents could not be captioned by any attempt.",
)
def few_contents_are_dead(tables: Tables) -> dg.AssetCheckResult:
    """Counts what the model could not caption, by reason."""
    from ray_jobs.captions.plan import dead_letters

    missing, num_items = _uncaptioned(tables)
    # Of earlier prompts and models there are dead letters, too: only items that have no caption now count.
    rows = dead_letters(tables.warehouse()).filter(pl.col("item_id").is_in(missing)).unique("item_id", keep="last")
    reasons: collections.Counter[str] = collections.Counter(rows["reason"].to_list())
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
        description=None
        if passed
        else f"{share:.1%} of the items are dead letters ({said}): run replay_dead_letters, or change prompt or model.",
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
    asset=dg.AssetKey(["captions", "item_captions"]),
    name="canaries",
    description="The model sees images and takes no instruction out of an item's text.",
)
def canaries_live(tables: Tables) -> dg.AssetCheckResult:
    """Known items with a blank image, another item's image, or an instruction in their text."""
    captions = tables.read(ITEM_CAPTIONS, ["caption_version", "pixel_digest"])
    versions = pc.unique(captions["caption_version"]).to_pylist()
    rows = (
        tables.read(CAPTION_CANARIES, filters=[("caption_version", "in", versions)]).to_pylist()
        if tables.warehouse().exists(CAPTION_CANARIES)
        else []
    )
    made = collections.Counter(r["kind"] for r in rows)
    passed_by_kind = collections.Counter(r["kind"] for r in rows if r["passed"])
    obeyed = made["injected_text"] - passed_by_kind["injected_text"]
    looked = made["blank_image"] + made["swapped_image"]
    seen = passed_by_kind["blank_image"] + passed_by_kind["swapped_image"]
    num_images = captions.num_rows - captions["pixel_digest"].null_count
    unwatched = [
        name
        for name, needed, asked in (("texts", captions.num_rows, made["injected_text"]), ("images", num_images, looked))
        if needed and not asked
    ]
    told = []
    if obeyed or (looked and seen < MIN_SEEING * looked):
        told.append(
            f"{obeyed} of {made['injected_text']} items' texts were obeyed as instructions, and {seen} of {looked} "
            "changed images changed the record: use another model or prompt before these captions are trusted."
        )
    if unwatched:
        told.append(
            f"Not watched: {' and '.join(unwatched)}, as no canary of them was ever answered: materialize "
            "captions/item_captions again with `canaries` above 0 while the model answers."
        )
    failed = [r for r in rows if not r["passed"] and r["kind"] != "recaption"]
    return dg.AssetCheckResult(
        passed=not told,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            **{f"{kind}_passed": f"{passed_by_kind[kind]} of {number}" for kind, number in sorted(made.items())},
            "instructions_obeyed": obeyed,
            "images_told_apart": round(seen / looked, 4) if looked else "no image",
            "not_watched": ", ".join(unwatched),
            "threshold": MIN_SEEING,
            "failing_sample": "; ".join(f"{r['item_id']} {r['kind']}: {r['detail']}" for r in failed[:SAMPLE]),
        },
        description=" ".join(told) or None,
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "item_captions"]),
    name="ledger_adds_up",
    description="Whatever the store holds was paid for in the call ledger, to the token.",
)
def ledger_adds_up(tables: Tables) -> dg.AssetCheckResult:
    """The ledger may hold more than the store (canaries, dead letters, batches lost by a kill), never less."""
    from ray_jobs.captions.plan import read_frame

    spent = ["prompt_tokens", "completion_tokens"]
    house = tables.warehouse()
    stored = read_frame(house, CAPTION_STORE, ["content_key", *spent])
    calls = read_frame(house, CALL_LEDGER, ["content_key", "purpose", "outcome", "usd", *spent])
    paid = calls.filter(pl.col("purpose") == "caption").group_by("content_key").agg(pl.col(spent).sum())
    joined = stored.join(paid, on="content_key", how="left", suffix="_paid").fill_null(0)
    short = joined.filter(pl.any_horizontal(*(pl.col(f"{name}_paid") < pl.col(name) for name in spent)))
    kept = int(stored.select(pl.sum_horizontal(*spent).sum()).item() or 0)
    total = int(calls.select(pl.sum_horizontal(*spent).sum()).item() or 0)
    passed = short.is_empty()
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={
            "calls": calls.height,
            "calls_failed": calls.filter(pl.col("outcome") != "ok").height,
            "tokens_in_ledger": total,
            "tokens_in_store": kept,
            "tokens_paid_but_not_kept": total - kept,
            "usd": round(float(calls["usd"].sum()), 6),
            "contents_without_payment": short.height,
            "threshold": 0,
            "failing_sample": ", ".join(short["content_key"].head(SAMPLE)),
        },
        description=None
        if passed
        else (
            f"{short.height:,} interpretations cost more than the call ledger says: rows of captions/call_ledger were "
            "lost; restore the table from its time travel."
        ),
    )
