"""Where an item's image is, and reading it: below the dataset's folder, on configured storage, or on a remote host."""

import errno
import hashlib
import os
import posixpath
import stat
import threading
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pydantic

from ray_jobs.filesystems import filesystem_at
from ray_jobs.images.limits import ImageLimits, RemoteRule
from ray_jobs.images.reasons import ImageRefusedError, malformed
from ray_jobs.images.remote import RemoteFetcher

CHUNK = 1 << 20
NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
OBJECT_SCHEMES = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hdfs", "oss", "memory"))


class SourceConfig(pydantic.BaseModel, frozen=True):
    """What images may be read from."""

    folder: str = pydantic.Field(description="The dataset's folder, or its URL.")
    roots: tuple[str, ...] = pydantic.Field(
        default=(), description="Other URLs that whole addresses may lie below, e.g. `s3://pictures/shop`."
    )
    storage_options: dict[str, str] = pydantic.Field(
        default_factory=dict, description="Credentials of object storage; as in `Warehouse`."
    )
    remote: RemoteRule = pydantic.Field(default=RemoteRule(), description="Which remote hosts are asked.")


class Read(NamedTuple):
    """What was read.

    Attributes:
        data: The file's bytes, or None if it is the one that the caller knows.
        fingerprint: Of the file.
    """

    data: bytes | None
    fingerprint: str


def is_remote(uri: str) -> bool:
    """Whether an image is on a remote host."""
    return uri.lower().startswith(("http://", "https://"))


def _object_filesystem(where: str, options: dict[str, str]) -> tuple[pafs.FileSystem, str]:
    try:
        return filesystem_at(where, options)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # A kind of storage that Arrow does not know itself; fsspec does if its package is installed.
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(where)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


class SourceReader:
    """Reads the files that items name. Safe for threads.

    A path is taken below the dataset's folder. Refused as ``outside_dataset`` are absolute paths and ``file://`` (a
    dataset must not read what else is on this machine, and has to work wherever it is copied to), ``..`` that leads
    out, links that lead out, and addresses of storage that lie below none of the configured roots.

    Args:
        config: What images may be read from.
        limits: Most bytes.
    """

    def __init__(self, config: SourceConfig, limits: ImageLimits):
        self.config, self.limits = config, limits
        self.folder = config.folder.removeprefix("file://")
        self._folder = os.path.realpath(os.path.expanduser(self.folder))
        self._roots = tuple(r.rstrip("/") + "/" for r in (config.folder, *config.roots) if "://" in r)
        self._filesystems: dict[str, tuple[pafs.FileSystem, str]] = {}
        self._own = threading.local()

    def read(self, uri: str, known: str = "") -> Read:
        """Reads a file.

        Args:
            uri: As the item names it.
            known: Fingerprint of what the caller has already; that file is not read again.

        Raises:
            ImageRefusedError: If it may not or cannot be read; with the fingerprint, if the file is there.
        """
        try:
            scheme = urlsplit(uri).scheme.lower() if "://" in uri or uri.startswith("data:") else ""
        except ValueError:
            raise malformed(uri) from None
        if scheme in ("http", "https"):
            return self._remote(uri, known)
        if scheme == "file" or uri.startswith(("/", "~")) or "\0" in uri:
            raise ImageRefusedError("outside_dataset", uri=uri)
        if scheme:
            return self._object(uri, known)
        if "://" in self.folder:
            return self._object(posixpath.join(self.folder, uri), known)
        return self._local(uri, known)

    def _remote(self, uri: str, known: str) -> Read:
        if not hasattr(self._own, "fetcher"):
            self._own.fetcher = RemoteFetcher(self.config.remote, self.limits)
        fetched = self._own.fetcher.fetch(uri, known)
        if fetched.data is None:
            return Read(None, known)
        # Without a validator of the server's, the bytes tell whether anything has changed.
        fingerprint = fetched.fingerprint or f"sha256:{hashlib.sha256(fetched.data).hexdigest()[:32]}"
        return Read(None if fingerprint == known else fetched.data, fingerprint)

    def _local(self, uri: str, known: str) -> Read:
        path = os.path.realpath(os.path.join(self._folder, uri))
        if os.path.commonpath([path, self._folder]) != self._folder:
            raise ImageRefusedError("outside_dataset", uri=uri)
        try:
            # A pipe would wait for its writer, and a link that was put here meanwhile would lead elsewhere.
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in NO_SUCH_FILE:
                raise ImageRefusedError("read_error", error=_first_line(error)) from None
            raise ImageRefusedError("not_found", uri=uri) from None
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            os.close(file)
            raise ImageRefusedError("not_a_file", uri=uri)
        with os.fdopen(file, "rb", buffering=0) as stream:
            return self._take(stream, found.st_size, f"{found.st_size}-{found.st_mtime_ns}", known)

    def _object(self, url: str, known: str) -> Read:
        root = next((r for r in self._roots if url.startswith(r)), None)
        if root is None and (scheme := url.split(":")[0].lower()) not in OBJECT_SCHEMES:
            raise ImageRefusedError("unsupported_scheme", scheme=f"{scheme}:")
        if root is None or ".." in url.split("/"):
            raise ImageRefusedError("outside_dataset", uri=url)
        try:
            if root not in self._filesystems:
                self._filesystems[root] = _object_filesystem(root, self.config.storage_options)
            filesystem, base = self._filesystems[root]
            path = f"{base.rstrip('/')}/{url.removeprefix(root)}"
            found = filesystem.get_file_info(path)
            if found.type == pafs.FileType.NotFound:
                raise ImageRefusedError("not_found", uri=url)
            if found.type != pafs.FileType.File:
                raise ImageRefusedError("not_a_file", uri=url)
            fingerprint = f"{found.size}-{found.mtime_ns or 0}"
            with filesystem.open_input_stream(path) as stream:
                return self._take(stream, found.size or 0, fingerprint, known)
        except (OSError, pa.ArrowException, ImportError) as error:
            raise ImageRefusedError("read_error", error=_first_line(error)) from None

    def _take(self, stream: Any, size: int, fingerprint: str, known: str) -> Read:
        if fingerprint == known:
            return Read(None, known)
        data = bytearray()
        try:
            # Counted as it comes: a file may grow while it is read.
            while size <= self.limits.max_bytes and (part := stream.read(CHUNK)):
                data += part
                size = max(size, len(data))
        except OSError as error:
            raise ImageRefusedError("read_error", error=_first_line(error)) from None
        if size > self.limits.max_bytes:
            refused = ImageRefusedError("too_many_bytes", limit=self.limits.max_bytes)
            refused.fingerprint = fingerprint
            raise refused
        return Read(bytes(data), fingerprint)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
