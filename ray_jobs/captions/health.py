"""How good caption tokens are as features: enough, telling, different, and the same when nothing has changed."""

import datetime as dt
import json
import math
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.language.caption_tokens import TokenVocabulary
from ray_jobs.captions.features import Tokenized
from ray_jobs.tables.captions import CAPTION_CANARIES, CAPTION_HEALTH, CAPTION_TOKENS
from ray_jobs.warehouse import Warehouse

# An item of which less than three telling things are known is hardly told from others.
INFORMATIVE, COMMON_SHARE = 3, 0.2
HEAD = 100
LOOKED_AT = 10_000
RECAPTION = "recaption"
_TRIGRAM = "#:"


class FeatureHealth(NamedTuple):
    """Health of the tokens. A value that nothing could be measured for is NaN.

    Attributes:
        items: Items.
        training_items: Of these, items that the vocabulary was fitted on.
        vocabulary: Terms that can be tokens.
        too_common: Terms that are too common to be one.
        mean_tokens: Mean tokens of an item.
        p10_tokens: Tokens that nine of ten items reach.
        p90_tokens: Tokens that one of ten items reaches.
        trigram_share: Share of all tokens that are character trigrams.
        top_100_mass: Share of all tokens that the 100 most frequent terms take.
        poor_items: Items with fewer than three informative tokens: those that at most a fifth of the items have.
        duplicate_captions: Share of the items whose caption another item has, letter by letter.
        duplicate_sets: Share of the items whose set of tokens another item has.
        hash_collisions: Terms that share their id with another term.
        unknown_share: Share of the words of the training period's items that are too rare for the vocabulary.
        unknown_share_new: The same of the other items, which it has not seen.
    """

    items: int
    training_items: int
    vocabulary: int
    too_common: int
    mean_tokens: float
    p10_tokens: float
    p90_tokens: float
    trigram_share: float
    top_100_mass: float
    poor_items: int
    duplicate_captions: float
    duplicate_sets: float
    hash_collisions: int
    unknown_share: float
    unknown_share_new: float


class Likeness(NamedTuple):
    """How alike two generations of token sets are.

    Attributes:
        items: Items in both.
        jaccard: Mean Jaccard index of an item's two sets; NaN without items.
    """

    items: int
    jaccard: float


def informative(sets: pl.DataFrame) -> pl.Series:
    """Number of each item's informative tokens: those that at most a fifth of the items have.

    Character trigrams are pieces of words: all of an item's together count as one.

    Args:
        sets: item_id, tokens.
    """
    each = sets.select(pl.int_range(pl.len()).alias("row"), "tokens").explode("tokens", empty_as_null=False)
    telling = each.filter(pl.len().over("tokens") <= max(COMMON_SHARE * sets.height, 1))
    trigram = pl.col("tokens").str.contains(_TRIGRAM, literal=True)
    counted = telling.group_by("row").agg(
        (~trigram).sum().alias("words"), trigram.any().cast(pl.UInt32).alias("trigrams")
    )
    rows = pl.DataFrame({"row": pl.int_range(sets.height, eager=True)}).join(
        counted, "row", "left", maintain_order="left"
    )
    return (rows["words"] + rows["trigrams"]).fill_null(0).alias("count")


def likeness(before: pl.DataFrame, after: pl.DataFrame) -> Likeness:
    """Compares the token sets of items that are in both.

    Args:
        before: item_id, tokens.
        after: The same.
    """
    both = before.select("item_id", pl.col("tokens").alias("other")).join(after.select("item_id", "tokens"), "item_id")
    shared = pl.col("tokens").list.set_intersection("other").list.len()
    every = pl.col("tokens").list.set_union("other").list.len()
    # Two empty sets are equal.
    index = both.select(pl.when(every > 0).then(shared / every).otherwise(1.0).alias("index"))["index"]
    mean = index.mean()
    return Likeness(both.height, math.nan if mean is None else float(mean))  # type: ignore[arg-type]


def health(
    captions: pl.DataFrame, training_items: pl.Series, vocabulary: TokenVocabulary, sets: pl.DataFrame
) -> FeatureHealth:
    """Measures token sets.

    Args:
        captions: Records with item_id and caption.
        training_items: Items of the training period.
        vocabulary: What the sets were made with.
        sets: item_id, token_ids, tokens of the captions.
    """
    sizes = sets["token_ids"].list.len()
    counts = sets["tokens"].explode(empty_as_null=False).value_counts()["count"].sort(descending=True)
    every = max(int(counts.sum()), 1)
    trigrams = sets["tokens"].explode(empty_as_null=False).str.contains(_TRIGRAM, literal=True)
    terms, trained = vocabulary.terms, pl.col("item_id").is_in(training_items.implode())
    kept = terms.filter("kept")
    return FeatureHealth(
        items=sets.height,
        training_items=vocabulary.num_items,
        vocabulary=kept.height,
        too_common=terms.height - kept.height,
        mean_tokens=_number(sizes.mean()),
        p10_tokens=_number(sizes.quantile(0.1, "lower")),
        p90_tokens=_number(sizes.quantile(0.9, "lower")),
        trigram_share=int(trigrams.sum()) / every,
        top_100_mass=int(counts.head(HEAD).sum()) / every,
        poor_items=int((informative(sets) < INFORMATIVE).sum()),
        duplicate_captions=_number(captions["caption"].is_duplicated().mean()),
        duplicate_sets=_number(sets["tokens"].list.join("\n").is_duplicated().mean()),
        hash_collisions=int(kept["token_id"].is_duplicated().sum()),
        unknown_share=vocabulary.unknown_share(_some(captions.filter(trained))),
        unknown_share_new=vocabulary.unknown_share(_some(captions.filter(~trained))),
    )


def drift(warehouse: Warehouse, sets: pl.DataFrame) -> Likeness:
    """Compares token sets with those that the warehouse holds: of the last captions, parameters or training period."""
    if not warehouse.exists(CAPTION_TOKENS):
        return Likeness(0, math.nan)
    return likeness(pl.DataFrame(warehouse.read(CAPTION_TOKENS, ["item_id", "tokens"])), sets)


def stability(warehouse: Warehouse, vocabulary: TokenVocabulary, caption_version: str) -> Likeness:
    """Compares the token sets of canaries that were interpreted twice, the second time after a harmless edit.

    Without such canaries under this caption version there is nothing to compare.
    """
    if not warehouse.exists(CAPTION_CANARIES):
        return Likeness(0, math.nan)
    wanted = (pc.field("kind") == RECAPTION) & (pc.field("caption_version") == caption_version)
    rows = warehouse.read(CAPTION_CANARIES, ["item_id", "original", "changed"], wanted).to_pylist()
    answered = [row for row in rows if row["changed"]]
    if not answered:
        return Likeness(0, math.nan)
    first, second = (
        vocabulary.apply(pl.DataFrame([json.loads(row[name]) | {"item_id": row["item_id"]} for row in answered]))
        for name in ("original", "changed")
    )
    return likeness(first, second)


def measure(warehouse: Warehouse, captions: pa.Table, training_items: pl.Series, made: Tokenized) -> dict[str, float]:
    """All measures of token sets that are about to be written, by name; NaN where there is nothing to measure.

    Args:
        warehouse: Where the sets before them and the canaries are.
        captions: Rows of `captions/item_captions`.
        training_items: Items of the training period.
        made: Their tokens.
    """
    sets = pl.DataFrame(made.sets)
    changed = drift(warehouse, sets)
    version = captions["caption_version"][0].as_py()
    again = stability(warehouse, made.vocabulary, version)
    return {
        **health(pl.DataFrame(captions), training_items, made.vocabulary, sets)._asdict(),
        "previous_jaccard": changed.jaccard,
        "recaption_jaccard": again.jaccard,
        "recaptioned_items": again.items,
    }


def health_rows(measures: dict[str, float], version: str, token_version: str) -> pa.Table:
    """Rows of `CAPTION_HEALTH`; what is NaN was not measured and has no row."""
    now = dt.datetime.now(dt.UTC)
    rows = [
        {
            "tokens_version": version,
            "measure": name,
            "value": float(value),
            "token_version": token_version,
            "created_timestamp": now,
        }
        for name, value in measures.items()
        if not math.isnan(value)
    ]
    return pa.Table.from_pylist(rows, CAPTION_HEALTH.schema)


def _some(records: pl.DataFrame) -> pl.DataFrame:
    """About as many records as are enough for a share, spread over all."""
    return records.gather_every(max(records.height // LOOKED_AT, 1))


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
