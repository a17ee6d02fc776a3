"""Twins of the warehouse: a local folder, or object storage."""

import pydantic

from assets.resources import Tables
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.warehouse import Warehouse


class LocalTables(Tables):
    """Delta tables in a folder of this machine."""

    warehouse_root: str = pydantic.Field(description="Folder of the tables.")
    artifact_root: str = pydantic.Field(description="Folder of the artifacts.")

    def warehouse(self) -> Warehouse:
        """See `Tables.warehouse`."""
        return Warehouse(self.warehouse_root)

    def artifacts(self) -> ArtifactStore:
        """See `Tables.artifacts`."""
        return ArtifactStore(self.artifact_root)


class ObjectStorageTables(Tables):
    """Delta tables on object storage."""

    warehouse_root: str = pydantic.Field(description="`s3://bucket/prefix` of the tables.")
    artifact_root: str = pydantic.Field(description="`s3://bucket/prefix` of the artifacts.")
    storage_options: dict[str, str] = pydantic.Field(description="Credentials and endpoint.")

    def warehouse(self) -> Warehouse:
        """See `Tables.warehouse`."""
        return Warehouse(self.warehouse_root, self.storage_options)

    def artifacts(self) -> ArtifactStore:
        """See `Tables.artifacts`."""
        return ArtifactStore(self.artifact_root, self.storage_options)
