"""Rows grouped in buckets: held in memory while they are few, in scratch files when they are many."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl
import pyarrow.parquet as pq

MAX_ROWS_IN_MEMORY = 500_000
NUM_BUCKETS = 256
SCRATCH = "belvedere-spill-"


class Spill:
    """A shuffle: rows go in in any order and come out bucket by bucket, in the order in which they went in.

    Memory is bounded by the rows allowed in memory and by the largest bucket; the rest is on local disk, in a
    scratch folder that goes away at the end.

    Args:
        bucket: Expression of a row's bucket, 0 to ``num_buckets - 1``. Rows that must meet have the same.
        num_buckets: Number of buckets on disk.
        max_rows: Rows held in memory before anything goes to disk; until then there is a single bucket.
    """

    def __init__(self, bucket: pl.Expr, *, num_buckets: int = NUM_BUCKETS, max_rows: int = MAX_ROWS_IN_MEMORY):
        self._bucket = bucket.alias("_bucket")
        self._num_buckets, self._max_rows = num_buckets, max_rows
        self._held: list[pl.DataFrame] = []
        self._num_held = 0
        self._folder: Any = None
        self._writers: dict[int, pq.ParquetWriter] = {}
        self._schema: pl.Schema | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_writers()
        self._held = []
        if self._folder is not None:
            self._folder.cleanup()

    @property
    def spilled(self) -> bool:
        """Whether rows are on disk."""
        return self._folder is not None

    def add(self, rows: pl.DataFrame) -> None:
        """Adds rows; all of one schema."""
        if self._schema is None:
            self._schema = rows.schema
        if rows.is_empty():
            return
        self._held.append(rows)
        self._num_held += len(rows)
        if self._num_held > self._max_rows:
            self._flush()

    def _flush(self) -> None:
        if self._folder is None:
            # The owner's id tells what a killed process left from what one is using.
            self._folder = tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-")
        held = pl.concat(self._held).with_columns(self._bucket)
        self._held, self._num_held = [], 0
        for (bucket,), rows in held.partition_by(
            "_bucket", as_dict=True, include_key=False, maintain_order=True
        ).items():
            data = rows.to_arrow()
            number = int(bucket)
            if number not in self._writers:
                self._writers[number] = pq.ParquetWriter(self._path(number), data.schema, compression="zstd")
            self._writers[number].write_table(data.cast(self._writers[number].schema))

    def _path(self, bucket: int) -> Path:
        return Path(self._folder.name) / f"{bucket:05d}.parquet"

    def _close_writers(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def buckets(self) -> Iterator[pl.DataFrame]:
        """Yields every bucket, in order of its number; may be called again."""
        if self._schema is None:
            return
        if self._folder is None:
            if self._held:
                yield pl.concat(self._held)
            return
        if self._held:
            self._flush()
        self._close_writers()
        for number in sorted(self._writers):
            yield pl.read_parquet(self._path(number)).cast(dict(self._schema))  # type: ignore[arg-type]
