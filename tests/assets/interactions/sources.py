"""Small datasets for the tests of this stage."""

import datetime as dt
from pathlib import Path

from assets.interactions.intake import catalogue_version, ingest_catalogue, ingest_events
from assets.interactions.readers.base import open_reader
from assets.interactions.refusals import frame
from orchestration.resources.ledger import SqliteLedger
from ray_jobs.tables.interactions import INGESTIONS, ITEMS, QUARANTINE, RAW_INTERACTIONS

NOW = dt.datetime(2026, 11, 1, tzinfo=dt.UTC)
HEADER = "user_id,item_id,timestamp,action,value"
ITEMS_CSV = "item_id,title,categories\na,First,x|y\nb,Second,\nc,Third,z\n"
ALL_DAYS = ("2026-01-01", "2026-01-31")


def contract(folder: Path, events: str = "", items: str = ITEMS_CSV, header: str = HEADER, **more: str) -> str:
    """Writes a folder in contract form and returns its source string."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "interactions.csv").write_text(f"{header}\n{events}")
    (folder / "items.csv").write_text(items)
    for name, text in more.items():
        (folder / f"{name}.csv").write_text(text)
    return f"contract:{folder}"


def ingest(tables, source: str, first: str = ALL_DAYS[0], last: str = ALL_DAYS[1], now: dt.datetime = NOW):
    """Reads items and events of a source; returns the outcome of the events."""
    reader = open_reader(source)
    _, rows = ingest_catalogue(tables, reader, ITEMS, now)
    tables.write(ITEMS, rows, catalogue_version(rows))
    return ingest_events(tables, reader, first=first, last=last, now=now)


def events_of(tables):
    """All events, by the tie rule, without when they were written."""
    rows = frame(tables.read(RAW_INTERACTIONS)).sort("timestamp", "day", "sequence")
    return rows.drop("created_timestamp")


def refused_of(tables):
    """The quarantine, by place."""
    return frame(tables.read(QUARANTINE)).sort("source_table", "source", "position")


def accounts_of(tables):
    """What became of every row that was read."""
    return frame(tables.read(INGESTIONS))


def commits(tables, table) -> int:
    """Number of commits of a table."""
    from deltalake import DeltaTable

    return DeltaTable(tables.uri(table)).version() + 1 if tables.warehouse().exists(table) else 0


def ledger_of(tables):
    """The ledger beside the tables."""
    return SqliteLedger(url=f"sqlite:///{tables.warehouse_root}/../ledger.db")
