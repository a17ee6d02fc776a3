"""Every store that may hold a user, and how the user leaves it: counted, erased, purged of copies, searched."""

import os
import re
import shutil
import sqlite3
import tempfile
from abc import ABC, abstractmethod
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from assets.interactions.forgotten import about_forgotten
from assets.interactions.refusals import frame
from assets.resources import Features, Ledger
from assets.spill import SCRATCH
from feature_repo import erasure as published
from feature_repo.publications import Publications
from models.forgetting import ForgetList, mask, names
from ray_jobs import erasure
from ray_jobs.erasure import USER_COLUMN
from ray_jobs.tables.interactions import QUARANTINE
from ray_jobs.tables.personas import PERSONA_COVERAGE, USER_PERSONAS
from ray_jobs.warehouse import Table, Warehouse

NOTHING = "nothing"
# Personal columns that no column `user_id` stands beside, and what removes their rows.
BY_RULE = {
    QUARANTINE.name: "rows whose payload is about the user",
}
# Shorter ids, and mere numbers, are found in any log by chance.
DISTINCTIVE = re.compile(r"(?=.*[^\d.]).{6,}")


def uncovered(tables: list[Table]) -> list[str]:
    """Tables with personal data of which nobody has said how a user leaves them."""
    return [
        table.name
        for table in tables
        if any(column.pii for column in table.columns)
        and USER_COLUMN not in {column.name for column in table.columns}
        and table.name not in BY_RULE
    ]


class Store(ABC):
    """One store. Every method may be called again, after a kill too."""

    name: str

    @abstractmethod
    def held(self) -> int:
        """Rows of the users."""

    @abstractmethod
    def erase(self) -> int:
        """Removes them for good; returns how many old versions or copies can no longer bring them back."""

    def search(self) -> str:
        """What is still found of them: `NOTHING`, or a sentence."""
        left = self.held()
        return f"{left:,} rows" if left else NOTHING


class DeltaRows(Store):
    """Rows of a Delta table that have certain values in one column."""

    def __init__(self, warehouse: Warehouse, table: str, column: str, values: list[str], note: str, always: bool):
        self.name = f"table {table}"
        self.warehouse, self.table, self.column, self.values, self.note = warehouse, table, column, values, note
        # A table without the user now may have older versions with the user; texts by content have no user.
        self.purged = always or bool(values)

    def held(self) -> int:
        """See `Store.held`."""
        return erasure.count(self.warehouse, self.table, self.column, self.values) if self.values else 0

    def erase(self) -> int:
        """See `Store.erase`."""
        if self.held():
            erasure.delete(self.warehouse, self.table, self.column, self.values, self.note)
        if self.table == USER_PERSONAS.name:
            self._count_personas_again()
        return erasure.purge(self.warehouse, self.table, self.note) if self.purged else 0

    def search(self) -> str:
        """See `Store.search`."""
        if left := self.held():
            return f"{left:,} rows"
        if self.purged and not erasure.is_purged(self.warehouse, self.table):
            return "older versions"
        return NOTHING

    def _count_personas_again(self) -> None:
        """Takes the users out of the counts, or the check of the counts would warn until personas are made again."""
        if not self.warehouse.exists(PERSONA_COVERAGE):
            return
        (row,) = self.warehouse.read(PERSONA_COVERAGE).to_pylist()
        gone = row["users_written"] - self.warehouse.num_rows(USER_PERSONAS)
        if gone > 0:
            counts = ("users", "users_eligible", "users_written")
            erasure.amend(self.warehouse, PERSONA_COVERAGE, [row | {n: row[n] - gone for n in counts}], self.note)


def persona_keys(warehouse: Warehouse, users: list[str], encoder: Any) -> tuple[list[str], list[str]]:
    """Keys of what was made from the histories of ``users`` only: of texts in the stores, and of their embeddings.

    Every table that has users beside a ``content_key`` or a ``persona`` tells. Personas that were written again since
    are found in older versions of these tables.

    Args:
        warehouse: The warehouse.
        users: Ids.
        encoder: The text encoder that the embeddings' keys were made with.
    """
    from ray_jobs.embedding_store import content_keys

    mine: dict[str, set[str]] = {"content_key": set(), "persona": set()}
    told = [
        (name, [c for c in mine if c in found])
        for name in erasure.table_names(warehouse)
        if USER_COLUMN in (found := erasure.columns(warehouse, name))
    ]
    for name, columns in told:
        for column in columns:
            mine[column] |= erasure.select(warehouse, name, USER_COLUMN, users, column, every_version=True)
    for name, columns in told:
        if columns and any(mine.values()):
            for part in erasure.parts(warehouse, name, [USER_COLUMN, *columns]):
                others = frame(part).filter(~pl.col(USER_COLUMN).is_in(users))
                for column in columns:
                    mine[column] -= set(others[column])
    return sorted(mine["content_key"]), content_keys(sorted(mine["persona"]), encoder)


class Quarantine(DeltaRows):
    """Refused rows of the source that are about the users."""

    def __init__(self, warehouse: Warehouse, users: ForgetList, note: str):
        super().__init__(warehouse, QUARANTINE.name, "quarantine_id", [], note, always=True)
        self.users = users

    def held(self) -> int:
        """See `Store.held`."""
        self.values = []
        for part in self.warehouse.batches(QUARANTINE, ["quarantine_id", "payload"]):
            rows = frame(part)
            self.values += rows.filter(about_forgotten(rows, self.users))["quarantine_id"].to_list()
        return len(self.values)


class PublishedView(Store):
    """A view's rows in every published version that is kept."""

    def __init__(self, publications: Publications, view: str, users: list[str]):
        self.name, self.publications, self.view, self.users = f"view {view}", publications, view, users

    def held(self) -> int:
        """See `Store.held`."""
        return published.held(self.publications, self.view, USER_COLUMN, self.users)

    def erase(self) -> int:
        """See `Store.erase`."""
        return published.erase(self.publications, self.view, USER_COLUMN, self.users)[1]


class OnlineStore(Store):
    """What serving reads."""

    def __init__(self, features: Features, users: list[str]):
        self.name, self.features, self.users = f"online store {features.online_store_name()}", features, users

    def held(self) -> int:
        """See `Store.held`."""
        return self.features.held_online(USER_COLUMN, self.users)

    def erase(self) -> int:
        """See `Store.erase`."""
        self.features.forget_online(USER_COLUMN, self.users)
        return 0


class LedgerRows(Store):
    """Rows of the ledger's tables that have a column of users."""

    name = "ledger"

    def __init__(self, ledger: Ledger, users: list[str]):
        self.ledger, self.users = ledger, users

    def held(self) -> int:
        """See `Store.held`."""
        return sum(self.ledger.held_rows(self.users).values())

    def erase(self) -> int:
        """See `Store.erase`."""
        self.ledger.erase_rows(self.users)
        return 0

    def search(self) -> str:
        """See `Store.search`."""
        if left := {name: number for name, number in self.ledger.held_rows(self.users).items() if number}:
            return f"rows of {', '.join(left)}"
        told = {t for user in self.users if DISTINCTIVE.fullmatch(user) for t in self.ledger.tables_with_text(user)}
        return f"the id in a text of {', '.join(sorted(told))}" if told else NOTHING


class Scratch(Store):
    """Scratch files that ingestions of this machine left when they were killed."""

    name = "scratch files"

    def _left(self) -> list[Path]:
        found = []
        for folder in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
            pid = folder.name.removeprefix(SCRATCH).split("-")[0]
            if pid.isdigit() and not _is_alive(int(pid)):
                found.append(folder)
        return found

    def held(self) -> int:
        """Always 0: the folders go whole, nobody looks into them."""
        return 0

    def erase(self) -> int:
        """See `Store.erase`."""
        left = self._left()
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        return len(left)

    def search(self) -> str:
        """See `Store.search`."""
        return f"{len(left)} folders" if (left := self._left()) else NOTHING


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Logs(Store):
    """What Dagster, MLflow and steps wrote below the home: no code writes ids there, and this looks whether so."""

    name = "logs and databases below the home"
    # The dataset is its source's, tables and views are searched by column, and models' weights hold no text.
    APART = ("datasets", "models", "warehouse", "artifacts", "feast/offline")
    # Logged by programs, and read by them: an id that is a word of such a file must not be written over.
    UNCHANGED = "mlflow/artifacts"
    DATABASES = (".db", ".db-wal", ".db-shm", ".db-journal")

    def __init__(self, home: Path, dataset: str, users: list[str]):
        self.home, self.users = home, users
        self.apart = {home.resolve() / name for name in self.APART} | {Path(dataset).resolve()}
        self.sought = [user.encode() for user in users if DISTINCTIVE.fullmatch(user)]

    def held(self) -> int:
        """Files that hold an id."""
        return len(self._files())

    def erase(self) -> int:
        """Masks ids in logs; databases and artifacts are left to whoever wrote an id there, and fail the search."""
        for path in self._files():
            if path.suffix not in self.DATABASES and not path.is_relative_to(self.home.resolve() / self.UNCHANGED):
                content = path.read_bytes()
                for user in self.sought:
                    content = mask(content, user)
                with path.open("r+b") as kept:
                    kept.write(content)
        return 0

    def search(self) -> str:
        """See `Store.search`."""
        if found := self._files():
            return f"the id in {', '.join(str(p.relative_to(self.home.resolve())) for p in found[:3])}"
        skipped = len(self.users) - len(self.sought)
        return f"{NOTHING}; not searched for {skipped:,} ids that look like any number" if skipped else NOTHING

    def _files(self) -> list[Path]:
        if not self.sought:
            return []
        found = []
        for folder, folders, files in os.walk(self.home.resolve()):
            folders[:] = [name for name in folders if Path(folder) / name not in self.apart]
            for path in (Path(folder) / file for file in files):
                # What a link points to is not the home's, and pipes have no end.
                if path.is_file() and not path.is_symlink() and path not in self.apart and self._names(path):
                    found.append(path)
        return found

    def _names(self, path: Path) -> bool:
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # Journals of databases come and go.
            return False
        held = [user for user in self.sought if user in content]
        if any(names(content, user) for user in held):
            return True
        return bool(held) and path.suffix == ".db" and _database_names(path, held)


def _database_names(path: Path, users: list[bytes]) -> bool:
    """Whether a value of an SQLite database names one of ``users``; in the file nothing parts it from the next one."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f"""SELECT * FROM "{table.replace('"', '""')}" """):
                for value in row:
                    content = value.encode() if isinstance(value, str) else value
                    if isinstance(content, bytes) and any(names(content, user) for user in users):
                        return True
    return False
