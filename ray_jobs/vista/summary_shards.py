"""One shard of an export of summaries: its users' histories in, staged files out, whole or not at all."""

import datetime as dt
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch
from torch.utils import _pytree as pytree

from models.identity import version_of
from models.vista.cache import (
    CACHE_CODE,
    DEFAULT,
    LEVELS,
    CacheFormat,
    Precision,
    Quantised,
    quantise,
    relative_error,
    restore,
    to_arrow,
)
from models.vista.states import STATE_FORMAT, pack
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import CONSTRUCTOR, PREPROCESSING, WEIGHTS, model_name
from ray_jobs.histories.intake import store_version
from ray_jobs.histories.store import HistoryStore
from ray_jobs.tables.vista import STAGED_EXPORTS, USER_STATES, USER_SUMMARIES
from ray_jobs.vista.summarising import Summarised, Summariser, load_summarizer
from ray_jobs.vista.summary_changes import all_of, changed_since
from ray_jobs.warehouse import TIMESTAMP, Warehouse

# What stored bytes mean, and how the model is run to get them.
CACHE_FORMAT = {"dtype": "int8", "levels": LEVELS["int8"], "scale": "float32 a token", "code": CACHE_CODE}
SHARD, STATES, CHANGES, STATISTICS = "summaries.parquet", "states.parquet", "changes.parquet", "statistics.json"
SUMS, LARGEST = ("users", "snapshots", "tokens", "error_sum", "logits", "logit_sum"), ("error_max", "logit_max")


class Config(pydantic.BaseModel, frozen=True):
    """An export of summaries."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where the model is, and the staged shards go.")
    version: str = pydantic.Field(description="Version of the exported table: of model, events and code.")
    model: str = pydantic.Field(description="Version of the trained model.")
    raw_interactions: str = pydantic.Field(description="Version of `interactions/raw_interactions`.")
    precision: Precision = pydantic.Field("int8", description="How a value is stored.")
    scales_per_token: int = pydantic.Field(1, ge=1, description="Scales of a token, for int8 and int4.")
    shards: int = pydantic.Field(8, ge=1, description="Buckets of users; what a killed export repeats at most.")
    actors: int = pydantic.Field(1, ge=1, description="Ray actors that hold the model.")
    cpus_per_actor: float = pydantic.Field(1.0, ge=0, description="CPUs of each.")
    gpus_per_actor: float = pydantic.Field(0.0, ge=0, description="GPUs of each.")
    incremental: bool = pydantic.Field(
        False, description="Start from what is stored of each user, and go on with new events; else all is made anew."
    )
    part_events: int = pydantic.Field(200_000, ge=1, description="Events that an actor holds at a time.")
    batch_snapshots: int = pydantic.Field(256, ge=1, description="Histories in one pass of the model.")
    probes: int = pydantic.Field(
        16, ge=1, description="Items whose logits are compared between exact and stored summaries."
    )
    probe_every: int = pydantic.Field(16, ge=1, description="One of so many summaries is compared by its logits.")

    @property
    def format(self) -> CacheFormat:
        """What the bytes of a stored summary mean."""
        return CacheFormat(self.precision, self.scales_per_token)


class Summarise:
    """Ray actor: loads the model once; turns the histories of one shard's users into staged files.

    Args:
        config: The export.
        base: Version of the states that it starts from; None makes everything anew.
    """

    def __init__(self, config: Config, base: str | None = None):
        self.config, self.base = config, base
        self.loaded = load_summarizer(config.artifacts, config.model)
        self.content_version = content_version(config.artifacts, config.model, config.format)
        self.device = torch.device("cuda" if config.gpus_per_actor else "cpu")
        self.store = HistoryStore(config.warehouse, store_version(config.raw_interactions))
        self.summariser = Summariser(
            self.loaded, self.store, config.warehouse, self.device, config.batch_snapshots, config.part_events
        )
        catalogue = self.summariser.catalogue
        self.probes = catalogue.take(np.random.default_rng(0).integers(0, len(catalogue.ids), config.probes))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The number of one shard in, one row of counts out; the rest goes to the shard's artifact."""
        shard = int(batch["shard"][0].as_py())
        index = self.store.index(shard, self.config.shards)
        if self.base is None:
            plan, changes = all_of(index)
        else:
            plan, changes = changed_since(self.store, index, self.base, shard, self.config.shards)
        stats = dict.fromkeys(SUMS + LARGEST, 0.0) | {"users": float(len(index))}
        with tempfile.TemporaryDirectory() as folder:
            self._write(Path(folder), plan, stats)
            pq.write_table(changes.to_arrow(), Path(folder) / CHANGES)
            (Path(folder) / STATISTICS).write_text(json.dumps(stats), encoding="utf-8")
            self.config.artifacts.put(Path(folder), shard_name(self.config, shard, self.base))
        return pa.table({"shard": [shard], "snapshots": [int(stats["snapshots"])]})

    def _write(self, folder: Path, plan: pl.DataFrame, stats: dict[str, float]) -> None:
        # Rows of the plan without their states, which are as large as the summaries.
        known = plan.select("user_id", "bucket", "digest")
        with (
            pq.ParquetWriter(folder / SHARD, USER_SUMMARIES.schema) as summaries,
            pq.ParquetWriter(folder / STATES, USER_STATES.schema) as states,
        ):
            for made, state in self.summariser.run(plan):
                stored = quantise(made.tokens_NKD, self.config.format)
                self._count(stats, made.tokens_NKD, stored)
                summaries.write_table(self._rows(made, stored))
                if made.snapshots.latest.sum() == len(made.users):
                    packed = pack(state) if state is not None else pa.array([b""] * len(made.users), pa.binary())
                    states.write_table(self._states(made, packed, known))

    def _count(self, stats: dict[str, float], tokens_NKD: np.ndarray, stored: Quantised) -> None:
        stats["snapshots"] += len(tokens_NKD)
        errors = relative_error(tokens_NKD, stored)
        stats["tokens"] += errors.size
        stats["error_sum"] += float(errors.sum())
        stats["error_max"] = max(stats["error_max"], float(errors.max(initial=0)))
        # Of a sample: stage 2 for all of them would take as long as stage 1.
        sample = np.arange(0, len(tokens_NKD), self.config.probe_every)
        for rows in np.split(sample, range(self.config.batch_snapshots, len(sample), self.config.batch_snapshots)):
            if not len(rows):
                continue
            moved = self._logit_change(tokens_NKD[rows], Quantised(*(column[rows] for column in stored)))
            stats["logits"] += moved.size
            stats["logit_sum"] += float(moved.sum())
            stats["logit_max"] = max(stats["logit_max"], float(moved.max(initial=0)))

    @torch.inference_mode()
    def _logit_change(self, tokens_NKD: np.ndarray, stored: Quantised) -> np.ndarray:
        probes = pytree.tree_map_only(
            torch.Tensor, lambda x: x.to(self.device).expand(len(tokens_NKD), *x.shape), self.probes
        )
        exact, rounded = (
            self.loaded.model.score(torch.from_numpy(t).to(self.device), probes) for t in (tokens_NKD, restore(stored))
        )
        return (exact - rounded).abs().cpu().numpy()

    def _rows(self, made: Summarised, stored: Quantised) -> pa.Table:
        summaries, scales = to_arrow(stored, self.config.format)
        num = len(made.snapshots.stops)
        return USER_SUMMARIES.conform(
            pa.table(
                {
                    "user_id": made.users.to_arrow().cast(pa.string()).take(pa.array(made.snapshots.users)),
                    "num_events": pa.array(made.snapshots.seen, pa.int64()),
                    "summary": summaries,
                    "scales": scales,
                    "is_latest": pa.array(made.snapshots.latest),
                    "summary_version": pa.repeat(pa.scalar(self.content_version), num),
                    "event_timestamp": _just_after(made.moments),
                    "created_timestamp": pa.repeat(pa.scalar(dt.datetime.now(dt.UTC), TIMESTAMP), num),
                }
            )
        )

    def _states(self, made: Summarised, packed: pa.Array, known: pl.DataFrame) -> pa.Table:
        last = made.snapshots.latest
        of_user = pl.DataFrame({"user_id": made.users}).join(known, on="user_id", how="left", maintain_order="left")
        num = len(made.users)
        return USER_STATES.conform(
            pa.table(
                {
                    "user_id": made.users.to_arrow().cast(pa.string()),
                    "bucket": of_user["bucket"].to_arrow(),
                    "state": packed,
                    "num_events": pa.array(made.snapshots.seen[last], pa.int64()),
                    "digest": of_user["digest"].to_arrow(),
                    "is_regular": pa.array(made.snapshots.regular[last]),
                    "state_version": pa.repeat(pa.scalar(state_version(self.content_version)), num),
                    "event_timestamp": _just_after(made.moments[last]),
                    "created_timestamp": pa.repeat(pa.scalar(dt.datetime.now(dt.UTC), TIMESTAMP), num),
                }
            )
        )


def _just_after(moments: np.ndarray) -> pa.Array:
    return pa.array(moments + 1, pa.int64()).cast(TIMESTAMP)


def content_version(artifacts: ArtifactStore, model: str, form: CacheFormat = DEFAULT) -> str:
    """Identity of what makes summaries: weights, constructor, vocabularies and codebooks, and the cache's format.

    Not of the events that they saw: a ranker reads summaries of later events as it read those that it learned from.
    What they saw is told by ``event_timestamp``.

    Args:
        artifacts: Where the model is.
        model: Version of the trained model.
        form: Format of the cache.
    """
    with artifacts.local(model_name(model)) as folder:
        parts = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
            for name in (WEIGHTS, CONSTRUCTOR, PREPROCESSING)
        }
    return form.versioned(version_of(model=parts, cache=CACHE_FORMAT))


def state_version(summaries: str) -> str:
    """Version of states by the content version of the summaries that they give."""
    return version_of(summaries=summaries, format=STATE_FORMAT)


def shard_name(config: Config, shard: int, base: str | None = None) -> str:
    """Artifact of one staged shard. What it starts from and the number of shards are part of it.

    Args:
        config: The export.
        shard: The shard.
        base: Version of the states that it starts from.
    """
    start = "" if base is None else f"/from-{base}"
    return f"{STAGED_EXPORTS}/{config.version}{start}/of-{config.shards}/shard-{shard:05d}"


def staged(config: Config, base: str | None, file: str) -> Iterator[pa.Table]:
    """Yields rows of one file of every staged shard, some at a time."""
    for shard in range(config.shards):
        with config.artifacts.local(shard_name(config, shard, base)) as local, pq.ParquetFile(local / file) as found:
            for batch in found.iter_batches():
                yield pa.Table.from_batches([batch])


def staged_statistics(config: Config, base: str | None) -> dict[str, float]:
    """Counts and errors of all staged shards."""
    sums, largest = dict.fromkeys(SUMS, 0.0), dict.fromkeys(LARGEST, 0.0)
    for shard in range(config.shards):
        with config.artifacts.local(shard_name(config, shard, base)) as local:
            found: dict[str, Any] = json.loads((local / STATISTICS).read_text(encoding="utf-8"))
        sums = {name: sums[name] + found[name] for name in SUMS}
        largest = {name: max(largest[name], found[name]) for name in LARGEST}
    return sums | largest
