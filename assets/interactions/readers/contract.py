"""The data contract itself: a folder with interactions, items and perhaps users, as parquet or CSV."""

from collections.abc import Iterator

import polars as pl
from upath import UPath

from assets.interactions.readers.base import (
    ATTRIBUTES,
    OPTIONAL,
    POSITION,
    REQUIRED,
    Batch,
    DatasetError,
    Reader,
    fault,
    naming,
    no_rows,
    to_json,
)
from assets.interactions.readers.columnar import scan_parquet
from assets.interactions.readers.delimited import Dialect, Rows, scan_text

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz")


def attributes_json(columns: list[str], rows: pl.DataFrame) -> pl.Expr:
    """The given columns as one JSON object, keys in alphabetical order."""
    if not columns:
        return pl.lit("{}").alias(ATTRIBUTES)
    return to_json(rows, sorted(columns)).alias(ATTRIBUTES)


def to_batch(table: str, source: str, columns: tuple[str, ...], rows: pl.DataFrame, faults: pl.DataFrame) -> Batch:
    """Sorts a source's columns by the data contract's rules.

    Args:
        table: ``interactions``, ``items`` or ``users``.
        source: File, for messages.
        columns: Columns of the file, already under the contract's names.
        rows: Rows with those columns and `POSITION`.
        faults: Rows that could not be taken apart.

    Returns:
        The batch: what the contract does not name goes to ``attributes`` for items and users, and is left
        out, but named, for interactions.

    Raises:
        DatasetError: If a required column is missing.
    """
    if not columns:
        return Batch(source, no_rows(), faults)
    missing = [n for n in REQUIRED[table] if n not in columns]
    if missing:
        raise DatasetError(
            f"The file {source} has no column {' and no column '.join(missing)} (it has "
            f"{', '.join(columns)}): "
            f"{table} need {', '.join(REQUIRED[table])}, so add or rename it."
        )
    known = [n for n in REQUIRED[table] + OPTIONAL[table] if n in columns]
    extra = [n for n in columns if n not in known]
    if table == "interactions":
        return Batch(source, rows.select(POSITION, *known), faults, tuple(extra))
    with naming(source):
        given = rows.with_columns(attributes_json(extra, rows))
    return Batch(source, given.select(POSITION, *known, ATTRIBUTES), faults)


class ContractReader(Reader):
    """``contract:<folder>``: files or folders named ``interactions``, ``items`` and perhaps ``users``."""

    layout = "contract"

    def interactions(self) -> Iterator[Batch]:
        """See `Reader.interactions`."""
        return self._scan("interactions")

    def items(self) -> Iterator[Batch]:
        """See `Reader.items`."""
        return self._scan("items")

    def users(self) -> Iterator[Batch]:
        """See `Reader.users`."""
        return self._scan("users") if self._files("users") else iter(())

    def _files(self, table: str) -> list[UPath]:
        named = [self.folder / f"{table}{s}" for s in ("", *SUFFIXES)]
        single = [p for p in named if p.is_file()]
        # Spark and Dask write a folder that is called like a file.
        inside = sorted(
            (
                p
                for folder in named
                if folder.is_dir()
                for p in folder.rglob("*")
                if p.is_file() and not p.name.startswith(("_", "."))
            ),
            key=str,
        )
        if single and inside or len(single) > 1:
            raise DatasetError(
                f"{self.folder} has {table} more than once ({', '.join(p.name for p in single)}"
                f"{f' and a folder {table}' if inside else ''}): keep one of them."
            )
        return single or inside

    def _scan(self, table: str) -> Iterator[Batch]:
        files = self._files(table)
        if not files:
            raise DatasetError(
                f"The dataset folder {self.folder} has no {table}: add {table}.csv, {table}.parquet or a "
                f"folder {table} with such files."
            )
        for path in files:
            source = str(path).removeprefix(str(self.folder)).lstrip("/")
            scanned: Iterator[tuple[tuple[str, ...], Rows]]
            if not path.name.endswith(SUFFIXES):
                detail = f"The file is none of {', '.join(SUFFIXES)}: convert it, or take it out of the folder."
                scanned = iter([((), Rows(no_rows(), fault(0, "unreadable_file", detail)))])
            elif path.suffix == ".parquet":
                scanned = scan_parquet(path, source)
            else:
                scanned = scan_text(path, source, Dialect("\t" if ".tsv" in path.name else ","))
            for columns, read in scanned:
                yield to_batch(table, source, columns, read.rows, read.faults)
