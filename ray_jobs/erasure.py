"""Removing rows from Delta tables for good: from their files, their old versions and their logs.

A delete alone keeps the rows in the files of older versions, in the statistics of the log's commits (least and greatest
value of a column) and in the delete's own predicate. So the order is: delete, vacuum, checkpoint, drop the log before
it. A process that is killed in between leaves a table that reads well, and another call finishes the work.

A vacuum without retention removes files that a writer at work has not committed yet, and those that a reader of an
older version still needs: call `purge` only while nothing else writes. A reader fails, and reads again.
"""

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from ray_jobs.filesystems import filesystem_at
from ray_jobs.warehouse import VERSION_KEY, Table, Warehouse

USER_COLUMN = "user_id"
NOTE_KEY = "belvedere.erasure"
VALUES_AT_ONCE = 10_000
LOG = "_delta_log"
COMMIT = re.compile(r"^(\d{20})\.(json|checkpoint.*\.parquet)$")


def _filesystem(warehouse: Warehouse, name: str) -> tuple[pafs.FileSystem, str]:
    return filesystem_at(f"{warehouse.root.rstrip('/')}/{name}", warehouse.storage_options)


def _open(warehouse: Warehouse, name: str, version: int | None = None) -> Any:
    from deltalake import DeltaTable

    uri = f"{warehouse.root.rstrip('/')}/{name}"
    return DeltaTable(uri, version=version, storage_options=warehouse.storage_options or None)


def table_names(warehouse: Warehouse) -> list[str]:
    """Every table that stands in the warehouse, whoever declared it: ``stage/table``."""
    files, root = filesystem_at(warehouse.root, warehouse.storage_options)
    found = []
    for stage in files.get_file_info(pafs.FileSelector(root, allow_not_found=True)):
        if stage.type == pafs.FileType.Directory:
            for table in files.get_file_info(pafs.FileSelector(stage.path)):
                if files.get_file_info(f"{table.path}/{LOG}").type == pafs.FileType.Directory:
                    found.append(f"{stage.base_name}/{table.base_name}")
    return sorted(found)


def columns(warehouse: Warehouse, name: str) -> list[str]:
    """Columns of a table as it stands."""
    return [field.name for field in _open(warehouse, name).schema().fields]


def _rows(warehouse: Warehouse, name: str, version: int | None = None) -> Any:
    files = pafs.SubTreeFileSystem(*reversed(_filesystem(warehouse, name)))
    return _open(warehouse, name, version).to_pyarrow_dataset(filesystem=files)


def count(warehouse: Warehouse, name: str, column: str, values: list[str]) -> int:
    """How many rows have one of ``values``."""
    rows = _rows(warehouse, name)
    return sum(rows.count_rows(filter=pc.field(column).isin(pa.array(part))) for part in _parts(values))


def select(
    warehouse: Warehouse, name: str, column: str, values: list[str], wanted: str, *, every_version: bool = False
) -> set[str]:
    """Distinct values of the column ``wanted`` in rows that have one of ``values``.

    Args:
        warehouse: The warehouse.
        name: The table.
        column: Column of ``values``.
        values: The values.
        wanted: Column to return.
        every_version: Look into older versions of the table, too, as far as they can be read.
    """
    from deltalake.exceptions import DeltaError

    last = _open(warehouse, name).version()
    found: set[str] = set()
    for version in range(last, -1 if every_version else last - 1, -1):
        try:
            rows = _rows(warehouse, name, version)
            for part in _parts(values):
                found |= set(rows.to_table([wanted], filter=pc.field(column).isin(pa.array(part)))[wanted].to_pylist())
        except (OSError, DeltaError):
            if version == last:
                raise
            break  # Vacuumed before: its rows, and those of versions before it, can no longer be read.
    return found - {None}


def parts(warehouse: Warehouse, name: str, wanted: list[str]) -> Iterator[pa.Table]:
    """Yields some columns of a table, a batch at a time."""
    for batch in _rows(warehouse, name).to_batches(columns=wanted):
        yield pa.Table.from_batches([batch])


def delete(warehouse: Warehouse, name: str, column: str, values: list[str], note: str) -> None:
    """Deletes rows that have one of ``values``; only files that hold such rows are written again.

    The version of the table stays: what was derived from it is not stale because somebody left.

    Args:
        warehouse: The warehouse.
        name: The table.
        column: Column of ``values``.
        values: The values.
        note: Stands in the commit.
    """
    from deltalake import write_deltalake

    for part in _parts(values):
        literals = ", ".join("'" + value.replace("'", "''") + "'" for value in part)
        table = _open(warehouse, name)
        # Replaced by nothing and not `DeltaTable.delete`, whose files have `string_view` columns, by which PyArrow
        # cannot filter (delta-rs#4579).
        write_deltalake(
            table,
            pa.schema(table.schema().to_arrow()).empty_table(),
            mode="overwrite",
            predicate=f'"{column}" IN ({literals})',
            commit_properties=_said(warehouse, name, note),
        )


def amend(warehouse: Warehouse, table: Table, rows: list[dict[str, Any]], note: str) -> None:
    """Replaces the rows of a small table; its version stays."""
    from deltalake import write_deltalake

    write_deltalake(
        _open(warehouse, table.name),
        pa.Table.from_pylist(rows, table.schema),
        mode="overwrite",
        commit_properties=_said(warehouse, table.name, note),
    )


def purge(warehouse: Warehouse, name: str, note: str) -> int:
    """Makes older versions of a table unreadable: their files and their log are removed.

    Args:
        warehouse: The warehouse.
        name: The table.
        note: Stands in the commit.

    Returns:
        How many older versions could be read from the log before.
    """
    table = _open(warehouse, name)
    last = table.version()
    old = [version for version, _ in _log(warehouse, name) if version < last]
    if not old and not _strays(warehouse, name):
        return 0
    # Its commits carry the version, and nothing of the predicates of the commits that are dropped.
    properties = _said(warehouse, name, note)
    table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True, commit_properties=properties)
    table = _open(warehouse, name)
    table.create_checkpoint()
    files, _ = _filesystem(warehouse, name)
    for version, path in _log(warehouse, name):
        if version < table.version():
            files.delete_file(path)
    return len(set(old))


def is_purged(warehouse: Warehouse, name: str) -> bool:
    """Whether only the version that stands can be read, and no other file lies beside it."""
    table = _open(warehouse, name)
    older = [version for version, _ in _log(warehouse, name) if version < table.version()]
    return not older and not _strays(warehouse, name)


def _strays(warehouse: Warehouse, name: str) -> list[str]:
    """Files beside those of the version that stands; a dry vacuum also lists what is long gone."""
    files, path = _filesystem(warehouse, name)
    standing = {uri.rpartition("/")[2] for uri in _open(warehouse, name).file_uris()}
    return [
        found.path
        for found in files.get_file_info(pafs.FileSelector(path, recursive=True))
        if found.type == pafs.FileType.File and f"/{LOG}/" not in found.path and found.base_name not in standing
    ]


def _said(warehouse: Warehouse, name: str, note: str) -> Any:
    from deltalake import CommitProperties

    version = next((c[VERSION_KEY] for c in _open(warehouse, name).history() if VERSION_KEY in c), None)
    return CommitProperties(custom_metadata={NOTE_KEY: note} | ({VERSION_KEY: str(version)} if version else {}))


def _log(warehouse: Warehouse, name: str) -> list[tuple[int, str]]:
    """Version and path of each commit and checkpoint, oldest first."""
    files, path = _filesystem(warehouse, name)
    found = files.get_file_info(pafs.FileSelector(f"{path}/{LOG}"))
    return sorted((int(match[1]), f.path) for f in found if (match := COMMIT.match(f.base_name)))


def _parts(values: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(values), VALUES_AT_ONCE):
        yield values[start : start + VALUES_AT_ONCE]
