"""Tables of the stage `clusters`: embeddings, codebooks and semantic IDs."""

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import TIMESTAMP, Column, Table

VECTOR = pa.list_(pa.float32())

EMBEDDING_STORE = Table(
    "clusters/embedding_store",
    "one text that was encoded; append-only, shared by items and personas of equal text",
    (
        Column("content_key", pa.string(), "Digest of text and encoder."),
        Column("embedding", VECTOR, "Unit-length text embedding."),
        CREATED,
    ),
    primary_key=("content_key",),
)

ITEM_EMBEDDINGS = Table(
    "clusters/item_embeddings",
    "one item with the dense embedding of its caption and metadata",
    (
        Column("item_id", pa.string(), "Item."),
        Column("embedding", VECTOR, "Unit-length text embedding."),
        Column("embedding_version", pa.string(), "Caption version and encoder revision."),
        Column("event_timestamp", TIMESTAMP, "From when it holds."),
        CREATED,
    ),
    primary_key=("item_id",),
)

CODEBOOKS = Table(
    "clusters/codebooks",
    "one code of one level of the residual quantiser",
    (
        Column("level", pa.int32(), "Level, from 0."),
        Column("code", pa.int32(), "Code, from 0."),
        Column("centroid", VECTOR, "Centroid in the (whitened, normalised) residual space of its level."),
        Column("items", pa.int64(), "Items that carry the code at that level."),
        Column("codebook_version", pa.string(), "Embedding version and quantiser parameters."),
        CREATED,
    ),
    primary_key=("level", "code"),
)

SEMANTIC_IDS = Table(
    "clusters/semantic_ids",
    "one item with its semantic ID",
    (
        Column("item_id", pa.string(), "Item."),
        Column("codes", pa.list_(pa.int32()), "One code a level, coarse to fine."),
        Column("collision", pa.int32(), "Digit that tells items of equal codes apart; 0 for the first."),
        Column("semantic_id", pa.string(), "Codes and collision digit joined by `-`; unique."),
        Column("cluster", pa.int32(), "Coarsest code: the item's cluster."),
        Column("codebook_version", pa.string(), "Version of the codebooks."),
        Column("event_timestamp", TIMESTAMP, "From when it holds."),
        CREATED,
    ),
    primary_key=("item_id",),
)

CLUSTER_PROFILES = Table(
    "clusters/cluster_profiles",
    "one coarse cluster, as a person would describe it",
    (
        Column("cluster", pa.int32(), "Coarsest code."),
        Column("label", pa.string(), "Telling tags and categories, e.g. `tense crime thriller`."),
        Column("items", pa.int64(), "Number of items."),
        Column("example_item_ids", pa.list_(pa.string()), "Items nearest to the centroid."),
        Column("example_titles", pa.list_(pa.string()), "Their titles."),
        Column("centroid", VECTOR, "Mean embedding of its items, unit length."),
        Column("codebook_version", pa.string(), "Version of the codebooks."),
        CREATED,
    ),
    primary_key=("cluster",),
)

QUANTISER_COMPARISON = Table(
    "clusters/quantiser_comparison",
    "one level of one quantiser, all fitted on the same embeddings",
    (
        Column("method", pa.string(), "`rq_kmeans`, `rq_vae`, or the peer `scikit_learn` on embeddings as they are."),
        Column("level", pa.int32(), "Level, from 0."),
        Column("width", pa.int32(), "Codes that were planned."),
        Column("used", pa.int32(), "Codes that some item carries."),
        Column("utilisation", pa.float64(), "Used over planned codes."),
        Column("entropy", pa.float64(), "Of the level's codes, in nats."),
        Column("entropy_ratio", pa.float64(), "Entropy over the largest that is possible."),
        Column("error", pa.float64(), "Squared error of this level and those above, over the variance; fitted items."),
        Column("held_error", pa.float64(), "The same of items that no fit has seen."),
        Column("unique_rate", pa.float64(), "Distinct code sequences of the whole catalogue, over items."),
        Column("collided", pa.int64(), "Items that share their codes with another."),
        Column("largest_group", pa.int64(), "Most items with the same codes."),
        Column("seconds", pa.float64(), "What the fit took."),
        CREATED,
    ),
    primary_key=("method", "level"),
)

CLUSTER_DESCRIPTIONS = Table(
    "clusters/cluster_descriptions",
    "one coarse cluster with its name",
    (
        Column("cluster", pa.int32(), "Coarsest code."),
        Column("name", pa.string(), "A few words; unique."),
        Column("description", pa.string(), "One sentence."),
        Column("written_by", pa.string(), "`model`, or `terms` where no answer of the model was usable."),
        Column("content_key", pa.string(), "Digest of label, titles, captions, prompt and model."),
        CREATED,
    ),
    primary_key=("cluster",),
)
