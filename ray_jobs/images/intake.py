"""Ray job that reads the images of items: what has changed since the last run, and nothing hostile fails it."""

import collections
import datetime as dt
import sys
import time
from collections.abc import Iterator

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from ray_jobs.actors import map_blocks
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.images.reader import BEFORE, REMEMBERED, Config, ImageReader
from ray_jobs.images.reasons import REASONS
from ray_jobs.progress import Progress, note
from ray_jobs.tables.captions import IMAGE_READS, ITEM_IMAGES
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.warehouse import Table, Warehouse, content_digest

__all__ = ["Config", "Result", "plan", "run"]
COLUMNS = [c.name for c in ITEM_IMAGES.columns]
# How an image was come by, and not what it is: a server's new ETag for the same pixels changes nothing downstream.
HOW = ("fingerprint", "attempts", "created_timestamp")
OUTAGES = [reason for reason, told in REASONS.items() if told.transient]


class Result(pydantic.BaseModel, frozen=True):
    """What a run did."""

    version: str
    committed: bool
    num_items: int = pydantic.Field(description="Items of the catalogue.")
    num_images: int = pydantic.Field(description="Items that name an image.")
    num_read: int = pydantic.Field(description="Images whose row is of this run; the others stand as they were.")
    reasons: dict[str, int] = pydantic.Field(description="Quarantined images by reason.")
    seconds: float


def _frame(warehouse: Warehouse, table: Table) -> pl.DataFrame:
    found = pl.from_arrow(warehouse.read(table) if warehouse.exists(table) else table.schema.empty_table())
    assert isinstance(found, pl.DataFrame)
    return found


def plan(config: Config) -> pl.DataFrame:
    """Every item that names an image, with what was found when it was read last: what `ImageReader` takes."""
    items = pl.from_arrow(config.warehouse.read(ITEMS, ["item_id", "image_uri"]))
    assert isinstance(items, pl.DataFrame)
    items = items.with_columns(pl.col("image_uri").str.strip_chars()).filter(pl.col("image_uri").str.len_chars() > 0)
    known = pl.concat([_frame(config.warehouse, t) for t in (ITEM_IMAGES, IMAGE_READS)])
    newest = known.sort("created_timestamp").unique("item_id", keep="last")
    columns = (*REMEMBERED, "created_timestamp")
    newest = newest.select("item_id", "image_uri", *(pl.col(c).alias(BEFORE + c) for c in columns))
    return items.join(newest, on=["item_id", "image_uri"], how="left").sort("item_id")


def _read(config: Config, todo: pl.DataFrame) -> Iterator[pa.Table]:
    """Runs the actors; yields rows as they are done."""
    import ray

    # One block a batch: an actor hands back what it did after each, and progress follows it.
    blocks = [todo.slice(at, config.batch_size).to_arrow() for at in range(0, todo.height, config.batch_size)]
    cpus = min(config.cpus_per_actor, max(n["Resources"].get("CPU", 0.0) for n in ray.nodes() if n["Alive"]))
    actors = config.num_actors or max(int(ray.cluster_resources().get("CPU", 1.0) / cpus), 1)
    done = map_blocks(blocks, ImageReader, (config,), actors=actors, cpus=cpus)
    # Without prefetching, which would hold back each batch's rows until the next one is done.
    yield from done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _noting(config: Config, parts: Iterator[pa.Table], started: dt.datetime) -> Iterator[pa.Table]:
    """Passes rows on, and notes those that were read every so often, so that a killed run goes on where it stood."""
    pending: list[pa.Table] = []
    for part in parts:
        pending.append(part)
        if sum(p.num_rows for p in pending) >= config.checkpoint_rows:
            rows = pl.from_arrow(pa.concat_tables(pending))
            assert isinstance(rows, pl.DataFrame)
            fresh = rows.filter(pl.col("created_timestamp") >= started).select(COLUMNS).to_arrow()
            config.warehouse.append(IMAGE_READS, IMAGE_READS.conform(fresh))
            pending.clear()
        yield part


def images_version(rows: pa.Table) -> str:
    """Digest of what is known of the images. One outage is as good as another: which it is differs with every run.

    Args:
        rows: Rows of `ITEM_IMAGES`.
    """
    out = pc.is_in(rows["reason"], value_set=pa.array(OUTAGES, pa.string()))
    for name, said in (("reason", "outage"), ("detail", "")):
        place = rows.schema.get_field_index(name)
        rows = rows.set_column(place, rows.schema.field(name), pc.if_else(out, said, rows[name]))
    return content_digest(rows, ignore=HOW)


def _remember(warehouse: Warehouse, rows: pa.Table, label: str) -> None:
    """Leaves in `IMAGE_READS` what `ITEM_IMAGES` of the same version does not say: what was asked for since."""
    found = pl.from_arrow(rows)
    assert isinstance(found, pl.DataFrame)
    key = ["item_id", "created_timestamp"]
    written = pl.from_arrow(warehouse.read(ITEM_IMAGES, key))
    assert isinstance(written, pl.DataFrame)
    since = found.join(written, on=key, how="anti")
    if since.height or warehouse.num_rows(IMAGE_READS):
        warehouse.write(IMAGE_READS, IMAGE_READS.conform(since.select(COLUMNS).to_arrow()), label)


def run(config: Config) -> Result:
    """Writes `ITEM_IMAGES` and keeps the canonical images."""
    began, started = time.monotonic(), dt.datetime.now(dt.UTC)
    todo = plan(config)
    num_new = todo[BEFORE + "fingerprint"].null_count()
    note("images", f"{todo.height:,} items name an image, {num_new:,} of them are new")
    progress = Progress("images", todo.height, "images")
    parts: list[pa.Table] = []
    for part in _noting(config, _read(config, todo), started) if todo.height else ():
        parts.append(part.select(COLUMNS).cast(ITEM_IMAGES.schema))
        progress.add(part.num_rows, quarantined=part.num_rows - part["reason"].null_count)
    rows = pa.concat_tables([ITEM_IMAGES.schema.empty_table(), *parts]).sort_by("item_id")
    version = images_version(rows)
    written = config.warehouse.write(ITEM_IMAGES, rows, version)
    _remember(config.warehouse, rows, f"beside {version} {started}")
    reasons = collections.Counter(r for r in rows["reason"].to_pylist() if r is not None)
    times = pl.Series("t", rows["created_timestamp"])
    return Result(
        version=version,
        committed=written.committed,
        num_items=config.warehouse.num_rows(ITEMS),
        num_images=rows.num_rows,
        num_read=int((times >= started).sum()),
        reasons=dict(reasons.most_common()),
        seconds=round(time.monotonic() - began, 3),
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
