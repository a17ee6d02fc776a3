"""What the stage's own checks compare: examples in and out, and features offline and online."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pyarrow.compute as pc

from assets.features.published_views import VIEWS
from assets.resources import Features
from models.forgetting import MASK
from ray_jobs.erasure import USER_COLUMN
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.warehouse import Table, Warehouse

SAMPLE = 5


@dataclasses.dataclass(frozen=True)
class Examples:
    """Figures of a table of examples.

    Attributes:
        num_rows: Rows.
        label_sum: Sum of the labels.
        num_ids: Distinct example ids.
        ids: Sorted 64-bit hashes of the distinct example ids; eight bytes an example are all that is kept in memory.
    """

    num_rows: int
    label_sum: int
    num_ids: int
    ids: np.ndarray


def examples(warehouse: Warehouse, table: Table) -> Examples:
    """Counts the examples of a table, part by part."""
    num_rows = label_sum = 0
    hashes = [np.empty(0, np.uint64)]
    for part in warehouse.batches(table, ["example_id", "label"]):
        num_rows += part.num_rows
        label_sum += int(pc.sum(part["label"]).as_py() or 0)
        hashes.append(pl.Series(part["example_id"]).hash(seed=0).to_numpy())
    ids = np.unique(np.concatenate(hashes))
    return Examples(num_rows, label_sum, len(ids), ids)


def some_ids(warehouse: Warehouse, table: Table, hashes: np.ndarray) -> list[str]:
    """A few example ids of ``table`` whose hashes are among ``hashes``."""
    for part in warehouse.batches(table, ["example_id"]):
        ids = pl.Series(part["example_id"])
        if found := ids.filter(ids.hash(seed=0).is_in(hashes[:SAMPLE])).to_list():
            return [str(i) for i in found[:SAMPLE]]
    return []


def lost_rows(warehouse: Warehouse) -> dict[str, Any]:
    """Compares `features/training_set` with `interactions/splits`.

    Returns:
        Figures of both, ``ok``, and a sample of the ids that only one of them has.
    """
    before, after = examples(warehouse, SPLITS), examples(warehouse, TRAINING_SET)
    lost = np.setdiff1d(before.ids, after.ids, assume_unique=True)
    added = np.setdiff1d(after.ids, before.ids, assume_unique=True)
    return {
        "ok": (before.num_rows, before.label_sum) == (after.num_rows, after.label_sum)
        and after.num_ids == after.num_rows
        and not len(lost)
        and not len(added),
        "rows_in": before.num_rows,
        "rows_out": after.num_rows,
        "label_sum_in": before.label_sum,
        "label_sum_out": after.label_sum,
        "distinct_ids_out": after.num_ids,
        "rows_lost": len(lost),
        "rows_added": len(added),
        "failing_sample": some_ids(warehouse, SPLITS, lost) + some_ids(warehouse, TRAINING_SET, added),
    }


def offline_and_online(features: Features, held: dict[str, dict[str, Any]], sample_size: int) -> dict[str, Any]:
    """Compares what Feast's offline join and its online store say of sampled entities, view by view.

    Args:
        features: The resource.
        held: What the online store holds, by view: rows of `features/online_store`.
        sample_size: Most entities of a view.

    Returns:
        ``compared`` values, ``entities``, and ``differences``: view, feature, entity, offline, online.
    """
    import pandas as pd

    from feature_repo import latest, online
    from feature_repo.versions import require_content_versions

    store = features.store()
    require_content_versions(store, {name: row["content_version"] for name, row in held.items()})
    compared = entities = 0
    differences = []
    for view in VIEWS:
        row = held[view.name]
        keys = latest.sample_keys(
            features.publications(), view.name, view.key, version=row["version"], size=sample_size
        )
        if not keys:
            continue
        asked = [f"{view.name}:{f}" for f in view.features]
        frame = pd.DataFrame({view.key: keys, "event_timestamp": pd.Series([row["published_at"]] * len(keys))})
        offline = (
            store.get_historical_features(entity_df=frame, features=asked, full_feature_names=True)
            .to_arrow()
            .to_pylist()
        )
        entities += len(keys)
        for key, there, here in zip(keys, offline, online.read(store, asked, view.key, keys), strict=True):
            for feature in view.features:
                compared += 1
                name = f"{view.name}__{feature}"
                # By text, so that a NaN equals a NaN.
                if repr(there[name]) != repr(here[name]):
                    differences.append(
                        {
                            "view": view.name,
                            "feature": feature,
                            # Metadata of checks is kept for ever, and a user could not be forgotten there.
                            "entity": MASK if view.key == USER_COLUMN else key,
                            "offline": repr(there[name])[:80],
                            "online": repr(here[name])[:80],
                        }
                    )
    return {"compared": compared, "entities": entities, "differences": differences}
