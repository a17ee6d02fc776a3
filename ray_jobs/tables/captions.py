"""Tables of the stage `captions`."""

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import TIMESTAMP, Column, Table

STRINGS = pa.list_(pa.string())
TAKES_TOKENS = (
    Column("prompt_tokens", pa.int32(), "Tokens of the prompt, shared prefix included."),
    Column("completion_tokens", pa.int32(), "Tokens generated."),
)

CAPTION_STORE = Table(
    "captions/caption_store",
    "one interpretation that was paid for; append-only, shared by items of equal content",
    (
        Column("content_key", pa.string(), "Digest of evidence, prompt, model revision and parameters."),
        Column("caption", pa.string(), "One sentence."),
        Column("mood", pa.string(), "One word out of the prompt's moods."),
        Column("tags", STRINGS, "Content words, most telling first."),
        Column("attempts", pa.int32(), "Calls that it took."),
        *TAKES_TOKENS,
        CREATED,
    ),
    primary_key=("content_key",),
)

CAPTION_DEAD_LETTERS = Table(
    "captions/dead_letters",
    "one content that no attempt could interpret",
    (
        Column("content_key", pa.string(), "As in the store."),
        Column("item_id", pa.string(), "An item of that content."),
        Column("reason", pa.string(), "Reason code of the last attempt, e.g. `repetition`, `too_short`."),
        Column("detail", pa.string(), "One sentence."),
        Column("attempts", pa.int32(), "Calls made."),
        CREATED,
    ),
    primary_key=("content_key",),
)

ITEM_CAPTIONS = Table(
    "captions/item_captions",
    "one item with its caption",
    (
        Column("item_id", pa.string(), "Item."),
        Column("content_key", pa.string(), "Its interpretation in the store."),
        Column("caption", pa.string(), "One sentence."),
        Column("mood", pa.string(), "One word."),
        Column("tags", STRINGS, "Content words."),
        Column("caption_version", pa.string(), "Prompt, model revision and parameters that made it."),
        Column("event_timestamp", TIMESTAMP, "From when the caption holds: the item's `available_from` or the epoch."),
        CREATED,
    ),
    primary_key=("item_id",),
)

CAPTION_TOKENS = Table(
    "captions/caption_tokens",
    "one item with its caption as a set of categorical features",
    (
        Column("item_id", pa.string(), "Item."),
        Column("token_ids", pa.list_(pa.int32()), "Ids into the ranker's token table, sorted, without repeats."),
        Column("tokens", STRINGS, "What the ids stand for."),
        Column("token_version", pa.string(), "Caption version and tokenizer parameters."),
        Column("event_timestamp", TIMESTAMP, "As in `captions/item_captions`."),
        CREATED,
    ),
    primary_key=("item_id",),
)
