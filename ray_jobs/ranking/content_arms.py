"""What the arms of the content experiment read: feature rows of a split, and the catalogue with an arm's content."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.language.caption_tokens import TokenConfig, random_sets, token_sets
from models.ranking import ablation, content
from models.ranking.ablation import Arm
from ray_jobs.captions.features import training_items
from ray_jobs.ranking.data import TOKENS, Items, read_examples, read_items
from ray_jobs.tables.captions import CAPTION_EMBEDDINGS, ITEM_CAPTIONS, RECORD
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.warehouse import Warehouse

TITLES, CAPTIONS = "titles", "captions"
# The arm's tokens, and what is done to them.
TOKENS_OF = {
    ablation.TITLE: TITLES,
    ablation.TITLE_PERMUTED: TITLES,
    ablation.TOKENS: CAPTIONS,
    ablation.TOKENS_DENSE: CAPTIONS,
    ablation.TOKENS_PERMUTED: CAPTIONS,
    ablation.TOKENS_RANDOM: CAPTIONS,
}
DENSE = (ablation.DENSE, ablation.TOKENS_DENSE, ablation.DENSE_PERMUTED)
PERMUTED = (ablation.TITLE_PERMUTED, ablation.TOKENS_PERMUTED, ablation.DENSE_PERMUTED)


class Contents(NamedTuple):
    """Content of the catalogue, read once.

    Attributes:
        items: The catalogue without content.
        sets: Token sets (item_id, token_ids, weights), by what they are made of.
        embeddings: Rows of `captions/caption_embeddings`.
        max_tokens: Tokens an item that are kept.
    """

    items: Items
    sets: dict[str, pl.DataFrame]
    embeddings: pl.DataFrame
    max_tokens: int


def read_contents(warehouse: Warehouse, rules: Sequence[str], config: TokenConfig) -> Contents:
    """Reads captions and their embeddings, and makes tokens of captions and of titles alone, by the same parameters.

    Both vocabularies are fitted on items that are of the training period under every rule: one that knew the items of
    another rule's test period would leak, and the arms of all rules have the same tokens.

    Args:
        warehouse: The warehouse.
        rules: Split rules of the experiment.
        config: Parameters of the tokens.
    """
    captions = pl.DataFrame(warehouse.read(ITEM_CAPTIONS, ["item_id", *(column.name for column in RECORD)]))
    titles = pl.DataFrame(warehouse.read(ITEMS, ["item_id", "title"])).rename({"title": "caption"})
    # Titles of items without a caption would make the arms differ in coverage, too.
    titles = titles.join(captions.select("item_id"), on="item_id", how="semi")
    periods = [training_items(warehouse, rule).to_frame() for rule in rules]
    known = functools.reduce(lambda a, b: a.join(b, on="item_id", how="semi"), periods)["item_id"]
    sets = {name: token_sets(records, known, config) for name, records in ((CAPTIONS, captions), (TITLES, titles))}
    embeddings = pl.DataFrame(warehouse.read(CAPTION_EMBEDDINGS, ["item_id", "embedding"]))
    return Contents(
        read_items(warehouse, False, 1),
        sets,
        embeddings.sort("item_id"),
        config.most_tokens,
    )


def read_split(warehouse: Warehouse, rule: str, version: str | None) -> pa.Table:
    """Feature rows of all examples, split by a rule whichever is in force. Features of an event depend on no split.

    Args:
        warehouse: The warehouse.
        rule: ``global_time`` or ``leave_one_out``.
        version: Version of the training set that is expected.

    Raises:
        ValueError: If the rule leaves a split empty.
    """
    data = read_examples(warehouse, (), version)
    rules = warehouse.read(SPLITS, ["example_id", rule])
    place = pc.index_in(data["example_id"], value_set=rules["example_id"].combine_chunks())
    if place.null_count:
        raise ValueError("features/training_set has examples that interactions/splits has not: materialize both again.")
    split = rules[rule].take(place)
    for name in ("train", "valid", "test"):
        if not pc.any(pc.equal(split, name)).as_py():
            raise ValueError(
                f"The rule {rule} gives no examples of the split {name}: leave it out (splits), or give the "
                "dataset more events."
            )
    column = data.schema.get_field_index("split")
    return data.set_column(column, "split", split.cast(pa.string())).combine_chunks()


def permuted(rows: pl.DataFrame, seed: int) -> pl.DataFrame:
    """A placebo: the content of the catalogue, each item's given to an item drawn at random, one to one.

    Args:
        rows: item_id, and the content.
        seed: Seed: every one makes another permutation.
    """
    order = np.random.default_rng([seed, 2]).permutation(rows.height)
    return rows.select("item_id").hstack(rows.drop("item_id")[order])


def with_content(contents: Contents, arm: Arm, seed: int) -> Items:
    """The catalogue as an arm sees it.

    Args:
        contents: Content of the catalogue.
        arm: The arm.
        seed: Seed of the training; placebos are drawn anew with each.
    """
    items = contents.items
    if arm.content in TOKENS_OF:
        sets = contents.sets[TOKENS_OF[arm.content]]
        if arm.content == ablation.TOKENS_RANDOM:
            sets = random_sets(sets, seed)
        elif arm.content in PERMUTED:
            sets = permuted(sets, seed)
        items = items.with_tokens(sets.to_arrow(), contents.max_tokens, arm.content)
    if arm.content in DENSE:
        dense = permuted(contents.embeddings, seed) if arm.content in PERMUTED else contents.embeddings
        items = items.with_content(dense.to_arrow())
    return items


def with_tokens(data: pa.Table, items: Items) -> pa.Table:
    """Feature rows with the tokens of an arm's catalogue, where the training set has those of the captions."""
    if not items.tokens_IT.shape[1]:
        return data
    place = pc.fill_null(pc.index_in(data["item_id"], value_set=pa.array(items.ids, pa.string())), -1)
    tokens_NT = items.tokens_IT[np.asarray(place) + 1]
    lengths = np.concatenate([[0], np.cumsum((tokens_NT > 0).sum(1))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(lengths, pa.array(tokens_NT[tokens_NT > 0] - 1, pa.int32()))
    return data.append_column(content.TOKENS.column, lists).append_column(
        content.TOKENS.version, pa.repeat(items.token_version, data.num_rows)
    )


def tokens_of(arm: Arm) -> str:
    """Which tokens an arm reads; empty for none."""
    if arm.content not in TOKENS_OF:
        return ""
    return arm.content if arm.content in ablation.PLACEBOS else TOKENS_OF[arm.content]


def inputs_of(arm: Arm) -> tuple[str, ...]:
    """Extra inputs of an arm's ranker; embeddings come with its catalogue."""
    return (TOKENS,) if arm.content in TOKENS_OF else ()
