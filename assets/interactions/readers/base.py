"""What a reader is: it streams a source's rows under the names of the data contract, unjudged."""

import contextlib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import polars as pl
from upath import UPath

# A name that no source uses: a column called `position` is common in logs of impressions.
POSITION = "_position"
ATTRIBUTES = "attributes"
FAULTS_SCHEMA = {POSITION: pl.Int64, "reason": pl.String, "detail": pl.String, "payload": pl.String}

REQUIRED = {
    "interactions": ("user_id", "item_id", "timestamp"),
    "items": ("item_id", "title"),
    "users": ("user_id",),
}
OPTIONAL = {
    "interactions": ("action", "value", "event_id"),
    "items": ("description", "categories", "image_uri", "available_from"),
    "users": (),
}


class DatasetError(ValueError):
    """The dataset cannot be read as it is; the message is one sentence with cause and fix."""


class Batch(NamedTuple):
    """Some consecutive rows of one file.

    Attributes:
        source: The file, relative to the dataset.
        rows: Column `POSITION` (line number after the header, or row number, from 1) and the columns of the
            data contract that the source has, as text or typed; for items and users also ``attributes`` (JSON
            text).
        faults: Rows that have no columns, because they could not be taken apart: `POSITION` (0: the whole
            file), ``reason``, ``detail``, ``payload``.
        unused: Columns of the source that have no place in the contract.
    """

    source: str
    rows: pl.DataFrame
    faults: pl.DataFrame
    unused: tuple[str, ...] = ()


def no_rows(columns: tuple[str, ...] = ()) -> pl.DataFrame:
    """A frame of rows without rows, with ``columns`` of text."""
    return pl.DataFrame(schema={POSITION: pl.Int64} | dict.fromkeys(columns, pl.String))


def fault(position: int, reason: str, detail: str, payload: str = "") -> pl.DataFrame:
    """A frame of one fault."""
    return pl.DataFrame(
        {POSITION: [position], "reason": [reason], "detail": [detail], "payload": [payload[:4096]]},
        schema=FAULTS_SCHEMA,
    )


def no_faults() -> pl.DataFrame:
    """A frame of faults without rows."""
    return pl.DataFrame(schema=FAULTS_SCHEMA)


class Reader(ABC):
    """Reads one layout. A subclass with a ``layout`` in a module of this package is found by that name.

    Every method streams: memory is bounded by a block of a file, whatever the size of the source. The order
    of batches is the input order, which breaks ties in time; so files are read in the order of their names.

    Args:
        location: Folder, or fsspec URL, that follows the reader's name in ``BELVEDERE_DATASET``.

    Attributes:
        source: Layout and location, as in ``BELVEDERE_DATASET``.
        folder: The dataset's folder.

    Raises:
        DatasetError: If the location is not there or a required column is missing.
    """

    layout: ClassVar[str] = ""

    def __init__(self, location: str):
        self.source = f"{self.layout}:{location}"
        self.folder = UPath(location).expanduser()
        if not self.folder.is_dir():
            raise DatasetError(
                f"The dataset folder {location} does not exist: set BELVEDERE_DATASET to "
                f"`{self.layout}:<folder>` "
                "with a folder that exists."
            )

    @abstractmethod
    def interactions(self) -> Iterator[Batch]:
        """Streams the events."""

    @abstractmethod
    def items(self) -> Iterator[Batch]:
        """Streams the catalogue."""

    def users(self) -> Iterator[Batch]:
        """Streams the users; nothing by default, because a source need not describe them."""
        return iter(())

    def file(self, name: str) -> UPath:
        """A file of the dataset that must be there.

        Raises:
            DatasetError: If it is not.
        """
        found = self.folder / name
        if not found.is_file():
            raise DatasetError(
                f"The dataset folder {self.folder} has no file {name}, which the layout "
                f"`{self.layout}` needs: "
                "add it, or name another layout in BELVEDERE_DATASET."
            )
        return found


@contextlib.contextmanager
def naming(source: str) -> Iterator[None]:
    """Adds the file to an error that only knows the column."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(f"In {source}: {str(error)[:1].lower()}{str(error)[1:]}") from error


def to_json(rows: pl.DataFrame, columns: list[str]) -> pl.Expr:
    """The given columns as one JSON object; bytes as base64.

    Raises:
        DatasetError: If a column holds bytes inside of lists or structs.
    """
    for name in columns:
        if _bytes_inside(rows.schema[name]):
            raise DatasetError(
                f"The column {name} holds bytes inside of lists or structs, which JSON cannot hold: write it as "
                "text, or leave it out."
            )
    cells = [pl.col(n).bin.encode("base64") if rows.schema[n] == pl.Binary else pl.col(n) for n in columns]
    return pl.struct(cells).struct.json_encode()


def _bytes_inside(kind: Any) -> bool:
    inner = [field.dtype for field in kind.fields] if isinstance(kind, pl.Struct) else [getattr(kind, "inner", None)]
    return any(k is not None and (k == pl.Binary or _bytes_inside(k)) for k in inner)


def titles_from_events(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Items of a source that does not describe them: each item of an event, its id for a title.

    Memory is bounded by the number of items.
    """
    seen = pl.Series("item_id", [], dtype=pl.String)
    source = "items (derived from interactions)"
    for batch in batches:
        if "item_id" not in batch.rows.columns:
            continue
        found = batch.rows["item_id"].cast(pl.String).str.strip_chars().drop_nulls().unique(maintain_order=True)
        fresh = found.filter((found != "") & ~found.is_in(seen.implode()))
        if len(fresh):
            rows = pl.DataFrame(
                {
                    POSITION: pl.int_range(len(seen) + 1, len(seen) + len(fresh) + 1, eager=True),
                    "item_id": fresh,
                    "title": fresh,
                    ATTRIBUTES: ["{}"] * len(fresh),
                }
            )
            seen = pl.concat([seen, fresh])
            yield Batch(source, rows, no_faults())


def layouts() -> dict[str, type[Reader]]:
    """Every reader by the name of its layout."""
    import assets.interactions.readers as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    found: dict[str, type[Reader]] = {}
    pending = list(Reader.__subclasses__())
    while pending:
        reader = pending.pop()
        pending += reader.__subclasses__()
        if reader.layout:
            found[reader.layout] = reader
    return dict(sorted(found.items()))


def open_reader(source: str) -> Reader:
    """Returns the reader of ``<layout>:<location>``, e.g. ``contract:/data/shop``.

    Raises:
        DatasetError: If there is no such layout or location.
    """
    layout, _, location = source.partition(":")
    known = layouts()
    if layout not in known or not location:
        raise DatasetError(
            f"BELVEDERE_DATASET is `{source}`, which names no known layout: write "
            f"`<layout>:<folder>` with one of "
            f"{', '.join(known)}."
        )
    return known[layout](location)
