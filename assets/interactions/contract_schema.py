"""The data contract as a JSON schema, made from what the readers hold a source to."""

import json
import sys
from typing import Any

from assets.interactions.readers.base import OPTIONAL, REQUIRED

TEXT = {"type": ["string", "integer"], "description": "Text; whole numbers are read as text."}
TIME = {
    "type": ["string", "number"],
    "description": "ISO 8601 (without zone: UTC), or epoch seconds, ms, us or ns.",
}
COLUMNS: dict[str, dict[str, dict[str, Any]]] = {
    "interactions": {
        "user_id": TEXT | {"description": "Who; not empty."},
        "item_id": TEXT | {"description": "With which item; must be in items."},
        "timestamp": TIME,
        "action": {
            "type": ["string", "null"],
            "description": "What the user did; `interaction` where empty.",
        },
        "value": {
            "type": ["number", "null"],
            "description": "Strength, e.g. stars; empty where the action has none.",
        },
        "event_id": TEXT
        | {
            "type": ["string", "integer", "null"],
            "description": "Identity of the event; derived from the other columns where empty.",
        },
    },
    "items": {
        "item_id": TEXT | {"description": "Item; not empty, once."},
        "title": {"type": ["string", "null"], "description": "Title; the id stands for an empty one."},
        "description": {"type": ["string", "null"], "description": "Longer text."},
        "categories": {
            "type": ["array", "string", "null"],
            "items": {"type": "string"},
            "description": "Categories: a list, or text with `|` between.",
        },
        "image_uri": {
            "type": ["string", "null"],
            "description": "URL of the image, or its path below the dataset.",
        },
        "available_from": TIME | {"type": ["string", "number", "null"]},
    },
    "users": {"user_id": TEXT | {"description": "User; not empty, once."}},
}
GRAIN = {
    "interactions": "one event",
    "items": "one item of the catalogue",
    "users": "one user; every column beside `user_id` becomes an attribute",
}


def data_contract_schema() -> dict[str, Any]:
    """The schema of a dataset as an object of three lists of rows; other columns are allowed."""
    tables = {
        table: {
            "type": "array",
            "description": GRAIN[table],
            "items": {
                "type": "object",
                "required": list(REQUIRED[table]),
                "additionalProperties": True,
                "properties": {name: columns[name] for name in REQUIRED[table] + OPTIONAL[table]},
            },
        }
        for table, columns in COLUMNS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Belvedere data contract",
        "type": "object",
        "required": ["interactions", "items"],
        "properties": tables,
    }


if __name__ == "__main__":
    json.dump(data_contract_schema(), sys.stdout, indent=2)
    sys.stdout.write("\n")
