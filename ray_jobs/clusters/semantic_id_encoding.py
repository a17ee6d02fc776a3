"""Job: the semantic ID of every item, by encoding its embedding with the standing codebooks. Nothing is fitted.

It writes the version's map beside those that serve (`ray_jobs.clusters.semantic_id_maps`) and switches nobody to it.
"""

import dataclasses
import datetime as dt
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pydantic

from models.semantic_ids.quantiser import Quantiser
from models.semantic_ids.separation import NUM_ALTERNATIVES, separate
from models.semantic_ids.spec import collision_digits
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.clusters.codebook_artifacts import load_codebooks
from ray_jobs.clusters.semantic_id_maps import map_name, save_map
from ray_jobs.embedding_store import as_matrix
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS, SEMANTIC_IDS
from ray_jobs.warehouse import Warehouse


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where codebooks and maps are kept.")
    version: str = pydantic.Field(description="Version of the semantic IDs.")
    embeddings: str = pydantic.Field(description="Version of the table of embeddings.")
    codebooks: str = pydantic.Field(description="Version of the codebooks.")
    rows_per_task: int = pydantic.Field(200_000, ge=1, description="Items that one Ray task encodes.")


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    num_items: int
    num_moved: int
    num_moved_clusters: int
    num_new: int
    num_gone: int
    num_separated: int
    num_collided: int
    digits: int
    artifact: str

    @property
    def unique_rate(self) -> float:
        """Distinct code sequences over items."""
        return 1 - self.num_collided / max(self.num_items, 1)


class Moves(NamedTuple):
    """What two versions of the semantic IDs tell of each other.

    Attributes:
        moved: Items of both that have another ID now.
        moved_clusters: Of these, items whose coarsest code is another one.
        new: Items that had no ID.
        gone: Items that have none any more.
    """

    moved: int
    moved_clusters: int
    new: int
    gone: int


def moves(before: pl.DataFrame, now: pl.DataFrame) -> Moves:
    """Counts the items that moved; both frames have ``item_id``, ``semantic_id`` and ``cluster``."""
    both = now.join(before, on="item_id", suffix="_before")
    return Moves(
        int((both["semantic_id"] != both["semantic_id_before"]).sum()),
        int((both["cluster"] != both["cluster_before"]).sum()),
        now.height - both.height,
        before.height - both.height,
    )


def encode(quantiser: Quantiser, x_ND: np.ndarray, *, rows_per_task: int) -> np.ndarray:
    """Codes of embeddings, encoded by Ray tasks.

    Args:
        quantiser: Standing codebooks; new items need no fit.
        x_ND: Embeddings.
        rows_per_task: Items of one task.

    Returns:
        Codes of shape (N, L), int32.
    """
    if not len(x_ND):
        return np.zeros((0, len(quantiser.widths)), np.int32)
    return _in_tasks(quantiser, lambda shared, rows_ND: shared.encode(rows_ND), x_ND, rows_per_task)


def _alternatives(quantiser: Quantiser, x_ND: np.ndarray) -> np.ndarray:
    return quantiser.last_codes(x_ND, NUM_ALTERNATIVES)


def _in_tasks(
    quantiser: Quantiser, ask: Callable[[Quantiser, np.ndarray], np.ndarray], x_ND: np.ndarray, rows_per_task: int
) -> np.ndarray:
    import ray

    task, shared = ray.remote(num_cpus=1)(ask), ray.put(quantiser)
    parts = [task.remote(shared, x_ND[i : i + rows_per_task]) for i in range(0, len(x_ND), rows_per_task)]
    return np.concatenate(ray.get(parts))


def _standing(warehouse: Warehouse) -> pl.DataFrame:
    """What the table holds now; no rows if it was never written."""
    if not warehouse.exists(SEMANTIC_IDS):
        return pl.DataFrame(SEMANTIC_IDS.schema.empty_table())
    return pl.DataFrame(warehouse.read(SEMANTIC_IDS))


def _kept_codes(before: pl.DataFrame, item_ids: pa.ChunkedArray, codes_NL: np.ndarray, codebooks: str) -> np.ndarray:
    """The last code of each item that has had the same codes above, of the same codebooks; -1 for others."""
    above = pl.DataFrame(
        {"item_id": pl.Series(item_ids), "above": pl.Series(codes_NL[:, :-1].tolist(), dtype=pl.List(pl.Int32))}
    )
    standing = before.filter(pl.col("codebook_version") == codebooks).select(
        "item_id", pl.col("codes").list.slice(0, codes_NL.shape[1] - 1).alias("above"), pl.col("codes").list.last()
    )
    both = above.join(standing, on=["item_id", "above"], how="left", maintain_order="left")
    return both["codes"].fill_null(-1).to_numpy()


def _kept(before: pl.DataFrame, item_ids: pa.ChunkedArray, codes_NL: np.ndarray, codebooks: str) -> np.ndarray:
    """The collision digit of each item that has had the same codes of the same codebooks; -1 for others."""
    now = pl.DataFrame({"item_id": pl.Series(item_ids), "codes": pl.Series(codes_NL.tolist(), dtype=pl.List(pl.Int32))})
    standing = before.filter(pl.col("codebook_version") == codebooks).select("item_id", "codes", "collision")
    both = now.join(standing, on=["item_id", "codes"], how="left", maintain_order="left")
    return both["collision"].fill_null(-1).to_numpy()


def run(config: Config) -> Result:
    """Writes the map of a version."""
    columns = ["item_id", "embedding", "event_timestamp"]
    items = config.warehouse.read(ITEM_EMBEDDINGS, columns, expect_version=config.embeddings)
    # Collision digits are given in this order: whoever came first has the lower one.
    items = items.sort_by([("event_timestamp", "ascending"), ("item_id", "ascending")])
    codebooks = load_codebooks(config.artifacts, config.codebooks)
    x_ND = as_matrix(items["embedding"])
    nearest_NL = encode(codebooks.quantiser, x_ND, rows_per_task=config.rows_per_task)
    before = _standing(config.warehouse)

    def alternatives(rows_M: np.ndarray) -> np.ndarray:
        return _in_tasks(codebooks.quantiser, _alternatives, x_ND[rows_M], config.rows_per_task)

    kept_N = _kept_codes(before, items["item_id"], nearest_NL, config.codebooks)
    codes_NL = separate(nearest_NL, alternatives, kept_N)
    digits_N = collision_digits(codes_NL, _kept(before, items["item_id"], codes_NL, config.codebooks))
    num_items = items.num_rows
    rows = pa.table(
        {
            "item_id": items["item_id"],
            "codes": pa.array(codes_NL.tolist(), pa.list_(pa.int32())),
            "collision": pa.array(digits_N, pa.int32()),
            "semantic_id": pa.array(codebooks.spec.format(codes_NL, digits_N), pa.string()),
            "cluster": pa.array(codes_NL[:, 0], pa.int32()),
            "codebook_version": pa.array([config.codebooks] * num_items, pa.string()),
            "event_timestamp": items["event_timestamp"],
            "created_timestamp": pa.array([dt.datetime.now(dt.UTC)] * num_items, pa.timestamp("us", tz="UTC")),
        }
    )
    moved = moves(before, pl.DataFrame(rows)) if before.height else Moves(0, 0, 0, 0)
    digits = int(digits_N.max(initial=0)) + 1
    save_map(config.artifacts, config.version, dataclasses.replace(codebooks.spec, digits=digits), rows)
    return Result(
        num_items=num_items,
        num_moved=moved.moved,
        num_moved_clusters=moved.moved_clusters,
        num_new=moved.new,
        num_gone=moved.gone,
        num_separated=int((codes_NL != nearest_NL).any(1).sum()),
        num_collided=int((digits_N > 0).sum()),
        digits=digits,
        artifact=map_name(config.version),
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
