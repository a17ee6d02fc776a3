"""Mending the quarantine: refused rows go out as CSV, come back mended, and enter the events for good."""

import datetime as dt
import itertools
from typing import Any, NamedTuple

import polars as pl
from upath import UPath

from assets.interactions.days import write_days
from assets.interactions.ingestion import day_bucket
from assets.interactions.intake import MENDED, known_items
from assets.interactions.readers.base import POSITION, DatasetError, naming, no_faults
from assets.interactions.readers.columnar import scan_parquet
from assets.interactions.readers.contract import SUFFIXES, to_batch
from assets.interactions.readers.delimited import Dialect, scan_text
from assets.interactions.refusals import OPEN, REPLAYED, frame, keep_accounts, quarantine_version
from assets.interactions.validation import CONTENT, Limits, judge_events, text
from assets.resources import Tables
from assets.spill import Spill
from models.forgetting import NOBODY, ForgetList
from models.identity import version_of
from ray_jobs.tables.interactions import INGESTIONS, MENDED_EVENTS, QUARANTINE, RAW_INTERACTIONS

EXPORTED = ["quarantine_id", "source", "position", "reason", "detail"]
COLUMNS = ["user_id", "item_id", "timestamp", "action", "value", "event_id"]


class Replayed(NamedTuple):
    """What a replay did.

    Attributes:
        replayed: Rows that entered the events now.
        still_bad: Rows that were refused again; they stay open with the new reason.
        already_replayed: Rows that an earlier replay had taken.
        unknown: Rows whose ``quarantine_id`` names no refused event.
        days: Days of the events that changed.
    """

    replayed: int
    still_bad: int
    already_replayed: int
    unknown: int
    days: list[str]


def export_quarantine(tables: Tables, folder: str) -> int:
    """Writes the open refused events as ``<folder>/interactions.csv``, to be mended there.

    Args:
        tables: The warehouse.
        folder: Where to; made if need be.

    Returns:
        Number of rows. Whole files that could not be read are not among them: they are mended in the source.

    Raises:
        DatasetError: If the file is there already: it may be the source's, or hold rows that were mended.
    """
    target = UPath(folder).expanduser()
    if (target / "interactions.csv").exists():
        raise DatasetError(f"There is an interactions.csv in {folder} already: name another folder, or move the file.")
    filters = [("source_table", "=", "interactions"), ("status", "=", OPEN), ("position", ">", 0)]
    rows = frame(tables.read(QUARANTINE, [*EXPORTED, "payload"], filters)).sort("source", "position")
    # A payload that was cut, or a line that could not be taken apart, gives empty cells.
    cells = [pl.col("payload").str.json_path_match(f"$.{name}").alias(name) for name in COLUMNS]
    whole = pl.col("payload").str.starts_with("{") & pl.col("payload").str.ends_with("}")
    rows = (
        rows.with_columns(pl.when(whole).then(pl.col("payload")).alias("payload")).with_columns(cells).drop("payload")
    )
    target.mkdir(parents=True, exist_ok=True)
    (target / "interactions.csv").write_text(rows.select(*EXPORTED, *COLUMNS).write_csv())
    return len(rows)


def _files(mended: str) -> list[UPath]:
    root = UPath(mended).expanduser()
    if root.is_file():
        return [root]
    found = [p for s in SUFFIXES if (p := root / f"interactions{s}").is_file()]
    found += sorted((p for p in (root / "interactions").rglob("*") if p.name.endswith(SUFFIXES)), key=str)
    if not found:
        raise DatasetError(
            f"There are no mended rows at {mended}: give a file, or a folder with interactions.csv, as the "
            "export of the quarantine writes it."
        )
    return found


def _mended_rows(mended: str) -> pl.DataFrame:
    """All mended rows, as text, with their quarantine_id. Memory is bounded by their number."""
    found = [pl.DataFrame(schema={POSITION: pl.Int64, "quarantine_id": pl.String} | dict.fromkeys(COLUMNS, pl.String))]
    for path in _files(mended):
        scanned = (
            scan_parquet(path, path.name)
            if path.suffix == ".parquet"
            else scan_text(path, path.name, Dialect("\t" if ".tsv" in path.name else ","))
        )
        for columns, read in scanned:
            if columns and "quarantine_id" not in columns:
                raise DatasetError(f"The file {path.name} has no column quarantine_id: keep it as the export wrote it.")
            if len(read.faults):
                raise DatasetError(
                    f"Line {read.faults[POSITION][0]} of {path.name} cannot be read: {read.faults['detail'][0]}"
                )
            to_batch("interactions", path.name, columns, read.rows, no_faults())
            kinds = {n: kind for n, kind in read.rows.schema.items() if n in COLUMNS}
            with naming(path.name):
                cells = [
                    (pl.col(n).cast(pl.String) if kind.is_temporal() else text(read.rows, n)).alias(n)
                    for n, kind in kinds.items()
                ]
            found.append(read.rows.select(POSITION, "quarantine_id", *cells))
    return pl.concat(found, how="diagonal").unique("quarantine_id", keep="last", maintain_order=True)


def replay(tables: Tables, mended: str, now: dt.datetime | None = None, forgotten: ForgetList = NOBODY) -> Replayed:
    """Puts mended rows into the events, where every later ingestion keeps them.

    Idempotent: a row that was replayed before is left alone. Killed in the middle, it is mended by another
    call.

    Args:
        tables: The warehouse.
        mended: File, or folder in contract format, whose rows carry ``quarantine_id``; see
            `export_quarantine`.
        now: The moment of the replay.
        forgotten: Users whose rows are not taken back, whatever the file says.

    Raises:
        DatasetError: If the mended rows cannot be read.
    """
    now = now or dt.datetime.now(dt.UTC)
    rows = _mended_rows(mended)
    rows = rows.filter(~forgotten.holds(rows["user_id"]))
    state = frame(tables.read(QUARANTINE, ["quarantine_id", "status"], [("source_table", "=", "interactions")]))
    known = rows.join(state, on="quarantine_id", how="inner", maintain_order="left")
    waiting = known.filter(pl.col("status") == OPEN).with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(POSITION)
    )
    ids = waiting.select(POSITION, "quarantine_id")
    good, refused = judge_events(waiting.select(POSITION, *COLUMNS), Limits(now), known_items(tables))
    good = good.join(ids, on=POSITION, how="left", maintain_order="left")
    good, conflicts = _without_conflicts(tables, good)
    bad = pl.concat([refused.select(POSITION, "reason", "detail"), conflicts]).join(ids, on=POSITION, how="left")
    days = _merge(tables, good, now) if len(good) else []
    _mark(tables, good["quarantine_id"], bad)
    return Replayed(len(good), len(bad), len(known) - len(waiting), len(rows) - len(known), days)


def _without_conflicts(tables: Tables, good: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Refuses mended rows whose given id stands for another event, in the table or among themselves."""
    ids = good["event_id"].to_list()
    stored = [good.clear().select("event_id", *CONTENT)]
    if ids and tables.warehouse().exists(RAW_INTERACTIONS):
        stored.append(frame(tables.read(RAW_INTERACTIONS, ["event_id", *CONTENT], [("event_id", "in", ids)])))
    held = pl.concat([pl.concat(stored), good.select("event_id", *CONTENT)]).unique(
        "event_id", keep="first", maintain_order=True
    )
    same = good.join(held, on=["event_id", *CONTENT], how="semi", nulls_equal=True, maintain_order="left")
    other = good.join(held, on=["event_id", *CONTENT], how="anti", nulls_equal=True)
    return same, other.select(
        POSITION,
        pl.lit("conflicting_event_id").alias("reason"),
        pl.format(
            "The event_id `{}` stands for another event: give this one an id of its own.", pl.col("event_id")
        ).alias("detail"),
    )


def _merge(tables: Tables, good: pl.DataFrame, now: dt.datetime) -> list[str]:
    """Adds events to the book of mended ones, then to their days; returns the days."""
    book = (
        frame(tables.read(MENDED_EVENTS))
        if tables.warehouse().exists(MENDED_EVENTS)
        else frame(MENDED_EVENTS.schema.empty_table())
    )
    new = good.join(book, on="quarantine_id", how="anti").with_columns(
        # Not from the number of rows: those of forgotten users have left the book.
        (pl.int_range(1, pl.len() + 1, dtype=pl.Int64) + (book["ordinal"].max() or 0)).alias("ordinal"),
        pl.when("given_id").then(pl.col("event_id")).alias("event_id"),
        pl.lit(now).alias("created_timestamp"),
    )
    after = pl.concat([book, new.select([pl.col(c).cast(kind) for c, kind in book.schema.items()])])
    version = version_of(
        table=MENDED_EVENTS.name,
        rows=[str(r) for r in after.drop("created_timestamp").sort("ordinal").rows()],
    )
    tables.write(MENDED_EVENTS, after.to_arrow(), version)
    days = sorted(set(good["day"]))
    names = ["event_id", "user_id", "item_id", "timestamp", "action", "value", "day"]
    added = 0
    for first, last in _runs(days):
        with Spill(day_bucket(first, last)) as events:
            held: set[str] = set()
            for part in tables.warehouse().batches(RAW_INTERACTIONS, [*names, "sequence"], _between(first, last)):
                rows = frame(part)
                held |= set(rows.join(good, on="event_id", how="semi")["event_id"])
                events.add(rows.rename({"sequence": "order"}).with_columns(pl.lit(False).alias("forgotten")))
            fresh = good.filter(
                pl.col("day").is_between(pl.lit(first), pl.lit(last)) & ~pl.col("event_id").is_in(list(held))
            )
            fresh = fresh.unique("event_id", keep="first", maintain_order=True)
            # After everything that the source has, in the order of mending: as the next ingestion will read
            # it.
            order = (pl.int_range(pl.len(), dtype=pl.Int64) + 2**40).alias("order")
            events.add(fresh.select(*names, order, pl.lit(False).alias("forgotten")))
            write_days(tables, events, first=first, last=last, created=now)
            added += len(fresh)
    _account(tables, read=len(after), added=added, now=now)
    return days


def _between(first: str, last: str) -> object:
    import pyarrow.compute as pc

    return (pc.field("day") >= first) & (pc.field("day") <= last)


def _runs(days: list[str]) -> list[tuple[str, str]]:
    """Consecutive days as pairs of first and last."""
    numbered = enumerate(dt.date.fromisoformat(day).toordinal() for day in days)
    groups = [list(group) for _, group in itertools.groupby(numbered, key=lambda pair: pair[1] - pair[0])]
    return [(days[group[0][0]], days[group[-1][0]]) for group in groups]


def _account(tables: Tables, *, read: int, added: int, now: dt.datetime) -> None:
    """Counts mended rows as one more file. What is no duplicate of a source's event was kept."""
    accounts = frame(tables.read(INGESTIONS)).filter(pl.col("source_table") == "interactions").drop("created_timestamp")
    before = accounts.filter(pl.col("source") == MENDED)
    row: dict[str, Any] = (
        before.to_dicts()[0]
        if len(before)
        else dict.fromkeys(accounts.columns, 0) | {"source_table": "interactions", "source": MENDED}
    )
    others = accounts.filter(pl.col("source") != MENDED)
    if accounts["rows_outside"].sum() == 0:
        # The last run read every day, so the table itself tells; also after a crash between two commits.
        kept = tables.warehouse().num_rows(RAW_INTERACTIONS) - int(others["rows_kept"].sum())
    else:
        kept = row["rows_kept"] + added
    read -= row["rows_outside"]
    kept = min(max(kept, 0), read - row["rows_quarantined"])
    row |= {"rows_read": read, "rows_kept": kept, "rows_duplicate": read - row["rows_quarantined"] - kept}
    after = pl.concat([others, pl.DataFrame([row], schema=accounts.schema)])
    keep_accounts(tables, "interactions", after, now)


def _mark(tables: Tables, replayed: pl.Series, bad: pl.DataFrame) -> None:
    """Marks rows as replayed, and gives those that are still bad their new reason."""
    if replayed.is_empty() and bad.is_empty():
        return
    rows = frame(tables.read(QUARANTINE))
    fresh = bad.select("quarantine_id", pl.col("reason").alias("_reason"), pl.col("detail").alias("_detail"))
    after = rows.join(fresh, on="quarantine_id", how="left").with_columns(
        pl.coalesce("_reason", "reason").alias("reason"),
        pl.coalesce("_detail", "detail").alias("detail"),
        pl.when(pl.col("quarantine_id").is_in(replayed.implode()))
        .then(pl.lit(REPLAYED))
        .otherwise(pl.col("status"))
        .alias("status"),
    )
    tables.write(QUARANTINE, after.select(rows.columns).to_arrow(), quarantine_version(after))
