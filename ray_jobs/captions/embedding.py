"""Job: the dense embedding of every caption, and how well captions tell their items from others of the same category.

Shape letters: N items, D embedding.
"""

import datetime as dt
import sys

import numpy as np
import polars as pl
import pydantic

from ray_jobs.captions.retrieval import retrieval, trials
from ray_jobs.clusters.item_embedding import item_texts
from ray_jobs.embedding_store import as_lists, embed
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.tables.captions import CAPTION_EMBEDDINGS, CAPTION_RETRIEVAL, ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.text_encoding import TextEncoderConfig
from ray_jobs.warehouse import Warehouse


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    encoder: TextEncoderConfig = pydantic.Field(description="The text encoder.")
    version: str = pydantic.Field(description="Version of the tables that are written.")
    embedding_version: str = pydantic.Field(description="Version of the space: caption version and encoder.")
    sampled_items: int = pydantic.Field(500, ge=1, description="Most items whose captions are sought with.")
    candidates: int = pydantic.Field(100, ge=2, description="Most items of a category to choose from.")
    controls: int = pydantic.Field(10, ge=1, description="Captions of other candidates that each item is sought with.")
    max_description_characters: int = pydantic.Field(300, ge=0, description="Longer descriptions are cut.")
    seed: int = pydantic.Field(17, description="Seed of the sample.")


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    num_items: int
    num_texts: int
    num_encoded: int
    num_sampled: int
    dimension: int
    committed: bool


def _read(config: Config) -> pl.DataFrame:
    captions = pl.DataFrame(config.warehouse.read(ITEM_CAPTIONS, ["item_id", "caption", "event_timestamp"]))
    items = pl.DataFrame(config.warehouse.read(ITEMS, ["item_id", "title", "categories", "description"]))
    return captions.join(items, on="item_id").sort("item_id")


def run(config: Config) -> Result:
    """Writes `CAPTION_EMBEDDINGS` and `CAPTION_RETRIEVAL`."""
    rows = _read(config)
    tried = trials(
        rows["categories"], sampled_items=config.sampled_items, candidates=config.candidates, seed=config.seed
    )
    shown = sorted({row for trial in tried for row in trial.candidates})
    evidence = item_texts(
        rows[shown].with_columns(pl.lit(None, pl.String).alias("caption")),
        max_description_characters=config.max_description_characters,
    )
    embedded = embed(
        config.warehouse, config.encoder, rows["caption"].to_list() + evidence.to_list(), stage="caption embeddings"
    )
    caption_ND = embedded.vectors[: rows.height]
    now = pl.lit(dt.datetime.now(dt.UTC)).alias("created_timestamp")
    stamps = (pl.lit(config.embedding_version).alias("embedding_version"), now)
    ranks = retrieval(
        tried,
        caption_ND,
        embedded.vectors[rows.height :],
        np.array(shown, int),
        controls=config.controls,
        seed=config.seed,
    )
    places = pl.DataFrame(
        {
            "item_id": rows["item_id"].gather([t.item for t in tried]),
            "category": [t.category for t in tried],
            "candidates": [len(t.candidates) for t in tried],
            "rank": [rank for rank, _ in ranks],
            "control_ranks": [control for _, control in ranks],
        },
        schema={
            "item_id": pl.String,
            "category": pl.String,
            "candidates": pl.Int32,
            "rank": pl.Float32,
            "control_ranks": pl.List(pl.Float32),
        },
    ).with_columns(stamps)
    config.warehouse.write(CAPTION_RETRIEVAL, places.to_arrow(), config.version)
    table = rows.select("item_id", "event_timestamp").with_columns(stamps).to_arrow()
    table = table.append_column("embedding", as_lists(caption_ND)).select([c.name for c in CAPTION_EMBEDDINGS.columns])
    written = config.warehouse.write(CAPTION_EMBEDDINGS, table, config.version)
    return Result(
        num_items=rows.height,
        num_texts=embedded.num_texts,
        num_encoded=embedded.num_encoded,
        num_sampled=len(tried),
        dimension=caption_ND.shape[1],
        committed=written.committed,
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
