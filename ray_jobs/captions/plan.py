"""What is to be captioned, with what, what of it is paid for already; and the captions of items out of the store."""

import datetime as dt
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pydantic

from models.identity import version_of
from models.language.captions import Item, evidence
from models.language.validation import Rules
from models.language.words import content_words
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.interpretation.interpreter import TRANSIENT, InterpretationParameters, InterpreterConfig
from ray_jobs.interpretation.prompting import interpretation_prompt
from ray_jobs.prompts import prompt_digest
from ray_jobs.tables.captions import CAPTION_DEAD_LETTERS, CAPTION_STORE, ITEM_CAPTIONS, ITEM_IMAGES, RECORD
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.warehouse import Table, Warehouse

CODE_VERSION = "3"
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# Of a plan's estimate only: English text, captions and records as JSON of the lengths seen, and an image in a common
# vision model.
CHARS_PER_TOKEN, CAPTION_TOKENS, JSON_TOKENS, IMAGE_TOKENS = 4.0, 24, 64, 576
CPU_ACTORS = 4
# 128 bits: of 10^9 contents, no two are expected to share a key.
KEY_LENGTH = 32
CONTENT: dict[str, Any] = {
    "item_id": pl.String,
    "text": pl.String,
    "categories": pl.List(pl.String),
    "pixel_digest": pl.String,
    "content_key": pl.String,
}


class Pool(NamedTuple):
    """Actors, and CPUs (threads, too) and GPUs of each."""

    actors: int
    cpus: float
    gpus: float


class Config(pydantic.BaseModel, frozen=True):
    """What to caption, with what, and how."""

    warehouse: Warehouse = pydantic.Field(description="Where items are read and captions are kept.")
    artifacts: ArtifactStore = pydantic.Field(description="Where canonical images are kept.")
    interpreter: InterpreterConfig = pydantic.Field(description="The engine.")
    prompt: str = pydantic.Field(default="item_caption", description="Prompt file below `ray_jobs/prompts`.")
    parameters: InterpretationParameters = pydantic.Field(
        default=InterpretationParameters(), description="How records are decoded."
    )
    rules: Rules = pydantic.Field(default=Rules(), description="Bounds of a usable caption.")
    batch_size: int = pydantic.Field(default=64, ge=1, description="Contents an actor captions and stores at once.")
    num_actors: int = pydantic.Field(default=0, ge=0, description="Actors that generate; 0 chooses by the engine.")
    cpus_per_actor: float = pydantic.Field(
        default=0.0, ge=0, description="CPUs, and threads, of an actor; 0 chooses by the engine."
    )
    gpus_per_actor: float = pydantic.Field(
        default=0.0, ge=0, description="GPUs of an actor, or a fraction of one; 0 chooses by the engine."
    )
    run_id: str = pydantic.Field(default="", description="Who pays: the run's id in the call ledger.")
    token_budget: int = pydantic.Field(default=0, ge=0, description="Most tokens that a run may spend; 0: no limit.")
    usd_budget: float = pydantic.Field(default=0.0, ge=0, description="Most money that a run may spend; 0: no limit.")
    replay: bool = pydantic.Field(default=False, description="Whether contents that were given up are tried again.")
    canaries: int = pydantic.Field(
        default=8, ge=0, description="Most items of a run whose changed contents are captioned, too, as a check."
    )
    traces: int = pydantic.Field(default=20, ge=0, description="Contents of a run whose exchange is handed back.")

    def pool(self, node_cpus: Sequence[float], num_gpus: float = 0.0) -> Pool:
        """The actors of this run.

        By default an endpoint gets one actor, which has many requests in flight; a model on CUDA one a GPU; a model on
        CPUs up to four that share the CPUs: actors of few threads wait less for each other than threads do.

        Args:
            node_cpus: CPUs of each of the cluster's nodes.
            num_gpus: GPUs of the cluster.
        """
        if self.interpreter.kind == "endpoint":
            return Pool(self.num_actors or 1, min(self.cpus_per_actor or 0.5, max(node_cpus)), self.gpus_per_actor)
        if self.interpreter.engine.device.startswith("cuda"):
            gpus = self.gpus_per_actor or 1.0
            return Pool(self.num_actors or max(int(num_gpus / gpus), 1), self.cpus_per_actor or 1.0, gpus)
        total = sum(node_cpus)
        actors = self.num_actors or max(min(int(total / (self.cpus_per_actor or 1.0)), CPU_ACTORS), 1)
        cpus = self.cpus_per_actor or max(total // actors, 1.0)
        return Pool(actors, min(cpus, max(node_cpus)), self.gpus_per_actor)

    def highest_price(self) -> float:
        """USD of a token, prompt's or answer's, whichever is dearer.

        Raises:
            ValueError: If money is limited, but tokens have no price.
        """
        price = self.interpreter.engine
        highest = max(price.usd_per_million_prompt_tokens, price.usd_per_million_completion_tokens) / 1e6
        if self.usd_budget and not highest:
            raise ValueError(
                "BELVEDERE_CAPTION_USD_BUDGET limits money, but tokens have no price: set "
                "BELVEDERE_LLM_USD_PER_MILLION_PROMPT_TOKENS and ..._COMPLETION_TOKENS, or limit tokens."
            )
        return highest

    @property
    def caption_version(self) -> str:
        """Version of whatever decides a caption but the item: prompt, schema, model, parameters, code."""
        return version_of(
            # The schema's vocabulary is part of the prompt's file, its form part of the code.
            prompt=prompt_digest(self.prompt),
            engine=self.interpreter.identity,
            code=CODE_VERSION,
            parameters=self.parameters.model_dump(mode="json"),
            rules=self.rules.model_dump(mode="json"),
        )


class Plan(NamedTuple):
    """What a run would do, before anything is spent.

    Attributes:
        items: Every item: item_id, content_key.
        wanted: Contents to caption, one row each: the columns of `CONTENT`; longest first.
        num_contents: Different contents.
        num_cached: Of these, in the store.
        num_dead: Of these, given up by an earlier run.
        num_images: Of those wanted, with an image.
        prompt_tokens: Estimate.
        completion_tokens: Estimate.
        usd: Estimate.
    """

    items: pl.DataFrame
    wanted: pl.DataFrame
    num_contents: int
    num_cached: int
    num_dead: int
    num_images: int
    prompt_tokens: int
    completion_tokens: int
    usd: float

    def sentence(self) -> str:
        """The plan in one sentence."""
        return (
            f"{self.num_contents:,} contents of {self.items.height:,} items: {self.num_cached:,} cached, "
            f"{self.num_dead:,} dead letters, {self.wanted.height:,} to write, {self.num_images:,} of them with an "
            f"image (about {self.prompt_tokens:,} prompt and {self.completion_tokens:,} completion tokens, "
            f"{self.usd:.2f} USD)"
        )


def read_frame(warehouse: Warehouse, table: Table, columns: list[str], filters: Any = None) -> pl.DataFrame:
    """Rows of a table; none if it does not exist yet."""
    data = warehouse.read(table, columns, filters) if warehouse.exists(table) else None
    found = pl.from_arrow(table.schema.empty_table().select(columns) if data is None else data)
    assert isinstance(found, pl.DataFrame)
    return found


def dead_letters(warehouse: Warehouse) -> pl.DataFrame:
    """Contents that were given up: the newest dead letter of each, unless the next run tries it again."""
    rows = read_frame(warehouse, CAPTION_DEAD_LETTERS, [c.name for c in CAPTION_DEAD_LETTERS.columns])
    newest = rows.sort("created_timestamp").unique("content_key", keep="last", maintain_order=True)
    return newest.filter(pl.col("error_class") != TRANSIENT)


def content_key(text: str, pixel_digest: str | None, caption_version: str) -> str:
    """Key of an interpretation: text, decoded pixels, and whatever else decides it. Equal contents have one key."""
    said = "\0".join((caption_version, pixel_digest or "", text))
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]


def contents(config: Config) -> pl.DataFrame:
    """Every item with its content: the columns of `CONTENT`."""
    rows = config.warehouse.read(ITEMS, ["item_id", "title", "description", "categories", "attributes"])
    columns = rows.to_pydict()
    shown = [
        evidence(Item(*row))
        for row in zip(
            columns["title"], columns["description"], columns["categories"], columns["attributes"], strict=True
        )
    ]
    items = pl.DataFrame(
        {"item_id": columns["item_id"], "text": shown, "categories": columns["categories"]},
        schema={name: CONTENT[name] for name in ("item_id", "text", "categories")},
    )
    pixels = pl.DataFrame(schema={"item_id": pl.String, "pixel_digest": pl.String})
    if config.interpreter.sees_images:
        pixels = read_frame(config.warehouse, ITEM_IMAGES, ["item_id", "pixel_digest"])
    items = items.join(pixels, on="item_id", how="left")
    version = config.caption_version
    keys = [content_key(t, p, version) for t, p in zip(items["text"], items["pixel_digest"], strict=True)]
    return items.with_columns(pl.Series("content_key", keys, dtype=pl.String)).select(list(CONTENT))


def plan(config: Config) -> Plan:
    """Compares the contents of all items with the store: the dry run, and the first step of a run."""
    items = contents(config)
    different = items.sort("item_id").unique("content_key", keep="first")
    stored = different.join(read_frame(config.warehouse, CAPTION_STORE, ["content_key"]), on="content_key", how="semi")
    open_ = different.join(stored, on="content_key", how="anti")
    dead = dead_letters(config.warehouse)
    wanted = open_ if config.replay else open_.join(dead, on="content_key", how="anti")
    # Rows of one batch are of about one length; the order does not depend on the items' order.
    wanted = wanted.sort(pl.col("text").str.len_chars(), "content_key", descending=[True, False])
    num_images = wanted.height - wanted["pixel_digest"].null_count()
    prompt = interpretation_prompt(config.prompt)
    shared = prompt.messages(0) if config.interpreter.kind == "evidence" else prompt.json_messages(0)
    shown = sum(len(text) for text in wanted["text"]) + sum(len(m.content) for m in shared) * wanted.height
    prompt_tokens = int(shown / CHARS_PER_TOKEN)
    completion_tokens = CAPTION_TOKENS * wanted.height
    if config.interpreter.kind != "evidence":
        prompt_tokens += IMAGE_TOKENS * num_images
        completion_tokens = JSON_TOKENS * wanted.height
    return Plan(
        items.select("item_id", "content_key"),
        wanted,
        different.height,
        stored.height,
        open_.height - wanted.height,
        num_images,
        prompt_tokens,
        completion_tokens,
        config.interpreter.engine.usd(prompt_tokens, completion_tokens),
    )


def item_captions(config: Config, items: pl.DataFrame | None = None) -> pa.Table:
    """Joins every item with its interpretation in the store; items without one are left out.

    Args:
        config: The job's config.
        items: `Plan.items`, if there is a plan already.
    """
    items = contents(config).select("item_id", "content_key") if items is None else items
    when = read_frame(config.warehouse, ITEMS, ["item_id", "available_from"])
    names = ["content_key", *(c.name for c in RECORD), "pixel_digest"]
    said = read_frame(config.warehouse, CAPTION_STORE, names).unique("content_key", keep="first")
    rows = (
        items.join(when, on="item_id")
        .join(said, on="content_key")
        .sort("item_id")
        .with_columns(
            pl.lit(config.caption_version).alias("caption_version"),
            pl.col("available_from").fill_null(EPOCH).alias("event_timestamp"),
            pl.lit(dt.datetime.now(dt.UTC)).alias("created_timestamp"),
        )
    )
    return ITEM_CAPTIONS.conform(rows.select([c.name for c in ITEM_CAPTIONS.columns]).to_arrow())


class Revisions(NamedTuple):
    """A new revision of the captions beside the published one.

    Attributes:
        published: Version that readers get; empty if there is none.
        num_both: Items that have both.
        same_words: Mean Jaccard similarity of their captions' content words.
        num_equal: Items whose captions are equal.
    """

    published: str
    num_both: int
    same_words: float
    num_equal: int


def compare_revisions(config: Config, new: pa.Table) -> Revisions:
    """Compares captions that are about to be published with those that are."""
    old = read_frame(config.warehouse, ITEM_CAPTIONS, ["item_id", "caption", "caption_version"])
    fresh = pl.from_arrow(new.select(["item_id", "caption"]))
    assert isinstance(fresh, pl.DataFrame)
    both = old.join(fresh, on="item_id", suffix="_new")
    pairs = [(set(content_words(a)), set(content_words(b))) for _, a, _, b in both.iter_rows()]
    shares = [len(a & b) / max(len(a | b), 1) for a, b in pairs]
    return Revisions(
        ", ".join(sorted(old["caption_version"].unique())),
        both.height,
        sum(shares) / max(len(shares), 1),
        both.filter(pl.col("caption") == pl.col("caption_new")).height,
    )
