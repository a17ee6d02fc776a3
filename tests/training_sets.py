"""Training sets for tests of rankers: tastes that a model can learn, items that only content can explain."""

import datetime as dt

import numpy as np
import pyarrow as pa

from ray_jobs.tables.captions import CAPTION_EMBEDDINGS, CAPTION_TOKENS, ITEM_CAPTIONS
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import ITEMS, SPLITS

START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)
CREATED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
NUM_TASTES = 4
SUMMARY_TOKENS, SUMMARY_WIDTH = 2, 8


def seed_training_set(
    tables,
    *,
    num_users=120,
    num_items=60,
    per_user=16,
    seed=0,
    late_share=0.0,
    permute_tokens=False,
    version="ts",
    content="",
):
    """Writes items, captions, their tokens, splits and the training set.

    A user likes items of one genre with 85%, others with 25%. Users come one after another: the last tenth is
    `test`, the
    tenth before it `valid`. Late items can only be chosen by these two tenths.

    Args:
        tables: A `Tables` resource.
        num_users: Users.
        num_items: Items.
        per_user: Events of a user.
        seed: Seed.
        late_share: Share of items that the training period never saw.
        permute_tokens: Give every item the caption tokens of another one: the placebo.
        version: Version of all tables.
        content: Version of caption tokens and summaries; that of the tables by default.
    """
    rng, content = np.random.default_rng(seed), content or version
    genre = rng.integers(0, NUM_TASTES, num_items)
    late = rng.random(num_items) < late_share
    owner = rng.permutation(num_items) if permute_tokens else np.arange(num_items)
    tokens = [sorted({int(genre[o]), 10 + int(genre[o]), 100 + int(rng.integers(0, 30))}) for o in owner]
    common = {"created_timestamp": CREATED}
    tables.write(
        ITEMS,
        pa.Table.from_pylist(
            [
                common
                | {
                    "item_id": f"i{i}",
                    "title": f"Item {i}",
                    "description": None,
                    "categories": [],
                    "image_uri": None,
                    "attributes": "{}",
                    "available_from": START + dt.timedelta(days=int(0.8 * num_users)) if late[i] else None,
                }
                for i in range(num_items)
            ],
            ITEMS.schema,
        ),
        version,
    )
    tables.write(
        CAPTION_TOKENS,
        pa.Table.from_pylist(
            [
                common
                | {
                    "item_id": f"i{i}",
                    "token_ids": tokens[i],
                    "tokens": [str(t) for t in tokens[i]],
                    "weights": [1 + t / 50 for t in tokens[i]],
                    "token_version": content,
                    "event_timestamp": EPOCH,
                }
                for i in range(num_items)
            ],
            CAPTION_TOKENS.schema,
        ),
        version,
    )
    said = {"subjects": [], "style": "", "setting": "", "mood": "", "text_in_image": "", "tags": []}
    tables.write(
        ITEM_CAPTIONS,
        pa.Table.from_pylist(
            [
                common
                | said
                | {
                    "item_id": f"i{i}",
                    "content_key": f"i{i}",
                    # A word a token.
                    "caption": " ".join("abcdefghij"[int(digit)] * 3 for t in tokens[i] for digit in f"{t:03d}"[-2:]),
                    "pixel_digest": None,
                    "caption_version": content,
                    "event_timestamp": EPOCH,
                }
                for i in range(num_items)
            ],
            ITEM_CAPTIONS.schema,
        ),
        version,
    )
    events, likes = np.zeros(num_items, int), np.zeros(num_items, int)
    examples, splits = [], []
    for u in range(num_users):
        split = "train" if u < 0.8 * num_users else "valid" if u < 0.9 * num_users else "test"
        open_items = np.flatnonzero(~late | (split != "train"))
        chosen = rng.choice(open_items, size=min(per_user, len(open_items)), replace=False)
        taste, recent, before = u % NUM_TASTES, [], (events.copy(), likes.copy())
        for position, i in enumerate(chosen):
            liked = int(rng.random() < (0.85 if genre[i] == taste else 0.25))
            when = START + dt.timedelta(days=u, seconds=position)
            known = [(j, y) for j, y in recent][::-1]
            example = {
                "example_id": f"e{u:04d}-{position:03d}",
                "user_id": f"u{u}",
                "item_id": f"i{i}",
                "label": liked,
                "sampled": False,
                "split": split,
                "position": position,
            }
            splits.append(
                common
                | example
                | {
                    "timestamp": when,
                    "action": "rating",
                    "value": 3.0 + 2 * liked,
                    "leave_one_out": "train",
                    "global_time": split,
                }
            )
            summary = np.zeros((SUMMARY_TOKENS, SUMMARY_WIDTH))
            for j, y in known:
                summary[int(y), genre[j]] += 1
            summary = (127 * summary / max(summary.max(), 1)).round().astype(np.int8)
            examples.append(
                common
                | example
                | {
                    "event_timestamp": when,
                    "item_num_events": int(before[0][i]) or None,
                    "item_num_likes": int(before[1][i]) if before[0][i] else None,
                    "item_mean_value": 3 + 2 * before[1][i] / before[0][i] if before[0][i] else None,
                    "item_token_ids": tokens[i],
                    "item_token_version": content,
                    "item_codes": None,
                    "user_num_events": len(known),
                    "user_num_likes": sum(y for _, y in known),
                    "user_mean_value": 3 + 2 * float(np.mean([y for _, y in known])) if known else None,
                    "user_recent_item_ids": [f"i{j}" for j, _ in known],
                    "user_recent_labels": [y for _, y in known],
                    "user_summary": summary.tobytes() if known else None,
                    "user_summary_scales": [1 / 127] * SUMMARY_TOKENS if known else None,
                    "user_summary_version": content if known else None,
                }
            )
            recent.append((i, liked))
            events[i] += 1
            likes[i] += liked
    tables.write(SPLITS, pa.Table.from_pylist(splits, SPLITS.schema), version)
    tables.write(TRAINING_SET, pa.Table.from_pylist(examples, TRAINING_SET.schema), version)


def seed_caption_embeddings(tables, *, num_items, width=6, version="ts"):
    """Writes a caption embedding of every item of `seed_training_set`."""
    vectors = np.random.default_rng(5).normal(size=(num_items, width)).astype(np.float32)
    rows = [
        {
            "item_id": f"i{i}",
            "embedding": vectors[i].tolist(),
            "embedding_version": version,
            "event_timestamp": EPOCH,
            "created_timestamp": CREATED,
        }
        for i in range(num_items)
    ]
    tables.write(CAPTION_EMBEDDINGS, pa.Table.from_pylist(rows, CAPTION_EMBEDDINGS.schema), version)
