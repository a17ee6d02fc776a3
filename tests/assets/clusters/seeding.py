"""Captions and embeddings for tests of the stages that stand on them."""

import datetime as dt

import numpy as np
import pyarrow as pa

from ray_jobs.embedding_store import as_lists
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import ITEM_EMBEDDINGS
from ray_jobs.tables.interactions import ITEMS
from tests.factories import CREATED

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
MOODS = {
    "crime": "tense",
    "comedy": "funny",
    "romance": "romantic",
    "war": "sad",
    "space": "adventurous",
    "music": "cheerful",
}


def seed_captions(tables, version: str = "captions-1", without: tuple[str, ...] = ()) -> None:
    """Writes a caption for every item of `seed_interactions`, but for those in ``without``."""
    items = tables.read(ITEMS, ["item_id", "title", "categories"]).to_pylist()
    rows = [
        {
            "item_id": item["item_id"],
            "content_key": f"k-{item['item_id']}",
            "caption": f"A {MOODS[item['categories'][0]]} story about {item['categories'][0]}, called {item['title']}.",
            "subjects": [item["categories"][0]],
            "style": "plain",
            "setting": "home",
            "mood": MOODS[item["categories"][0]],
            "text_in_image": "",
            "tags": [item["categories"][0], item["title"].split()[1].lower()],
            "pixel_digest": None,
            "caption_version": version,
            "event_timestamp": EPOCH,
            "created_timestamp": CREATED,
        }
        for item in items
        if item["item_id"] not in without
    ]
    tables.write(ITEM_CAPTIONS, pa.Table.from_pylist(rows, ITEM_CAPTIONS.schema), version=version)


def seed_embeddings(tables, vectors: np.ndarray, version: str, space: str = "space-1") -> None:
    """Writes ``vectors`` (made unit length) as embeddings of items ``i0, i1, ...``."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    size = len(unit)
    table = pa.table(
        {
            "item_id": [f"i{n}" for n in range(size)],
            "embedding": as_lists(unit.astype(np.float32)),
            "embedding_version": [space] * size,
            "event_timestamp": pa.array([EPOCH] * size, pa.timestamp("us", "UTC")),
            "created_timestamp": pa.array([CREATED] * size, pa.timestamp("us", "UTC")),
        }
    )
    tables.write(ITEM_EMBEDDINGS, table, version=version)


def anisotropic(num_items: int = 400, dimension: int = 32, seed: int = 0) -> np.ndarray:
    """Vectors like those of text: one direction in common, a few that hold most of the variance, groups and noise."""
    rng = np.random.default_rng(seed)
    spread = 1.0 / np.arange(1, dimension + 1) ** 1.2
    centers = rng.normal(size=(12, dimension)) * spread
    noise = rng.normal(size=(num_items, dimension)) * spread * rng.lognormal(sigma=0.6, size=(num_items, 1))
    return (2.0 + centers[rng.integers(0, 12, num_items)] + 0.5 * noise).astype(np.float32)
