"""Streams parquet files by row batch; a file that cannot be read to its end becomes a fault."""

import json
from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from assets.interactions.clocks import bounded
from assets.interactions.readers.base import FAULTS_SCHEMA, POSITION, DatasetError, fault, no_faults, no_rows
from assets.interactions.readers.delimited import NOT_UTF8, Rows

BATCH_ROWS = 250_000


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_utf8(cell: bytes | None) -> bool:
    try:
        (cell or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoded(batch: pa.RecordBatch, first: int) -> tuple[pa.RecordBatch, pa.Array, pl.DataFrame]:
    """Takes out rows whose text is no UTF-8; Arrow does not look, and what comes later would crash on them.

    Returns:
        The other rows, their positions, and the faults.
    """
    plain = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    batch = pa.RecordBatch.from_arrays(plain, names=batch.schema.names)
    positions = pa.array(range(first, first + batch.num_rows), pa.int64())
    try:
        batch.validate(full=True)
        return batch, positions, no_faults()
    except pa.ArrowInvalid:
        texts = [c for c in batch.schema.names if _is_text(batch[c].type)]
        cells = {c: batch[c].cast(pa.large_binary()).to_pylist() for c in texts}
    good = [all(_is_utf8(cells[c][i]) for c in texts) for i in range(batch.num_rows)]
    bad = [i for i, fine in enumerate(good) if not fine]
    shown = [{c: v.decode(errors="replace") for c in texts if (v := cells[c][i]) is not None} for i in bad]
    faults = pl.DataFrame(
        {
            POSITION: [first + i for i in bad],
            "reason": ["bad_encoding"] * len(bad),
            "detail": [NOT_UTF8] * len(bad),
            "payload": [json.dumps(row, ensure_ascii=False)[:4096] for row in shown],
        },
        schema=FAULTS_SCHEMA,
    )
    batch, positions = batch.filter(pa.array(good)), positions.filter(pa.array(good))
    batch.validate(full=True)
    return batch, positions, faults


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    """Rows whose cells can be shown: clocks within the calendar, spans of time as text."""
    try:
        rows = pl.from_arrow(batch)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise pa.ArrowInvalid(str(error)) from error
    assert isinstance(rows, pl.DataFrame)
    clocks = [bounded(pl.col(n), k) for n, k in rows.schema.items() if isinstance(k, pl.Datetime | pl.Date)]
    spans = [pl.col(n).dt.to_string("iso") for n, k in rows.schema.items() if isinstance(k, pl.Duration)]
    return rows.with_columns(*clocks, *spans)


def scan_parquet(path: UPath, name: str) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """Streams a parquet file with the types that it has.

    Args:
        path: The file.
        name: How messages call it.

    Yields:
        The columns, and up to 250,000 rows; at the end one fault if the file was cut or damaged.

    Raises:
        DatasetError: If a column has a name that no frame can hold.
    """
    columns: tuple[str, ...] = ()
    done = 0
    try:
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            columns = tuple(file.schema_arrow.names)
            if POSITION in columns or len(set(columns)) < len(columns):
                raise DatasetError(f"The file {name} has a repeated column or one called `{POSITION}`: rename it.")
            for batch in file.iter_batches(BATCH_ROWS):
                good, positions, faults = _decoded(batch, done + 1)
                rows = _frame(good).insert_column(0, pl.Series(POSITION, positions))
                done += batch.num_rows
                yield columns, Rows(rows, faults)
            if not done:
                yield columns, Rows(no_rows(columns), no_faults())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        first = " ".join(str(error).split())[:200].rstrip(".")
        detail = f"The parquet file cannot be read after row {done:,} ({first}): fetch or write it again."
        yield (
            columns,
            Rows(
                no_rows(columns),
                fault(0, "empty_file" if path.stat().st_size == 0 else "unreadable_file", detail),
            ),
        )
