"""Captions as categorical features: the words of a caption, weighed over the catalogue, as a set of hashed ids.

Unigrams and bigrams of the caption, its mood and its tags are salted with their field; terms that are too rare or too
common are dropped; the most telling by tf-idf stay. After the only fully published pipeline of this kind, Pinterest
OmniSearchSage (arXiv:2404.16260), with hashing in place of its vocabularies.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
import polars as pl
import pydantic

from models.language.words import OPENER, STOPWORDS

PADDING = 0
CAPTION, TAG, MOOD = "caption", "tag", "mood"
_WORD = r"[\p{L}\p{N}]+(?:'\p{L}+)?"


class TokenConfig(pydantic.BaseModel, frozen=True):
    """Parameters of the tokens.

    Attributes:
        table_size: Rows of the ranker's token table; id 0 is padding.
        max_tokens: Most tokens of an item.
        min_items: Fewest items of a term; in a small catalogue at most one item in a hundred is asked for.
        max_share: Largest share of the items that a term of the caption may be in; moods and tags have no limit.
        salt: Changes every hash.
    """

    table_size: int = pydantic.Field(default=1 << 16, ge=2)
    max_tokens: int = pydantic.Field(default=24, ge=1)
    min_items: int = pydantic.Field(default=5, ge=1)
    max_share: float = pydantic.Field(default=0.2, gt=0, le=1)
    salt: str = "belvedere"


class FeatureHealth(NamedTuple):
    """How good the tokens are as features.

    Attributes:
        vocabulary: Different terms kept.
        mean_tokens: Mean tokens of an item.
        top_100_mass: Share of all tokens that the 100 most frequent terms take.
        duplicate_share: Share of the items whose set of tokens another item has, too.
        poor_items: Items with fewer than three tokens.
        hash_collisions: Terms that share their id with another term.
    """

    vocabulary: int
    mean_tokens: float
    top_100_mass: float
    duplicate_share: float
    poor_items: int
    hash_collisions: int


def token_id(term: str, config: TokenConfig) -> int:
    """Stable id of a term: never 0, the same on every machine."""
    digest = hashlib.blake2b(f"{config.salt}|{term}".encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (config.table_size - 1)


def _words(column: str) -> pl.Expr:
    text = pl.col(column).str.normalize("NFKC").str.to_lowercase().str.replace_all("’", "'")
    return text.str.replace(f"(?i){OPENER.pattern}", "").str.extract_all(_WORD)


def terms(captions: pl.DataFrame) -> pl.DataFrame:
    """All terms of every item, one row an occurrence.

    Args:
        captions: item_id, caption, mood, tags.

    Returns:
        item_id, field, term (salted with its field).
    """
    stop = pl.Series(sorted(STOPWORDS))
    words = captions.select("item_id", _words("caption").alias("word")).explode("word", empty_as_null=False)
    words = words.filter((pl.col("word").str.len_chars() > 1) & ~pl.col("word").is_in(stop.implode()))
    # A bigram is two content words in a row; what stood between them is dropped.
    pairs = words.with_columns(pl.col("word").shift(-1).over("item_id").alias("next")).drop_nulls("next")
    tags = (
        captions.select("item_id", pl.col("tags").alias("word")).explode("word", empty_as_null=False).drop_nulls("word")
    )
    tags = tags.with_columns(pl.col("word").str.to_lowercase())
    # A word that is a tag counts as a tag only: one id a meaning.
    alone = words.join(tags, on=["item_id", "word"], how="anti")
    parts = [
        alone.select("item_id", pl.lit(CAPTION).alias("field"), pl.format("caption:{}", "word").alias("term")),
        pairs.select(
            "item_id", pl.lit(CAPTION).alias("field"), pl.format("caption:{} {}", "word", "next").alias("term")
        ),
        tags.select("item_id", pl.lit(TAG).alias("field"), pl.format("tag:{}", "word").alias("term")),
        captions.select("item_id", pl.lit(MOOD).alias("field"), pl.format("mood:{}", "mood").alias("term")),
    ]
    return pl.concat(parts)


def caption_tokens(captions: pl.DataFrame, config: TokenConfig) -> tuple[pl.DataFrame, FeatureHealth]:
    """Turns captions into sets of hashed ids.

    Args:
        captions: item_id, caption, mood, tags.
        config: Parameters.

    Returns:
        One row an item in the order of the ids: item_id, token_ids (sorted, without repeats), tokens (what the ids
        stand for, in their order); and the features' health.
    """
    num_items = captions.height
    counted = terms(captions).group_by("item_id", "field", "term").len("count")
    frequency = counted.group_by("field", "term").len("items")
    rarest = min(config.min_items, max(1, num_items // 100))
    kept = frequency.filter(
        (pl.col("items") >= rarest)
        & ((pl.col("field") != CAPTION) | (pl.col("items") <= max(config.max_share * num_items, 1)))
    ).sort("term")
    ids = pl.Series([token_id(term, config) for term in kept["term"]], dtype=pl.Int32)
    kept = kept.with_columns(
        ids.alias("token_id"), (math.log(num_items + 1) - (pl.col("items") + 0.5).log()).alias("idf")
    )
    weighed = counted.join(kept, on=["field", "term"]).with_columns((pl.col("count") * pl.col("idf")).alias("weight"))
    # On equal weight the term decides, so that the set does not depend on the order of rows.
    best = (
        weighed.sort(["item_id", "weight", "term"], descending=[False, True, False])
        .unique(["item_id", "token_id"], keep="first", maintain_order=True)
        .group_by("item_id", maintain_order=True)
        .head(config.max_tokens)
    )
    sets = (
        best.sort("item_id", "token_id")
        .group_by("item_id", maintain_order=True)
        .agg(pl.col("token_id").alias("token_ids"), pl.col("term").alias("tokens"))
    )
    rows = (
        captions.select("item_id")
        .join(sets, on="item_id", how="left")
        .sort("item_id")
        .with_columns(pl.col("token_ids").fill_null([]), pl.col("tokens").fill_null([]))
    )
    return rows, _health(rows, kept)


def _health(rows: pl.DataFrame, kept: pl.DataFrame) -> FeatureHealth:
    if rows.is_empty():
        return FeatureHealth(0, 0.0, 0.0, 0.0, 0, 0)
    sizes = rows["token_ids"].list.len()
    mass = np.sort(rows["tokens"].explode(empty_as_null=False).value_counts()["count"].to_numpy())[::-1]
    duplicated = rows.select(pl.col("token_ids").cast(pl.List(pl.String)).list.join(",")).to_series().is_duplicated()
    return FeatureHealth(
        len(mass),
        float(np.mean(sizes.to_numpy())),
        float(mass[:100].sum() / max(mass.sum(), 1)),
        float(np.mean(duplicated.to_numpy())),
        int((sizes < 3).sum()),
        kept.height - kept["token_id"].n_unique(),
    )
