"""Checks of the stage: table suites, the law of totals, the share of refused rows, no leaks in splits."""

import dagster as dg
import polars as pl

from assets.expectations import Expect
from assets.interactions.intake import MENDED
from assets.interactions.refusals import OPEN, frame, quarantine_state
from assets.quality import table_checks
from assets.resources import Tables
from ray_jobs.tables.interactions import INGESTIONS, ITEMS, QUARANTINE, RAW_INTERACTIONS, SPLITS, USERS

NOT_EMPTY = r"\S"
WARN_ABOVE, BLOCK_ABOVE = 0.01, 0.5
SAMPLE = 5
PARTS = ["train", "valid", "test"]

items_checks = table_checks(
    ITEMS,
    semantic=[
        Expect("ColumnValuesToMatchRegex", column="item_id", regex=NOT_EMPTY),
        Expect("ColumnValuesToMatchRegex", column="title", regex=NOT_EMPTY),
        Expect("ColumnValuesToMatchRegex", column="attributes", regex=r"^\{"),
    ],
)
users_checks = table_checks(
    USERS,
    min_rows=0,
    semantic=[
        Expect("ColumnValuesToMatchRegex", column="user_id", regex=NOT_EMPTY),
        Expect("ColumnValuesToMatchRegex", column="attributes", regex=r"^\{"),
    ],
)
raw_interactions_checks = table_checks(
    RAW_INTERACTIONS,
    semantic=[
        Expect("ColumnValuesToMatchRegex", column="user_id", regex=NOT_EMPTY),
        Expect("ColumnValuesToMatchRegex", column="action", regex=NOT_EMPTY),
        Expect("ColumnValuesToMatchRegex", column="day", regex=r"^\d{4}-\d{2}-\d{2}$"),
        Expect("ColumnValuesToBeBetween", column="sequence", min_value=0),
    ],
)
quarantine_checks = table_checks(
    QUARANTINE,
    min_rows=0,
    blocking=False,
    severity=dg.AssetCheckSeverity.WARN,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="status", value_set=["open", "replayed"]),
        Expect(
            "ColumnValuesToBeInSet",
            column="source_table",
            value_set=["interactions", "items", "users"],
        ),
        Expect("ColumnValuesToMatchRegex", column="detail", regex=r"\.$"),
        Expect("ColumnValuesToBeBetween", column="position", min_value=0),
    ],
)
splits_checks = table_checks(
    SPLITS,
    semantic=[
        Expect("ColumnValuesToBeInSet", column="label", value_set=[0, 1]),
        Expect("ColumnValuesToBeInSet", column="leave_one_out", value_set=PARTS),
        Expect("ColumnValuesToBeInSet", column="global_time", value_set=PARTS),
        Expect("ColumnValuesToBeInSet", column="split", value_set=PARTS),
        Expect("ColumnMeanToBeBetween", column="label", min_value=0.001, max_value=0.999),
        Expect("ColumnValuesToBeBetween", column="position", min_value=0),
    ],
)

RAW_KEY, QUARANTINE_KEY, SPLITS_KEY = (["interactions", name] for name in ("raw_interactions", "quarantine", "splits"))


def broken_accounts(accounts: pl.DataFrame) -> pl.DataFrame:
    """Source files whose rows do not add up: read = kept + quarantined + duplicates."""
    found = pl.col("rows_kept") + pl.col("rows_quarantined") + pl.col("rows_duplicate")
    return accounts.filter(pl.col("rows_read") != found)


@dg.asset_check(asset=RAW_KEY, blocking=True, description="Every row that was read was kept, refused or a duplicate.")
def totals_add_up(tables: Tables) -> dg.AssetCheckResult:
    """Read = kept + quarantined + duplicates, file by file, and the table holds what was kept."""
    accounts = frame(tables.read(INGESTIONS))
    broken = broken_accounts(accounts)
    names = ["rows_read", "rows_kept", "rows_quarantined", "rows_duplicate"]
    sums = {name: int(accounts[name].sum()) for name in names}
    events = accounts.filter(pl.col("source_table") == "interactions")
    kept, held = int(events["rows_kept"].sum()), tables.warehouse().num_rows(RAW_INTERACTIONS)
    whole = int(events["rows_outside"].sum()) == 0
    # A run over part of the days keeps part of the events; over all days it keeps exactly what the table
    # holds.
    passed = broken.is_empty() and (kept == held if whole else kept <= held)
    said = (
        f"{sums['rows_read']:,} rows read = {sums['rows_kept']:,} kept + "
        f"{sums['rows_quarantined']:,} quarantined + "
        f"{sums['rows_duplicate']:,} duplicates; the table holds {held:,} events of which the last "
        f"run kept {kept:,}"
    )
    if not passed:
        where = ", ".join(broken["source"].head(SAMPLE).to_list()) or "interactions/raw_interactions"
        said += f": this does not add up in {where}, so materialize all days of raw_interactions again"
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description=said + ".",
        metadata=sums
        | {
            "observed": sums["rows_kept"] + sums["rows_quarantined"] + sums["rows_duplicate"],
            "threshold": sums["rows_read"],
            "events_in_table": held,
            "files": len(accounts),
            "failing_sample": str(broken.head(SAMPLE).to_dicts()) if len(broken) else "none",
        },
    )


@dg.asset_check(
    asset=QUARANTINE_KEY,
    blocking=True,
    description="Few rows are refused: above 1 % warns, above 50 % blocks.",
)
def refused_share(tables: Tables) -> dg.AssetCheckResult:
    """The share of rows that wait in quarantine; more than half of a table means another layout or type."""
    accounts = frame(tables.read(INGESTIONS)).filter(pl.col("source") != MENDED)
    # The quarantine holds rows of every day, a run over some days counts the others as outside.
    read = accounts.group_by("source_table").agg(
        (pl.col("rows_read") + pl.col("rows_outside")).sum().alias("rows_read")
    )
    state = quarantine_state(tables).filter(pl.col("status") == OPEN)
    waiting = state.group_by("source_table").len("rows_open")
    shares = read.join(waiting, on="source_table", how="left").with_columns(
        (pl.col("rows_open").fill_null(0) / pl.max_horizontal("rows_read", pl.col("rows_open").fill_null(0), 1)).alias(
            "share"
        )
    )
    worst = float(shares["share"].max() or 0.0)  # type: ignore[arg-type]
    blocks = worst > BLOCK_ABOVE
    tables_over = shares.filter(pl.col("share") > WARN_ABOVE)["source_table"].to_list()
    top = state.group_by("source_table", "reason").len().sort("len", descending=True).head(SAMPLE)
    severity = dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=worst <= WARN_ABOVE,
        severity=severity,
        description=None
        if not tables_over
        else (
            f"{worst:.1%} of the rows of {', '.join(tables_over)} are refused, most for "
            f"{top['reason'][0]}: mend them and run replay_quarantine, or correct the source."
        ),
        metadata={
            "observed": worst,
            "threshold": WARN_ABOVE,
            "blocking_threshold": BLOCK_ABOVE,
            "rows_open": len(state),
            "failing_sample": str(top.to_dicts()),
        },
    )


@dg.asset_check(
    asset=SPLITS_KEY,
    blocking=True,
    description="No split looks into the future, and train and test have rows.",
)
def splits_do_not_leak(tables: Tables) -> dg.AssetCheckResult:
    """Train ends before valid begins, valid before test; leave-one-out takes the last events of each user."""
    spans = pl.concat(
        [
            frame(part)
            .group_by("global_time", "split")
            .agg(
                pl.col("timestamp").min().alias("first"),
                pl.col("timestamp").max().alias("last"),
                pl.len().alias("rows"),
            )
            for part in tables.warehouse().batches(SPLITS, ["global_time", "split", "timestamp"])
        ]
    )
    by_time = spans.group_by("global_time").agg(pl.col("first").min(), pl.col("last").max())
    at = {name: (first, last) for name, first, last in by_time.iter_rows()}
    ordered = [at[name] for name in PARTS if name in at]
    leaks = [f"{a[1]} >= {b[0]}" for a, b in zip(ordered, ordered[1:], strict=False) if a[1] >= b[0]]
    rows = dict(spans.group_by("split").agg(pl.col("rows").sum()).iter_rows())
    empty = [name for name in ("train", "test") if not rows.get(name)]
    reasons = [f"times overlap ({', '.join(leaks)})"] * bool(leaks) + [f"{' and '.join(empty)} has no rows"] * bool(
        empty
    )
    return dg.AssetCheckResult(
        passed=not reasons,
        severity=dg.AssetCheckSeverity.ERROR,
        description=None
        if not reasons
        else f"The split in force cannot be used, because {' and '.join(reasons)}: "
        "change the fractions or the split in the config of interactions/splits.",
        metadata={
            "observed": len(reasons),
            "threshold": 0,
            "failing_sample": "; ".join(reasons) or "none",
            **{f"rows_{name}": int(rows.get(name, 0)) for name in PARTS},
        },
    )
