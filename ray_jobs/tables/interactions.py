"""Tables of the stage `interactions`: events, items and users as the data contract gives them."""

import pyarrow as pa

from ray_jobs.warehouse import TIMESTAMP, Column, Table

CREATED = Column("created_timestamp", TIMESTAMP, "When the platform wrote the row (UTC).")
STRINGS = pa.list_(pa.string())

ITEMS = Table(
    "interactions/items",
    "one item of the catalogue",
    (
        Column("item_id", pa.string(), "Item."),
        Column("title", pa.string(), "Title as the source gives it."),
        Column("description", pa.string(), "Longer text, if the source has one.", nullable=True),
        Column("categories", STRINGS, "Categories or genres; empty if unknown."),
        Column("image_uri", pa.string(), "Path or URL of the item's image.", nullable=True),
        Column("attributes", pa.string(), "Every other column of the source, as a JSON object."),
        Column("available_from", TIMESTAMP, "When the item entered the catalogue (UTC).", nullable=True),
        CREATED,
    ),
    primary_key=("item_id",),
)

USERS = Table(
    "interactions/users",
    "one user",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("attributes", pa.string(), "Every attribute of the source, as a JSON object.", pii=True),
        CREATED,
    ),
    primary_key=("user_id",),
)

RAW_INTERACTIONS = Table(
    "interactions/raw_interactions",
    "one event, kept once however often the source repeats it",
    (
        Column("event_id", pa.string(), "Identity of the event; derived from its fields when the source has none."),
        Column("user_id", pa.string(), "User.", pii=True),
        Column("item_id", pa.string(), "Item; always one of `interactions/items`."),
        Column("timestamp", TIMESTAMP, "When it happened (UTC)."),
        Column("sequence", pa.int64(), "Input order within the day; ties in time: timestamp, then sequence."),
        Column("action", pa.string(), "What the user did, e.g. `rating`, `click`, `view`."),
        Column("value", pa.float64(), "Strength, e.g. stars; null where the action has none.", nullable=True),
        Column("day", pa.string(), "UTC day of the event, `YYYY-MM-DD`; the partition."),
        CREATED,
    ),
    primary_key=("event_id",),
    partition_by=("day",),
)

QUARANTINE = Table(
    "interactions/quarantine",
    "one bad row of the source, with where it stood and why it was refused",
    (
        Column("quarantine_id", pa.string(), "Digest of table, source, position, reason and payload."),
        Column("source_table", pa.string(), "`interactions`, `items` or `users`."),
        Column("source", pa.string(), "File that the row stood in, relative to the dataset."),
        Column("position", pa.int64(), "Line after the header, or row, from 1; 0: the whole file."),
        Column("reason", pa.string(), "Reason code, e.g. `unparsable_time`, `unknown_item`."),
        Column("detail", pa.string(), "One sentence that names the cause and the fix."),
        Column("payload", pa.string(), "The row as JSON, cut at 4,096 characters.", pii=True),
        Column("day", pa.string(), "UTC day, where the row's time could be read.", nullable=True),
        Column("status", pa.string(), "`open` or `replayed`."),
        CREATED,
    ),
    primary_key=("quarantine_id",),
)

INGESTIONS = Table(
    "interactions/ingestions",
    "one source file as it was last read: every row that was read is accounted for",
    (
        Column("source_table", pa.string(), "`interactions`, `items` or `users`."),
        Column("source", pa.string(), "File, relative to the dataset."),
        Column("rows_read", pa.int64(), "Rows read."),
        Column("rows_kept", pa.int64(), "Rows kept."),
        Column("rows_quarantined", pa.int64(), "Rows in quarantine."),
        Column("rows_duplicate", pa.int64(), "Rows dropped because their event was already kept."),
        Column("rows_outside", pa.int64(), "Rows of other days than the run was for: not counted as read."),
        CREATED,
    ),
    primary_key=("source_table", "source"),
)

DAYS = Table(
    "interactions/days",
    "one day of `interactions/raw_interactions`, written with the day's events",
    (
        Column("day", pa.string(), "UTC day, `YYYY-MM-DD`."),
        Column("digest", pa.string(), "Digest of the day's events; all digests make the version."),
        Column("num_rows", pa.int64(), "Events of the day."),
        CREATED,
    ),
    primary_key=("day",),
)

MENDED_EVENTS = Table(
    "interactions/mended_events",
    "one mended row of the quarantine; ingestions read them after the source",
    (
        Column("quarantine_id", pa.string(), "The row in `interactions/quarantine` that it mends."),
        Column("ordinal", pa.int64(), "Order in which rows were mended, from 1."),
        Column("event_id", pa.string(), "Identity that the source gave the event.", nullable=True),
        Column("user_id", pa.string(), "User.", pii=True),
        Column("item_id", pa.string(), "Item."),
        Column("timestamp", TIMESTAMP, "When it happened (UTC)."),
        Column("action", pa.string(), "What the user did."),
        Column("value", pa.float64(), "Strength.", nullable=True),
        CREATED,
    ),
    primary_key=("quarantine_id",),
)

SPLITS = Table(
    "interactions/splits",
    "one labelled example: an event, or a sampled negative where the data has none",
    (
        Column("example_id", pa.string(), "The event's id, or `<event_id>:n<k>` for a sampled negative."),
        Column("user_id", pa.string(), "User.", pii=True),
        Column("item_id", pa.string(), "Item."),
        Column("timestamp", TIMESTAMP, "When the event happened (UTC)."),
        Column("position", pa.int32(), "Place of the event in the user's own history, from 0, by the tie rule."),
        Column("action", pa.string(), "Action of the event; `sampled` for a sampled negative."),
        Column("value", pa.float64(), "Strength of the event.", nullable=True),
        Column("label", pa.int8(), "1 if the user liked it (value at or above the threshold), else 0."),
        Column("sampled", pa.bool_(), "Whether this is a sampled negative and no event."),
        Column("leave_one_out", pa.string(), "`train`, `valid` (user's last but one) or `test` (last)."),
        Column("global_time", pa.string(), "`train`, `valid` or `test`, cut at two points in time for all users."),
        Column("split", pa.string(), "The split in force: one of the two above."),
        CREATED,
    ),
    primary_key=("example_id",),
)
