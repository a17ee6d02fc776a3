"""RecBole's atomic files: ``<name>.inter``, ``.item`` and ``.user``, tabs, headers ``name:type``."""

from collections.abc import Iterator

import polars as pl
from upath import UPath

from assets.interactions.readers.base import POSITION, Batch, DatasetError, Reader, titles_from_events
from assets.interactions.readers.contract import to_batch
from assets.interactions.readers.delimited import Dialect, Rows, scan_text

VALUES = ("rating", "weight", "score", "stars")
TIMES = ("timestamp", "time", "unix_time", "date")
TITLES = (
    "title",
    "movie_title",
    "item_name",
    "name",
    "entity_name",
    "product_title",
    "book_title",
    "artist_name",
)
CATEGORIES = ("categories", "class", "genre", "genres", "category", "tags")
DESCRIPTIONS = ("description", "abstract", "summary")


def _first(names: tuple[str, ...], columns: list[str]) -> str | None:
    return next((n for n in names if n in columns), None)


class RecBoleReader(Reader):
    """``recbole:<folder>`` with atomic files; the folder's ``.link`` and ``.kg`` files are not read.

    Without an ``.item`` file the items are those of the events, with their ids for titles.
    """

    layout = "recbole"

    def interactions(self) -> Iterator[Batch]:
        """See `Reader.interactions`."""
        for source, kinds, read in self._scan(self._files("inter", needed=True)):
            columns = list(kinds)
            ids = iter(n for n, kind in kinds.items() if kind == "token" and n not in ("user_id", "item_id"))
            names = {
                "user_id": "user_id" if "user_id" in columns else next(ids, "user_id"),
                "item_id": "item_id" if "item_id" in columns else next(ids, "item_id"),
                "timestamp": _first(TIMES, columns) or "timestamp",
            }
            value = None if "value" in columns else _first(VALUES, columns)
            if value:
                names["value"] = value
            rows = read.rows.rename({old: new for new, old in names.items() if old in columns})
            # Under RecBole's names a row with a value is a rating; the contract's own column wins.
            if value and "action" not in columns:
                rows = rows.with_columns(pl.lit("rating").alias("action"))
            yield to_batch(
                "interactions",
                source,
                tuple(c for c in rows.columns if c != POSITION) if columns else (),
                rows,
                read.faults,
            )

    def items(self) -> Iterator[Batch]:
        """See `Reader.items`."""
        files = self._files("item")
        if not files:
            yield from titles_from_events(self.interactions())
        for source, kinds, read in self._scan(files):
            columns = list(kinds)
            item_id = (
                "item_id" if "item_id" in columns else next((n for n, k in kinds.items() if k == "token"), "item_id")
            )
            rows = read.rows.rename({item_id: "item_id"}) if item_id in columns else read.rows
            for new, names in (("title", TITLES), ("description", DESCRIPTIONS), ("categories", CATEGORIES)):
                if (old := _first(names, columns)) and old in rows.columns:
                    rows = rows.rename({old: new})
                    if new == "categories":
                        rows = rows.with_columns(
                            pl.col(new).str.split(" ").list.filter(pl.element() != "")
                            if kinds[old].endswith("_seq")
                            else pl.concat_list(pl.col(new)).list.drop_nulls()
                        )
            if "title" not in rows.columns and "item_id" in rows.columns:
                rows = rows.with_columns(pl.col("item_id").alias("title"))
            yield to_batch(
                "items",
                source,
                tuple(c for c in rows.columns if c != POSITION) if columns else (),
                rows,
                read.faults,
            )

    def users(self) -> Iterator[Batch]:
        """See `Reader.users`."""
        for source, kinds, read in self._scan(self._files("user")):
            tokens = [n for n, kind in kinds.items() if kind == "token"]
            rows = read.rows if "user_id" in kinds or not tokens else read.rows.rename({tokens[0]: "user_id"})
            yield to_batch(
                "users",
                source,
                tuple(c for c in rows.columns if c != POSITION) if kinds else (),
                rows,
                read.faults,
            )

    def _files(self, suffix: str, needed: bool = False) -> list[UPath]:
        found = sorted((p for p in self.folder.glob(f"*.{suffix}") if p.is_file()), key=str)
        if needed and not found:
            raise DatasetError(
                f"The dataset folder {self.folder} has no file *.{suffix}, which the layout `recbole` "
                "needs: add it, or name another layout in BELVEDERE_DATASET."
            )
        return found

    def _scan(self, files: list[UPath]) -> Iterator[tuple[str, dict[str, str], Rows]]:
        """Yields file name, type of each column, and rows under the bare names."""
        for path in files:
            for columns, read in scan_text(path, path.name, Dialect("\t", quoted=False)):
                kinds = {name: kind or "token" for name, _, kind in (c.partition(":") for c in columns)}
                if len(kinds) < len(columns):
                    raise DatasetError(f"The header of {path.name} repeats a column name: give every column one name.")
                yield (
                    path.name,
                    kinds,
                    Rows(read.rows.rename({c: c.partition(":")[0] for c in columns}), read.faults),
                )
