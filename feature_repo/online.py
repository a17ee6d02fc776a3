"""Writing to and reading from the online store, by Arrow tables.

Feast's own ``materialize`` pulls a view into memory three times over and writes all of it each time. Here rows
come in batches and only those that changed. What is read back is the same (`tests/feature_repo/test_online.py`
compares), but for integers above 2^53 beside nulls, which Feast rounds on its way through NumPy.
"""

import time
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from feast import FeatureStore, FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.value_type import ValueType

from feature_repo.latest import REMOVED
from feature_repo.sources import CREATED_TIMESTAMP, EVENT_TIMESTAMP


def write(store: FeatureStore, view: str, batches: Iterable[pa.Table]) -> tuple[int, int]:
    """Writes rows of a view to the online store.

    Args:
        store: The Feast store.
        view: Name of the view.
        batches: What `latest.changes` yields. Removed entities are written with null features, which is what a
            reader gets for an entity that was never there.

    Returns:
        How many entities were written, and how many removed.
    """
    feature_view = store.get_feature_view(view)
    provider = store._get_provider()
    written = removed = 0
    for rows in batches:
        gone = int(rows[REMOVED].combine_chunks().true_count)
        if rows.num_rows:
            provider.online_write_batch(store.config, feature_view, _encoded(feature_view, rows), progress=None)
        written, removed = written + rows.num_rows - gone, removed + gone
    return written, removed


def _encoded(view: FeatureView, rows: pa.Table) -> list[tuple[Any, ...]]:
    """Rows as Feast's online stores take them: entity key, features, event and created timestamp."""
    types = {f.name: f.dtype.to_value_type() for f in [*view.entity_columns, *view.features]}
    values = {name: _protos(rows[name].to_pylist(), of) for name, of in types.items()}
    keys = [e.name for e in view.entity_columns]
    names = [f.name for f in view.features]
    entities = [EntityKey(join_keys=keys, entity_values=list(v)) for v in zip(*(values[k] for k in keys), strict=True)]
    features = [dict(zip(names, v, strict=True)) for v in zip(*(values[n] for n in names), strict=True)]
    return list(
        zip(entities, features, rows[EVENT_TIMESTAMP].to_pylist(), rows[CREATED_TIMESTAMP].to_pylist(), strict=True)
    )


def _protos(values: list[Any], of: ValueType) -> list[Value]:
    # Feast takes empty bytes for missing ones where a batch has nothing longer.
    if of is ValueType.BYTES:
        return [Value() if v is None else Value(bytes_val=v) for v in values]
    return python_values_to_proto_values(values, of)


def entity_keys(key: str, entities: list[str], serialization_version: int) -> list[bytes]:
    """The keys of entities as Feast writes them to every online store.

    Args:
        key: Join key.
        entities: Its values.
        serialization_version: As the store is configured.
    """
    return [
        serialize_entity_key(
            EntityKey(join_keys=[key], entity_values=[Value(string_val=entity)]), serialization_version
        )
        for entity in entities
    ]


def empty(store: FeatureStore, view: str) -> None:
    """Removes every entity of a view from the online store."""
    feature_view = store.get_feature_view(view)
    for deleted, kept in (([feature_view], []), ([], [feature_view])):
        store._get_provider().update_infra(
            project=store.project,
            tables_to_delete=deleted,
            tables_to_keep=kept,
            entities_to_delete=[],
            entities_to_keep=[],
            partial=True,
        )


def read(store: FeatureStore, features: Any, key: str, entities: list[str]) -> list[dict[str, Any]]:
    """Returns the online features of entities as one record each, features called ``view__feature``.

    Args:
        store: The Feast store.
        features: A FeatureService, or ``view:feature`` references.
        key: Join key.
        entities: Its values.
    """
    columns = store.get_online_features(
        features=features, entity_rows=[{key: e} for e in entities], full_feature_names=True
    ).to_dict()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def latency(store: FeatureStore, service: str, rows: list[dict[str, str]]) -> list[float]:
    """Returns the milliseconds that each request for one user and item took, after one that warms up.

    Args:
        store: The Feast store.
        service: Name of the FeatureService.
        rows: Join keys of the requests.
    """
    asked = store.get_feature_service(service)
    taken = []
    for row in rows[:1] + rows:
        started = time.perf_counter()
        # Views share names such as `num_events`; full names keep them apart.
        store.get_online_features(features=asked, entity_rows=[row], full_feature_names=True).to_dict()
        taken.append((time.perf_counter() - started) * 1000)
    return taken[1:]
