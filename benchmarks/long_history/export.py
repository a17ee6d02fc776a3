"""Values a second of the export of summaries, beside a plain write of the same bytes.

The export reads histories from the store, runs stage 1, rounds and measures the rounding, stages shards and commits
them. The peer has the exported table in memory and writes it to a Delta table of its own. What the model takes is timed
apart, since a plain write has no model. Shards are made in this process, one after the other: Ray's start is no part
of either. The stored rows are proven to be what stage 1 gives.
"""

import datetime as dt
import itertools
import tempfile
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch

from benchmarks.long_history.claims import Finding, Options, prove_equal
from benchmarks.measuring import alternate

USERS, EVENTS = 2_000, 64
SHAPE = {"num_seeds": 128, "width": 64, "heads": 4, "layers": 2, "reconstruction_weight": 0.0}
"""Summary tokens as in the paper, and a quarter of their width."""
ITEMS, SHARDS = 5_000, 4
START = dt.datetime(2025, 1, 1, tzinfo=dt.UTC)


def events(users: int) -> pa.Table:
    """Raw events: every user has as many, a minute apart."""
    from ray_jobs.tables.interactions import RAW_INTERACTIONS

    num = users * EVENTS
    rng = np.random.default_rng(0)
    moments = pl.Series(np.tile(np.arange(EVENTS) * 60_000_000, users)).cast(pl.Duration("us")) + START
    frame = pl.DataFrame(
        {
            "event_id": np.arange(num).astype(str),
            "user_id": np.char.add("u", np.repeat(np.arange(users), EVENTS).astype(str)),
            "item_id": np.char.add("i", rng.integers(0, ITEMS, num).astype(str)),
            "timestamp": moments.cast(pl.Datetime("us", "UTC")),
            "sequence": np.arange(num),
            "action": "click",
            "value": 1.0,
            "day": "2025-01-01",
            "created_timestamp": START,
        }
    )
    return RAW_INTERACTIONS.conform(frame.to_arrow())


def prepared(folder: str, users: int) -> Any:
    """Config of an export: events in the warehouse, and a model with random weights."""
    import dataclasses

    from models.long_history.vocabulary import fit_vocabulary
    from models.vista.model import Vista, VistaConfig
    from ray_jobs.artifacts import ArtifactStore
    from ray_jobs.checkpoints import write_model
    from ray_jobs.histories.intake import sync
    from ray_jobs.tables.interactions import RAW_INTERACTIONS
    from ray_jobs.vista.summary_shards import Config
    from ray_jobs.warehouse import Warehouse

    warehouse, artifacts = Warehouse(f"{folder}/warehouse"), ArtifactStore(f"{folder}/artifacts")
    warehouse.write(RAW_INTERACTIONS, events(users), "1")
    words = fit_vocabulary(pa.array([f"i{i}" for i in range(ITEMS)]), pa.array(["click"]), np.ones(1), [])
    torch.manual_seed(0)
    config = VistaConfig(len(words.items) + 1, 1, len(words.actions) + 1, words.num_values, **SHAPE)  # type: ignore[arg-type]
    read = {"vocabulary": words.to_json(), "history_events": EVENTS, "block_examples": EVENTS, "semantic_ids": None}
    write_model(artifacts, "m", Vista(config), constructor=dataclasses.asdict(config), preprocessing=read, summary={})
    sync(warehouse, artifacts, "1")
    return Config(warehouse=warehouse, artifacts=artifacts, version="0", model="m", raw_interactions="1", shards=SHARDS)


def measure(options: Options) -> list[Finding]:
    """See the module."""
    from deltalake import write_deltalake

    from models.vista.cache import dequantise
    from ray_jobs.tables.vista import USER_SUMMARIES
    from ray_jobs.vista import export as vista_export
    from ray_jobs.vista.summary_changes import all_of
    from ray_jobs.vista.summary_shards import Summarise

    users, calls = options.size(USERS), itertools.count(1)
    with tempfile.TemporaryDirectory() as folder:
        config = prepared(folder, users)
        actor = Summarise(config)

        def export() -> pa.Table:
            actor.config = config.model_copy(update={"version": str(next(calls))})
            for shard in range(SHARDS):
                actor(pa.table({"shard": [shard]}))
            vista_export.run(actor.config)
            return config.warehouse.read(USER_SUMMARIES)

        def model_alone() -> dict[str, np.ndarray]:
            made: dict[str, np.ndarray] = {}
            for shard in range(SHARDS):
                for part, _ in actor.summariser.run(all_of(actor.store.index(shard, SHARDS))[0]):
                    made |= dict(zip(part.users.to_list(), part.tokens_NKD, strict=True))
            return made

        stored, exact = export(), model_alone()
        tokens_NKD = dequantise(stored["summary"], stored["scales"]).tokens_NKD
        largest = max(float(np.abs(tokens).max()) for tokens in exact.values())
        difference = prove_equal(
            "stored summaries",
            torch.from_numpy(tokens_NKD),
            torch.from_numpy(np.stack([exact[user] for user in stored["user_id"].to_pylist()])),
            relative=0.0,
            absolute=largest / 254 * 1.001,  # half a step of int8
        )
        num_values, num_bytes = tokens_NKD.size, stored.nbytes

        def plain() -> None:
            write_deltalake(f"{folder}/plain-{next(calls)}", stored)

        timed = alternate({"export": export, "model": model_alone, "plain": plain}, options.repeats)
    plain_speed, whole = num_values / timed["plain"].median, num_values / timed["export"].median
    storing = num_values / max(timed["export"].median - timed["model"].median, 1e-9)
    detail = (
        f"{users:,} users, {num_values:,} values, {num_bytes / 1e6:.0f} MB; plain write "
        f"{timed['plain'].text(num_values / 1e6, 'million values')}; stored = exact within {difference:.0e}"
    )
    text = timed["export"].text(num_values / 1e6, "million values")
    return [
        Finding("export of summaries over a plain write of the same bytes", "", whole / plain_speed, None, text),
        Finding("the same without stage 1", "", storing / plain_speed, None, detail),
    ]
