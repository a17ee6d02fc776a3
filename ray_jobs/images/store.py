"""The store of canonical images: files by digest, each written once, on disk or object storage."""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pyarrow.fs as pafs

from ray_jobs.artifacts import ArtifactStore
from ray_jobs.filesystems import filesystem_at

AT_ONCE = 16
JPEG_END = b"\xff\xd9"


@dataclasses.dataclass(frozen=True)
class ImageStore:
    """Canonical images at ``images/<first 2 hex digits>/<digest>.jpg`` below one root.

    A file is written whole or not at all: on disk it is renamed into place, on object storage a put is atomic. One that
    was cut since, or is empty, counts as absent.

    Attributes:
        root: Folder or object-storage URL; that of the `ArtifactStore`.
        storage_options: As in `Warehouse`.
    """

    root: str
    storage_options: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, artifacts: ArtifactStore) -> Self:
        """The image store beside an artifact store's other contents."""
        return cls(artifacts.root, artifacts.storage_options)

    @functools.cached_property
    def _place(self) -> tuple[pafs.FileSystem, str]:
        return filesystem_at(f"{self.root.rstrip('/')}/images", self.storage_options)

    def _path(self, digest: str) -> str:
        if len(digest) < 3 or not digest.isalnum():
            raise ValueError(f"'{digest}' is no pixel digest.")
        return f"{self._place[1]}/{digest[:2]}/{digest}.jpg"

    def __contains__(self, digest: str) -> bool:
        try:
            with self._place[0].open_input_file(self._path(digest)) as stream:
                size = stream.size()
                return size > len(JPEG_END) and stream.read_at(len(JPEG_END), size - len(JPEG_END)) == JPEG_END
        except FileNotFoundError:
            return False

    def put(self, digest: str, jpeg: bytes) -> bool:
        """Keeps an image. Returns False if the store has it already."""
        if digest in self:
            return False
        filesystem, path = self._place[0], self._path(digest)
        if not isinstance(filesystem, pafs.LocalFileSystem):
            with filesystem.open_output_stream(path) as stream:
                stream.write(jpeg)
            return True
        folder = Path(path).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", delete=False) as stream:
            try:
                stream.write(jpeg)
                # Else a crash of the machine may leave the name of a file without its bytes.
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
                os.replace(stream.name, path)
            except BaseException:
                os.unlink(stream.name)
                raise
        return True

    def get(self, digest: str) -> bytes:
        """The canonical JPEG.

        Raises:
            FileNotFoundError: If the store has no such image.
        """
        try:
            with self._place[0].open_input_stream(self._path(digest)) as stream:
                return stream.read()
        except FileNotFoundError:
            raise FileNotFoundError(
                f"Image {digest} is not in {self.root}/images: materialize captions/item_images again."
            ) from None

    def get_many(self, digests: Iterable[str | None]) -> list[bytes | None]:
        """Canonical JPEGs in the order of ``digests``; None for None.

        Raises:
            FileNotFoundError: If the store lacks one.
        """
        wanted = list(digests)
        different = sorted({d for d in wanted if d is not None})
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = dict(zip(different, pool.map(self.get, different), strict=True))
        return [None if d is None else found[d] for d in wanted]
