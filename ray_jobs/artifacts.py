"""Artifacts: directories (checkpoints, model weights) that appear whole or not at all, on disk or object storage."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs

from ray_jobs.filesystems import filesystem_at

COMPLETE = "_COMPLETE"


@dataclasses.dataclass(frozen=True)
class ArtifactStore:
    """Directories below one root, each written once under its own name.

    A directory counts only once its marker file is written, last; what a killed writer leaves is overwritten.

    Attributes:
        root: Folder or object-storage URL.
        storage_options: As in `Warehouse`.
    """

    root: str
    storage_options: dict[str, str] = dataclasses.field(default_factory=dict)

    def _filesystem(self, name: str) -> tuple[pafs.FileSystem, str]:
        return filesystem_at(self.uri(name), self.storage_options)

    def uri(self, name: str) -> str:
        """Location of a directory."""
        return f"{self.root.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether the directory is there, whole."""
        fs, path = self._filesystem(name)
        return fs.get_file_info(f"{path}/{COMPLETE}").type == pafs.FileType.File

    def put(self, local: Path, name: str) -> None:
        """Copies a local directory to ``name``; readers see it only when all of it is there."""
        # Rewriting in place under a standing marker would leave a killed writer's half for whole.
        fs, path = self._filesystem(name)
        if self.exists(name):
            fs.delete_file(f"{path}/{COMPLETE}")
        fs.create_dir(path, recursive=True)
        pafs.copy_files(str(local.resolve()), path, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
        with fs.open_output_stream(f"{path}/{COMPLETE}") as marker:
            marker.write(b"complete\n")

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """Yields a local copy of the directory.

        Raises:
            FileNotFoundError: If it is not there, or not whole.
        """
        if not self.exists(name):
            raise FileNotFoundError(f"Artifact {name} is not in {self.root}: materialize the asset that makes it.")
        fs, path = self._filesystem(name)
        with tempfile.TemporaryDirectory() as copy:
            pafs.copy_files(path, copy, source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
            yield Path(copy)

    def names(self, prefix: str) -> list[str]:
        """Names of the whole directories right below ``prefix``, sorted."""
        fs, path = self._filesystem(prefix)
        found = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        names = [f"{prefix}/{f.base_name}" for f in found if f.type == pafs.FileType.Directory]
        return sorted(n for n in names if self.exists(n))

    def remove(self, name: str) -> None:
        """Deletes the directory, marker first, so that no reader takes what is left for whole. Absent is fine."""
        fs, path = self._filesystem(name)
        if fs.get_file_info(f"{path}/{COMPLETE}").type == pafs.FileType.File:
            fs.delete_file(f"{path}/{COMPLETE}")
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            fs.delete_dir(path)
