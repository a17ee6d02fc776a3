"""What Ray, Dagster, Delta Lake and MLflow cost around the engine that captions: the same work without them.

    python -m benchmarks.captioning_overhead --items 256

The peer is the interpreter alone: as many processes as the job has actors, with as many threads each, which hand their
records back and keep nothing. The lineage materializes `captions/item_captions` from nothing: plan, store, call ledger,
table, figures, traces. Canaries are left out, as they are more work, not overhead. Both load the model within the time,
and their records are proven equal first. The engine alone runs before and after the lineage, and the mean of both
counts: machines that others share become slower and faster within minutes. What a platform starts once, for all of its
stages, is timed apart: the Ray cluster, and MLflow's database.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.catalogue import items_of
from benchmarks.measuring import machine
from orchestration.quiet import be_quiet

be_quiet()


def catalogue(dataset: str, count: int) -> Any:
    """The first items of ``dataset``, as `interactions/items` has them."""
    import datetime as dt

    import polars as pl

    from ray_jobs.tables.interactions import ITEMS

    rows = items_of(dataset).head(count)
    rows = rows.with_columns(
        pl.lit(dt.datetime.now(dt.UTC)).alias("created_timestamp"), pl.lit(None, pl.String).alias("image_uri")
    )
    return ITEMS.conform(rows.select(ITEMS.schema.names).to_arrow())


def interpret_alone(config: Any, rows: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """The engine alone on ``rows`` of a plan, with validation and repairs: records by content."""
    from ray_jobs.captions.accounts import CAPTION
    from ray_jobs.captions.captioner import Captioner
    from ray_jobs.interpretation.interpreter import Content

    found: dict[str, Any] = {}

    class Alone(Captioner):
        def _keep(self, *_: Any) -> None:
            """Keeps nothing."""

    captioner = Alone(config, threads)
    contents = [Content(r["content_key"], r["text"], tuple(r["categories"])) for r in rows]
    for at in range(0, len(contents), config.batch_size):
        captioner.caption(contents[at : at + config.batch_size], CAPTION, found)
    return {key: outcome.record.model_dump() for key, outcome in found.items() if outcome.record}


def alone(config: Any, todo: Any, processes: int, threads: int) -> dict[str, Any]:
    """`interpret_alone` in as many processes as the pool has actors, which take a batch after the other."""
    rows = todo.wanted.select("content_key", "text", "categories").to_dicts()
    size = config.batch_size
    shares: list[list[dict[str, Any]]] = [[] for _ in range(processes)]
    for batch, at in enumerate(range(0, len(rows), size)):
        shares[batch % processes] += rows[at : at + size]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(interpret_alone, [config] * processes, shares, [threads] * processes)
        return {key: record for part in parts for key, record in part.items()}


def start_platform(folder: str) -> Any:
    """Starts what all stages share: a Ray cluster, and MLflow on a new database. Returns MLflow's twin."""
    from orchestration.resources.ray_jobs import LocalRayJobs
    from orchestration.resources.tracking import tracking_twin

    tracking = tracking_twin(f"sqlite:///{folder}/mlflow.db", f"file://{folder}/mlflow", "http://mlflow")
    tracking.connect("captions")
    LocalRayJobs().join()
    return tracking


def materialize(tables: Any, tracking: Any, folder: str, knobs: dict[str, Any]) -> None:
    """The asset with all that stands around it, in a Dagster run of its own."""
    import dagster as dg
    import mlflow

    from assets.captions.item_captions import item_captions
    from orchestration.resources.interpreter import LanguageModelInterpreter
    from orchestration.resources.ray_jobs import LocalRayJobs

    with dg.instance_for_test(temp_dir=folder) as instance:
        dg.materialize(
            [item_captions],
            instance=instance,
            resources={
                "tables": tables,
                "ray_jobs": LocalRayJobs(),
                "interpreter": LanguageModelInterpreter(language_model=language_model()),
                "tracking": tracking,
            },
            run_config={"ops": {"captions__item_captions": {"config": knobs}}},
        )
    # MLflow writes traces behind the run's back; they are part of the work, and the folder goes away.
    mlflow.flush_trace_async_logging()


def language_model() -> Any:
    """The packaged model."""
    from orchestration.resources.language_model import EmbeddedLanguageModel
    from orchestration.settings import Settings

    return EmbeddedLanguageModel(cache_dir=str(Settings().home / "models"))


def main() -> None:
    """Measures and prints."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--items", type=int, default=256)
    options.add_argument("--dataset", default="", help="as BELVEDERE_DATASET; a synthetic one by default")
    said = options.parse_args()

    from assets.captions.item_captions import captioning_config
    from orchestration.resources.interpreter import LanguageModelInterpreter
    from orchestration.resources.tables import LocalTables
    from ray_jobs.captions.plan import plan
    from ray_jobs.language.checkpoints import checkpoint_folder
    from ray_jobs.tables.captions import CAPTION_STORE, ITEM_IMAGES
    from ray_jobs.tables.interactions import ITEMS

    processes = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        tables = LocalTables(warehouse_root=f"{folder}/warehouse", artifact_root=f"{folder}/artifacts")
        dataset = said.dataset or f"synthetic:{folder}/shop?items={said.items}&images=false"
        tables.write(ITEMS, catalogue(dataset, said.items), version="1")
        tables.write(ITEM_IMAGES, ITEM_IMAGES.schema.empty_table(), version="1")
        knobs = {"num_actors": processes, "cpus_per_actor": 1.0, "canaries": 0, "batch_size": 32}
        interpreter = LanguageModelInterpreter(language_model=language_model())
        checkpoint_folder(interpreter.interpreter().engine)
        config = captioning_config(tables, interpreter, "alone", knobs)
        todo = plan(config)
        started = time.perf_counter()
        records = alone(config, todo, processes, 1)
        before = time.perf_counter() - started
        started = time.perf_counter()
        tracking = start_platform(folder)
        start = time.perf_counter() - started
        started = time.perf_counter()
        materialize(tables, tracking, folder, knobs)
        lineage = time.perf_counter() - started
        started = time.perf_counter()
        again = alone(config, todo, processes, 1)
        after = time.perf_counter() - started
        stored = {row["content_key"]: row for row in tables.read(CAPTION_STORE).to_pylist()}
    equal = sum(
        all(
            str(stored[key][name]) == str(list(value) if isinstance(value, tuple) else value)
            for name, value in r.items()
        )
        for key, r in records.items()
        if key in stored
    )
    print(f"{todo.wanted.height} contents, {processes} processes of 1 thread, {machine()}")
    print(f"equal records: {equal} of {len(records)} (lineage: {len(stored)})")
    if equal < 0.95 * len(records) or len(records) != len(stored) or again.keys() != records.keys():
        raise SystemExit("The records differ: nothing is compared.")
    print(f"start of Ray and MLflow, once for all stages {start:.1f} s")
    engine = (before + after) / 2
    rate = len(records) / engine
    print(f"engine alone {engine:6.1f} s, {rate:.2f} captions/s ({before:.1f} s before, {after:.1f} after)")
    print(f"lineage      {lineage:6.1f} s, {len(stored) / lineage:.2f} captions/s")
    print(f"overhead     {lineage - engine:+6.1f} s, {lineage / engine - 1:+.1%} of the engine")


if __name__ == "__main__":
    main()
