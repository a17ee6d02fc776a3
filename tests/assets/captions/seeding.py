"""Captions for tests of what is made of them."""

from typing import Any

import pyarrow as pa

from ray_jobs.captions.plan import EPOCH
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS
from tests.factories import CREATED


def record(item: str, title: str, category: str) -> dict[str, Any]:
    """What a good model would say of one of the factory's items."""
    words = [w for w in title.lower().split() if w not in ("the", "of")]
    return {
        "item_id": item,
        "content_key": item,
        "caption": f"A {category} tale of {' and '.join(words)}.",
        "subjects": [words[0]],
        "style": "plain",
        "setting": "indoors" if len(item) % 2 else "outdoors",
        "mood": "dark" if category in ("crime", "war") else "calm",
        "text_in_image": "",
        "tags": [category],
        "pixel_digest": None,
        "caption_version": "v",
        "event_timestamp": EPOCH,
        "created_timestamp": CREATED,
    }


def seed_item_captions(tables, version: str = "captions", **changed: Any) -> None:
    """Captions of all items.

    Args:
        tables: A `Tables` resource that holds items.
        version: Version of the table.
        **changed: Values of columns that all rows have instead.
    """
    items = tables.read(ITEMS, ["item_id", "title", "categories"]).to_pylist()
    rows = [record(i["item_id"], i["title"], i["categories"][0]) | changed for i in items]
    tables.write(ITEM_CAPTIONS, pa.Table.from_pylist(rows, ITEM_CAPTIONS.schema), version=version)
