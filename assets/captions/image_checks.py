"""Checks of `captions/item_images`: the table's contract, and how many images are quarantined."""

import collections

import dagster as dg

from assets.expectations import Expect
from assets.quality import table_checks
from assets.resources import Tables
from ray_jobs.tables.captions import ITEM_IMAGES

MAX_QUARANTINED = 0.05
SAMPLE = 5

item_images_checks = table_checks(
    ITEM_IMAGES,
    # A dataset without images is none the worse.
    min_rows=0,
    semantic=[
        Expect("ColumnValuesToMatchRegex", column="pixel_digest", regex=r"^[0-9a-f]{32}$"),
        Expect("ColumnValuesToBeInSet", column="format", value_set=["JPEG", "PNG", "WEBP", "GIF", "BMP"]),
        Expect("ColumnValuesToBeBetween", column="width", min_value=1),
        Expect("ColumnValuesToBeBetween", column="height", min_value=1),
        Expect("ColumnValuesToBeBetween", column="attempts", min_value=1),
    ],
)


@dg.asset_check(
    asset=dg.AssetKey(["captions", "item_images"]),
    name="either_usable_or_told",
    blocking=True,
    description="Every image is either usable or quarantined with a reason and a fix.",
)
def images_are_usable_or_told(tables: Tables) -> dg.AssetCheckResult:
    """A row that is neither would be captioned without its image, and nobody would know."""
    rows = tables.read(ITEM_IMAGES, ["item_id", "pixel_digest", "reason", "detail"]).to_pylist()
    bad = [
        r["item_id"]
        for r in rows
        if (r["pixel_digest"] is None) != (r["reason"] is not None) or (r["reason"] is None) != (not r["detail"])
    ]
    return dg.AssetCheckResult(
        passed=not bad,
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"bad_rows": len(bad), "threshold": 0, "failing_sample": ", ".join(bad[:SAMPLE])},
        description=None
        if not bad
        else f"{len(bad):,} rows are neither usable nor quarantined, e.g. of {bad[0]}: materialize it with replay.",
    )


@dg.asset_check(
    asset=dg.AssetKey(["captions", "item_images"]), name="quarantined", description="Few images are quarantined."
)
def few_images_are_quarantined(tables: Tables) -> dg.AssetCheckResult:
    """Tells when a source's images are broken or out of reach as a whole."""
    rows = tables.read(ITEM_IMAGES, ["item_id", "reason"]).to_pylist()
    bad = [r for r in rows if r["reason"] is not None]
    share = len(bad) / max(len(rows), 1)
    said = ", ".join(
        f"{reason} {count}" for reason, count in collections.Counter(r["reason"] for r in bad).most_common()
    )
    passed = share <= MAX_QUARANTINED
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={
            "images": len(rows),
            "quarantined": len(bad),
            "share": round(share, 4),
            "threshold": MAX_QUARANTINED,
            "reasons": said,
            "failing_sample": ", ".join(r["item_id"] for r in bad[:SAMPLE]),
        },
        description=None
        if passed
        else (
            f"{share:.1%} of {len(rows):,} images are quarantined ({said}): see their fixes in the table, mend them, "
            "and run `replay_dead_letters`."
        ),
    )
