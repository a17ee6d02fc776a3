"""Embeddings by content: no text is encoded twice, and what a killed job has encoded is kept."""

import datetime as dt
import hashlib
import json
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.progress import Progress
from ray_jobs.tables.clusters import EMBEDDING_STORE, ITEM_EMBEDDINGS
from ray_jobs.text_encoding import EMBEDDING, TEXT, TextEncoderConfig, encode_on_ray
from ray_jobs.warehouse import Warehouse

KEY = "content_key"
# Rows of one append: a commit a block would leave thousands of small files.
APPEND_ROWS = 8192
MOST_VALUES = 2**31 - 1


class Embedded(NamedTuple):
    """Embeddings of a list of texts.

    Attributes:
        vectors: Unit vectors in the order of the texts, float32, shape (N, D).
        num_texts: Distinct texts.
        num_encoded: Distinct texts that were not in the store.
    """

    vectors: np.ndarray
    num_texts: int
    num_encoded: int

    @property
    def hit_rate(self) -> float:
        """Share of the distinct texts that the store already had."""
        return 1.0 - self.num_encoded / self.num_texts if self.num_texts else 1.0


def content_keys(texts: list[str], encoder: TextEncoderConfig) -> list[str]:
    """The key of each text: a digest of encoder and text."""
    start = hashlib.sha256(json.dumps(encoder.identity, sort_keys=True).encode())
    keys = []
    for text in texts:
        digest = start.copy()
        digest.update(text.encode())
        keys.append(digest.hexdigest()[:32])
    return keys


def as_matrix(vectors: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """A column of equally long lists as a float32 matrix.

    Raises:
        ValueError: If the lists differ in length, or one is null.
    """
    if not len(vectors):
        return np.zeros((0, 0), np.float32)
    lengths = pc.list_value_length(vectors).unique()
    if len(lengths) != 1 or lengths[0].as_py() is None:
        raise ValueError(f"A column of vectors holds lengths {lengths.to_pylist()[:5]}: it mixes two encoders.")
    # Chunk by chunk: in one list array the values could be more than its 32-bit offsets reach.
    chunks = vectors.chunks if isinstance(vectors, pa.ChunkedArray) else [vectors]
    flat = [c.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False) for c in chunks]
    return np.concatenate(flat).reshape(len(vectors), -1)


def as_lists(vectors_ND: np.ndarray) -> pa.ChunkedArray:
    """A float32 matrix as a column of lists, in chunks of as many values as 32-bit offsets reach."""
    width = vectors_ND.shape[1]
    rows = max(MOST_VALUES // max(width, 1), 1)
    parts = [vectors_ND[at : at + rows] for at in range(0, len(vectors_ND), rows)]
    chunks = [
        pa.ListArray.from_arrays(
            pa.array(np.arange(len(part) + 1, dtype=np.int32) * width), pa.array(part.reshape(-1), pa.float32())
        )
        for part in parts
    ]
    return pa.chunked_array(chunks, pa.list_(pa.float32()))


def item_vectors(warehouse: Warehouse, version: str) -> tuple[list[str], np.ndarray]:
    """Items by id, and their embeddings (N, D).

    Args:
        warehouse: Where `clusters/item_embeddings` is.
        version: Version of the table that is expected.
    """
    data = warehouse.read(ITEM_EMBEDDINGS, ["item_id", "embedding"], expect_version=version).sort_by("item_id")
    return data["item_id"].to_pylist(), as_matrix(data["embedding"])


def _known(warehouse: Warehouse) -> pl.Series:
    if not warehouse.exists(EMBEDDING_STORE):
        return pl.Series(KEY, [], pl.String)
    return pl.Series(KEY, warehouse.read(EMBEDDING_STORE, [KEY])[KEY])


def embed(warehouse: Warehouse, encoder: TextEncoderConfig, texts: list[str], *, stage: str) -> Embedded:
    """Embeddings of texts: what the store has is taken from there, the rest is encoded on Ray and stored.

    Args:
        warehouse: Where the store is.
        encoder: The encoder.
        texts: Texts; repeated ones are encoded once.
        stage: What progress lines call the work.
    """
    if not texts:
        return Embedded(np.zeros((0, 0), np.float32), 0, 0)
    wanted = pl.DataFrame({KEY: content_keys(texts, encoder), TEXT: texts})
    distinct = wanted.unique(KEY, maintain_order=True)
    missing = distinct.join(_known(warehouse).to_frame(), on=KEY, how="anti")
    progress = Progress(stage, missing.height, "texts")
    pending: list[pa.Table] = []

    def flush() -> None:
        if pending:
            rows = pa.concat_tables(pending).select([KEY, EMBEDDING])
            now = pa.array([dt.datetime.now(dt.UTC)] * rows.num_rows, pa.timestamp("us", tz="UTC"))
            warehouse.append(EMBEDDING_STORE, rows.append_column("created_timestamp", now))
            pending.clear()

    for part in encode_on_ray(missing.to_arrow(), encoder):
        pending.append(part)
        progress.add(part.num_rows)
        if sum(p.num_rows for p in pending) >= APPEND_ROWS:
            flush()
    flush()
    keys = pa.array(distinct[KEY].to_list())
    stored = warehouse.read(EMBEDDING_STORE, [KEY, EMBEDDING], filters=pc.field(KEY).isin(keys))
    place = pl.DataFrame({KEY: pl.Series(stored[KEY]), "row": np.arange(stored.num_rows)}).unique(KEY, keep="first")
    rows = wanted.join(place, on=KEY, how="left", maintain_order="left")["row"].to_numpy()
    return Embedded(as_matrix(stored[EMBEDDING])[rows], distinct.height, missing.height)
