"""Tables of the stages that features are made of, in the versions that a test names."""

import datetime as dt

import numpy as np
import polars as pl
import pyarrow as pa

from ray_jobs.tables.captions import CAPTION_TOKENS
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.tables.personas import USER_PERSONAS
from ray_jobs.tables.vista import USER_SUMMARIES
from tests.factories import CREATED

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
WIDTH, TOKENS = 4, 2


def seed_derived(tables, version: str = "v1", token_shift: int = 0, created=CREATED) -> None:
    """Writes caption tokens, semantic IDs, personas and VISTA summaries for what `seed_interactions` wrote."""
    items = tables.read(ITEMS, ["item_id"])["item_id"].to_pylist()
    tokens = [
        {
            "item_id": i,
            "token_ids": [] if k == 0 else [k % 7 + token_shift, k % 7 + 9 + token_shift],
            "tokens": [] if k == 0 else ["a", "b"],
            "weights": [] if k == 0 else [1.0, 2.0],
            "token_version": f"tokens-{version}",
            "event_timestamp": EPOCH,
            "created_timestamp": created,
        }
        for k, i in enumerate(items)
    ]
    tables.write(CAPTION_TOKENS, pa.Table.from_pylist(tokens, CAPTION_TOKENS.schema), version=f"tokens-{version}")
    ids = [
        {
            "item_id": i,
            "codes": [k % 3, k % 5],
            "collision": 0,
            "semantic_id": f"{k % 3}-{k % 5}-{k}",
            "cluster": k % 3,
            "codebook_version": f"codes-{version}",
            "event_timestamp": EPOCH,
            "created_timestamp": created,
        }
        for k, i in enumerate(items)
    ]
    tables.write(SEMANTIC_IDS, pa.Table.from_pylist(ids, SEMANTIC_IDS.schema), version=f"codes-{version}")
    events = pl.DataFrame(tables.read(SPLITS)).filter(~pl.col("sampled")).sort("user_id", "position")
    rng = np.random.default_rng(0)
    summaries = [
        {
            "user_id": r["user_id"],
            "num_events": r["position"] + 1,
            "summary": rng.integers(-127, 127, TOKENS * WIDTH, dtype=np.int8).tobytes(),
            "scales": rng.random(TOKENS).astype("float32").tolist(),
            "is_latest": False,
            "summary_version": f"vista-{version}",
            "event_timestamp": r["timestamp"] + dt.timedelta(microseconds=1),
            "created_timestamp": created,
        }
        for r in events.iter_rows(named=True)
    ]
    tables.write(USER_SUMMARIES, pa.Table.from_pylist(summaries, USER_SUMMARIES.schema), version=f"vista-{version}")
    last = events.group_by("user_id").agg(pl.col("timestamp").max(), pl.len()).sort("user_id")
    personas = [
        {
            "user_id": r["user_id"],
            "content_key": "k",
            "persona": "likes crime",
            "interests": [],
            "explorations": [],
            "embedding": [0.5, float(n)],
            "num_events": r["len"],
            "persona_version": f"persona-{version}",
            "event_timestamp": r["timestamp"] + dt.timedelta(microseconds=1),
            "created_timestamp": created,
        }
        for n, r in enumerate(last.iter_rows(named=True))
        if n % 2 == 0
    ]
    tables.write(USER_PERSONAS, pa.Table.from_pylist(personas, USER_PERSONAS.schema), version=f"persona-{version}")
