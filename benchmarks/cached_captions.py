"""A re-run over a catalogue whose every content is captioned: plan, join and write, beside the work that it saves.

    python -m benchmarks.cached_captions --items 100000

The store is filled with a record for every content (made up: what they say does not matter here), then the job and the
write of the table run as the asset runs them. The peer is a naive loop in the same run that computes the same keys and
joins them with Python dictionaries; both tables are proven equal first.
"""

import argparse
import tempfile
import time
from typing import Any

import pyarrow as pa

from benchmarks.measuring import machine
from orchestration.quiet import be_quiet

be_quiet()


def items_table(count: int) -> pa.Table:
    """A made-up catalogue."""
    from ray_jobs.tables.interactions import ITEMS
    from ray_jobs.warehouse import TIMESTAMP

    kinds = ["Drama", "Comedy", "Action", "Romance", "Crime", "War", "Children"]
    return pa.table(
        {
            "item_id": [f"item-{i:09d}" for i in range(count)],
            "title": [f"The story of number {i} ({1930 + i % 95})" for i in range(count)],
            "description": [
                None if i % 3 else f"A longer text about number {i}, its friends and its town." for i in range(count)
            ],
            "categories": [[kinds[i % 7], kinds[(i // 7) % 7]] for i in range(count)],
            "image_uri": pa.nulls(count, pa.string()),
            "attributes": [f'{{"year": {1930 + i % 95}}}' for i in range(count)],
            "available_from": pa.nulls(count, TIMESTAMP),
            "created_timestamp": pa.array([0] * count, pa.int64()).cast(TIMESTAMP),
        },
        schema=ITEMS.schema,
    )


def fill_store(config: Any) -> None:
    """A record for every content of the plan."""
    import polars as pl

    from ray_jobs.captions.plan import plan
    from ray_jobs.tables.captions import CAPTION_STORE

    wanted = plan(config).wanted
    rows = wanted.select(
        "content_key",
        pl.format("A caption about {}.", "item_id").alias("caption"),
        pl.col("categories").alias("subjects"),
        *(pl.lit("plain").alias(name) for name in ("style", "setting", "mood")),
        pl.lit("").alias("text_in_image"),
        pl.col("categories").alias("tags"),
        pl.col("text").alias("evidence"),
        "pixel_digest",
        *(pl.lit(1, pl.Int32).alias(name) for name in ("attempts", "prompt_tokens", "completion_tokens")),
        pl.lit(config.caption_version).alias("caption_version"),
        pl.lit(0).cast(pl.Datetime("us", "UTC")).alias("created_timestamp"),
    )
    config.warehouse.append(CAPTION_STORE, CAPTION_STORE.conform(rows.to_arrow()))


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=100_000)
    said = options.parse_args()

    from orchestration.resources.language_model import DEFAULT_MODEL, DEFAULT_REVISION
    from ray_jobs.artifacts import ArtifactStore
    from ray_jobs.captions import captioning
    from ray_jobs.captions.plan import content_key, contents, item_captions, plan
    from ray_jobs.interpretation.interpreter import InterpreterConfig
    from ray_jobs.language.engine import LanguageEngineConfig
    from ray_jobs.tables.captions import CAPTION_STORE, ITEM_CAPTIONS
    from ray_jobs.tables.interactions import ITEMS
    from ray_jobs.warehouse import Warehouse

    with tempfile.TemporaryDirectory() as folder:
        warehouse = Warehouse(f"{folder}/warehouse")
        warehouse.write(ITEMS, items_table(said.items), version="1")
        engine = LanguageEngineConfig(kind="transformers", model=DEFAULT_MODEL, revision=DEFAULT_REVISION)
        config = captioning.Config(
            warehouse=warehouse,
            artifacts=ArtifactStore(f"{folder}/artifacts"),
            interpreter=InterpreterConfig(kind="evidence", engine=engine),
        )
        fill_store(config)
        started = time.perf_counter()
        todo = plan(config)
        done = captioning.nothing_to_do(config, todo)
        table = item_captions(config, todo.items)
        warehouse.write(ITEM_CAPTIONS, table, version="1")
        ours = time.perf_counter() - started
        assert (todo.wanted.height, done.num_cached, table.num_rows) == (0, said.items, said.items)
        started = time.perf_counter()
        known = {r["content_key"]: r for r in warehouse.read(CAPTION_STORE).to_pylist()}
        frame = contents(config)
        joined = [
            (item, known[content_key(text, pixels, config.caption_version)]["caption"])
            for item, text, pixels in frame.select("item_id", "text", "pixel_digest").iter_rows()
        ]
        peer = time.perf_counter() - started
        assert sorted(joined) == list(zip(*(table[n].to_pylist() for n in ("item_id", "caption")), strict=True))
        print(f"{said.items:,} items, all cached, {machine()}")
        print(f"belvedere, plan + join + commit: {ours:.2f} s ({said.items / ours:,.0f} items/s), 0 calls")
        print(f"Python dictionaries, join alone: {peer:.2f} s; belvedere is {peer / ours:.2f}x as fast")


if __name__ == "__main__":
    main()
