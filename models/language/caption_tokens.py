"""Interpretations as categorical features: the terms of a record, weighed over the catalogue, as a set of hashed ids.

After the only fully published pipeline of this kind, Pinterest OmniSearchSage (arXiv:2404.16260): word unigrams and
bigrams and character trigrams out of fitted vocabularies, terms outside them dropped. Unlike there, terms are salted
with their field, bounded by document frequency, and the most telling by tf-idf stay.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pydantic

from models.language.words import OPENER, STOPWORDS, WORD

PADDING = 0
CHUNK = 20_000
SETS: dict[str, Any] = {
    "item_id": pl.String,
    "token_ids": pl.List(pl.Int32),
    "tokens": pl.List(pl.String),
    "weights": pl.List(pl.Float32),
}
_LISTED = ("token_ids", "tokens", "weights")
_TEXTS = {"caption": "caption", "text_in_image": "text"}
_LISTS = {"subjects": "subject", "tags": "tag"}
_CHOICES = ("style", "setting", "mood")
_RECORD: dict[str, Any] = dict.fromkeys([*_TEXTS, *_CHOICES], pl.String) | dict.fromkeys(_LISTS, pl.List(pl.String))
_TRIGRAM = "#"
_GRAM_FIELDS = [field + _TRIGRAM for field in _TEXTS.values()]
_FIELD = pl.Enum([*_LISTS.values(), *_CHOICES, *_TEXTS.values(), *_GRAM_FIELDS])
_UPPER = 2**32


class TokenConfig(pydantic.BaseModel, frozen=True):
    """Parameters of the tokens.

    Attributes:
        id_space: Ids are below it; 0 is padding. Far larger than any table: whoever hashes ids into a table twice
            (`models.ranking.tokens`) can tell apart only what had two ids.
        max_tokens: Most tokens of an item that are words, pairs of words or fields.
        max_trigrams: Most character trigrams of an item. They have places of their own, so that they crowd out no word:
            they are for inflections, misspellings, and scripts without spaces.
        min_items: Fewest items of a term; in a small catalogue at most one item in a hundred is asked for.
        max_share: Largest share of the items that a term of a text may be in; of the other fields only what every item
            has is dropped.
        salt: Changes every hash.
    """

    id_space: int = pydantic.Field(default=2**31 - 1, ge=2, le=2**31 - 1)
    max_tokens: int = pydantic.Field(default=24, ge=1)
    max_trigrams: int = pydantic.Field(default=8, ge=0)
    min_items: int = pydantic.Field(default=5, ge=1)
    max_share: float = pydantic.Field(default=0.2, gt=0, le=1)
    salt: str = "belvedere"

    @property
    def most_tokens(self) -> int:
        """Most tokens of an item."""
        return self.max_tokens + self.max_trigrams


def token_id(term: str, config: TokenConfig) -> int:
    """Stable id of a term: never 0, the same on every machine."""
    digest = hashlib.blake2b(f"{config.salt}|{term}".encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (config.id_space - 1)


def _normal(column: pl.Expr) -> pl.Expr:
    return column.str.normalize("NFKC").str.to_lowercase().str.replace_all("’", "'")


def _content(words: pl.DataFrame) -> pl.DataFrame:
    word = pl.col("word")
    # One Chinese character is a word; one letter is not.
    lone = (word.str.len_chars() == 1) & ~word.str.contains(r"\p{Han}")
    return words.filter(~lone & ~word.is_in(pl.Series(sorted(STOPWORDS)).implode()))


def _text_words(records: pl.DataFrame, field: str) -> pl.DataFrame:
    """row, word: content words of a text, in order."""
    text = _normal(pl.col(field)).str.replace(f"(?i){OPENER.pattern}", "")
    return _content(
        records.select("row", text.str.extract_all(WORD).alias("word")).explode("word", empty_as_null=False)
    )


def _list_words(records: pl.DataFrame, field: str) -> pl.DataFrame:
    """row, word: entries of a list as they are, and the words of those that have several."""
    entries = records.select("row", pl.col(field).alias("entry")).explode("entry", empty_as_null=False)
    found = entries.select("row", _normal(pl.col("entry")).str.extract_all(WORD).alias("word"))
    phrases = found.filter(pl.col("word").list.len() > 1).with_columns(pl.col("word").list.join(" "))
    return pl.concat([phrases, _content(found.explode("word", empty_as_null=False))])


def _choice(records: pl.DataFrame, field: str) -> pl.DataFrame:
    """row, word: one value out of few."""
    return records.select("row", _normal(pl.col(field)).str.strip_chars().alias("word")).filter(pl.col("word") != "")


def _trigrams(word: pl.DataFrame) -> pl.DataFrame:
    """code, gram: the character trigrams of distinct words, whose ends are marked."""
    marked = word.with_columns(pl.format("_{}_", "word").alias("marked"))
    places = marked.with_columns(pl.int_ranges(0, pl.col("marked").str.len_chars() - 2).alias("place")).explode("place")
    return places.select("code", pl.col("marked").str.slice(pl.col("place"), 3).alias("gram"))


class _Terms(NamedTuple):
    """Terms of some records. Codes stand for them: strings are touched once a distinct one.

    Attributes:
        counted: row, field, code, count: how often each term is in each record.
        distinct: field, code, items, term: what the codes stand for, and in how many records they are.
    """

    counted: pl.DataFrame
    distinct: pl.DataFrame


def _counts(words: pl.DataFrame, field: str) -> pl.DataFrame:
    counted = words.group_by("row", pl.col("code").cast(pl.UInt64)).len("count")
    return counted.select("row", pl.lit(field, _FIELD).alias("field"), "code", "count")


def _terms(records: pl.DataFrame, trigrams: bool) -> _Terms:
    """Takes records (`_complete`) apart."""
    found = {field: _list_words(records, column) for column, field in _LISTS.items()}
    found |= {field: _choice(records, field) for field in _CHOICES}
    found |= {field: _text_words(records, column) for column, field in _TEXTS.items()}
    word = pl.concat([f.select("word") for f in found.values()]).unique().with_row_index("code")
    coded = {field: f.join(word, on="word", maintain_order="left").select("row", "code") for field, f in found.items()}
    parts = []
    for field, words in coded.items():
        if field in _TEXTS.values():
            # A pair is two content words in a row; what stood between them is dropped. The second is in the upper half.
            following = pl.when(pl.col("row") == pl.col("row").shift(-1)).then(pl.col("code").shift(-1))
            pair = pl.col("code") + (following.cast(pl.UInt64) + 1) * _UPPER
            parts.append(_counts(words.select("row", pair.alias("code")).drop_nulls(), field))
        if field == "caption":
            # A word that is a tag or a subject counts as that only: one id a meaning.
            words = words.join(pl.concat([coded[f] for f in _LISTS.values()]), on=["row", "code"], how="anti")
        parts.append(_counts(words, field))
    grams = _trigrams(word if trigrams else word.clear())
    gram = grams.select("gram").unique().with_row_index("lower")
    for field in _TEXTS.values():
        made = coded[field].join(grams.join(gram, on="gram"), on="code").select("row", pl.col("lower").alias("code"))
        parts.append(_counts(made, field + _TRIGRAM))
    counted = pl.concat(parts)
    lower, upper = pl.col("code") % _UPPER, pl.col("code") // _UPPER
    distinct = (
        counted.group_by("field", "code")
        .len("items")
        .with_columns(lower.cast(pl.UInt32).alias("lower"), upper.cast(pl.UInt32).alias("upper"))
        .join(word.select(pl.col("code").alias("lower"), "word"), on="lower", how="left")
        .join(word.select(pl.col("code").alias("upper") + 1, pl.col("word").alias("next")), on="upper", how="left")
        .join(gram, on="lower", how="left")
    )
    said = pl.when(pl.col("field").is_in(_GRAM_FIELDS)).then("gram").otherwise("word")
    term = pl.format("{}:{}", "field", pl.concat_str(said, "next", separator=" ", ignore_nulls=True))
    return _Terms(counted, distinct.select("field", "code", "items", term.alias("term")))


def _complete(records: pl.DataFrame) -> pl.DataFrame:
    missing = [pl.lit(None, kind).alias(name) for name, kind in _RECORD.items() if name not in records.columns]
    filled = [pl.col(n).fill_null("" if k == pl.String else []) for n, k in _RECORD.items()]
    return records.with_columns(missing).select("item_id", *filled).with_row_index("row")


def _chunks(records: pl.DataFrame, config: TokenConfig) -> Iterator[tuple[pl.DataFrame, _Terms]]:
    """Records and their terms, so many at a time."""
    for start in range(0, records.height, CHUNK):
        part = _complete(records.slice(start, CHUNK))
        yield part, _terms(part, config.max_trigrams > 0)


class TokenVocabulary(NamedTuple):
    """Terms that items may have, fitted once and then frozen.

    Attributes:
        terms: field, term, items (that have it), idf, token_id, kept; sorted by term. What is not kept is too common to
            be a token, but known.
        num_items: Items that it was fitted on.
        config: Parameters.
    """

    terms: pl.DataFrame
    num_items: int
    config: TokenConfig

    @classmethod
    def fit(cls, records: pl.DataFrame, config: TokenConfig) -> "TokenVocabulary":
        """Fits document frequencies and their bounds.

        Args:
            records: item_id, and any of caption, subjects, style, setting, mood, text_in_image, tags. Only items of the
                training period.
            config: Parameters.
        """
        num_items = records.height
        total = pl.DataFrame(schema={"field": _FIELD, "term": pl.String, "items": pl.UInt32})
        for _, found in _chunks(records, config):
            total = pl.concat([total, found.distinct.select(total.columns)])
            total = total.group_by("field", "term").agg(pl.col("items").sum())
        rarest = min(config.min_items, max(1, num_items // 100))
        named = pl.col("field").is_in([*_LISTS.values(), *_CHOICES])
        most = max(config.max_share * num_items, 1)
        terms = total.filter(pl.col("items") >= rarest).sort("term")
        return cls(
            terms.with_columns(
                (math.log(num_items + 1) - (pl.col("items") + 0.5).log()).cast(pl.Float32).alias("idf"),
                pl.Series("token_id", [token_id(term, config) for term in terms["term"]], dtype=pl.Int32),
                (pl.col("items") <= pl.when(named).then(max(num_items - 1, 1)).otherwise(most)).alias("kept"),
            ),
            num_items,
            config,
        )

    def apply(self, records: pl.DataFrame) -> pl.DataFrame:
        """Turns records into sets of hashed ids; terms outside the vocabulary are dropped.

        Args:
            records: As in `fit`, of any items.

        Returns:
            One row a record, sorted by item: item_id, token_ids (sorted, without repeats), tokens (what the ids stand
            for) and weights (their idf), in the order of the ids.
        """
        kept = self.terms.with_row_index("place").filter("kept").select("term", "place", "idf")
        parts = [pl.DataFrame(schema=SETS)]
        for part, found in _chunks(records, self.config):
            known = found.distinct.join(kept, on="term")
            named = found.counted.join(known.select("field", "code", "place", "idf"), on=["field", "code"])
            rows = part.select("row", "item_id").join(self._chosen(named), on="row", how="left").drop("row")
            parts.append(rows.with_columns(pl.col(name).fill_null([]) for name in _LISTED))
        return pl.concat(parts).sort("item_id")

    def unknown_share(self, records: pl.DataFrame) -> float:
        """Share of the words and fields of records that the vocabulary does not know; NaN without any."""
        every = strange = 0.0
        for _, found in _chunks(records, self.config):
            words = found.distinct.filter(~pl.col("field").is_in(_GRAM_FIELDS) & ~pl.col("term").str.contains(" "))
            every += float(words["items"].sum())
            strange += float(words.join(self.terms, on="term", how="anti")["items"].sum())
        return strange / every if every else math.nan

    def _chosen(self, named: pl.DataFrame) -> pl.DataFrame:
        """The most telling terms of each row: choices, then words by tf-idf, and trigrams in places of their own."""
        choice = pl.col("field").is_in(list(_CHOICES))
        telling = pl.when(choice).then(math.inf).otherwise((1 + pl.col("count").log()) * pl.col("idf"))
        trigram = pl.col("field").is_in(_GRAM_FIELDS)
        slim = named.select("row", "place", trigram.alias("trigram"), telling.alias("telling"))
        # On equal weight the term decides, so that the set does not depend on the order of rows.
        best = pl.col("place").sort_by(["telling", "place"], descending=[True, False])
        most = pl.when(pl.col("trigram").first()).then(self.config.max_trigrams).otherwise(self.config.max_tokens)
        places = slim.group_by("row", "trigram").agg(best.head(most)).explode("place")
        return (
            places.join(self.terms.with_row_index("place"), on="place")
            .sort("row", "token_id", "place")
            .unique(["row", "token_id"], keep="first", maintain_order=True)
            .group_by("row", maintain_order=True)
            .agg(pl.col("token_id").alias("token_ids"), pl.col("term").alias("tokens"), pl.col("idf").alias("weights"))
        )


def token_sets(records: pl.DataFrame, training_items: pl.Series, config: TokenConfig) -> pl.DataFrame:
    """Sets of tokens of all records, out of a vocabulary of those of the training period.

    Args:
        records: item_id, and any of caption, subjects, style, setting, mood, text_in_image, tags; what is missing
            counts as empty.
        training_items: Items of the training period; those without a record are ignored.
        config: Parameters.

    Returns:
        See `TokenVocabulary.apply`.
    """
    fitted_on = records.filter(pl.col("item_id").is_in(training_items.implode()))
    return TokenVocabulary.fit(fitted_on, config).apply(records)


def random_sets(sets: pl.DataFrame, seed: int) -> pl.DataFrame:
    """A placebo: to every item as many tokens as it has, drawn at random from those that there are.

    Args:
        sets: See `TokenVocabulary.apply`.
        seed: Seed.
    """
    known = sets.select(_LISTED).explode(_LISTED, empty_as_null=False).unique("token_ids").sort("token_ids")
    rng = np.random.default_rng(seed)
    drawn = [np.sort(rng.choice(known.height, size, replace=False)).tolist() for size in sets["token_ids"].list.len()]
    rows = pl.DataFrame({"item_id": sets["item_id"], "row": pl.Series(drawn, dtype=pl.List(pl.UInt32))})
    taken = [pl.lit(known[name].implode()).list.gather(pl.col("row")).alias(name) for name in _LISTED]
    return rows.select("item_id", *taken)
