"""Salient terms of items: the words and pairs of words that tell an item from the rest of its catalogue.

Each term is one dimension of an unbounded sparse space, as in *Large language models for user interest journeys*
(arXiv 2305.15498): items are compared by the terms that they share, so synonyms do not match. That paper does not say
how salience is computed; here it is tf-idf over the catalogue, as its documents are all there is before any user.
"""

import dataclasses

import polars as pl

from models.language.words import OPENER, STOPWORDS, WORD

TEXTS = ("title", "description", "caption")


@dataclasses.dataclass(frozen=True)
class TermConfig:
    """Knobs of salient terms, and of the groups that they make of a history.

    Attributes:
        max_terms: Terms that are kept of an item, the most salient first.
        max_share: Terms of a larger share of the catalogue say nothing.
        min_items: Terms of fewer items can join nothing.
        threshold: Least cosine to a group that an item joins.
        max_likes: Likes of a user that are grouped, the latest ones.
    """

    max_terms: int = 16
    max_share: float = 0.2
    min_items: int = 2
    threshold: float = 0.2
    max_likes: int = 500


def _normal(column: pl.Expr) -> pl.Expr:
    return column.str.normalize("NFKC").str.to_lowercase().str.replace_all("’", "'")


def _words(items: pl.DataFrame) -> pl.DataFrame:
    """item_id, part, word: content words in order, by the text that they stand in."""
    texts = [items.select("item_id", pl.lit(part).alias("part"), _normal(pl.col(part)).alias("text")) for part in TEXTS]
    # Each category is a text of its own: no pair spans two of them.
    categories = items.select("item_id", pl.col("categories").alias("text")).explode("text").drop_nulls("text")
    named = pl.format("category {}", pl.int_range(pl.len()).over("item_id")).alias("part")
    texts.append(categories.select("item_id", named, _normal(pl.col("text")).alias("text")))
    text = pl.col("text").str.replace(f"(?i){OPENER.pattern}", "")
    found = pl.concat(texts).drop_nulls("text").select("item_id", "part", text.str.extract_all(WORD).alias("word"))
    word = pl.col("word")
    lone = (word.str.len_chars() == 1) & ~word.str.contains(r"\p{Han}")
    return found.explode("word").drop_nulls("word").filter(~lone & ~word.is_in(sorted(STOPWORDS)))


def salient_terms(items: pl.DataFrame, config: TermConfig) -> pl.DataFrame:
    """The salient terms of every item.

    Args:
        items: Columns ``item_id``, ``title``, ``description``, ``categories`` (a list), ``caption``; nulls say nothing.
        config: Knobs.

    Returns:
        Columns ``item_id``, ``term``, ``weight``: tf-idf, of unit length for each item; items without a term that
        another item shares have no row.
    """
    words = _words(items)
    same = (pl.col("item_id") == pl.col("item_id").shift(-1)) & (pl.col("part") == pl.col("part").shift(-1))
    following = words.with_columns(pl.col("word").shift(-1).alias("next")).filter(same.fill_null(False))
    pairs = following.select("item_id", pl.concat_str("word", "next", separator=" ").alias("term"))
    counted = pl.concat([words.select("item_id", pl.col("word").alias("term")), pairs]).group_by("item_id", "term")
    terms = counted.agg(pl.len().alias("count")).with_columns(pl.len().over("term").alias("items"))
    most = max(config.max_share * items.height, config.min_items)
    terms = terms.filter(pl.col("items").is_between(config.min_items, most)).with_columns(
        ((1 + pl.col("count").log()) * (items.height / pl.col("items")).log1p()).alias("weight")
    )
    terms = terms.sort(["item_id", "weight", "term"], descending=[False, True, False])
    terms = terms.group_by("item_id", maintain_order=True).head(config.max_terms)
    length = (pl.col("weight") ** 2).sum().over("item_id").sqrt()
    return terms.select("item_id", "term", (pl.col("weight") / length).alias("weight"))
