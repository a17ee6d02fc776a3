"""Events on their way in: judged, kept once, grouped by day, with every row accounted for."""

import contextlib
import dataclasses
import datetime as dt
import time
from collections.abc import Iterator

import polars as pl

from assets.interactions.forgotten import about_forgotten
from assets.interactions.readers.base import POSITION, Batch, DatasetError, naming
from assets.interactions.validation import CONTENT, REFUSED_SCHEMA, Limits, judge_events
from assets.spill import MAX_ROWS_IN_MEMORY, NUM_BUCKETS, Spill
from models.forgetting import NOBODY, ForgetList
from ray_jobs.progress import note

MAX_REFUSED = 5_000_000
SAY_EVERY_SECONDS = 5.0
EVENT = ["event_id", "user_id", "item_id", "timestamp", "action", "value"]
COUNTS = ("rows_read", "rows_kept", "rows_quarantined", "rows_duplicate", "rows_outside")


@dataclasses.dataclass
class Intake:
    """What a run took in of a source.

    Attributes:
        events: The events to keep, by day, in input order. Those of forgotten users are marked ``forgotten``: they
            count in a day's digest, which is the source's, and are never written.
        refused: Refused rows: ``source`` and `REFUSED_SCHEMA`.
        accounts: One row a source file, with the counts of `INGESTIONS`. Rows of forgotten users are in none.
        unused: Columns of the source that the contract has no place for.
    """

    events: Spill
    refused: pl.DataFrame
    accounts: pl.DataFrame
    unused: tuple[str, ...]

    def total(self, count: str) -> int:
        """Sum of a count over all files."""
        return int(self.accounts[count].sum())


class _Books:
    """Refused rows and counts while a run goes on."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.refused = [pl.DataFrame(schema={"source": pl.String, **REFUSED_SCHEMA})]
        self.num_refused = 0

    def add(self, source: str, **counts: int) -> None:
        book = self.counts.setdefault(source, dict.fromkeys(COUNTS, 0))
        for name, count in counts.items():
            book[name] += count

    def refuse(self, rows: pl.DataFrame) -> None:
        """Takes refused rows with their ``source``."""
        self.refused.append(rows.select("source", *REFUSED_SCHEMA))
        for source, count in rows.group_by("source").len().iter_rows():
            self.add(source, rows_quarantined=count)
        self.num_refused += len(rows)
        if self.num_refused > MAX_REFUSED:
            reason, source = rows.group_by("reason", "source").len().sort("len").row(-1)[:2]
            raise DatasetError(
                f"More than {MAX_REFUSED:,} rows were refused, last for `{reason}` in {source}: the "
                f"source has another "
                "layout or type than its contract says, so correct it before it is read."
            )

    def accounts(self) -> pl.DataFrame:
        rows = [{"source_table": "interactions", "source": source, **counts} for source, counts in self.counts.items()]
        schema = {"source_table": pl.String, "source": pl.String} | dict.fromkeys(COUNTS, pl.Int64)
        return pl.DataFrame(rows, schema=schema).sort("source")


def _ordinal(day: str) -> int:
    return dt.date.fromisoformat(day).toordinal()


def day_bucket(first: str, last: str) -> pl.Expr:
    """Bucket of an event: days in contiguous groups."""
    num_days = _ordinal(last) - _ordinal(first) + 1
    since = pl.col("day").str.to_date("%Y-%m-%d") - pl.lit(dt.date.fromisoformat(first))
    return (since.dt.total_days() * NUM_BUCKETS // max(num_days, 1)).clip(0, NUM_BUCKETS - 1)


def _judge_all(
    batches: Iterator[Batch],
    staged: Spill,
    books: _Books,
    limits: Limits,
    known_items: pl.Series | None,
    forgotten: ForgetList,
    first: str,
    last: str,
) -> set[str]:
    unused: set[str] = set()
    order, said = 0, time.monotonic()
    for batch in batches:
        with naming(batch.source):
            judged = judge_events(batch.rows, limits, known_items)
        named = pl.lit(batch.source).alias("source")
        within = pl.col("day").is_between(pl.lit(first), pl.lit(last))
        events = judged.good.with_columns(
            named,
            pl.int_range(order, order + pl.len(), dtype=pl.Int64).alias("order"),
            within.alias("inside"),
            forgotten.holds(judged.good["user_id"]),
        )
        order += len(events)
        faults = batch.faults.with_columns(pl.lit(None, dtype=pl.String).alias("day")).select(list(REFUSED_SCHEMA))
        refused = pl.concat([judged.refused, faults]).filter(within | pl.col("day").is_null()).with_columns(named)
        inside = events.filter("inside")
        outside = len(batch.rows) + len(batch.faults) - len(inside) - len(refused)
        refused = refused.filter(~about_forgotten(refused, forgotten))
        books.add(
            batch.source,
            rows_read=int((~inside["forgotten"]).sum()) + len(refused),
            rows_outside=outside,
        )
        books.refuse(refused)
        # An id that the source gives may return on another day with other content; only that needs other
        # days' rows.
        blank = [pl.when("inside").then(pl.col(n)).alias(n) for n in ("user_id", "item_id", "action", "value")]
        staged.add(events.filter(pl.col("inside") | pl.col("given_id")).with_columns(blank))
        unused.update(batch.unused)
        if time.monotonic() - said > SAY_EVERY_SECONDS:
            said = time.monotonic()
            note(
                "interactions",
                f"{sum(c['rows_read'] for c in books.counts.values()):,} rows read",
                file=batch.source,
            )
    return unused


def _keep_once(staged: Spill, events: Spill, books: _Books) -> None:
    for bucket in staged.buckets():
        marked = bucket.with_columns(
            pl.col("content").first().over("event_id").alias("_kept"),
            (pl.int_range(pl.len()).over("event_id") > 0).alias("_repeated"),
        ).filter("inside")
        kept = marked.filter(~pl.col("_repeated"))
        equal = marked.filter(pl.col("_repeated") & (pl.col("content") == pl.col("_kept")))
        other = marked.filter(pl.col("_repeated") & (pl.col("content") != pl.col("_kept")))
        other = other.filter(~pl.col("forgotten"))
        for frame, count in ((kept, "rows_kept"), (equal, "rows_duplicate")):
            for source, number in frame.filter(~pl.col("forgotten")).group_by("source").len().iter_rows():
                books.add(source, **{count: number})
        shown = [pl.col(n).cast(pl.String) if n == "timestamp" else pl.col(n) for n in ("event_id", *CONTENT)]
        books.refuse(
            other.select(
                "source",
                POSITION,
                "day",
                pl.lit("conflicting_event_id").alias("reason"),
                pl.format(
                    "The event_id `{}` stands before with other content: give the event an id of its own.",
                    pl.col("event_id"),
                ).alias("detail"),
                pl.struct(shown).struct.json_encode().alias("payload"),
            )
        )
        events.add(kept.select([*EVENT, "day", "order", "forgotten"]))


@contextlib.contextmanager
def take_in(
    batches: Iterator[Batch],
    *,
    limits: Limits,
    known_items: pl.Series | None,
    first: str,
    last: str,
    forgotten: ForgetList = NOBODY,
    max_rows: int = MAX_ROWS_IN_MEMORY,
) -> Iterator[Intake]:
    """Reads events of the days ``first`` to ``last``: each is kept, refused, a duplicate or of another day.

    Which of several events with one id is kept does not depend on the days asked for: the first in input
    order.

    Args:
        batches: The source's events in input order.
        limits: Which times are credible.
        known_items: Ids of the catalogue.
        first: First day, ``YYYY-MM-DD``.
        last: Last day.
        forgotten: Users who are kept out.
        max_rows: Rows held in memory; more are shuffled through scratch files.

    Yields:
        The intake, valid inside of the ``with`` block.
    """
    by_id = (pl.col("event_id").hash(seed=0) % NUM_BUCKETS).cast(pl.Int64)
    books = _Books()
    with (
        Spill(by_id, max_rows=max_rows) as staged,
        Spill(day_bucket(first, last), max_rows=max_rows) as events,
    ):
        unused = _judge_all(batches, staged, books, limits, known_items, forgotten, first, last)
        _keep_once(staged, events, books)
        yield Intake(events, pl.concat(books.refused), books.accounts(), tuple(sorted(unused)))
