"""Dagster's storage behind one `dagster.yaml`: everything below ``home``, or PostgreSQL when its URL is set."""

from typing import Any

import yaml
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClass, ConfigurableClassData

from orchestration.settings import Settings


class SwitchStorage(DagsterStorage, ConfigurableClass):
    """Builds the configured storage; never instantiated itself."""

    @property
    def inst_data(self) -> None:
        """Nothing: the storage that is built carries its own."""
        return None

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """No options: the settings choose."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Any:
        """Returns the storage that the settings choose."""
        settings = Settings()
        if settings.dagster_postgres_url:
            from dagster_postgres.storage import DagsterPostgresStorage

            config: dict[str, Any] = {"postgres_url": settings.dagster_postgres_url, "should_autocreate_tables": True}
            return DagsterPostgresStorage(
                inst_data=ConfigurableClassData("dagster_postgres", "DagsterPostgresStorage", yaml.dump(config)),
                **config,
            )
        base = str(settings.home / "dagster")
        return DagsterSqliteStorage.from_local(
            base,
            inst_data=ConfigurableClassData(
                "dagster._core.storage.sqlite_storage", "DagsterSqliteStorage", yaml.dump({"base_dir": base})
            ),
        )


class HomeComputeLogManager(LocalComputeLogManager):
    """What steps print, kept below ``home``."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """No options: the settings choose."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> "HomeComputeLogManager":
        """Returns the manager of the home's folder."""
        return cls(base_dir=str(Settings().home / "dagster" / "logs"), inst_data=inst_data)


class HomeArtifactStorage(LocalArtifactStorage):
    """Dagster's own artifacts, kept below ``home``."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """No options: the settings choose."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> "HomeArtifactStorage":
        """Returns the storage of the home's folder."""
        return cls(base_dir=str(Settings().home / "dagster"), inst_data=inst_data)
