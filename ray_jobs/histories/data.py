"""Reads what models of long histories learn from and encodes it: events, labelled examples, semantic IDs."""

from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from models.long_history.histories import Catalogue, Events, gap_buckets, offsets_of
from models.long_history.vocabulary import Vocabulary
from ray_jobs.newest import Newest, read_newest
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from ray_jobs.warehouse import Warehouse

EVENT_COLUMNS = ["user_id", "item_id", "timestamp", "sequence", "action", "value"]
EXAMPLE_COLUMNS = ["user_id", "item_id", "timestamp", "position", "example_id", "label", "sampled", "split"]
SPLIT_NAMES = ("train", "valid", "test")
UNKNOWN_CODE = -1
ROWS_AT_ONCE = 250_000


class Inputs(pydantic.BaseModel, frozen=True):
    """Versions of the tables that a job reads; it refuses any other."""

    raw_interactions: str = pydantic.Field(description="Version of `interactions/raw_interactions`.")
    splits: str = pydantic.Field(description="Version of `interactions/splits`.")
    semantic_ids: str | None = pydantic.Field(None, description="Version of `clusters/semantic_ids`; None: unused.")


class Codes(NamedTuple):
    """Semantic IDs: items, their codes (items x levels, -1 where a level is missing), and codes of each level."""

    items: pa.Array
    codes: np.ndarray
    level_sizes: list[int]


class Examples(NamedTuple):
    """Labelled examples, sorted by user, split and time.

    Attributes:
        users: User number of each.
        times: Microseconds.
        items: Row of the catalogue.
        labels: 0 or 1, float32.
        splits: Index into `SPLIT_NAMES`.
    """

    users: np.ndarray
    times: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    splits: np.ndarray


def read_codes(warehouse: Warehouse, version: str | None) -> Codes:
    """The semantic IDs at ``version``; none at all if that is None."""
    if version is None:
        return Codes(pa.array([], pa.string()), np.zeros((0, 0), np.int64), [])
    data = warehouse.read(SEMANTIC_IDS, ["item_id", "codes"], expect_version=version)
    column = data["codes"].combine_chunks()
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    levels = int(lengths.max(initial=0))
    codes = np.full((len(column), levels), UNKNOWN_CODE, np.int64)
    codes[np.arange(levels) < lengths[:, None]] = column.flatten().to_numpy(zero_copy_only=False)
    return Codes(data["item_id"].combine_chunks(), codes, [int(c.max(initial=-1)) + 1 for c in codes.T])


def read_events(warehouse: Warehouse, version: str) -> pl.DataFrame:
    """All events, sorted by user, time and input order."""
    found = warehouse.batches(RAW_INTERACTIONS, EVENT_COLUMNS, num_rows=ROWS_AT_ONCE, expect_version=version)
    parts = [_frame(part) for part in found] or [_frame(RAW_INTERACTIONS.schema.empty_table().select(EVENT_COLUMNS))]
    return pl.concat(parts).sort("user_id", "timestamp", "sequence")


def read_examples(warehouse: Warehouse, version: str, newest: Newest | None = None) -> pl.DataFrame:
    """Labelled examples, sorted by user, split and time: those of the newest events of each user and split.

    Args:
        warehouse: The warehouse.
        version: Version of `interactions/splits` that is expected.
        newest: Events of a user that have their examples; `Newest` by default.
    """
    data = _frame(read_newest(warehouse, SPLITS, EXAMPLE_COLUMNS, newest or Newest(), version))
    unknown = set(data["split"].unique().to_list()) - set(SPLIT_NAMES)
    if unknown:
        raise ValueError(f"Table {SPLITS.name} has splits that nobody knows, {sorted(unknown)}: rebuild it.")
    data = data.with_columns(
        split=pl.col("split").replace_strict({n: i for i, n in enumerate(SPLIT_NAMES)}, return_dtype=pl.Int64)
    )
    return data.sort("user_id", "split", "timestamp", "position", "example_id")


def known_items(vocabulary: Vocabulary, codes: Codes) -> pa.Array:
    """Every item with an embedding or a semantic ID; its place + 1 is its row of the catalogue."""
    return pc.unique(pa.concat_arrays([pa.array(vocabulary.items, pa.string()), codes.items]))


def catalogue_of(vocabulary: Vocabulary, codes: Codes, items: pa.Array) -> Catalogue:
    """The catalogue of ``items`` (of `known_items`)."""
    found = pc.fill_null(pc.index_in(items, value_set=codes.items), -1).to_numpy(zero_copy_only=False)
    levels = len(vocabulary.level_sizes)
    padded = np.vstack([codes.codes, np.full((1, levels), UNKNOWN_CODE, np.int64)])
    rows = vocabulary.encode_codes(padded[np.concatenate([[-1], found])])
    return Catalogue(np.concatenate([[0], vocabulary.encode_items(items)]), rows)


def item_rows(items: pl.Series, known: pa.Array) -> np.ndarray:
    """Rows of the catalogue; 0 for an item that nobody knows."""
    found = pc.fill_null(pc.index_in(_array(items), value_set=known), -1)
    return found.to_numpy(zero_copy_only=False).astype(np.int64) + 1


def encode_events(frame: pl.DataFrame, users: pl.Series, vocabulary: Vocabulary, known: pa.Array) -> Events:
    """Encodes sorted events.

    Args:
        frame: Events, as `read_events` gives them.
        users: The users, sorted; a user's place is its number.
        vocabulary: Vocabulary.
        known: As `known_items` gives them.
    """
    numbers = user_numbers(frame["user_id"], users)
    times = frame["timestamp"].dt.epoch("us").to_numpy()
    values = frame["value"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return Events(
        offsets_of(numbers, len(users)),
        times,
        item_rows(frame["item_id"], known),
        vocabulary.encode_actions(_array(frame["action"])),
        vocabulary.encode_values(values),
        gap_buckets(numbers, times),
    )


def encode_examples(frame: pl.DataFrame, users: pl.Series, known: pa.Array) -> Examples:
    """Encodes sorted examples."""
    return Examples(
        user_numbers(frame["user_id"], users),
        frame["timestamp"].dt.epoch("us").to_numpy(),
        item_rows(frame["item_id"], known),
        frame["label"].cast(pl.Float32).to_numpy(),
        frame["split"].to_numpy(),
    )


def user_numbers(column: pl.Series, users: pl.Series) -> np.ndarray:
    """Place of each user in the sorted ``users``."""
    found = pc.index_in(_array(column), value_set=_array(users))
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def bucket_of(users: pl.Series, num_buckets: int) -> np.ndarray:
    """Bucket of each user by the digest of the id: the same on every machine and for every library version."""
    digest = fnv(users)
    # The low bits of FNV are weak.
    return ((digest ^ (digest >> np.uint64(32))) % np.uint64(num_buckets)).astype(np.int64)


def fnv(column: pl.Series) -> np.ndarray:
    """FNV-1a of each text, uint64."""
    if not len(column):
        return np.zeros(0, np.uint64)
    # Histories repeat their users and items: each text is worked at once.
    coded = _array(column).dictionary_encode()
    ids = coded.dictionary.cast(pa.binary())
    offsets = np.frombuffer(ids.buffers()[1], np.int32)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    letters, lengths = np.frombuffer(ids.buffers()[2] or b"", np.uint8), np.diff(offsets)
    digest = np.full(len(ids), 0xCBF29CE484222325, np.uint64)
    for place in range(int(lengths.max())):
        inside = lengths > place
        digest[inside] = (digest[inside] ^ letters[offsets[:-1][inside] + place]) * np.uint64(0x100000001B3)
    return digest[coded.indices.to_numpy(zero_copy_only=False)]


def _frame(data: pa.Table) -> pl.DataFrame:
    frame: Any = pl.from_arrow(data)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _array(series: pl.Series) -> pa.Array:
    made = series.to_arrow().cast(pa.string())
    return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made
