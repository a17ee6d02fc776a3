"""Tables of the stage `features`: what Feast's views are published from, and the training set."""

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import TIMESTAMP, Column, Table

ITEM_POPULARITY = Table(
    "features/item_popularity",
    "one item on one day on which it had events: its popularity as of that day's end",
    (
        Column("item_id", pa.string(), "Item."),
        Column("num_events", pa.int64(), "Events of the item until the day's end."),
        Column("num_likes", pa.int64(), "Of these, how many were liked."),
        Column("mean_value", pa.float64(), "Mean value of its events so far; null without values.", nullable=True),
        Column("event_timestamp", TIMESTAMP, "End of the day (UTC)."),
        CREATED,
    ),
    primary_key=("item_id", "event_timestamp"),
)

USER_ACTIVITY = Table(
    "features/user_activity",
    "one user right after one moment in which the user acted (ties in time make one row)",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("num_events", pa.int64(), "Events of the user so far."),
        Column("num_likes", pa.int64(), "Of these, how many were liked."),
        Column("mean_value", pa.float64(), "Mean value so far; null without values.", nullable=True),
        Column("recent_item_ids", pa.list_(pa.string()), "The last items, newest first."),
        Column("recent_labels", pa.list_(pa.int32()), "Their labels."),
        Column("event_timestamp", TIMESTAMP, "That moment, plus one microsecond."),
        CREATED,
    ),
    primary_key=("user_id", "event_timestamp"),
)

TRAINING_SET = Table(
    "features/training_set",
    "one labelled example of `interactions/splits` with every feature as of its moment",
    (
        Column("example_id", pa.string(), "Example."),
        Column("user_id", pa.string(), "User.", pii=True),
        Column("item_id", pa.string(), "Item."),
        Column("event_timestamp", TIMESTAMP, "Moment of the example; no feature saw anything at or after it."),
        Column("label", pa.int8(), "1 liked, 0 not."),
        Column("sampled", pa.bool_(), "Whether it is a sampled negative."),
        Column("split", pa.string(), "`train`, `valid` or `test`."),
        Column("position", pa.int32(), "Place in the user's history, from 0."),
        Column("item_num_events", pa.int64(), "Popularity as of the day before.", nullable=True),
        Column("item_num_likes", pa.int64(), "Likes as of the day before.", nullable=True),
        Column("item_mean_value", pa.float64(), "Mean value as of the day before.", nullable=True),
        Column("item_token_ids", pa.list_(pa.int32()), "Caption tokens.", nullable=True),
        Column("item_token_version", pa.string(), "Content version of the caption tokens.", nullable=True),
        Column("item_codes", pa.list_(pa.int32()), "Semantic ID codes.", nullable=True),
        Column("user_num_events", pa.int64(), "The user's earlier events.", nullable=True),
        Column("user_num_likes", pa.int64(), "The user's earlier likes.", nullable=True),
        Column("user_mean_value", pa.float64(), "Mean value of the user's earlier events.", nullable=True),
        Column(
            "user_recent_item_ids",
            pa.list_(pa.string()),
            "The user's last items before it, newest first.",
            nullable=True,
        ),
        Column("user_recent_labels", pa.list_(pa.int32()), "Their labels.", nullable=True),
        Column("user_summary", pa.binary(), "VISTA summary tokens as they are stored.", nullable=True),
        Column("user_summary_scales", pa.list_(pa.float32()), "Their scales.", nullable=True),
        Column("user_summary_version", pa.string(), "Content version of the summary.", nullable=True),
        CREATED,
    ),
    primary_key=("example_id",),
)

ONLINE_PUBLICATIONS = Table(
    "features/online_store",
    "one Feast view as the online store holds it",
    (
        Column("view", pa.string(), "View."),
        Column("version", pa.string(), "Version of the publication that the store holds."),
        Column("content_version", pa.string(), "Version of the generated content in it; empty for counts."),
        Column("online_store", pa.string(), "Which store, without secrets."),
        Column("rows", pa.int64(), "Entities that have features."),
        Column("rows_written", pa.int64(), "Entities that this publication changed or added."),
        Column("rows_removed", pa.int64(), "Entities that it removed."),
        Column("services", pa.list_(pa.string()), "FeatureServices that read the view."),
        Column("published_at", TIMESTAMP, "The watermark: the store holds what was true then."),
        Column("next_due", TIMESTAMP, "When a row that still lies in the future becomes due.", nullable=True),
        CREATED,
    ),
    primary_key=("view",),
)
