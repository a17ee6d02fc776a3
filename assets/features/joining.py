"""The training set's columns out of Feast's features, joined in chunks."""

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from assets.features.published_views import BY_NAME
from feature_repo.publications import Publication
from feature_repo.versions import require_rows_of
from ray_jobs.progress import Progress
from ray_jobs.ranking.data import FEATURE_REFS
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.warehouse import TIMESTAMP, Warehouse

EXAMPLE_COLUMNS = ["example_id", "user_id", "item_id", "timestamp", "label", "sampled", "split", "position"]
# Column of the training set: Feast view and feature.
FEATURES = {name: (view, feature) for name, ref in FEATURE_REFS.items() for view, feature in [ref.split(":")]} | {
    "item_codes": ("item_semantic_ids", "codes"),
}
JOINED_VIEWS = tuple(BY_NAME[name] for name in dict.fromkeys(view for view, _ in FEATURES.values()))


class RowsLostError(ValueError):
    """A join gave other examples than it was given."""


class Joined:
    """The training set, chunk by chunk, and what was seen on the way.

    Args:
        store: The Feast store.
        warehouse: The warehouse.
        publications: What is published, by view.
        chunk_rows: Examples that are joined at once.
        by_knowledge: Whether rows that were written after the example's moment stay unseen.
    """

    def __init__(
        self,
        store: Any,
        warehouse: Warehouse,
        publications: Mapping[str, Publication],
        *,
        chunk_rows: int,
        by_knowledge: bool,
    ):
        self.store, self.warehouse, self.publications = store, warehouse, publications
        self.chunk_rows, self.by_knowledge = chunk_rows, by_knowledge
        self.num_rows = 0
        self.present = dict.fromkeys(FEATURES, 0)
        self.first: pa.Table | None = None

    def chunks(self) -> Iterator[pa.Table]:
        """Yields the rows of `features/training_set`, in the order of `interactions/splits`."""
        created = pa.scalar(dt.datetime.now(dt.UTC), TIMESTAMP)
        progress = Progress("training set", self.warehouse.num_rows(SPLITS), "examples")
        for examples in self.warehouse.batches(SPLITS, EXAMPLE_COLUMNS, num_rows=self.chunk_rows):
            rows = self._join(examples.rename_columns({"timestamp": "event_timestamp"}))
            rows = rows.append_column("created_timestamp", pa.repeat(created, rows.num_rows))
            rows = rows.select([c.name for c in TRAINING_SET.columns])
            self.num_rows += rows.num_rows
            for name in FEATURES:
                self.present[name] += rows.num_rows - rows[name].null_count
            self.first = self.first if self.first is not None else rows.slice(0, 100)
            progress.add(rows.num_rows)
            yield rows

    def shares_present(self) -> dict[str, float]:
        """Share of the examples that have each feature."""
        return {name: count / max(self.num_rows, 1) for name, count in self.present.items()}

    def _join(self, examples: pa.Table) -> pa.Table:
        import pandas as pd

        versions = {v.name: v.content_version for v in JOINED_VIEWS if v.content_version}
        asked = dict.fromkeys([*FEATURES.values(), *versions.items()])
        found = self.store.get_historical_features(
            entity_df=examples.to_pandas(types_mapper=pd.ArrowDtype),
            features=[f"{v}:{f}" for v, f in asked],
            full_feature_names=True,
            filter_by_created_timestamp=self.by_knowledge,
        ).to_arrow()
        if not found["example_id"].cast(pa.string()).equals(examples["example_id"]):
            raise RowsLostError(
                f"Feast returned other examples than it was given ({found.num_rows:,} for {examples.num_rows:,}): "
                "compare the offline store with tests/feature_repo/test_asof_offline_store.py."
            )
        for view, feature in versions.items():
            require_rows_of(self.publications[view].content_version, found[f"{view}__{feature}"], f"{view}.{feature}")
        for name, (view, feature) in FEATURES.items():
            examples = examples.append_column(name, found[f"{view}__{feature}"])
        return examples
