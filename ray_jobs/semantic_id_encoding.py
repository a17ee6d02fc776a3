"""Job: the semantic ID of every item, by encoding its embedding with the standing codebooks. Nothing is fitted."""

import datetime as dt
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pydantic

from models.semantic_ids.residual_kmeans import ResidualKMeans
from models.semantic_ids.spec import collision_digits
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.codebook_artifacts import load_codebooks
from ray_jobs.embedding_store import as_matrix
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS, SEMANTIC_IDS
from ray_jobs.warehouse import Warehouse


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where codebooks are kept.")
    version: str = pydantic.Field(description="Version of the table that is written.")
    embeddings: str = pydantic.Field(description="Version of the table of embeddings.")
    codebooks: str = pydantic.Field(description="Version of the codebooks.")
    rows_per_task: int = pydantic.Field(200_000, ge=1, description="Items that one Ray task encodes.")


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    num_items: int
    num_moved: int
    num_new: int
    num_collided: int
    committed: bool


def encode(quantiser: ResidualKMeans, x_ND: np.ndarray, *, rows_per_task: int) -> np.ndarray:
    """Codes of embeddings, encoded by Ray tasks.

    Args:
        quantiser: Standing codebooks; new items need no fit.
        x_ND: Embeddings.
        rows_per_task: Items of one task.

    Returns:
        Codes of shape (N, L), int32.
    """
    import ray

    @ray.remote(num_cpus=1)
    def encode_rows(shared: ResidualKMeans, rows_ND: np.ndarray) -> np.ndarray:
        return shared.encode(rows_ND)

    shared = ray.put(quantiser)
    parts = [encode_rows.remote(shared, x_ND[i : i + rows_per_task]) for i in range(0, len(x_ND), rows_per_task)]
    return np.concatenate(ray.get(parts)) if parts else np.zeros((0, len(quantiser.widths)), np.int32)


def run(config: Config) -> Result:
    """Writes `SEMANTIC_IDS`."""
    import pyarrow.compute as pc

    columns = ["item_id", "embedding", "event_timestamp"]
    items = config.warehouse.read(ITEM_EMBEDDINGS, columns, expect_version=config.embeddings)
    # The collision digit follows this order: whoever came first keeps the lower digit.
    items = items.sort_by([("event_timestamp", "ascending"), ("item_id", "ascending")])
    codebooks = load_codebooks(config.artifacts, config.codebooks)
    codes_NL = encode(codebooks.quantiser, as_matrix(items["embedding"]), rows_per_task=config.rows_per_task)
    digits_N = collision_digits(codes_NL)
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
    now = pl.DataFrame(rows.select(["item_id", "semantic_id"]))
    num_moved = num_new = 0
    if config.warehouse.exists(SEMANTIC_IDS):
        before = pl.DataFrame(config.warehouse.read(SEMANTIC_IDS, ["item_id", "semantic_id"]))
        both = now.join(before, on="item_id", how="left", suffix="_before")
        num_new = both["semantic_id_before"].null_count()
        num_moved = int((both["semantic_id_before"] != both["semantic_id"]).sum())
    written = config.warehouse.write(SEMANTIC_IDS, rows, config.version)
    num_collided = num_items - pc.sum(pc.equal(rows["collision"], 0)).as_py() if num_items else 0
    return Result(
        num_items=num_items,
        num_moved=num_moved,
        num_new=num_new,
        num_collided=num_collided,
        committed=written.committed,
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
