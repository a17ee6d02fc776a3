"""Exports summary tokens of every user, by Ray Data, in shards that are whole or not there at all.

Each shard (a bucket of users) is staged as one artifact below ``exports/<version>``. A killed export picks up at
the shards that are missing; the table is written at the end, in one commit, so that no reader sees two versions.
"""

import datetime as dt
import hashlib
import json
import sys
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
from models.long_history.histories import Events, Snapshots, cut_snapshots, history_batch
from models.vista.cache import (
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
from ray_jobs.actors import map_blocks
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import CONSTRUCTOR, PREPROCESSING, WEIGHTS, model_name, read_model
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.history_data import bucket_of, catalogue_of, encode_events, known_items, read_codes, read_events
from ray_jobs.progress import Progress
from ray_jobs.tables.vista import USER_SUMMARIES
from ray_jobs.vista_training import LoadedVista, load_vista
from ray_jobs.warehouse import Warehouse

# What stored bytes mean, and how the model is run to get them. Raise `code` when `Summarise` gives other summaries.
CACHE_FORMAT = {"dtype": "int8", "levels": LEVELS["int8"], "scale": "float32 a token", "code": "1"}
SHARD, STATISTICS = "summaries.parquet", "statistics.json"
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
    batch_snapshots: int = pydantic.Field(256, ge=1, description="Histories in one pass of the model.")
    probes: int = pydantic.Field(
        16, ge=1, description="Items whose logits are compared between exact and stored summaries."
    )

    @property
    def format(self) -> CacheFormat:
        """What the bytes of a stored summary mean."""
        return CacheFormat(self.precision, self.scales_per_token)


class Result(pydantic.BaseModel, frozen=True):
    """What an export came to."""

    version: str = pydantic.Field(description="Version of the table.")
    content_version: str = pydantic.Field(description="Version of the model and format that its summaries are of.")
    precision: str = pydantic.Field(description="How a value is stored: `int8`, `int4`, `fp16` or `fp32`.")
    bytes_per_user: int = pydantic.Field(description="Bytes of a summary with its scales.")
    users: int = pydantic.Field(description="Users with a summary.")
    snapshots: int = pydantic.Field(description="Rows: snapshots of histories.")
    shards_run: int = pydantic.Field(description="Shards that this call computed.")
    shards_kept: int = pydantic.Field(description="Shards that an interrupted call had left.")
    committed: bool = pydantic.Field(description="Whether the table was written.")
    num_tokens: int = pydantic.Field(description="Summary tokens of a user.")
    width: int = pydantic.Field(description="Width of a token.")
    relative_error_mean: float = pydantic.Field(description="Mean over tokens of |stored - exact| / |exact|.")
    relative_error_max: float = pydantic.Field(description="Largest of these.")
    logit_error_mean: float = pydantic.Field(description="Mean change of a logit by the rounding.")
    logit_error_max: float = pydantic.Field(description="Largest change.")


class Summarise:
    """Ray actor: loads the model once; turns the events of one shard into a staged file of summaries."""

    def __init__(self, config: Config):
        self.config = config
        self.loaded: LoadedVista = load_vista(config.artifacts, config.model)
        self.content_version = content_version(config.artifacts, config.model, config.format)
        self.device = torch.device("cuda" if config.gpus_per_actor else "cpu")
        self.loaded.model.to(self.device)
        codes = read_codes(config.warehouse, self.loaded.preprocessing["semantic_ids"])
        self.known = known_items(self.loaded.vocabulary, codes)
        self.catalogue = catalogue_of(self.loaded.vocabulary, codes, self.known)
        rows = np.random.default_rng(0).integers(0, len(self.catalogue.ids), config.probes)
        self.probes = self.catalogue.take(rows)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Events of one whole shard in, one row of counts out; the summaries go to the shard's artifact."""
        shard = int(batch["shard"][0].as_py())
        frame: Any = pl.from_arrow(batch)
        frame = frame.sort("user_id", "timestamp", "sequence")
        users = frame["user_id"].unique().sort()
        events = encode_events(frame, users, self.loaded.vocabulary, self.known)
        every = int(self.loaded.preprocessing["block_examples"])
        snapshots = cut_snapshots(events, every)
        stored, stats = self._summaries(events, snapshots)
        with tempfile.TemporaryDirectory() as folder:
            pq.write_table(self._rows(users, events, snapshots, stored), Path(folder) / SHARD)
            (Path(folder) / STATISTICS).write_text(json.dumps(stats), encoding="utf-8")
            self.config.artifacts.put(Path(folder), shard_name(self.config, shard))
        return pa.table({"shard": [shard], "snapshots": [len(snapshots.stops)]})

    def _summaries(self, events: Events, snapshots: Snapshots) -> tuple[Quantised, dict[str, float]]:
        limit = int(self.loaded.preprocessing["history_events"])
        starts = np.maximum(events.offsets[snapshots.users], snapshots.stops - limit)
        order = np.argsort(snapshots.stops - starts, kind="stable")
        sizes = self.loaded.model.config
        form = self.config.format
        empty = quantise(np.zeros((0, sizes.num_seeds, sizes.width), np.float32), form)
        values, scales = (np.zeros((len(order), *a.shape[1:]), a.dtype) for a in empty)
        stats = dict.fromkeys(SUMS + LARGEST, 0.0)
        stats |= {"users": float(snapshots.latest.sum()), "snapshots": float(len(order))}
        for chosen in np.split(order, range(self.config.batch_snapshots, len(order), self.config.batch_snapshots)):
            tokens_NKD = self._tokens(events, starts[chosen], snapshots.stops[chosen])
            stored = quantise(tokens_NKD, form)
            values[chosen], scales[chosen] = stored
            errors = relative_error(tokens_NKD, stored)
            moved = self._logit_change(tokens_NKD, stored)
            stats["tokens"] += errors.size
            stats["error_sum"] += float(errors.sum())
            stats["error_max"] = max(stats["error_max"], float(errors.max(initial=0)))
            stats["logits"] += moved.size
            stats["logit_sum"] += float(moved.sum())
            stats["logit_max"] = max(stats["logit_max"], float(moved.max(initial=0)))
        return Quantised(values, scales), stats

    @torch.inference_mode()
    def _tokens(self, events: Events, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
        history = history_batch(events, self.catalogue, starts, stops)
        moved = pytree.tree_map_only(torch.Tensor, lambda x: x.to(self.device), history)
        tokens_NKD = self.loaded.model.encode_history(moved).float().cpu().numpy()
        if not np.isfinite(tokens_NKD).all():
            raise ValueError(f"Model {self.config.model} gives summaries that are not finite: train it again.")
        return tokens_NKD

    @torch.inference_mode()
    def _logit_change(self, tokens_NKD: np.ndarray, stored: Quantised) -> np.ndarray:
        probes = pytree.tree_map_only(
            torch.Tensor, lambda x: x.to(self.device).expand(len(tokens_NKD), *x.shape), self.probes
        )
        exact, rounded = (
            self.loaded.model.score(torch.from_numpy(t).to(self.device), probes) for t in (tokens_NKD, restore(stored))
        )
        return (exact - rounded).abs().cpu().numpy()

    def _rows(self, users: pl.Series, events: Events, snapshots: Snapshots, stored: Quantised) -> pa.Table:
        summaries, scales = to_arrow(stored, self.config.format)
        num = len(snapshots.stops)
        moments = pa.array(events.times[snapshots.stops - 1] + 1, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        ids = users.to_arrow().cast(pa.string())
        return USER_SUMMARIES.conform(
            pa.table(
                {
                    "user_id": ids.take(pa.array(snapshots.users)),
                    "num_events": pa.array(snapshots.stops - events.offsets[snapshots.users], pa.int64()),
                    "summary": summaries,
                    "scales": scales,
                    "is_latest": pa.array(snapshots.latest),
                    "summary_version": pa.array([self.content_version]).take(pa.array(np.zeros(num, np.int64))),
                    "event_timestamp": moments,
                    "created_timestamp": pa.array([dt.datetime.now(dt.UTC)], pa.timestamp("us", tz="UTC")).take(
                        pa.array(np.zeros(num, np.int64))
                    ),
                }
            )
        )


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


def shard_name(config: Config, shard: int) -> str:
    """Artifact of one staged shard. The number of shards is part of it: it decides who is in which."""
    return f"exports/{config.version}/of-{config.shards}/shard-{shard:05d}"


def run(config: Config) -> Result:
    """Exports what is missing, then writes the table in one commit."""
    frame = read_events(config.warehouse, config.raw_interactions)
    users = frame["user_id"].unique().sort()
    buckets = pl.DataFrame({"user_id": users, "shard": bucket_of(users, config.shards)})
    present = sorted(buckets["shard"].unique().to_list())
    kept = [s for s in present if config.artifacts.exists(shard_name(config, s))]
    missing = [s for s in present if s not in kept]
    if missing:
        parts = frame.join(buckets, on="user_id").filter(pl.col("shard").is_in(missing)).partition_by("shard")
        progress = Progress("vista export", len(missing), "shards")
        # One block a shard.
        summarised = map_blocks(
            [part.to_arrow() for part in parts],
            Summarise,
            (config,),
            actors=config.actors,
            cpus=config.cpus_per_actor,
            gpus=config.gpus_per_actor,
        )
        for batch in summarised.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(batch, pa.Table)
            progress.add(batch.num_rows, snapshots=sum(batch["snapshots"].to_pylist()))
    return _publish(config, present, len(kept))


def _publish(config: Config, shards: list[int], num_kept: int) -> Result:
    """Writes the table from the staged shards in one commit, and its errors beside it; then drops the shards."""
    if not shards:
        raise ValueError("There is no event to summarise: check interactions/raw_interactions.")
    sums, largest = dict.fromkeys(SUMS, 0.0), dict.fromkeys(LARGEST, 0.0)
    for shard in shards:
        with config.artifacts.local(shard_name(config, shard)) as local:
            found = json.loads((local / STATISTICS).read_text(encoding="utf-8"))
        sums = {name: sums[name] + found[name] for name in SUMS}
        largest = {name: max(largest[name], found[name]) for name in LARGEST}
    sizes = read_model(config.artifacts, config.model).constructor
    result = Result(
        version=config.version,
        content_version=content_version(config.artifacts, config.model, config.format),
        precision=config.format.name,
        bytes_per_user=config.format.row_bytes(sizes["num_seeds"], sizes["width"])
        + 4 * sizes["num_seeds"] * config.scales_per_token,
        users=int(sums["users"]),
        snapshots=int(sums["snapshots"]),
        shards_run=len(shards) - num_kept,
        shards_kept=num_kept,
        num_tokens=sizes["num_seeds"],
        width=sizes["width"],
        committed=True,
        relative_error_mean=sums["error_sum"] / max(sums["tokens"], 1),
        relative_error_max=largest["error_max"],
        logit_error_mean=sums["logit_sum"] / max(sums["logits"], 1),
        logit_error_max=largest["logit_max"],
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / STATISTICS).write_text(result.model_dump_json(), encoding="utf-8")
        config.artifacts.put(Path(folder), statistics_name(config.version))
    written = config.warehouse.write_batches(USER_SUMMARIES, _staged(config, shards), config.version)
    # Shards of exports that were interrupted and overtaken go with them.
    config.artifacts.remove("exports")
    return result.model_copy(update={"committed": written.committed})


def _staged(config: Config, shards: list[int]) -> Iterator[pa.Table]:
    for shard in shards:
        with config.artifacts.local(shard_name(config, shard)) as local:
            yield pq.read_table(local / SHARD, memory_map=False)


def statistics_name(version: str) -> str:
    """Artifact with the `Result` of the export of ``version``."""
    return f"summaries/{version}"


def read_statistics(artifacts: ArtifactStore, version: str) -> Result:
    """The `Result` of a finished export."""
    with artifacts.local(statistics_name(version)) as local:
        return Result.model_validate_json((local / STATISTICS).read_text(encoding="utf-8"))


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
