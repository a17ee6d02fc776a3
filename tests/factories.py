"""Small tables for tests of the stages that come after `interactions`."""

import datetime as dt

import numpy as np
import pyarrow as pa

from ray_jobs.tables.interactions import ITEMS, RAW_INTERACTIONS, SPLITS, USERS

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
CREATED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
GENRES = ["crime", "comedy", "romance", "war", "space", "music"]
WORDS = ["night", "river", "king", "garden", "storm", "letter", "train", "mirror", "island", "winter"]


def seed_interactions(
    tables, num_users: int = 30, num_items: int = 40, events_per_user: int = 20, seed: int = 0, implicit: bool = False
) -> None:
    """Writes items, users, raw interactions and splits. Users like the items of one genre; the rest is noise.

    Args:
        tables: A `Tables` resource.
        num_users: Number of users.
        num_items: Number of items.
        events_per_user: Events of each user; several share a second, as in MovieLens.
        seed: Seed.
        implicit: Events without value, and one sampled negative for each of them.
    """
    rng = np.random.default_rng(seed)
    genre_of = rng.integers(0, len(GENRES), num_items)
    items = [
        {
            "item_id": f"i{i}",
            "title": f"The {WORDS[i % 10].title()} of {GENRES[genre_of[i]].title()} {i}",
            "description": None,
            "categories": [GENRES[genre_of[i]]],
            "image_uri": None,
            "attributes": "{}",
            "available_from": None,
            "created_timestamp": CREATED,
        }
        for i in range(num_items)
    ]
    tables.write(ITEMS, pa.Table.from_pylist(items, ITEMS.schema), version=f"items{num_items}-{seed}")
    users = [{"user_id": f"u{u}", "attributes": "{}", "created_timestamp": CREATED} for u in range(num_users)]
    tables.write(USERS, pa.Table.from_pylist(users, USERS.schema), version=f"users{num_users}-{seed}")
    events, examples = [], []
    cuts = START + dt.timedelta(days=0.8 * num_users), START + dt.timedelta(days=0.9 * num_users)
    for u in range(num_users):
        taste = u % len(GENRES)
        weights = np.where(genre_of == taste, 4.0, 1.0)
        size = min(events_per_user, num_items)
        chosen = rng.choice(num_items, size=size, replace=False, p=weights / weights.sum())
        for position, i in enumerate(chosen):
            when = START + dt.timedelta(days=u, seconds=int(position // 2))
            value = (
                None
                if implicit
                else float(np.clip(rng.normal(4.3 if genre_of[i] == taste else 2.8, 0.6), 1, 5).round())
            )
            event = f"e{u}-{position}"
            action = "click" if implicit else "rating"
            common = {
                "user_id": f"u{u}",
                "item_id": f"i{i}",
                "timestamp": when,
                "action": action,
                "value": value,
                "created_timestamp": CREATED,
            }
            events.append(common | {"event_id": event, "sequence": len(events), "day": when.date().isoformat()})
            left_out = {size - 1: "test", size - 2: "valid"}.get(position, "train")
            by_time = "train" if when < cuts[0] else "valid" if when < cuts[1] else "test"
            split = {"position": position, "leave_one_out": left_out, "global_time": by_time, "split": by_time}
            examples.append(
                common | split | {"example_id": event, "label": int(value is None or value >= 4), "sampled": False}
            )
            if implicit:
                other = f"i{rng.integers(0, num_items)}"
                examples.append(
                    common
                    | split
                    | {"example_id": f"{event}:n0", "item_id": other, "action": "sampled", "label": 0, "sampled": True}
                )
    tables.write(
        RAW_INTERACTIONS, pa.Table.from_pylist(events, RAW_INTERACTIONS.schema), version=f"raw-{seed}-{implicit}"
    )
    tables.write(SPLITS, pa.Table.from_pylist(examples, SPLITS.schema), version=f"splits-{seed}-{implicit}")
