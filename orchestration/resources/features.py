"""Twins of Feast: SQLite online and in the registry, or Redis online and PostgreSQL in the registry.

Feast itself is imported where it is used: it costs seconds that a step with nothing to do must not pay. The import
of `feature_repo` above it is what makes Feast's own cheap.
"""

import contextlib
import sqlite3
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pydantic

from assets.resources import Features
from feature_repo.publications import Publications

if TYPE_CHECKING:
    from feast import FeatureStore

    from ray_jobs.personas.store import StoreConfig

OFFLINE_STORE = "feature_repo.asof_offline_store.AsofDuckDBOfflineStore"
PERSONA_STORE = "feature_repo.online_personas:connect"
# Feast's newest; older ones confuse entities whose keys share a prefix.
ENTITY_KEY_VERSION = 3
BUSY_SECONDS = 30
KEYS_AT_ONCE = 10_000


class FeastFeatures(Features):
    """What both twins share: published parquet, DuckDB offline, a SQL registry."""

    offline_root: str = pydantic.Field(description="Root of the published views: a folder or `s3://bucket/prefix`.")
    storage_options: dict[str, str] = pydantic.Field(
        default_factory=dict, description="Credentials and endpoint of the object storage."
    )
    registry_url: str = pydantic.Field(description="SQLAlchemy URL of Feast's registry.")
    project: str = pydantic.Field(default="belvedere", description="Feast project.")
    duckdb_memory_limit: str = pydantic.Field(
        default="512MB", description="Memory that an offline join may take before it spills to disk, e.g. `4GB`."
    )

    @abstractmethod
    def online_config(self) -> dict[str, Any]:
        """Feast's configuration of the online store."""

    def publications(self) -> Publications:
        """See `Features.publications`."""
        return Publications(self.offline_root, self.storage_options)

    def publish(
        self, view: str, data: pa.Table | pa.RecordBatchReader, version: str, content_version: str = ""
    ) -> bool:
        """See `Features.publish`."""
        return self.publications().publish(view, data, version, content_version)

    def store(self) -> "FeatureStore":
        """See `Features.store`."""
        from feast import FeatureStore, RepoConfig

        import feature_repo.definitions as repository

        self._prepare()
        store = FeatureStore(config=RepoConfig(**self._repo_config()))
        published = {v.name: self.publications().current(v.name) for v in repository.VIEWS}
        store.apply(repository.bound({name: found for name, found in published.items() if found is not None}))
        return store

    def persona_store(self) -> "StoreConfig":
        """See `Features.persona_store`."""
        from ray_jobs.personas.store import StoreConfig

        self._prepare()
        return StoreConfig(factory=PERSONA_STORE, options=self._repo_config())

    def _repo_config(self) -> dict[str, Any]:
        return {
            "project": self.project,
            "provider": "local",
            "entity_key_serialization_version": ENTITY_KEY_VERSION,
            "registry": {"registry_type": "sql", "path": self.registry_url, "cache_ttl_seconds": 60},
            "online_store": self.online_config(),
            "offline_store": {
                "type": OFFLINE_STORE,
                "storage_options": self.storage_options,
                "memory_limit": self.duckdb_memory_limit,
            },
        }

    def _prepare(self) -> None:
        if self.registry_url.startswith("sqlite:///"):
            Path(self.registry_url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)


class LocalFeatures(FeastFeatures):
    """Online features in a SQLite file of this machine."""

    online_path: str = pydantic.Field(description="File of the online store.")

    def online_config(self) -> dict[str, Any]:
        """See `FeastFeatures.online_config`."""
        return {"type": "sqlite", "path": self.online_path}

    def online_store_name(self) -> str:
        """See `Features.online_store_name`."""
        return "sqlite"

    def online_is_empty(self) -> bool:
        """See `Features.online_is_empty`."""
        return not Path(self.online_path).exists()

    def forget_online(self, key: str, entities: list[str]) -> int:
        """See `Features.forget_online`. What is deleted is overwritten, and the file's free pages are dropped."""
        held = self.held_online(key, entities)
        if self.online_is_empty():
            return held
        from feature_repo.online import entity_keys

        keys = [(k,) for k in entity_keys(key, entities, ENTITY_KEY_VERSION)]
        with contextlib.closing(sqlite3.connect(self.online_path, timeout=BUSY_SECONDS)) as connection:
            connection.execute("PRAGMA secure_delete=ON")
            with connection:
                for table in self._online_tables(connection):
                    connection.executemany(f'DELETE FROM "{table}" WHERE entity_key = ?', keys)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return held

    def held_online(self, key: str, entities: list[str]) -> int:
        """See `Features.held_online`."""
        if self.online_is_empty():
            return 0
        from feature_repo.online import entity_keys

        with contextlib.closing(sqlite3.connect(self.online_path, timeout=BUSY_SECONDS)) as connection:
            tables = self._online_tables(connection)
            return sum(
                any(
                    connection.execute(f'SELECT 1 FROM "{table}" WHERE entity_key = ? LIMIT 1', (k,)).fetchone()
                    for table in tables
                )
                for k in entity_keys(key, entities, ENTITY_KEY_VERSION)
            )

    @staticmethod
    def _online_tables(connection: sqlite3.Connection) -> list[str]:
        """Tables of views, whoever declared them: also those of views that are gone from the repository."""
        found = connection.execute(
            "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c "
            "WHERE m.type = 'table' AND c.name = 'entity_key'"
        )
        return [name for (name,) in found]

    def _prepare(self) -> None:
        super()._prepare()
        Path(self.online_path).parent.mkdir(parents=True, exist_ok=True)


class RedisFeatures(FeastFeatures):
    """Online features in Redis."""

    redis: str = pydantic.Field(description="`host:port`, and options after commas, e.g. `redis:6379,ssl=true,db=0`.")

    def online_config(self) -> dict[str, Any]:
        """See `FeastFeatures.online_config`."""
        # Feast would skip a row whose event is not newer than the stored one: a caption that was written again
        # for the same item would never arrive. The platform is the only writer and knows what has changed.
        return {"type": "redis", "connection_string": self.redis, "skip_dedup": True}

    def online_store_name(self) -> str:
        """See `Features.online_store_name`."""
        return f"redis {self.redis.split(',')[0]}"

    def online_is_empty(self) -> bool:
        """See `Features.online_is_empty`."""
        with self._client() as client:
            return bool(client.dbsize() == 0)

    def forget_online(self, key: str, entities: list[str]) -> int:
        """See `Features.forget_online`. One Redis key holds all views of an entity."""
        with self._client() as client:
            return sum(int(client.delete(*part)) for part in self._redis_keys(key, entities))

    def held_online(self, key: str, entities: list[str]) -> int:
        """See `Features.held_online`."""
        with self._client() as client:
            return sum(int(client.exists(*part)) for part in self._redis_keys(key, entities))

    def _redis_keys(self, key: str, entities: list[str]) -> Iterator[list[bytes]]:
        from feature_repo.online import entity_keys

        # As Feast names them: the entity, then the project.
        keys = [k + self.project.encode() for k in entity_keys(key, entities, ENTITY_KEY_VERSION)]
        for start in range(0, len(keys), KEYS_AT_ONCE):
            yield keys[start : start + KEYS_AT_ONCE]

    def _client(self) -> Any:
        import redis

        host, _, port = self.redis.split(",")[0].rpartition(":")
        options = dict(o.split("=", 1) for o in self.redis.split(",")[1:])
        return redis.Redis(
            host=host,
            port=int(port),
            db=int(options.get("db", 0)),
            username=options.get("username"),
            password=options.get("password"),
            ssl=options.get("ssl", "false").lower() == "true",
        )


def features_twin(
    *, online_path: str, redis: str, registry_url: str, offline_root: str, storage_options: dict[str, str]
) -> FeastFeatures:
    """Returns the twin that the settings choose.

    Args:
        online_path: SQLite file of the online store, if ``redis`` is empty.
        redis: ``host:port`` of the online store.
        registry_url: SQLAlchemy URL of the registry.
        offline_root: Root of the published views.
        storage_options: Credentials of the object storage.
    """
    if redis:
        return RedisFeatures(
            redis=redis, registry_url=registry_url, offline_root=offline_root, storage_options=storage_options
        )
    return LocalFeatures(
        online_path=online_path, registry_url=registry_url, offline_root=offline_root, storage_options=storage_options
    )
