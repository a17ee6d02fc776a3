"""What turns raw columns into VISTA's integer inputs. Fitted on the training split, kept with the weights."""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MOST_VALUES = 16
"""Values with at most so many distinct numbers get a bucket each (stars); others are cut at quantiles."""


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Vocabularies and bucket edges; in all of them 0 means "unknown" or "none".

    Attributes:
        items: Items that have an embedding of their own, sorted; row i + 1 of the item table.
        actions: Actions, sorted; row i + 1 of the action table.
        value_edges: Ascending; bucket of a value = 1 + number of edges at or below it.
        level_sizes: Codes of each level of the semantic IDs; empty when there are none.
    """

    items: list[str]
    actions: list[str]
    value_edges: list[float]
    level_sizes: list[int]

    @property
    def num_codes(self) -> int:
        """Rows of the code table."""
        return 1 + sum(self.level_sizes)

    @property
    def num_values(self) -> int:
        """Rows of the value table."""
        return 2 + len(self.value_edges)

    def encode_items(self, items: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Rows of the item table, int64."""
        return _index(items, self.items)

    def encode_actions(self, actions: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Rows of the action table, int64."""
        return _index(actions, self.actions)

    def encode_values(self, values: np.ndarray) -> np.ndarray:
        """Rows of the value table, int64; NaN is 0."""
        found = 1 + np.searchsorted(np.asarray(self.value_edges), values, side="right")
        return np.where(np.isnan(values), 0, found).astype(np.int64)

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Rows of the code table for codes of shape N x levels; a code below 0 is unknown.

        A code beyond the level's size is refused: the table would be of another codebook.
        """
        sizes = np.asarray(self.level_sizes, np.int64)
        if codes.shape[1] != len(sizes) or (codes >= sizes).any():
            raise ValueError("The semantic IDs are of another codebook than the model's: train vista/summarizer again.")
        offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(sizes) else np.zeros(0, np.int64)
        return np.where(codes < 0, 0, 1 + codes + offsets).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return dataclasses.asdict(self)


def fit_vocabulary(
    items: pa.Array | pa.ChunkedArray,
    actions: pa.Array | pa.ChunkedArray,
    values: np.ndarray,
    level_sizes: list[int],
    min_count: int = 1,
) -> Vocabulary:
    """Fits a vocabulary to the events of the training split.

    Args:
        items: Item of each event.
        actions: Action of each event.
        values: Value of each event, NaN where there is none.
        level_sizes: Codes of each level of the semantic IDs.
        min_count: Items with fewer events share the row "unknown", and rest on their codes.
    """
    counted = pc.value_counts(items)
    kept = pc.filter(counted.field("values"), pc.greater_equal(counted.field("counts"), min_count))
    finite = values[~np.isnan(values)]
    distinct = np.unique(finite)
    edges = (
        distinct[1:]
        if len(distinct) <= MOST_VALUES
        else np.unique(np.quantile(finite, np.linspace(0, 1, MOST_VALUES + 1)[1:-1]))
    )
    return Vocabulary(
        sorted(kept.to_pylist()), sorted(pc.unique(actions).to_pylist()), edges.tolist(), list(level_sizes)
    )


def _index(values: pa.Array | pa.ChunkedArray, known: list[str]) -> np.ndarray:
    found = pc.index_in(values, value_set=pa.array(known, pa.string()))
    return (
        pc.add(pc.fill_null(found, -1), 1).to_numpy(zero_copy_only=False).astype(np.int64)
        if isinstance(found, pa.Array)
        else pc.add(pc.fill_null(found, -1), 1).to_numpy().astype(np.int64)
    )
