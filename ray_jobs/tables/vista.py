"""Tables of the stage `vista`: trained models, and cached summary tokens of user histories."""

import pyarrow as pa

from ray_jobs.tables.interactions import CREATED
from ray_jobs.warehouse import TIMESTAMP, Column, Table

STAGED_EXPORTS = "exports"
"""Artifact below which an export stages rows of users; what a killed one left is taken up by the next."""

VISTA_MODELS = Table(
    "vista/summarizer",
    "the trained model in force (older ones: MLflow, and earlier versions of the table)",
    (
        Column("model_version", pa.string(), "Version of the training: inputs, parameters, code."),
        Column("artifact", pa.string(), "Artifact with weights, constructor, preprocessing and history."),
        Column("valid_auc", pa.float64(), "AUC of the split `valid`; decided the best epoch."),
        Column("valid_auc_low", pa.float64(), "Lower bound of its 95% interval over users."),
        Column("valid_auc_high", pa.float64(), "Upper bound."),
        Column("valid_logloss", pa.float64(), "Log loss of `valid`."),
        Column("valid_examples", pa.int64(), "Examples of `valid`."),
        Column("test_auc", pa.float64(), "AUC of the split `test`, computed once, for the record."),
        Column("best_epoch", pa.int32(), "Epoch whose weights were kept, from 1."),
        Column("epochs", pa.int32(), "Epochs in all."),
        Column("num_parameters", pa.int64(), "Parameters of the network."),
        Column("num_tokens", pa.int32(), "Summary tokens of a user."),
        Column("width", pa.int32(), "Width of a token."),
        Column("params", pa.string(), "Parameters and input versions, as a JSON object."),
        Column("metrics", pa.string(), "Metrics and the history of all epochs, as a JSON object."),
        Column("event_timestamp", TIMESTAMP, "Time of the newest event that training saw."),
        CREATED,
    ),
    primary_key=("model_version",),
)

USER_HISTORIES = Table(
    "vista/user_histories",
    "one event in its user's history, laid out so that a window of a history is found without reading the rest",
    (
        Column("bucket", pa.int32(), "Bucket of the user, by a digest of the id; the partition."),
        Column("user_id", pa.string(), "User.", pii=True),
        Column("position", pa.int64(), "Place in the history, from 0: by time, then input order."),
        Column("item_id", pa.string(), "Item."),
        Column("timestamp", TIMESTAMP, "When it happened (UTC)."),
        Column("action", pa.string(), "What the user did."),
        Column("value", pa.float64(), "Strength; null where the action has none.", nullable=True),
        Column("day", pa.string(), "UTC day of the event; what is replaced when a day changes."),
    ),
    primary_key=("user_id", "position"),
    partition_by=("bucket",),
)

USER_HISTORY_INDEX = Table(
    "vista/user_history_index",
    "one user's history in `vista/user_histories`",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("bucket", pa.int32(), "Bucket of the user."),
        Column("num_events", pa.int64(), "Events of the history."),
        Column("digest", pa.int64(), "Sum of the events' digests; another one: the history changed."),
        Column("event_timestamp", TIMESTAMP, "Time of the last event, plus one microsecond."),
        CREATED,
    ),
    primary_key=("user_id",),
)

USER_STATES = Table(
    "vista/user_states",
    "what is remembered of one user's history, so that a refresh goes on with new events",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("bucket", pa.int32(), "Bucket of the user, as in `vista/user_histories`; the partition."),
        Column("state", pa.binary(), "State of an incremental model; empty for a model that has none."),
        Column("num_events", pa.int64(), "Events that it has seen."),
        Column("digest", pa.int64(), "Sum of their digests, as in `vista/user_history_index`."),
        Column(
            "is_regular", pa.bool_(), "Whether the latest summary is due anyway, not only as there are no more events."
        ),
        Column("state_version", pa.string(), "Version of the summaries that it gives, and of its bytes."),
        Column("event_timestamp", TIMESTAMP, "Time of the last event seen, plus one microsecond."),
        CREATED,
    ),
    primary_key=("user_id",),
    partition_by=("bucket",),
)

USER_SUMMARIES = Table(
    "vista/user_summaries",
    "one user's history up to one event, as summary tokens",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("num_events", pa.int64(), "Events that the user had by then; the summary saw the newest of them."),
        Column(
            "summary",
            pa.binary(),
            "Values, row-major, `num_tokens` x `width`; how they are stored ends `summary_version`.",
        ),
        Column("scales", pa.list_(pa.float32()), "Scales of each token: value = stored value x scale."),
        Column("is_latest", pa.bool_(), "Whether this is the user's newest summary (the one served online)."),
        Column(
            "summary_version",
            pa.string(),
            "Content version: the model that made it and the cache's format, e.g. `.int4x4`; without: int8.",
        ),
        Column("event_timestamp", TIMESTAMP, "Time of the last event seen, plus one microsecond."),
        CREATED,
    ),
    primary_key=("user_id", "event_timestamp"),
)

HELD_SUMMARIES = Table(
    "vista/held_summaries",
    "one user's newest summary of the content version that the champion reads, while the newest ones are of another",
    (
        Column("user_id", pa.string(), "User.", pii=True),
        Column("summary", pa.binary(), "As in `vista/user_summaries`.", nullable=True),
        Column("scales", pa.list_(pa.float32()), "As in `vista/user_summaries`.", nullable=True),
        Column("summary_version", pa.string(), "Content version; the table's own version, too."),
        Column("event_timestamp", TIMESTAMP, "Time of the last event seen, plus one microsecond."),
        CREATED,
    ),
    primary_key=("user_id",),
)
