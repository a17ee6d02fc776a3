"""Feast stores on small views that a test makes."""

import datetime as dt

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.data_format import ParquetFormat

from feature_repo.asof_offline_store import AsofDuckDBOfflineStoreConfig

ASOF = AsofDuckDBOfflineStoreConfig().type
US = pa.timestamp("us", "UTC")
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def at(seconds):
    """A moment, or a list of them, by seconds after the start."""
    if isinstance(seconds, int | float):
        return START + dt.timedelta(seconds=seconds)
    return [at(s) for s in seconds]


def store_of(folder, views, offline=ASOF):
    """A store with one view for each ``name: (key, rows, fields, ttl)``; rows have event and created timestamps."""
    made = []
    entities = {}
    for name, (key, rows, fields, ttl) in views.items():
        path = folder / name / "v1"
        path.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path / "part-0.parquet")
        entity = entities.setdefault(key, Entity(name=key, join_keys=[key], value_type=ValueType.STRING))
        # The file store wants a file; a directory is what the platform publishes.
        where = str(path / "part-0.parquet") if offline == "file" else str(path)
        made.append(
            FeatureView(
                name=name,
                entities=[entity],
                ttl=ttl,
                schema=[Field(name=n, dtype=t) for n, t in fields.items()],
                source=FileSource(
                    name=name,
                    path=where,
                    file_format=ParquetFormat(),
                    timestamp_field="event_timestamp",
                    created_timestamp_column="created_timestamp",
                ),
            )
        )
    store = FeatureStore(
        config=RepoConfig(
            project="test",
            provider="local",
            entity_key_serialization_version=3,
            offline_store={"type": offline},
            registry={"registry_type": "sql", "path": f"sqlite:///{folder}/{offline.rpartition('.')[2]}.db"},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
        )
    )
    store.apply([*entities.values(), *made])
    return store
