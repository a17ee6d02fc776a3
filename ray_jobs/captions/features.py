"""Tokens of captions: the vocabulary of the training period, and every item's set out of it."""

import datetime as dt
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.identity import version_of
from models.language.caption_tokens import TokenConfig, TokenVocabulary
from ray_jobs.tables.captions import CAPTION_TOKENS, CAPTION_VOCABULARY, RECORD
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.warehouse import Table, Warehouse


class Tokenized(NamedTuple):
    """Captions as features.

    Attributes:
        vocabulary: Terms of the training period.
        terms: Rows of `CAPTION_VOCABULARY`.
        sets: Rows of `CAPTION_TOKENS`.
        token_version: Version that they carry.
    """

    vocabulary: TokenVocabulary
    terms: pa.Table
    sets: pa.Table
    token_version: str


def training_items(warehouse: Warehouse, rule: str = "split") -> pl.Series:
    """Items of the training period, sorted.

    An item is one if an event of the split ``train`` names it, or if it was available by the last of these events.
    Sampled negatives are no events.

    Args:
        warehouse: The warehouse.
        rule: Column of `interactions/splits`: the split in force, or a rule's own.
    """
    seen = pl.Series("item_id", [], pl.String)
    last: dt.datetime | None = None
    is_event = (pc.field(rule) == "train") & ~pc.field("sampled")
    for part in warehouse.batches(SPLITS, ["item_id", "timestamp"], is_event):
        seen = pl.concat([seen, pl.Series("item_id", part["item_id"]).unique()]).unique()
        last = max(filter(None, (last, pc.max(part["timestamp"]).as_py())))
    if last is not None:
        items = warehouse.read(
            ITEMS, ["item_id"], pc.field("available_from") <= pa.scalar(last, pa.timestamp("us", "UTC"))
        )
        seen = pl.concat([seen, pl.Series("item_id", items["item_id"])])
    return seen.unique().sort()


def tokenize(captions: pa.Table, items: pl.Series, config: TokenConfig, code_version: str) -> Tokenized:
    """Fits the vocabulary and turns every caption into a set of tokens.

    Args:
        captions: Rows of `captions/item_captions`.
        items: Items of the training period.
        config: Parameters of the tokens.
        code_version: Version of the logic; part of ``token_version``.

    Raises:
        ValueError: If the captions are of several versions, or none is of the training period.
    """
    rows = pl.from_arrow(captions)
    assert isinstance(rows, pl.DataFrame)
    versions = sorted(rows["caption_version"].unique())
    if len(versions) > 1:
        raise ValueError(
            f"Captions of several versions cannot be one feature: {', '.join(versions)}; materialize "
            "captions/item_captions again."
        )
    records = rows.select("item_id", *(column.name for column in RECORD))
    fitted_on = records.filter(pl.col("item_id").is_in(items.implode()))
    if fitted_on.is_empty():
        raise ValueError(
            "No item of the training period has a caption, so that there is nothing to fit the vocabulary on: "
            "materialize captions/item_captions, or give interactions/splits a training period with captioned items."
        )
    vocabulary = TokenVocabulary.fit(fitted_on, config)
    # Not the vocabulary: an id is the hash of its term, and means the same whatever the training period. With it, each
    # day's events would make a version that no trained ranker accepts.
    version = version_of(captions=versions, tokens=config.model_dump(), code=code_version)
    stamps = pl.lit(version).alias("token_version"), pl.lit(dt.datetime.now(dt.UTC)).alias("created_timestamp")
    sets = vocabulary.apply(records).join(
        rows.select("item_id", "event_timestamp"), on="item_id", maintain_order="left"
    )
    terms = vocabulary.terms.with_columns(pl.col("field").cast(pl.String))
    return Tokenized(
        vocabulary,
        _conform(CAPTION_VOCABULARY, terms.with_columns(stamps)),
        _conform(CAPTION_TOKENS, sets.with_columns(stamps)),
        version,
    )


def _conform(table: Table, rows: pl.DataFrame) -> pa.Table:
    return table.conform(rows.select(c.name for c in table.columns).to_arrow())
