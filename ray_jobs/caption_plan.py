"""What is to be captioned, with what, what of it is paid for already; and the captions of items out of the store."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pydantic

from models.identity import version_of
from models.language.captions import Item, evidence
from models.language.validation import Rules
from ray_jobs.language.engine import MARK, LanguageEngineConfig, Message
from ray_jobs.prompts import load_prompt, prompt_digest
from ray_jobs.tables.captions import CAPTION_DEAD_LETTERS, CAPTION_STORE, ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.warehouse import Table, Warehouse

CODE_VERSION = "1"
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Of a plan's estimate only: English text, and the length of captions seen.
CHARS_PER_TOKEN, CAPTION_TOKENS = 4.0, 18
CPU_ACTORS = 4
# Reason of a dead letter that no answer stands behind.
NEVER_ANSWERED = "never_answered"


class Pool(NamedTuple):
    """Actors, and CPUs (threads, too) and GPUs of each."""

    actors: int
    cpus: float
    gpus: float


class Config(pydantic.BaseModel, frozen=True):
    """What to caption, with what, and how."""

    warehouse: Warehouse = pydantic.Field(description="Where items are read and captions are kept.")
    engine: LanguageEngineConfig = pydantic.Field(description="The language model.")
    prompt: str = pydantic.Field(default="item_caption", description="Prompt file below `ray_jobs/prompts`.")
    max_new_tokens: int = pydantic.Field(default=32, ge=4, description="Token limit of a caption.")
    no_repeat_ngram: int = pydantic.Field(
        default=3, ge=0, description="A caption repeats no n-gram of this size; 0: any."
    )
    repair_no_repeat_ngram: int = pydantic.Field(default=2, ge=0, description="The same for the second try.")
    rules: Rules = pydantic.Field(default=Rules(), description="Bounds of a usable caption.")
    batch_size: int = pydantic.Field(default=64, ge=1, description="Contents an actor captions and stores at once.")
    num_actors: int = pydantic.Field(default=0, ge=0, description="Actors that generate; 0 chooses by the engine.")
    cpus_per_actor: float = pydantic.Field(
        default=0.0, ge=0, description="CPUs, and threads, of an actor; 0 chooses by the engine."
    )
    gpus_per_actor: float = pydantic.Field(
        default=0.0, ge=0, description="GPUs of an actor, or a fraction of one; 0 chooses by the engine."
    )

    def pool(self, node_cpus: Sequence[float], num_gpus: float = 0.0) -> "Pool":
        """The actors of this run.

        By default an endpoint gets one actor, which has many requests in flight; a model on CUDA one a GPU; a model on
        CPUs up to four that share the CPUs: actors of few threads wait less for each other than threads do.

        Args:
            node_cpus: CPUs of each of the cluster's nodes.
            num_gpus: GPUs of the cluster.
        """
        if self.engine.kind == "openai":
            return Pool(self.num_actors or 1, min(self.cpus_per_actor or 0.5, max(node_cpus)), self.gpus_per_actor)
        if self.engine.device.startswith("cuda"):
            gpus = self.gpus_per_actor or 1.0
            return Pool(self.num_actors or max(int(num_gpus / gpus), 1), self.cpus_per_actor or 1.0, gpus)
        total = sum(node_cpus)
        actors = self.num_actors or max(min(int(total / (self.cpus_per_actor or 1.0)), CPU_ACTORS), 1)
        cpus = self.cpus_per_actor or max(total // actors, 1.0)
        return Pool(actors, min(cpus, max(node_cpus)), self.gpus_per_actor)

    @property
    def caption_version(self) -> str:
        """Version of whatever decides a caption but the item: prompt, model, parameters, code."""
        return version_of(
            prompt=prompt_digest(self.prompt),
            engine=self.engine.identity,
            code=CODE_VERSION,
            parameters=self.model_dump(
                mode="json", include={"max_new_tokens", "no_repeat_ngram", "repair_no_repeat_ngram", "rules"}
            ),
        )


class Plan(NamedTuple):
    """What a run would do, before anything is spent.

    Attributes:
        items: Every item: item_id, content_key.
        wanted: Contents to caption: content_key, item_id, evidence, categories; longest first.
        num_contents: Different contents.
        num_cached: Of these, in the store.
        num_dead: Of these, dead letters.
        prompt_tokens: Estimate.
        completion_tokens: Estimate.
        usd: Estimate.
    """

    items: pl.DataFrame
    wanted: pl.DataFrame
    num_contents: int
    num_cached: int
    num_dead: int
    prompt_tokens: int
    completion_tokens: int
    usd: float


def messages(prompt: dict[str, Any], system: str = "system") -> list[Message]:
    """The shared messages: instruction and examples."""
    shared = [Message("system", prompt[system])]
    for example in prompt["examples"]:
        shared += [
            Message("user", example["item"].strip()),
            Message("assistant", f"{example['caption']}{MARK} {example['mood']}"),
        ]
    return shared


def stored_keys(warehouse: Warehouse, table: Table, filters: Any = None) -> pl.DataFrame:
    """Content keys in a table; none if it does not exist yet."""
    if not warehouse.exists(table):
        return pl.DataFrame(schema={"content_key": pl.String})
    found = pl.from_arrow(warehouse.read(table, ["content_key"], filters))
    assert isinstance(found, pl.DataFrame)
    return found.unique()


def plan(config: Config) -> Plan:
    """Compares the contents of all items with the store: the dry run, and the first step of a run."""
    rows = config.warehouse.read(ITEMS, ["item_id", "title", "description", "categories", "attributes"]).to_pydict()
    shown = [
        evidence(Item(*row))
        for row in zip(rows["title"], rows["description"], rows["categories"], rows["attributes"], strict=True)
    ]
    version = config.caption_version
    items = pl.DataFrame(
        {
            "item_id": rows["item_id"],
            "evidence": shown,
            "categories": rows["categories"],
            "content_key": [version_of(evidence=text, caption_version=version) for text in shown],
        },
        schema={
            "item_id": pl.String,
            "evidence": pl.String,
            "categories": pl.List(pl.String),
            "content_key": pl.String,
        },
    )
    contents = items.sort("item_id").unique("content_key", keep="first")
    stored = contents.join(stored_keys(config.warehouse, CAPTION_STORE), on="content_key", how="semi")
    open_ = contents.join(stored, on="content_key", how="anti")
    # What was never answered was never paid for, either: it is asked again.
    dead = stored_keys(config.warehouse, CAPTION_DEAD_LETTERS, [("reason", "!=", NEVER_ANSWERED)])
    wanted = open_.join(dead, on="content_key", how="anti")
    # Rows of one batch are of about one length; the order does not depend on the items' order.
    wanted = wanted.sort(pl.col("evidence").str.len_chars(), "content_key", descending=[True, False])
    shared = sum(len(m.content) for m in messages(load_prompt(config.prompt)))
    shown_chars = sum(len(text) for text in wanted["evidence"])
    prompt_tokens = int((shown_chars + shared * wanted.height) / CHARS_PER_TOKEN)
    completion_tokens = CAPTION_TOKENS * wanted.height
    return Plan(
        items.select("item_id", "content_key"),
        wanted,
        contents.height,
        stored.height,
        open_.height - wanted.height,
        prompt_tokens,
        completion_tokens,
        config.engine.usd(prompt_tokens, completion_tokens),
    )


def item_captions(config: Config) -> pa.Table:
    """Joins every item with its caption in the store; items without one are left out."""
    items = plan(config).items
    when = pl.from_arrow(config.warehouse.read(ITEMS, ["item_id", "available_from"]))
    assert isinstance(when, pl.DataFrame)
    if not config.warehouse.exists(CAPTION_STORE):
        return ITEM_CAPTIONS.schema.empty_table()
    captions = pl.from_arrow(config.warehouse.read(CAPTION_STORE, ["content_key", "caption", "mood", "tags"]))
    assert isinstance(captions, pl.DataFrame)
    joined = items.join(when, on="item_id").join(captions.unique("content_key", keep="first"), on="content_key")
    rows = joined.sort("item_id").with_columns(
        pl.lit(config.caption_version).alias("caption_version"),
        pl.col("available_from").fill_null(EPOCH).alias("event_timestamp"),
        pl.lit(dt.datetime.now(dt.UTC)).alias("created_timestamp"),
    )
    return ITEM_CAPTIONS.conform(rows.select([c.name for c in ITEM_CAPTIONS.columns]).to_arrow())
