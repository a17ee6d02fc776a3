"""Exports summary tokens of every user, by Ray Data, in shards that are whole or not there at all.

Each shard (a bucket of users) is staged as one artifact below ``exports/<version>``. A killed export picks up at
the shards that are missing; the table is written at the end, in one commit, so that no reader sees two versions.
What is stored of each user follows in a commit of its own: a refresh starts from it only if it belongs to the table.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pydantic

from ray_jobs.actors import map_blocks
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.histories.intake import store_version, sync
from ray_jobs.histories.store import HistoryStore
from ray_jobs.progress import Progress
from ray_jobs.tables.vista import STAGED_EXPORTS, USER_STATES, USER_SUMMARIES
from ray_jobs.vista.summary_changes import CHANGES as CHANGED
from ray_jobs.vista.summary_changes import Kept
from ray_jobs.vista.summary_rollout import hold
from ray_jobs.vista.summary_shards import (
    CHANGES,
    SHARD,
    STATES,
    STATISTICS,
    Config,
    Summarise,
    content_version,
    shard_name,
    staged,
    staged_statistics,
    state_version,
)
from ray_jobs.warehouse import Table

ROWS_AT_ONCE = 65_536


class Result(pydantic.BaseModel, frozen=True):
    """What an export came to."""

    version: str = pydantic.Field(description="Version of the table.")
    content_version: str = pydantic.Field(description="Version of the model and format that its summaries are of.")
    precision: str = pydantic.Field(description="How a value is stored: `int8`, `int4`, `fp16` or `fp32`.")
    bytes_per_user: int = pydantic.Field(description="Bytes of a summary with its scales.")
    users: int = pydantic.Field(description="Users with a summary.")
    snapshots: int = pydantic.Field(description="Rows: snapshots of histories.")
    users_changed: int = pydantic.Field(description="Users whose summaries were made by this export.")
    started_from: str = pydantic.Field(description="Version of the states that it started from; empty: from nothing.")
    history_rows: int = pydantic.Field(description="Events that were written to the store of histories.")
    shards_run: int = pydantic.Field(description="Shards that this call computed.")
    shards_kept: int = pydantic.Field(description="Shards that an interrupted call had left.")
    committed: bool = pydantic.Field(description="Whether the table was written.")
    num_tokens: int = pydantic.Field(description="Summary tokens of a user.")
    width: int = pydantic.Field(description="Width of a token.")
    relative_error_mean: float = pydantic.Field(description="Mean over tokens of |stored - exact| / |exact|.")
    relative_error_max: float = pydantic.Field(description="Largest of these.")
    logit_error_mean: float = pydantic.Field(description="Mean change of a logit by the rounding, of a sample.")
    logit_error_max: float = pydantic.Field(description="Largest change.")


def run(config: Config) -> Result:
    """Exports what is missing, then writes the table in one commit."""
    synced = sync(config.warehouse, config.artifacts, config.raw_interactions)
    if not len(HistoryStore(config.warehouse, store_version(config.raw_interactions)).index()):
        raise ValueError("There is no event to summarise: check interactions/raw_interactions.")
    base = _base(config)
    missing = [s for s in range(config.shards) if not config.artifacts.exists(shard_name(config, s, base))]
    if missing:
        progress = Progress("vista export", len(missing), "shards")
        # One block a shard; each actor reads the events of its users by itself.
        summarised = map_blocks(
            [pa.table({"shard": [shard]}) for shard in missing],
            Summarise,
            (config, base),
            actors=config.actors,
            cpus=config.cpus_per_actor,
            gpus=config.gpus_per_actor,
        )
        for batch in summarised.iter_batches(batch_size=None, batch_format="pyarrow"):
            assert isinstance(batch, pa.Table)
            progress.add(batch.num_rows, snapshots=sum(batch["snapshots"].to_pylist()))
    return _publish(config, base, len(missing), synced.rows)


def _base(config: Config) -> str | None:
    """Version of the states that a refresh may start from: they belong to the table, the model and the format."""
    if not config.incremental:
        return None
    states, summaries = (config.warehouse.version(t) for t in (USER_STATES, USER_SUMMARIES))
    # After a kill between the two commits the table is of this export, and the states are those it started from.
    if states is None or summaries not in (states, config.version):
        return None
    wanted = state_version(content_version(config.artifacts, config.model, config.format))
    return states if config.warehouse.first(USER_STATES, "state_version") == wanted else None


def _publish(config: Config, base: str | None, shards_run: int, history_rows: int) -> Result:
    """Writes the table from the staged shards in one commit, its errors beside it, then the states."""
    found = staged_statistics(config, base)
    empty = pl.DataFrame(schema=CHANGED)
    changes = pl.concat([empty, *(pl.DataFrame(part) for part in staged(config, base, CHANGES))])
    kept = Kept(config.warehouse, changes) if base is not None else None
    written_before = config.warehouse.version(USER_SUMMARIES) == config.version
    stay = kept.num_summaries() if kept is not None and not written_before else 0
    sizes = read_model(config.artifacts, config.model).constructor
    result = Result(
        version=config.version,
        content_version=content_version(config.artifacts, config.model, config.format),
        precision=config.format.name,
        bytes_per_user=config.format.row_bytes(sizes["num_seeds"], sizes["width"])
        + 4 * sizes["num_seeds"] * config.scales_per_token,
        users=int(found["users"]),
        snapshots=int(found["snapshots"]) + stay,
        users_changed=int(found["users"]) if base is None else len(changes),
        started_from=base or "",
        history_rows=history_rows,
        shards_run=shards_run,
        shards_kept=config.shards - shards_run,
        num_tokens=sizes["num_seeds"],
        width=sizes["width"],
        committed=True,
        relative_error_mean=found["error_sum"] / max(found["tokens"], 1),
        relative_error_max=found["error_max"],
        logit_error_mean=found["logit_sum"] / max(found["logits"], 1),
        logit_error_max=found["logit_max"],
    )
    if not written_before:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / STATISTICS).write_text(result.model_dump_json(), encoding="utf-8")
            config.artifacts.put(Path(folder), statistics_name(config.version))
        hold(config.warehouse, result.content_version)
    summaries = _rows(config, base, USER_SUMMARIES, kept.summaries if kept else None, SHARD)
    written = config.warehouse.write_batches(USER_SUMMARIES, summaries, config.version)
    states = _rows(config, base, USER_STATES, kept.states if kept else None, STATES)
    config.warehouse.write_batches(USER_STATES, states, config.version)
    # Shards of exports that were interrupted and overtaken go with them.
    config.artifacts.remove(STAGED_EXPORTS)
    return result.model_copy(update={"committed": written.committed})


def _rows(
    config: Config, base: str | None, table: Table, kept: Callable[[pa.Table], pa.Table] | None, file: str
) -> Iterator[pa.Table]:
    """What stays of a table, then what the shards made."""
    if kept is not None:
        for part in config.warehouse.batches(table, num_rows=ROWS_AT_ONCE):
            yield kept(part)
    yield from staged(config, base, file)


def statistics_name(version: str) -> str:
    """Artifact with the `Result` of the export of ``version``."""
    return f"summaries/{version}"


def read_statistics(artifacts: ArtifactStore, version: str) -> Result:
    """The `Result` of a finished export."""
    with artifacts.local(statistics_name(version)) as local:
        return Result.model_validate_json((local / STATISTICS).read_text(encoding="utf-8"))


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
