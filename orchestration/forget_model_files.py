"""Users in files: of trained models (vocabularies with embeddings, example requests), lessons, and staged exports."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import pyarrow.fs as pafs

from models.forgetting import MASK
from orchestration.forget_stores import NOTHING, Store
from ray_jobs import erasure
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.erasure import USER_COLUMN
from ray_jobs.filesystems import filesystem_at
from ray_jobs.personas.lessons import LESSON_FILES
from ray_jobs.tables.personas import PERSONA_LESSONS
from ray_jobs.tables.vista import STAGED_EXPORTS
from ray_jobs.warehouse import Warehouse

EXAMPLES = ("input_example.json", "serving_input_example.json")
PREPROCESSING = "preprocessing.json"
VOCABULARY = "users"
# Row 0 is that of unknown users, so that the user at place n of the vocabulary has row n + 1.
EMBEDDINGS = "users.weight"


class ModelFiles(Store):
    """Models below one root. Others' rows stay where they are: a forgotten user is from then on an unknown one.

    Args:
        name: Name of the store.
        root: Folder or URL; empty: the files cannot be reached.
        storage_options: Credentials and endpoint.
        users: Ids.
    """

    def __init__(self, name: str, root: str, storage_options: dict[str, str], users: list[str]):
        self.name, self.root, self.storage_options, self.users = name, root, storage_options, set(users)

    def held(self) -> int:
        """See `Store.held`."""
        return sum(len(places) for *_, places in self._found())

    def erase(self) -> int:
        """See `Store.erase`."""
        for files, path, said, places in self._found():
            if path.endswith(PREPROCESSING):
                # Before the names, which tell the rows.
                for beside in files.get_file_info(pafs.FileSelector(path.rpartition("/")[0])):
                    if beside.base_name.endswith(".safetensors"):
                        _forget_rows(files, beside.path, [place + 1 for place in places])
            _mask(said, self.users)
            _write(files, path, json.dumps(said).encode())
        return 0

    def search(self) -> str:
        """See `Store.search`."""
        return super().search() if self.root else "not searched: the tracking server keeps its artifacts to itself"

    def _found(self) -> Iterator[tuple[pafs.FileSystem, str, dict[str, Any], list[int]]]:
        """File system, path, content, and places of the users, of each file that names some."""
        if not self.root:
            return
        files, root = filesystem_at(self.root, self.storage_options)
        for found in files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
            if found.base_name in (*EXAMPLES, PREPROCESSING):
                with files.open_input_file(found.path) as stream:
                    said = json.loads(stream.read())
                if not isinstance(said, dict):
                    continue  # Examples without names of columns name no user.
                if places := [n for n, user in enumerate(_named(said)) if user in self.users]:
                    yield files, found.path, said, places


class LessonFiles(Store):
    """Lessons that were made of the users' histories, in the files that students were trained from.

    The files name nobody: the table of lessons tells whose they are, so the users must leave these files before it.

    Args:
        warehouse: Where the table of lessons is.
        artifacts: Where the files are.
        users: Ids.
    """

    name = "lessons of students"

    def __init__(self, warehouse: Warehouse, artifacts: ArtifactStore, users: list[str]):
        self.artifacts, self.questions = artifacts, set[str]()
        name = PERSONA_LESSONS.name
        if warehouse.exists(PERSONA_LESSONS) and USER_COLUMN in erasure.columns(warehouse, name):
            self.questions = erasure.select(warehouse, name, USER_COLUMN, users, "question", every_version=True) - {""}

    def held(self) -> int:
        """See `Store.held`."""
        return sum(number for *_, number in self._found())

    def erase(self) -> int:
        """See `Store.erase`."""
        for files, path, kept, _ in self._found():
            _write(files, path, "\n".join(kept).encode())
        return 0

    def _found(self) -> Iterator[tuple[pafs.FileSystem, str, list[str], int]]:
        """File system, path, lines that stay and number of those that go, of each file that holds some."""
        if not self.questions:
            return
        files, root = filesystem_at(self.artifacts.uri(LESSON_FILES), self.artifacts.storage_options)
        for found in files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True)):
            if found.extension == "jsonl":
                with files.open_input_file(found.path) as stream:
                    lines = [line for line in stream.read().decode().split("\n") if line]
                kept = [line for line in lines if json.loads(line)["question"] not in self.questions]
                if len(kept) < len(lines):
                    yield files, found.path, kept, len(lines) - len(kept)


class StagedExports(Store):
    """Summaries that a killed export left: the next one would take them up, the users' among them."""

    name = "staged exports of summaries"

    def __init__(self, artifacts: ArtifactStore):
        self.artifacts = artifacts

    def held(self) -> int:
        """Always 0: the shards go whole, nobody looks into them."""
        return 0

    def erase(self) -> int:
        """See `Store.erase`; the next export makes them anew."""
        left = self._left()
        self.artifacts.remove(STAGED_EXPORTS)
        return left

    def search(self) -> str:
        """See `Store.search`."""
        return f"{left:,} files" if (left := self._left()) else NOTHING

    def _left(self) -> int:
        files, root = filesystem_at(self.artifacts.uri(STAGED_EXPORTS), self.artifacts.storage_options)
        found = files.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
        return sum(each.type == pafs.FileType.File for each in found)


def _table(said: dict[str, Any]) -> dict[str, Any]:
    return dict(said.get("dataframe_split", said))


def _named(said: dict[str, Any]) -> list[str]:
    """The users that a file names, in its order."""
    if VOCABULARY in said:
        return list(said[VOCABULARY])
    table = _table(said)
    if USER_COLUMN not in table.get("columns", ()):
        return []
    at = table["columns"].index(USER_COLUMN)
    return [row[at] for row in table["data"]]


def _mask(said: dict[str, Any], users: set[str]) -> None:
    if VOCABULARY in said:
        said[VOCABULARY] = [MASK if user in users else user for user in said[VOCABULARY]]
        return
    table = _table(said)
    at = table["columns"].index(USER_COLUMN)
    for row in table["data"]:
        if row[at] in users:
            row[:] = [MASK if n == at else [] if isinstance(cell, list) else cell for n, cell in enumerate(row)]


def _forget_rows(files: pafs.FileSystem, path: str, rows: list[int]) -> None:
    """Sets the users' rows of a safetensors file's embeddings to zero, whatever their type."""
    with files.open_input_file(path) as stream:
        content = bytearray(stream.read())
    (length,) = struct.unpack("<Q", content[:8])
    tensor = json.loads(content[8 : 8 + length]).get(EMBEDDINGS)
    if tensor is None:
        return
    start, end = (8 + length + offset for offset in tensor["data_offsets"])
    width = (end - start) // tensor["shape"][0]
    for row in rows:
        content[start + row * width : start + (row + 1) * width] = bytes(width)
    _write(files, path, bytes(content))


def _write(files: pafs.FileSystem, path: str, content: bytes) -> None:
    """Replaces a file in one step: object storage puts it whole, a disk renames it."""
    beside = f"{path}.next" if isinstance(files, pafs.LocalFileSystem) else path
    with files.open_output_stream(beside) as stream:
        stream.write(content)
    if beside != path:
        files.move(beside, path)
