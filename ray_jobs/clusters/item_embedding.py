"""Job: the dense embedding of every item, from its title, categories, description and caption.

Shape letters: N items, D embedding.
"""

import datetime as dt
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pydantic

from ray_jobs.embedding_store import as_lists, embed
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.text_encoding import TextEncoderConfig
from ray_jobs.warehouse import Warehouse

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Titles draw a sentence encoder to their words: films called after a night or a fish flock together. On MovieLens-100K,
# categories at half the weight raise the overlap of genres within a coarse cluster from 0.47 to 0.76 and the rate at
# which users like two of its items from 1.42 to 1.57 times chance, at the same rate of unique codes (97 %).
CATEGORY_WEIGHT = 0.5


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    encoder: TextEncoderConfig = pydantic.Field(description="The text encoder.")
    version: str = pydantic.Field(description="Version of the table that is written.")
    embedding_version: str = pydantic.Field(description="Version of the space: caption version and encoder.")
    max_description_characters: int = pydantic.Field(300, ge=0, description="Longer descriptions are cut.")
    category_weight: float = pydantic.Field(
        CATEGORY_WEIGHT, ge=0, description="Weight of the categories' own vector beside that of the whole text."
    )


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    num_items: int
    num_texts: int
    num_encoded: int
    num_without_caption: int
    dimension: int
    committed: bool


def item_texts(items: pl.DataFrame, *, max_description_characters: int) -> pl.Series:
    """``Title. category, category. Description. Caption.`` of each item; what is unknown is left out.

    Args:
        items: Columns ``title``, ``categories``, ``description`` and ``caption``; all but the title may be null.
        max_description_characters: Longer descriptions are cut.
    """
    parts = [
        pl.col("title"),
        pl.col("categories").list.join(", "),
        pl.col("description").str.slice(0, max_description_characters),
        pl.col("caption"),
    ]
    ended = [pl.when(p.str.strip_chars() != "").then(p.str.strip_chars().str.strip_chars_end(".") + ".") for p in parts]
    return items.select(pl.concat_str(ended, separator=" ", ignore_nulls=True).alias("text"))["text"]


def item_vectors(text_ND: np.ndarray, category_ND: np.ndarray, has_category_N: np.ndarray, weight: float) -> np.ndarray:
    """Unit vectors of items: the text's vector plus that of the categories, where there are any.

    Args:
        text_ND: Unit vectors of the whole texts.
        category_ND: Unit vectors of the categories alone.
        has_category_N: Whether the item has categories.
        weight: Weight of the categories.
    """
    mixed_ND = text_ND + (weight * has_category_N)[:, None] * category_ND
    return (mixed_ND / np.linalg.norm(mixed_ND, axis=1, keepdims=True)).astype(np.float32)


def run(config: Config) -> Result:
    """Writes `ITEM_EMBEDDINGS`."""
    columns = ["item_id", "title", "categories", "description", "available_from"]
    items = pl.from_arrow(config.warehouse.read(ITEMS, columns))
    captions = pl.from_arrow(config.warehouse.read(ITEM_CAPTIONS, ["item_id", "caption"]))
    assert isinstance(items, pl.DataFrame)
    assert isinstance(captions, pl.DataFrame)
    items = items.join(captions, on="item_id", how="left").sort("item_id")
    texts = item_texts(items, max_description_characters=config.max_description_characters).to_list()
    categories = items["categories"].list.join(", ").fill_null("").to_list()
    embedded = embed(config.warehouse, config.encoder, texts + categories, stage="item embeddings")
    num_items = items.height
    vectors_ND = item_vectors(
        embedded.vectors[:num_items],
        embedded.vectors[num_items:],
        np.array([bool(c) for c in categories], bool),
        config.category_weight,
    )
    now = dt.datetime.now(dt.UTC)
    table = pa.table(
        {
            "item_id": items["item_id"].to_arrow(),
            "embedding": as_lists(vectors_ND),
            "embedding_version": pa.array([config.embedding_version] * num_items, pa.string()),
            "event_timestamp": items["available_from"].fill_null(EPOCH).to_arrow(),
            "created_timestamp": pa.array([now] * num_items, pa.timestamp("us", tz="UTC")),
        }
    )
    written = config.warehouse.write(ITEM_EMBEDDINGS, table, config.version)
    return Result(
        num_items=num_items,
        num_texts=embedded.num_texts,
        num_encoded=embedded.num_encoded,
        num_without_caption=items["caption"].null_count(),
        dimension=embedded.vectors.shape[1],
        committed=written.committed,
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
