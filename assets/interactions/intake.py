"""One ingestion from the reader to the tables, in an order in which a re-run mends every crash."""

import contextlib
import datetime as dt
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import dagster as dg
import polars as pl
import pyarrow as pa

from assets.interactions.catalogue import Catalogue, gather
from assets.interactions.days import DaysWritten, write_days
from assets.interactions.ingestion import take_in
from assets.interactions.readers.base import POSITION, Batch, DatasetError, Reader, no_faults
from assets.interactions.refusals import frame, keep_accounts, put_in_quarantine
from assets.interactions.validation import Limits
from assets.resources import Tables
from models.forgetting import NOBODY, ForgetList
from ray_jobs.tables.interactions import ITEMS, MENDED_EVENTS
from ray_jobs.warehouse import Table, content_digest

MENDED = "mended"


class IngestedEvents(NamedTuple):
    """Outcome of `ingest_events`: days, counts over all files, refusals by reason, unused columns."""

    days: DaysWritten
    counts: dict[str, int]
    reasons: dict[str, int]
    unused: tuple[str, ...]


@contextlib.contextmanager
def data_errors() -> Iterator[None]:
    """Turns an error of the dataset into a failure that no retry repeats."""
    try:
        yield
    except DatasetError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error


def mended_batches(tables: Tables) -> Iterator[Batch]:
    """The mended rows of the quarantine, as one more file after the source's."""
    if not tables.warehouse().exists(MENDED_EVENTS):
        return
    rows = frame(tables.read(MENDED_EVENTS)).sort("ordinal").rename({"ordinal": POSITION})
    if len(rows):
        names = [POSITION, "event_id", "user_id", "item_id", "timestamp", "action", "value"]
        yield Batch(MENDED, rows.select(names), no_faults())


def known_items(tables: Tables) -> pl.Series:
    """Ids of the catalogue. Memory is bounded by the number of items."""
    return frame(tables.read(ITEMS, ["item_id"]))["item_id"]


def ingest_events(
    tables: Tables, reader: Reader, *, first: str, last: str, now: dt.datetime, forgotten: ForgetList = NOBODY
) -> IngestedEvents:
    """Reads the source once and brings the days ``first`` to ``last`` of the events up to date.

    Args:
        tables: The warehouse.
        reader: The source.
        first: First day, ``YYYY-MM-DD``.
        last: Last day.
        now: The moment of reading.
        forgotten: Users who are kept out.

    Raises:
        DatasetError: If the source cannot be read as it is.
    """
    batches = itertools.chain(reader.interactions(), mended_batches(tables))
    with take_in(
        batches,
        limits=Limits(now),
        known_items=known_items(tables),
        first=first,
        last=last,
        forgotten=forgotten,
    ) as intake:
        put_in_quarantine(tables, "interactions", intake.refused, now, days=(first, last))
        days = write_days(tables, intake.events, first=first, last=last, created=now)
        keep_accounts(tables, "interactions", intake.accounts, now)
        counts = {name: intake.total(name) for name in intake.accounts.columns if name.startswith("rows_")}
        reasons = dict(intake.refused.group_by("reason").len().sort("reason").iter_rows())
    return IngestedEvents(days, counts, reasons, intake.unused)


def ingest_catalogue(
    tables: Tables, reader: Reader, table: Table, now: dt.datetime, forgotten: ForgetList = NOBODY
) -> tuple[Catalogue, pa.Table]:
    """Reads all items or users; refused rows go to quarantine.

    Args:
        tables: The warehouse.
        reader: The source.
        table: `ITEMS` or `USERS`.
        now: The moment of reading.
        forgotten: Users whose refused rows do not go to quarantine.

    Returns:
        What was read, and the rows for ``table``; `without` takes forgotten users out of them.

    Raises:
        DatasetError: If the source cannot be read as it is.
    """
    name = table.name.split("/")[1]
    batches = reader.items() if name == "items" else reader.users()
    read = gather(name, batches, Limits(now), forgotten)
    put_in_quarantine(tables, name, read.refused, now)
    keep_accounts(tables, name, read.accounts, now)
    rows = read.kept.with_columns(pl.lit(now).alias("created_timestamp"))
    return read, table.conform(rows.select([c.name for c in table.columns]).to_arrow())


def without(users: pa.Table, forgotten: ForgetList) -> pa.Table:
    """The rows of users who were not forgotten.

    The version of the table stays that of the source's rows, so that nothing is made again because of them.
    """
    return users.filter((~forgotten.holds(frame(users)["user_id"])).to_arrow())


def catalogue_version(rows: pa.Table) -> str:
    """Version of items or users: their content."""
    return content_digest(rows)
