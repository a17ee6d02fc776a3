"""What rankers read of the warehouse: feature rows of the training set by column, and the catalogue."""

from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.ranking import content
from models.ranking.examples import COUNTS, MEANS, index_of, padded, token_matrix
from ray_jobs.newest import Newest, read_newest
from ray_jobs.tables.captions import CAPTION_TOKENS
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.warehouse import Warehouse

TOKENS, SUMMARY = "tokens", "summary"
RECENT = ("user_recent_item_ids", "user_recent_labels")
IDENTITY = ("example_id", "event_timestamp", "label", "sampled", "split", "position")
INPUTS: dict[str, tuple[str, ...]] = {
    TOKENS: ("item_token_ids", "item_token_version"),
    SUMMARY: ("user_summary", "user_summary_scales", "user_summary_version"),
}

# Where Feast serves each column of the training set.
FEATURE_REFS = {
    "item_num_events": "item_popularity:num_events",
    "item_num_likes": "item_popularity:num_likes",
    "item_mean_value": "item_popularity:mean_value",
    "item_token_ids": "item_captions:token_ids",
    "item_token_version": "item_captions:token_version",
    "user_num_events": "user_activity:num_events",
    "user_num_likes": "user_activity:num_likes",
    "user_mean_value": "user_activity:mean_value",
    "user_recent_item_ids": "user_activity:recent_item_ids",
    "user_recent_labels": "user_activity:recent_labels",
    "user_summary": "user_vista:summary",
    "user_summary_scales": "user_vista:scales",
    "user_summary_version": "user_vista:summary_version",
}


# The summary of the ranker's own version during a rollout; requests carry it, training rows have one version.
HELD = content.HELD
HELD_REFS = {held: FEATURE_REFS[name].replace("user_vista:", "user_vista_held:") for name, held in HELD.items()}
SERVED_REFS = FEATURE_REFS | HELD_REFS
REQUEST_TYPES = {c.name: c.type for c in TRAINING_SET.columns}
REQUEST_TYPES |= {held: REQUEST_TYPES[name] for name, held in HELD.items()}


# What floors read beside the ids.
FLOOR_READS = {"popularity": ("item_num_events", "item_num_likes"), "item_knn": RECENT, "markov_chain": RECENT}


def feature_refs(kind: str, inputs: tuple[str, ...]) -> list[str]:
    """Feast features (``view:feature``) that a ranker of this kind reads: those of its FeatureService."""
    return [SERVED_REFS[c] for c in request_columns(kind, inputs) if c in SERVED_REFS]


def request_columns(kind: str, inputs: tuple[str, ...]) -> list[str]:
    """Columns that a ranker of this kind is asked with, ids first."""
    if kind in FLOOR_READS:
        return ["user_id", "item_id", *FLOOR_READS[kind]]
    return [*feature_columns(inputs), *(HELD.values() if SUMMARY in inputs else ())]


def feature_columns(inputs: tuple[str, ...]) -> list[str]:
    """Columns of the training set that a ranker with these extra inputs is fitted on, ids first."""
    return ["user_id", "item_id", *COUNTS, *MEANS, *RECENT, *(c for name in inputs for c in INPUTS[name])]


def read_examples(
    warehouse: Warehouse,
    inputs: tuple[str, ...],
    version: str | None = None,
    newest: Newest | None = None,
    splits: tuple[str, ...] = ("train", "valid", "test"),
) -> pa.Table:
    """Feature rows, by user and then by place in the user's history.

    Args:
        warehouse: The warehouse.
        inputs: Extra inputs, out of `INPUTS`.
        version: Version of the training set that is expected.
        newest: Events of a user that are read; `Newest` by default.
        splits: Splits whose rows are read.

    Raises:
        ValueError: If a split has no rows.
    """
    columns = [*IDENTITY, *feature_columns(inputs)]
    data = read_newest(warehouse, TRAINING_SET, columns, newest or Newest(), version, splits)
    for split in splits:
        if not pc.any(pc.equal(data["split"], split)).as_py():
            raise ValueError(
                f"The split {split} has no examples: give the dataset more events, or cut it by the other "
                "rule (leave_one_out or global_time)."
            )
    return data.sort_by([("user_id", "ascending"), ("position", "ascending"), ("example_id", "ascending")])


def read_met(warehouse: Warehouse, version: str | None = None) -> pa.Table:
    """When each user first had each item: ``user_id``, ``item_id``, ``position``, ``event_timestamp``."""
    columns = ["user_id", "item_id", "position", "event_timestamp"]
    met: pa.Table | None = None
    for part in warehouse.batches(TRAINING_SET, columns, ~pc.field("sampled"), expect_version=version):
        met = first_met(part if met is None else pa.concat_tables([met, first_met(part)]))
    return met if met is not None else TRAINING_SET.schema.empty_table().select(columns)


def first_met(events: pa.Table) -> pa.Table:
    """The same of events in memory."""
    columns = ["user_id", "item_id", "position", "event_timestamp"]
    frame = pl.DataFrame(events.select(columns)).group_by("user_id", "item_id").agg(pl.all().min())
    return frame.select(columns).to_arrow().cast(events.select(columns).schema)


def of_split(data: pa.Table, split: str) -> pa.Table:
    """Rows of one split."""
    return data.filter(pc.equal(data["split"], split))


class Items(NamedTuple):
    """The catalogue.

    Attributes:
        ids: Items, sorted.
        available_I: Microseconds since the epoch from when each could be shown.
        tokens_IT: Caption tokens plus 1, with a row 0 for the unknown item; T = 0 without tokens.
        weights_IT: Their inverse document frequencies.
        token_version: Version of the tokens; empty without tokens.
        content_IE: Dense embeddings of the content, with a row of zeros for the unknown item and for those that
            have none; E = 0 without embeddings.
    """

    ids: list[str]
    available_I: np.ndarray
    tokens_IT: np.ndarray
    weights_IT: np.ndarray
    token_version: str
    content_IE: np.ndarray

    def with_tokens(self, sets: pa.Table, max_tokens: int, version: str) -> "Items":
        """The catalogue with other tokens.

        Args:
            sets: Rows with item_id, token_ids and weights; items of no catalogue are left out.
            max_tokens: Tokens an item that are kept.
            version: Version of the tokens.
        """
        longest = pc.max(pc.list_value_length(sets["token_ids"])).as_py() or 1
        width = max(1, min(max_tokens, longest))
        tokens, weights = (np.zeros((len(self.ids) + 1, width), kind) for kind in (np.int64, np.float32))
        rows = index_of(sets["item_id"], pa.array(self.ids, pa.string()))
        tokens[rows] = token_matrix(sets["token_ids"], width)
        weights[rows] = padded(sets["weights"], width, np.float32)
        tokens[0], weights[0] = 0, 0
        return self._replace(tokens_IT=tokens, weights_IT=weights, token_version=version)

    def with_content(self, embeddings: pa.Table) -> "Items":
        """The catalogue with dense embeddings.

        Args:
            embeddings: Rows with item_id and embedding, all of one width.
        """
        width = int(pc.max(pc.list_value_length(embeddings["embedding"])).as_py() or 0)
        content_IE = np.zeros((len(self.ids) + 1, width), np.float32)
        rows = index_of(embeddings["item_id"], pa.array(self.ids, pa.string()))
        content_IE[rows] = padded(embeddings["embedding"], width, np.float32)
        content_IE[0] = 0
        return self._replace(content_IE=content_IE)


def read_items(warehouse: Warehouse, with_tokens: bool, max_tokens: int) -> Items:
    """Reads the catalogue, with caption tokens if asked for.

    Args:
        warehouse: The warehouse.
        with_tokens: Whether to read `captions/caption_tokens`.
        max_tokens: Tokens an item that are kept.
    """
    table = pl.DataFrame(warehouse.read(ITEMS, columns=["item_id", "available_from"])).sort("item_id")
    ids = table["item_id"].to_list()
    available = table["available_from"].to_physical().fill_null(np.iinfo(np.int64).min).to_numpy()
    rows = len(ids) + 1
    items = Items(
        ids,
        available,
        np.zeros((rows, 0), np.int64),
        np.zeros((rows, 0), np.float32),
        "",
        np.zeros((rows, 0), np.float32),
    )
    if not with_tokens:
        return items
    captions = warehouse.read(CAPTION_TOKENS, columns=["item_id", "token_ids", "weights", "token_version"])
    versions = sorted(pc.unique(captions["token_version"]).to_pylist())
    version = content.only_version(versions, content.TOKENS, CAPTION_TOKENS.name)
    return items.with_tokens(captions, max_tokens, version)
