"""Streams parquet files by row batch; a file that cannot be read to its end becomes a fault."""

from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from assets.interactions.readers.base import POSITION, DatasetError, fault, no_faults, no_rows
from assets.interactions.readers.delimited import Rows

BATCH_ROWS = 250_000


def scan_parquet(path: UPath, name: str) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """Streams a parquet file with the types that it has.

    Args:
        path: The file.
        name: How messages call it.

    Yields:
        The columns, and up to 250,000 rows; at the end one fault if the file was cut or damaged.

    Raises:
        DatasetError: If a column has a name or type that no frame can hold.
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
                rows = pl.from_arrow(pa.Table.from_batches([batch]))
                assert isinstance(rows, pl.DataFrame)
                rows = rows.insert_column(0, pl.int_range(done + 1, done + len(rows) + 1, eager=True).alias(POSITION))
                done += len(rows)
                yield columns, Rows(rows, no_faults())
            if not done:
                yield columns, Rows(no_rows(columns), no_faults())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        first = " ".join(str(error).split())[:200].rstrip(".")
        detail = f"The parquet file cannot be read after row {done:,} ({first}): fetch or write it again."
        yield (
            columns,
            Rows(
                no_rows(columns),
                fault(0, "empty_file" if path.stat().st_size == 0 else "unreadable_file", detail),
            ),
        )
