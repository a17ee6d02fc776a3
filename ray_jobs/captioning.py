"""Ray job that writes a caption of every item's content.

What is paid for is kept: an actor appends each batch to the store itself, right after it was generated, so that a
killed run loses at most the batches in flight and no stored caption is ever generated again.
"""

import sys
import time

import polars as pl
import pydantic

from ray_jobs.caption_plan import Config, plan
from ray_jobs.captioner import Captioner
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.language.checkpoints import checkpoint_folder
from ray_jobs.language.engine import Usage
from ray_jobs.progress import Progress, note
from ray_jobs.tables.captions import CAPTION_DEAD_LETTERS, CAPTION_STORE

APPEND_ONLY = "append-only"


class Result(pydantic.BaseModel, frozen=True):
    """What a run did and spent."""

    caption_version: str
    num_items: int
    num_contents: int = pydantic.Field(description="Different contents among the items.")
    num_cached: int = pydantic.Field(description="Contents that were in the store already.")
    num_generated: int = pydantic.Field(description="Contents captioned by this run.")
    num_dead_letters: int = pydantic.Field(description="Contents that this run gave up.")
    num_dead_before: int = pydantic.Field(description="Contents that an earlier run gave up.")
    llm_calls: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float

    @property
    def cache_hit_rate(self) -> float:
        """Share of the contents that cost nothing."""
        return (self.num_cached + self.num_dead_before) / max(self.num_contents, 1)


def _generate(config: Config, wanted: pl.DataFrame) -> dict[str, int]:
    """Runs the actors over ``wanted``; returns the summed counts."""
    import ray
    import ray.data

    for table in (CAPTION_STORE, CAPTION_DEAD_LETTERS):
        # Made here, once: two actors that create a table at the same time would conflict.
        if not config.warehouse.exists(table):
            config.warehouse.write(table, table.schema.empty_table(), version=APPEND_ONLY)
    if config.engine.kind == "transformers":
        # Actors that start together would each convert a package's weights, on the same cores.
        checkpoint_folder(config.engine)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    pool = config.pool([n.get("CPU", 0.0) for n in nodes], sum(n.get("GPU", 0.0) for n in nodes))
    # One block a batch: an actor hands back what it did after each, and progress follows it.
    blocks = [wanted.slice(at, config.batch_size).to_arrow() for at in range(0, wanted.height, config.batch_size)]
    done = ray.data.from_arrow(blocks).map_batches(
        Captioner,
        fn_constructor_args=(config, max(int(pool.cpus), 1)),
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=min(pool.actors, len(blocks))),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )
    progress = Progress("captions", wanted.height, "items")
    totals: dict[str, int] = {}
    # Without prefetching, which would hold back each batch's counts until the next one is done.
    for row in done.iter_batches(batch_size=None, prefetch_batches=0):
        counts = {name: int(count.sum()) for name, count in row.items()}
        totals = {name: totals.get(name, 0) + count for name, count in counts.items()}
        progress.add(counts["done"], tokens=counts["completion_tokens"])
        # As it goes: an actor looks its batch up in the store, and each batch is a file.
        config.warehouse.compact(CAPTION_STORE)
    return totals


def run(config: Config) -> Result:
    """Captions every content that neither the store nor the dead letters hold."""
    started = time.monotonic()
    todo = plan(config)
    note(
        "captions",
        f"{todo.num_contents:,} contents of {todo.items.height:,} items: {todo.num_cached:,} cached, "
        f"{todo.num_dead:,} dead letters, {todo.wanted.height:,} to write "
        f"(about {todo.prompt_tokens + todo.completion_tokens:,} tokens, {todo.usd:.2f} USD)",
    )
    totals = _generate(config, todo.wanted) if todo.wanted.height else {}
    for table in (CAPTION_STORE, CAPTION_DEAD_LETTERS):
        if totals:
            config.warehouse.compact(table)
    usage = Usage(totals.get("calls", 0), totals.get("prompt_tokens", 0), totals.get("completion_tokens", 0))
    return Result(
        caption_version=config.caption_version,
        num_items=todo.items.height,
        num_contents=todo.num_contents,
        num_cached=todo.num_cached,
        num_generated=totals.get("stored", 0),
        num_dead_letters=totals.get("dead", 0),
        num_dead_before=todo.num_dead,
        llm_calls=usage.calls,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        usd=config.engine.usd(usage.prompt_tokens, usage.completion_tokens),
        seconds=round(time.monotonic() - started, 3),
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
