"""Publications: a view's rows as parquet, one directory a version, switched atomically.

Feast reads parquet, not the warehouse's Delta tables: DuckDB's Delta reader has to be downloaded at run time. The
pointer file ``CURRENT`` names the version that counts. It is replaced by a rename on a disk and by a put of one
small object on object storage, both atomic; a symlink would do on a disk only. Readers get the directory of a
version, which never changes, so a reader at work is not disturbed by a switch: the version before stays, too.

No Feast in this module: whether there is anything to do must be known without its import.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

POINTER = "CURRENT"
ROWS_PER_FILE = 5_000_000
# A reader decodes a row group whole: summaries have a kilobyte a row, counts a few bytes.
GROUP_BYTES, MOST_IN_GROUP = 8 << 20, 65_536


def filesystem_of(where: str, storage_options: dict[str, str]) -> tuple[pafs.FileSystem, str]:
    """Returns the Arrow file system that holds ``where``, and the path in it.

    Args:
        where: Folder, or URL such as ``s3://bucket/prefix``.
        storage_options: Credentials and endpoint by deltalake's names (``AWS_ACCESS_KEY_ID`` ...).
    """
    if "://" not in where:
        return pafs.LocalFileSystem(), str(Path(where).resolve())
    options = {k.upper(): v for k, v in storage_options.items()}
    if not where.startswith("s3://") or not options:
        return pafs.FileSystem.from_uri(where)
    scheme, _, endpoint = options.get("AWS_ENDPOINT_URL", "").rpartition("://")
    asked = {"region": options.get("AWS_REGION"), "scheme": scheme, "endpoint_override": endpoint}
    login = ":".join(quote(options.get(k, ""), safe="") for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    query = urlencode({k: v for k, v in asked.items() if v})
    return pafs.FileSystem.from_uri(f"s3://{login}@{where.removeprefix('s3://')}?{query}")


@dataclasses.dataclass(frozen=True)
class Publication:
    """The version of a view that counts.

    Attributes:
        view: Name of the view.
        version: Identity of the published rows.
        content_version: Version of the captions, codebooks, personas or summaries in them; empty for counts.
        num_rows: Rows.
        uri: Directory of the parquet files.
        previous: Version before it, which is still there; empty for the first.
    """

    view: str
    version: str
    content_version: str
    num_rows: int
    uri: str
    previous: str = ""


@dataclasses.dataclass(frozen=True)
class Publications:
    """The published views below one root.

    Attributes:
        root: Folder or object-storage URL.
        storage_options: Credentials and endpoint of the object storage.
    """

    root: str
    storage_options: dict[str, str] = dataclasses.field(default_factory=dict)

    def uri(self, view: str, version: str) -> str:
        """Directory of a version of a view."""
        return f"{self.root.rstrip('/')}/{view}/{version}"

    def _path(self, *names: str) -> tuple[pafs.FileSystem, str]:
        return filesystem_of("/".join([self.root.rstrip("/"), *names]), self.storage_options)

    def exists(self, view: str, version: str) -> bool:
        """Whether a version is (still) there."""
        files, path = self._path(view, version)
        return bool(version) and files.get_file_info(path).type == pafs.FileType.Directory

    def current(self, view: str) -> Publication | None:
        """The version that counts, or None if the view was never published."""
        files, path = self._path(view, POINTER)
        if files.get_file_info(path).type != pafs.FileType.File:
            return None
        with files.open_input_file(path) as pointer:
            said = json.loads(pointer.read())
        return Publication(
            view=view,
            uri=self.uri(view, said["version"]),
            **{k: said[k] for k in ("version", "content_version", "num_rows", "previous")},
        )

    def publish(
        self, view: str, data: pa.Table | pa.RecordBatchReader, version: str, content_version: str = ""
    ) -> bool:
        """Writes a version of a view and switches to it; keeps the one before and removes older ones.

        Args:
            view: Name of the view.
            data: Its rows; a reader is streamed.
            version: Identity of the rows.
            content_version: Version of the generated content in them.

        Returns:
            False if that version already counts, so that nothing was written.
        """
        standing = self.current(view)
        if standing is not None and standing.version == version:
            return False
        files, path = self._path(view, version)
        if files.get_file_info(path).type == pafs.FileType.Directory:
            files.delete_dir(path)  # What a killed writer left, or a version that comes back.
        files.create_dir(path, recursive=True)
        num_rows = 0
        for number, part in enumerate(_parts(data)):
            num_rows += write_file(files, f"{path}/part-{number:05d}.parquet", part.schema, part)
        previous = standing.version if standing is not None else ""
        self.switch(
            view,
            {
                "version": version,
                "content_version": content_version,
                "num_rows": num_rows,
                "previous": previous,
                "published_at": dt.datetime.now(dt.UTC).isoformat(),
            },
        )
        self._remove_all_but(view, {version, previous})
        return True

    def switch(self, view: str, pointer: dict[str, str | int]) -> None:
        """Lets readers see what ``pointer`` says of a view, in one step."""
        files, path = self._path(view, POINTER)
        beside = f"{path}.next" if isinstance(files, pafs.LocalFileSystem) else path
        with files.open_output_stream(beside) as stream:
            stream.write(json.dumps(pointer).encode())
        if beside != path:
            files.move(beside, path)

    def _remove_all_but(self, view: str, kept: set[str]) -> None:
        files, path = self._path(view)
        for found in files.get_file_info(pafs.FileSelector(path)):
            if found.type == pafs.FileType.Directory and found.base_name not in kept:
                files.delete_dir(found.path)


def _parts(data: pa.Table | pa.RecordBatchReader) -> Iterator[pa.RecordBatchReader]:
    """Cuts the rows into files. There is always one, so that an empty view has a schema."""
    reader = data if isinstance(data, pa.RecordBatchReader) else data.to_reader()
    ended = False

    def part() -> Iterator[pa.RecordBatch]:
        nonlocal ended
        num_rows = 0
        while num_rows < ROWS_PER_FILE:
            try:
                batch = reader.read_next_batch()
            except StopIteration:
                ended = True
                return
            num_rows += batch.num_rows
            yield batch

    while not ended:
        yield pa.RecordBatchReader.from_batches(reader.schema, part())


def write_file(files: pafs.FileSystem, path: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes one file of a version, in row groups that can be read apart, and returns its number of rows."""
    num_rows = 0
    with pq.ParquetWriter(path, schema, filesystem=files, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch, row_group_size=rows_in_group(batch))
            num_rows += batch.num_rows
    return num_rows


def rows_in_group(batch: pa.RecordBatch) -> int:
    """Rows of a row group, so that the rows of ``batch`` make groups of at most `GROUP_BYTES`."""
    return max(1, min(MOST_IN_GROUP, GROUP_BYTES * batch.num_rows // max(batch.nbytes, 1)))
