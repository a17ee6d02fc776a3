"""Tables of the stage `captions`."""

import dataclasses

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import TIMESTAMP, Column, Table

STRINGS = pa.list_(pa.string())
TAKES_TOKENS = (
    Column("prompt_tokens", pa.int32(), "Tokens of the prompts, shared prefix and image included."),
    Column("completion_tokens", pa.int32(), "Tokens generated."),
)
RECORD = (
    Column("caption", pa.string(), "One sentence."),
    Column("subjects", STRINGS, "What it shows or is about, most important first."),
    Column("style", pa.string(), "One word out of the prompt's styles."),
    Column("setting", pa.string(), "One word out of the prompt's settings."),
    Column("mood", pa.string(), "One word out of the prompt's moods."),
    Column("text_in_image", pa.string(), "Text that was read in the image; empty if none."),
    Column("tags", STRINGS, "Content words, most telling first."),
)
PIXELS = Column(
    "pixel_digest", pa.string(), "Digest of the canonical image's pixels; null without an image.", nullable=True
)

ITEM_IMAGES = Table(
    "captions/item_images",
    "one item that names an image, with what became of the image",
    (
        Column("item_id", pa.string(), "Item."),
        Column("image_uri", pa.string(), "As in `interactions/items`."),
        Column(
            "fingerprint",
            pa.string(),
            "Source file (size and time, or ETag) and rules; an equal one is not read again.",
        ),
        PIXELS,
        Column("format", pa.string(), "Format of the source file, e.g. `JPEG`.", nullable=True),
        Column("width", pa.int32(), "Pixels of the source image.", nullable=True),
        Column("height", pa.int32(), "Pixels of the source image.", nullable=True),
        Column(
            "reason",
            pa.string(),
            "Why the image is quarantined, e.g. `truncated`; null if it is usable.",
            nullable=True,
        ),
        Column("detail", pa.string(), "One sentence with the fix; null if it is usable.", nullable=True),
        Column("attempts", pa.int32(), "Runs in a row that read or asked for it with this outcome."),
        CREATED,
    ),
    primary_key=("item_id",),
)

IMAGE_READS = dataclasses.replace(
    ITEM_IMAGES,
    name="captions/image_reads",
    grain="one image that was read or asked for since `captions/item_images` was written: by a run that was killed, or "
    "by one that found nothing new",
    primary_key=("item_id", "created_timestamp"),
)

CAPTION_STORE = Table(
    "captions/interpretations",
    "one interpretation that was paid for; append-only, shared by items of equal content",
    (
        Column("content_key", pa.string(), "Digest of text, pixels, prompt, schema, model revision and parameters."),
        *RECORD,
        Column("evidence", pa.string(), "What the model was shown, without the image itself."),
        PIXELS,
        Column("attempts", pa.int32(), "Attempts that it took."),
        *TAKES_TOKENS,
        Column("caption_version", pa.string(), "Prompt, model revision and parameters that made it."),
        CREATED,
    ),
    primary_key=("content_key",),
)

CALL_LEDGER = Table(
    "captions/call_ledger",
    "one request to a model, whatever became of it; append-only",
    (
        Column("call_id", pa.string(), "Digest of run, content, attempt and request."),
        Column("run_id", pa.string(), "Dagster run that paid."),
        Column("content_key", pa.string(), "As in the store."),
        Column("purpose", pa.string(), "`caption` or `canary`."),
        Column("attempt", pa.int32(), "0, or the number of the repair."),
        Column("request", pa.int32(), "Number of the request within the attempt; above 0 after transient errors."),
        Column("outcome", pa.string(), "`ok`, or what went wrong, e.g. `status 429`, `timeout`, `schema`."),
        *TAKES_TOKENS,
        Column("image_tokens", pa.int32(), "Of the prompt's tokens, those of the image, where they are known."),
        Column("cached_tokens", pa.int32(), "Of the prompt's tokens, those that were computed before."),
        Column("usd", pa.float64(), "Price of the tokens."),
        Column("price_version", pa.string(), "Prices that were applied."),
        Column("wall_seconds", pa.float64(), "Wall time; of a batch that is decoded together, its even share."),
        Column("gpu_seconds", pa.float64(), "Wall time times GPUs of the actor."),
        Column("caption_version", pa.string(), "Prompt, model revision and parameters."),
        CREATED,
    ),
    primary_key=("call_id",),
)

CAPTION_CANARIES = Table(
    "captions/caption_canaries",
    "one known item, interpreted once as it is and once changed, under one caption version",
    (
        Column("caption_version", pa.string(), "Prompt, model revision and parameters."),
        Column(
            "kind", pa.string(), "`blank_image`, `swapped_image`, `injected_text` or `recaption` (a harmless edit)."
        ),
        Column("item_id", pa.string(), "Item."),
        Column("original", pa.string(), "Its record in the store, as JSON."),
        Column("changed", pa.string(), "The record of the changed content, as JSON; empty if there was none."),
        Column("passed", pa.bool_(), "Whether the model did as it should."),
        Column("detail", pa.string(), "One sentence."),
        CREATED,
    ),
    primary_key=("caption_version", "kind", "item_id"),
)

CAPTION_DEAD_LETTERS = Table(
    "captions/caption_dead_letters",
    "one content that could not be interpreted, as of one run; the newest row of a content counts",
    (
        Column("content_key", pa.string(), "As in the store."),
        Column("item_id", pa.string(), "An item of that content."),
        Column(
            "reason",
            pa.string(),
            "Reason code of the last attempt, e.g. `repetition`; `replayed` once it is open again.",
        ),
        Column("error_class", pa.string(), "`transient`, `deterministic` or `invalid_output`."),
        Column("detail", pa.string(), "One sentence, without the content."),
        Column("attempts", pa.int32(), "Attempts made."),
        Column("caption_version", pa.string(), "Prompt, model revision and parameters."),
        Column("first_seen", TIMESTAMP, "When it failed first (UTC)."),
        CREATED,
    ),
    primary_key=("content_key", "created_timestamp"),
)

ITEM_CAPTIONS = Table(
    "captions/item_captions",
    "one item with its interpretation",
    (
        Column("item_id", pa.string(), "Item."),
        Column("content_key", pa.string(), "Its interpretation in the store."),
        *RECORD,
        PIXELS,
        Column("caption_version", pa.string(), "Prompt, model revision and parameters that made it."),
        Column("event_timestamp", TIMESTAMP, "From when the caption holds: the item's `available_from` or the epoch."),
        CREATED,
    ),
    primary_key=("item_id",),
)

CAPTION_VOCABULARY = Table(
    "captions/caption_vocabulary",
    "one term that tokens are made of, as often as it is among the items of the training period",
    (
        Column("term", pa.string(), "What a token stands for, e.g. `tag:comedy`, `caption:night train`."),
        Column("field", pa.string(), "Field of the record; `#` after it: a character trigram."),
        Column("token_id", pa.int32(), "Its id."),
        Column("items", pa.int64(), "Items of the training period that have it."),
        Column("idf", pa.float32(), "Inverse document frequency: its weight."),
        Column("kept", pa.bool_(), "Whether it becomes a token; otherwise it is too common."),
        Column("token_version", pa.string(), "As in `captions/caption_tokens`."),
        CREATED,
    ),
    primary_key=("term",),
)

CAPTION_TOKENS = Table(
    "captions/caption_tokens",
    "one item with its caption as a set of categorical features",
    (
        Column("item_id", pa.string(), "Item."),
        Column("token_ids", pa.list_(pa.int32()), "Hashes of terms, sorted, distinct; a ranker hashes them again."),
        Column("tokens", STRINGS, "What the ids stand for."),
        Column("weights", pa.list_(pa.float32()), "Inverse document frequency of each token in the training period."),
        Column("token_version", pa.string(), "Caption version and tokenizer parameters: what an id means."),
        Column("event_timestamp", TIMESTAMP, "As in `captions/item_captions`."),
        CREATED,
    ),
    primary_key=("item_id",),
)

CAPTION_HEALTH = Table(
    "captions/caption_health",
    "one measure of one version of `captions/caption_tokens`; append-only, the newest row counts",
    (
        Column("tokens_version", pa.string(), "Version of the table that was measured."),
        Column("measure", pa.string(), "What was measured, e.g. `duplicate_sets`; what could not be has no row."),
        Column("value", pa.float64(), "The value."),
        Column("token_version", pa.string(), "As in `captions/caption_tokens`."),
        CREATED,
    ),
    primary_key=("tokens_version", "measure", "created_timestamp"),
)

CAPTION_EMBEDDINGS = Table(
    "captions/caption_embeddings",
    "one item with its caption as one dense vector",
    (
        Column("item_id", pa.string(), "Item."),
        Column("embedding", pa.list_(pa.float32()), "Unit vector of the caption alone."),
        Column("embedding_version", pa.string(), "Caption version and text encoder."),
        Column("event_timestamp", TIMESTAMP, "As in `captions/item_captions`."),
        CREATED,
    ),
    primary_key=("item_id",),
)

CAPTION_RETRIEVAL = Table(
    "captions/caption_retrieval",
    "one sampled item, with the place that its caption gives it among items of its category",
    (
        Column("item_id", pa.string(), "Item."),
        Column("category", pa.string(), "Category that all candidates share; empty for items without one."),
        Column("candidates", pa.int32(), "Items to choose from, itself included."),
        Column("rank", pa.float32(), "Its place by its own caption, from 1; the middle of a tie."),
        Column("control_ranks", pa.list_(pa.float32()), "Its places by captions of other candidates."),
        Column("embedding_version", pa.string(), "As in `captions/caption_embeddings`."),
        CREATED,
    ),
    primary_key=("item_id",),
)
