"""Where views are read from: the parquet that the platform publishes for each of them.

The paths below are names. `definitions.bound` replaces each by the directory of the version that is published.
"""

from feast import FileSource
from feast.data_format import ParquetFormat

EVENT_TIMESTAMP = "event_timestamp"
CREATED_TIMESTAMP = "created_timestamp"


def published(view: str, path: str | None = None) -> FileSource:
    """Returns the source of a view.

    Args:
        view: Name of the view.
        path: Directory of the published version; its name by default.
    """
    return FileSource(
        name=f"{view}_published",
        path=path or f"published/{view}",
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIMESTAMP,
        created_timestamp_column=CREATED_TIMESTAMP,
        description=f"Published rows of the view `{view}`.",
    )


item_popularity_published = published("item_popularity")
item_captions_published = published("item_captions")
item_semantic_ids_published = published("item_semantic_ids")
user_activity_published = published("user_activity")
user_persona_published = published("user_persona")
user_vista_published = published("user_vista")
user_vista_held_published = published("user_vista_held")
user_persona_text_pushed = published("user_persona_text")
