"""Removing entities from published views: from every version that is kept, as online stores are not the only copy.

No Feast in this module, as in `feature_repo.publications`.
"""

import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from feature_repo.publications import POINTER, Publications, filesystem_of, write_file

# Readers of a dataset pass over files that begin so.
UNFINISHED = "_"


def views(publications: Publications, key: str) -> list[str]:
    """Every view of this join key that was published, whoever declared it."""
    files, root = filesystem_of(publications.root, publications.storage_options)
    found = set()
    for file in files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
        if file.base_name.startswith(UNFINISHED) or not file.base_name.endswith(".parquet"):
            continue
        if key in pq.read_schema(file.path, filesystem=files).names:
            found.add(file.path.removeprefix(root).strip("/").split("/")[0])
    return sorted(found)


def held(publications: Publications, view: str, key: str, entities: list[str]) -> int:
    """Rows of these entities, in all versions of a view that are kept."""
    return sum(number for _, _, number in _files_with(publications, view, key, entities))


def erase(publications: Publications, view: str, key: str, entities: list[str]) -> tuple[int, int]:
    """Removes rows of entities from all versions of a view that are kept; the names of the versions stay.

    Only files that hold such rows are written again, each switched in one step; who reads one goes on with the old.

    Args:
        publications: The published views.
        view: The view.
        key: Its join key; other views are left alone.
        entities: Values of the key.

    Returns:
        Rows removed, and versions that were touched.
    """
    removed = 0
    touched: set[str] = set()
    for files, path, number in _files_with(publications, view, key, entities):
        folder, _, name = path.rpartition("/")
        target = f"{folder}/{UNFINISHED}{name}" if isinstance(files, pafs.LocalFileSystem) else path
        schema = pq.read_schema(path, filesystem=files)
        rows = pyarrow.dataset.dataset(path, filesystem=files, format="parquet")
        # Object storage puts the file when it is closed, so it must be read by then.
        kept = list(rows.to_batches(filter=_without(key, entities))) if target == path else None
        write_file(files, target, schema, kept if kept is not None else rows.to_batches(filter=_without(key, entities)))
        if target != path:
            files.move(target, path)
        removed, touched = removed + number, touched | {folder}
    for folder in touched:
        _count_again(publications, view, folder.rpartition("/")[2])
    return removed, len(touched)


def _without(key: str, entities: list[str]) -> pc.Expression:
    return ~pc.field(key).isin(pa.array(entities, pa.string()))


def _files_with(
    publications: Publications, view: str, key: str, entities: list[str]
) -> Iterator[tuple[pafs.FileSystem, str, int]]:
    """File system, path and number of rows of each file that holds such entities; unfinished files are removed."""
    files, root = filesystem_of(f"{publications.root.rstrip('/')}/{view}", publications.storage_options)
    for found in files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
        if found.type != pafs.FileType.File or not found.base_name.endswith(".parquet"):
            continue
        if found.base_name.startswith(UNFINISHED):
            files.delete_file(found.path)
            continue
        if key in pq.read_schema(found.path, filesystem=files).names:
            rows = pyarrow.dataset.dataset(found.path, filesystem=files, format="parquet")
            if number := rows.count_rows(filter=~_without(key, entities)):
                yield files, found.path, number


def _count_again(publications: Publications, view: str, version: str) -> None:
    files, path = filesystem_of(f"{publications.root.rstrip('/')}/{view}/{POINTER}", publications.storage_options)
    if files.get_file_info(path).type != pafs.FileType.File:
        return
    with files.open_input_file(path) as pointer:
        said = json.loads(pointer.read())
    if said["version"] == version:
        files, folder = filesystem_of(publications.uri(view, version), publications.storage_options)
        rows = pyarrow.dataset.dataset(folder, filesystem=files, format="parquet").count_rows()
        publications.switch(view, said | {"num_rows": rows})
