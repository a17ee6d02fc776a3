"""Arrow file systems of folders and object-storage URLs."""

from pathlib import Path

import pyarrow.fs as pafs


def filesystem_at(where: str, storage_options: dict[str, str]) -> tuple[pafs.FileSystem, str]:
    """Returns the file system that holds ``where``, and the path in it.

    Args:
        where: Folder, or URL such as ``s3://bucket/prefix``.
        storage_options: Credentials and endpoint by the names that `deltalake` uses (``AWS_ENDPOINT_URL`` ...).
    """
    if where.startswith("s3://"):
        o = {k.lower(): v for k, v in storage_options.items()}
        endpoint = o.get("aws_endpoint_url", "")
        return pafs.S3FileSystem(
            access_key=o.get("aws_access_key_id"),
            secret_key=o.get("aws_secret_access_key"),
            region=o.get("aws_region"),
            scheme="http" if endpoint.startswith("http://") else "https",
            endpoint_override=endpoint.split("://")[-1] or None,
        ), where.removeprefix("s3://")
    if "://" in where:
        return pafs.FileSystem.from_uri(where)
    return pafs.LocalFileSystem(), str(Path(where).resolve())
