"""The warehouse: every table of the platform is a Delta Lake table, found by name and written atomically.

A table's identity (``version``) travels in the commit that wrote it, so a reader can refuse a mismatch and a
writer can see that there is nothing to do. Only this module and the resource that wraps it know locations.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.ipc

from ray_jobs.filesystems import filesystem_at

VERSION_KEY = "belvedere.version"
TIMESTAMP = pa.timestamp("us", tz="UTC")
# Of a row group, which a writer holds until it is whole and a reader decodes at once; rows of the training set have a
# kilobyte each.
GROUP_BYTES, MOST_IN_GROUP = 16 << 20, 65_536


class VersionMismatchError(RuntimeError):
    """A table holds another version than the reader was promised."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table's contract.

    Attributes:
        name: Column name.
        type: Arrow type.
        description: What it holds, with unit; shown in the Dagster UI.
        nullable: Whether nulls are allowed.
        pii: Whether it identifies a person; samples shown in UIs are masked.
    """

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False
    pii: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """The contract of one table: name, grain and columns.

    Attributes:
        name: ``stage/table``; also the Dagster asset key where an asset owns it.
        grain: What one row is.
        columns: Columns in order.
        primary_key: Columns that identify a row.
        partition_by: Columns that the files are laid out by (dates and shards, never users or items).
    """

    name: str
    grain: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...]
    partition_by: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of the table; without descriptions, which may be reworded while the table stands."""
        return pa.schema([pa.field(c.name, c.type, c.nullable) for c in self.columns])

    def conform(self, data: pa.Table) -> pa.Table:
        """Returns ``data`` with exactly this table's columns, order and types.

        Raises:
            ValueError: If a column is missing, unknown or of another type.
        """
        missing = [c.name for c in self.columns if c.name not in data.column_names]
        extra = [n for n in data.column_names if n not in {c.name for c in self.columns}]
        if missing or extra:
            raise ValueError(f"Table {self.name} expects other columns: missing {missing}, unexpected {extra}.")
        try:
            return pa.table([data[c.name].cast(c.type) for c in self.columns], schema=self.schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise ValueError(f"Table {self.name} got a column of another type: {error}") from error


class Written(NamedTuple):
    """What a write did.

    Attributes:
        version: Version of the table's content after the call.
        rows: Rows written, or rows that stand if nothing was written.
        committed: False if the table already held this version, so that nothing was written.
    """

    version: str
    rows: int
    committed: bool


def content_digest(data: pa.Table, ignore: tuple[str, ...] = ("created_timestamp",)) -> str:
    """Returns a digest of ``data``'s rows in order, without columns that only say when they were written."""
    kept = data.drop_columns([n for n in ignore if n in data.column_names]).combine_chunks().replace_schema_metadata()
    sink = hashlib.sha256()
    stream = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(stream, kept.schema) as writer:
        writer.write_table(kept, max_chunksize=1 << 20)
    sink.update(stream.getvalue())
    return sink.hexdigest()[:16]


def _rows_in_group(data: pa.Table) -> int:
    """Rows of a row group, so that rows like those of ``data`` make groups of at most `GROUP_BYTES`."""
    if not data.num_rows:
        return MOST_IN_GROUP
    return max(1, min(MOST_IN_GROUP, GROUP_BYTES * data.num_rows // max(data.nbytes, 1)))


def _writer_properties(rows_in_group: int) -> Any:
    from deltalake import WriterProperties

    return WriterProperties(max_row_group_size=rows_in_group, compression="SNAPPY")


@dataclasses.dataclass(frozen=True)
class Warehouse:
    """Delta tables below one root.

    Attributes:
        root: Folder or object-storage URL (``s3://bucket/prefix``).
        storage_options: Credentials and endpoint as `deltalake` takes them; empty for a local folder.
    """

    root: str
    storage_options: dict[str, str] = dataclasses.field(default_factory=dict)

    def uri(self, table: Table) -> str:
        """Location of ``table``."""
        return f"{self.root.rstrip('/')}/{table.name}"

    def _open(self, table: Table, at: int | None = None) -> Any:
        from deltalake import DeltaTable

        return DeltaTable(self.uri(table), version=at, storage_options=self.storage_options or None)

    def exists(self, table: Table) -> bool:
        """Whether the table has ever been written."""
        from deltalake import DeltaTable

        return bool(DeltaTable.is_deltatable(self.uri(table), storage_options=self.storage_options or None))

    def version(self, table: Table) -> str | None:
        """Version of the content that a reader gets now, or None if the table was never written."""
        if not self.exists(table):
            return None
        for commit in self._open(table).history():
            if VERSION_KEY in commit:
                return str(commit[VERSION_KEY])
        return None

    def _require(self, table: Table, expect_version: str | None) -> None:
        if not self.exists(table):
            raise FileNotFoundError(f"Table {table.name} does not exist yet: materialize the asset {table.name} first.")
        if expect_version is not None and (found := self.version(table)) != expect_version:
            raise VersionMismatchError(
                f"Table {table.name} holds version {found}, not {expect_version}: materialize {table.name} again."
            )

    def read(
        self, table: Table, columns: list[str] | None = None, filters: Any = None, expect_version: str | None = None
    ) -> pa.Table:
        """Reads rows of a table.

        Args:
            table: The table.
            columns: Columns to read; all by default.
            filters: Partition or row filters in PyArrow's ``[(column, op, value)]`` form, or an expression.
            expect_version: Refuse any other version.

        Raises:
            FileNotFoundError: If the table was never written.
            VersionMismatchError: If the table holds another version.
        """
        self._require(table, expect_version)
        names = columns or [c.name for c in table.columns]
        # An own file system: deltalake's default calls back into Python from Arrow's threads, which aborts the
        # process when one is still at it while the interpreter ends.
        files = pafs.SubTreeFileSystem(*reversed(filesystem_at(self.uri(table), self.storage_options)))
        by_name = {c.name: c for c in table.columns}
        if isinstance(filters, list):
            # Typed, as Arrow compares no text with an empty list, whose type it cannot know.
            filters = [(c, op, pa.array(said, by_name[c].type) if op == "in" else said) for c, op, said in filters]
        data = self._open(table).to_pyarrow_table(columns=names, filters=filters, filesystem=files)
        return pa.table([data[n].cast(by_name[n].type) for n in names], names=names)

    def batches(
        self,
        table: Table,
        columns: list[str] | None = None,
        filters: Any = None,
        num_rows: int = 1_000_000,
        expect_version: str | None = None,
    ) -> Iterator[pa.Table]:
        """Yields a table's rows in parts of at most ``num_rows``, for tables that do not fit into memory.

        Args:
            table: The table.
            columns: Columns to read; all by default.
            filters: An expression of `pyarrow.compute`.
            num_rows: Most rows of a part; all parts but the last have as many.
            expect_version: Refuse any other version.
        """
        self._require(table, expect_version)
        names = columns or [c.name for c in table.columns]
        schema = pa.schema([(c.name, c.type) for n in names for c in table.columns if c.name == n])
        found = self.dataset(table)
        kept: list[pa.RecordBatch] = []
        waiting = 0
        # A scan of all files would decode up to a GiB ahead of whoever is slower than the disk.
        groups = (g for f in found.get_fragments(filters) for g in f.split_by_row_group(filters, schema=found.schema))
        scanned = (b for g in groups for b in g.to_batches(schema=found.schema, columns=names, filter=filters))
        for batch in scanned:
            while batch.num_rows:
                part = batch.slice(0, num_rows - waiting)
                batch = batch.slice(part.num_rows)
                kept.append(part)
                waiting += part.num_rows
                if waiting == num_rows:
                    yield pa.Table.from_batches(kept).select(names).cast(schema)
                    kept, waiting = [], 0
        if waiting:
            yield pa.Table.from_batches(kept).select(names).cast(schema)

    def first(self, table: Table, column: str) -> Any:
        """The column's value in the table's first row, for columns that are alike in all; None without any."""
        found = self.dataset(table).head(1, columns=[column])[column].to_pylist()
        return found[0] if found else None

    def dataset(self, table: Table) -> Any:
        """The table as a PyArrow dataset, which knows the statistics of its files."""
        files = pafs.SubTreeFileSystem(*reversed(filesystem_at(self.uri(table), self.storage_options)))
        return self._open(table).to_pyarrow_dataset(filesystem=files)

    def files(self, table: Table) -> list[dict[str, Any]]:
        """Files of the table as it stands: ``path`` and ``rows`` of each, and its partition's columns.

        A file never changes, so that equal files are equal rows.
        """
        found = pa.table(self._open(table).get_add_actions(flatten=True)).to_pylist()
        return [
            {"path": f["path"], "rows": f["num_records"]} | {c: f[f"partition.{c}"] for c in table.partition_by}
            for f in found
        ]

    def num_rows(self, table: Table) -> int:
        """Rows in the table, from file statistics."""
        return int(self._open(table).count()) if self.exists(table) else 0

    def write(self, table: Table, data: pa.Table, version: str, replace_where: str | None = None) -> Written:
        """Replaces the table's content (or the part that ``replace_where`` names) in one atomic commit.

        Nothing is written when the table already holds ``version``.

        Args:
            table: The table.
            data: All rows of the new content, of the table's schema.
            version: Identity of the table's content after the write.
            replace_where: SQL predicate of the part that ``data`` replaces, e.g. ``day >= '2026-01-01'``.
        """
        from deltalake import CommitProperties, write_deltalake

        if self.version(table) == version:
            return Written(version, self.num_rows(table), committed=False)
        exists = self.exists(table)
        write_deltalake(
            self.uri(table),
            table.conform(data),
            mode="overwrite",
            predicate=replace_where if exists else None,
            schema_mode=None if replace_where and exists else "overwrite",
            partition_by=list(table.partition_by) or None,
            storage_options=self.storage_options or None,
            writer_properties=_writer_properties(_rows_in_group(data)),
            commit_properties=CommitProperties(custom_metadata={VERSION_KEY: version}),
        )
        return Written(version, data.num_rows, committed=True)

    def write_batches(
        self,
        table: Table,
        parts: Iterable[pa.Table],
        version: str,
        replace_where: str | None = None,
        *,
        row_group_rows: int | None = None,
        again: bool = False,
    ) -> Written:
        """Replaces a table, or a part of it, by rows that are made one after the other, in one atomic commit.

        Nothing is made or written when the table already holds ``version``; an error while a part is made leaves
        the table as it was.

        Args:
            table: The table.
            parts: The rows of the new content, of the table's schema.
            version: Identity of the table's content after the write.
            replace_where: SQL predicate of the part that they replace, e.g. ``day >= '2026-01-01'``.
            row_group_rows: Rows of a row group, for tables of which little is read at once; as many as fit by default.
            again: Write the same rows anew, in another layout, though the table holds ``version``.
        """
        from deltalake import CommitProperties, write_deltalake

        if self.version(table) == version and not again:
            return Written(version, self.num_rows(table), committed=False)
        num_rows, failed = 0, None
        partly = replace_where is not None and self.exists(table)
        waiting = iter(parts)
        first = list(itertools.islice(waiting, 1))
        rows_in_group = row_group_rows or (_rows_in_group(first[0]) if first else MOST_IN_GROUP)

        def made() -> Iterator[pa.RecordBatch]:
            nonlocal num_rows, failed
            try:
                while (part := first.pop() if first else maker.submit(next, waiting, None).result()) is not None:
                    num_rows += part.num_rows
                    yield from table.conform(part).to_batches()
            except BaseException as error:
                failed = error
                raise

        try:
            # Parts are made in a thread of their own: the one that pulls them belongs to Delta's runtime, in which
            # no other table can be read.
            with ThreadPoolExecutor(1) as maker:
                write_deltalake(
                    self.uri(table),
                    pa.RecordBatchReader.from_batches(table.schema, made()),
                    mode="overwrite",
                    predicate=replace_where if partly else None,
                    schema_mode=None if partly else "overwrite",
                    partition_by=list(table.partition_by) or None,
                    storage_options=self.storage_options or None,
                    writer_properties=_writer_properties(rows_in_group),
                    commit_properties=CommitProperties(custom_metadata={VERSION_KEY: version}),
                )
        except Exception:
            if failed is not None:
                raise failed from None  # Delta reports it as an error of its own, by its text alone.
            raise
        return Written(version, num_rows, committed=True)

    def append(self, table: Table, data: pa.Table) -> int:
        """Appends rows in one atomic commit; safe for concurrent writers. Returns the number of rows."""
        from deltalake import write_deltalake

        if data.num_rows:
            write_deltalake(
                self.uri(table),
                table.conform(data),
                mode="append",
                partition_by=list(table.partition_by) or None,
                storage_options=self.storage_options or None,
            )
        return data.num_rows

    def compact(self, table: Table, max_files: int = 32) -> bool:
        """Merges small files when there are more than ``max_files``. Returns whether it did."""
        delta = self._open(table)
        if len(delta.file_uris()) <= max_files:
            return False
        delta.optimize.compact()
        return True
