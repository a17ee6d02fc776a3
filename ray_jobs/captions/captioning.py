"""Ray job that writes a caption of every item's content.

What is paid for is kept: an actor appends each batch to the store itself, right after it was generated, so that a
killed run loses at most the batches in flight and no stored caption is ever generated again.
"""

import json
import sys
import time
from typing import Any

import polars as pl
import pydantic

from ray_jobs.actors import map_blocks
from ray_jobs.captions import canaries as caption_canaries
from ray_jobs.captions.accounts import SPENT, ledger_totals, mend_accounts
from ray_jobs.captions.budget import Budget
from ray_jobs.captions.captioner import Captioner
from ray_jobs.captions.plan import Config, Plan, Pool, plan
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.language.checkpoints import checkpoint_folder
from ray_jobs.progress import Progress, note
from ray_jobs.tables.captions import CALL_LEDGER, CAPTION_CANARIES, CAPTION_DEAD_LETTERS, CAPTION_STORE

APPEND_ONLY = "append-only"
STORES = (CAPTION_STORE, CALL_LEDGER, CAPTION_DEAD_LETTERS, CAPTION_CANARIES)


class BudgetReachedError(ValueError):
    """The run's budget has no room for what is left; what was captioned is kept. One sentence with the fix."""


class Result(pydantic.BaseModel, frozen=True):
    """What a run did and spent."""

    caption_version: str
    num_items: int
    num_contents: int = pydantic.Field(description="Different contents among the items.")
    num_cached: int = pydantic.Field(description="Contents that were in the store already.")
    num_generated: int = pydantic.Field(description="Contents captioned by this run.")
    num_dead_letters: int = pydantic.Field(description="Contents that this run gave up.")
    num_dead_before: int = pydantic.Field(description="Contents that an earlier run gave up.")
    num_canaries: int = pydantic.Field(description="Changed contents that this run captioned as a check.")
    llm_calls: int = pydantic.Field(description="Requests, failed ones and canaries included.")
    failed_calls: int = pydantic.Field(description="Of these, requests without a usable answer.")
    prompt_tokens: int
    completion_tokens: int
    usd: float
    seconds: float
    traces: list[dict[str, Any]] = pydantic.Field(description="Some exchanges; see `captioner.trace_of`.")

    @property
    def cache_hit_rate(self) -> float:
        """Share of the contents that cost nothing."""
        return (self.num_cached + self.num_dead_before) / max(self.num_contents, 1)


def prepare(config: Config) -> Pool:
    """Makes what actors share before they start, and chooses them."""
    import ray

    for table in STORES:
        # Made here, once: two actors that create a table at the same time would conflict.
        if not config.warehouse.exists(table):
            config.warehouse.write(table, table.schema.empty_table(), version=APPEND_ONLY)
    if config.interpreter.kind == "evidence":
        # Actors that start together would each convert a package's weights, on the same cores.
        checkpoint_folder(config.interpreter.engine)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return config.pool([n.get("CPU", 0.0) for n in nodes], sum(n.get("GPU", 0.0) for n in nodes))


def shared_budget(config: Config) -> Any:
    """The actor that holds what is left of the run's budget; None without a limit.

    Raises:
        BudgetReachedError: If earlier attempts of this run have spent it.
        ValueError: If money is limited, but tokens have no price.
    """
    import ray

    if not config.token_budget and not config.usd_budget:
        return None
    highest = config.highest_price()
    # A run that comes back after an error goes on with what it left.
    spent = ledger_totals(config)
    tokens = config.token_budget - int(spent["prompt_tokens"] + spent["completion_tokens"])
    usd = config.usd_budget - spent["usd"]
    if (config.token_budget and tokens <= 0) or (config.usd_budget and usd <= 0):
        raise BudgetReachedError(
            f"This run has spent its budget ({config.token_budget or 'any number of'} tokens, "
            f"{config.usd_budget or 'any'} USD) in earlier attempts, and what it captioned is kept; raise "
            "BELVEDERE_CAPTION_TOKEN_BUDGET or BELVEDERE_CAPTION_USD_BUDGET, or materialize again with a new budget."
        )
    actor = ray.remote(Budget).options(num_cpus=0)
    return actor.remote(tokens if config.token_budget else 0, usd if config.usd_budget else 0.0, highest)


def _generate(config: Config, wanted: pl.DataFrame, pool: Pool, budget: Any) -> tuple[dict[str, int], list[Any]]:
    """Runs the actors over ``wanted``; returns the summed counts, and some exchanges."""
    # One block a batch: an actor hands back what it did after each, and progress follows it.
    blocks = [wanted.slice(at, config.batch_size).to_arrow() for at in range(0, wanted.height, config.batch_size)]
    arguments = (config, max(int(pool.cpus), 1), pool.gpus, budget)
    done = map_blocks(
        blocks, Captioner, arguments, actors=pool.actors, cpus=pool.cpus, gpus=pool.gpus, batch_format="numpy"
    )
    progress = Progress("captions", wanted.height, "items")
    totals: dict[str, int] = {}
    traces: list[Any] = []
    # Without prefetching, which would hold back each batch's counts until the next one is done.
    for row in done.iter_batches(batch_size=None, prefetch_batches=0):
        traces += [t for text in row.pop("traces") for t in json.loads(str(text))]
        counts = {name: int(count.sum()) for name, count in row.items()}
        totals = {name: totals.get(name, 0) + count for name, count in counts.items()}
        progress.add(counts["done"], tokens=counts["completion_tokens"])
        # As it goes: an actor looks its batch up in the store, and each batch is a file.
        for table in (CAPTION_STORE, CALL_LEDGER):
            config.warehouse.compact(table)
    return totals, traces[: config.traces]


def _watch(config: Config, todo: Plan, pool: Pool, budget: Any) -> int:
    """Captions the canaries, in an actor like those of the run."""
    import ray

    def watch() -> int:
        captioner = Captioner(config, max(int(pool.cpus), 1), pool.gpus, budget)
        return caption_canaries.watch(config, todo, captioner)

    task = ray.remote(watch).options(num_cpus=pool.cpus, num_gpus=pool.gpus)
    return int(ray.get(task.remote()))


def run(config: Config) -> Result:
    """Captions every content that neither the store nor the dead letters hold.

    Raises:
        BudgetReachedError: If the budget had no room for all of them.
        EngineUnavailableError: If the model cannot be reached.
    """
    started = time.monotonic()
    mend_accounts(config)
    todo = plan(config)
    note("captions", todo.sentence())
    totals: dict[str, int] = {}
    traces: list[Any] = []
    num_canaries = 0
    if todo.wanted.height or caption_canaries.is_unwatched(config, todo):
        pool, budget = prepare(config), shared_budget(config)
        if todo.wanted.height:
            totals, traces = _generate(config, todo.wanted, pool, budget)
        num_canaries = _watch(config, todo, pool, budget) if config.canaries else 0
        for table in STORES:
            config.warehouse.compact(table)
    if totals.get("deferred"):
        raise BudgetReachedError(
            f"The budget ({config.token_budget or 'any number of'} tokens, {config.usd_budget or 'any'} USD) is spent: "
            f"{totals['stored']:,} contents were captioned and are kept, {totals['deferred']:,} are left; raise "
            "BELVEDERE_CAPTION_TOKEN_BUDGET or BELVEDERE_CAPTION_USD_BUDGET, or materialize again with a new budget."
        )
    return result_of(config, todo, totals, num_canaries, traces, time.monotonic() - started)


def result_of(
    config: Config, todo: Plan, totals: dict[str, int], num_canaries: int, traces: list[Any], seconds: float
) -> Result:
    """What a run did: by its plan, the actors' counts, and the call ledger."""
    spent = ledger_totals(config) if todo.wanted.height or num_canaries else dict.fromkeys(SPENT, 0.0)
    return Result(
        caption_version=config.caption_version,
        num_items=todo.items.height,
        num_contents=todo.num_contents,
        num_cached=todo.num_cached,
        num_generated=totals.get("stored", 0),
        num_dead_letters=totals.get("dead", 0),
        num_dead_before=todo.num_dead,
        num_canaries=num_canaries,
        llm_calls=int(spent["calls"]),
        failed_calls=int(spent["failed_calls"]),
        prompt_tokens=int(spent["prompt_tokens"]),
        completion_tokens=int(spent["completion_tokens"]),
        usd=spent["usd"],
        seconds=round(seconds, 3),
        traces=traces,
    )


def nothing_to_do(config: Config, todo: Plan) -> Result:
    """The result of a plan that wants nothing; no job is needed for it."""
    mend_accounts(config)
    return result_of(config, todo, {}, 0, [], 0.0)


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
