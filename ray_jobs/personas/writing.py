"""Job: a persona for each user within the token budget, written by the language model and cached by content.

Each finished batch is appended to the store by the actor that made it, so a killed job resumes with what is missing.
"""

import dataclasses
import datetime as dt
import functools
import json
import sys
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig
from ray_jobs.actors import map_blocks
from ray_jobs.embedding_store import as_lists, embed
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.language.engine import LanguageEngine, LanguageEngineConfig, Usage
from ray_jobs.personas.planning import Plan, make_plan
from ray_jobs.personas.prompts import NEVER_ANSWERED, Request, compose
from ray_jobs.personas.writers import StudentConfig, load_writer, tokens_of, writer_identity
from ray_jobs.progress import Progress
from ray_jobs.tables.personas import PERSONA_COVERAGE, PERSONA_DEAD_LETTERS, PERSONA_STORE, USER_PERSONAS
from ray_jobs.text_encoding import TextEncoderConfig
from ray_jobs.warehouse import Table, Warehouse

APPEND_ONLY = "append-only"
# Above what any users cost, and within what a row count can be.
ANY_COST = 10**12


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    engine: LanguageEngineConfig = pydantic.Field(description="The language model.")
    student: StudentConfig | None = pydantic.Field(None, description="The student that writes; None: the teacher.")
    encoder: TextEncoderConfig = pydantic.Field(description="The text encoder.")
    version: str = pydantic.Field(description="Version of the table that is written.")
    persona_version: str = pydantic.Field(description="Codebook version, prompts, model revision and parameters.")
    code_version: str = pydantic.Field(description="Version of the code; part of every content key.")
    interests: InterestConfig = pydantic.Field(InterestConfig(), description="Knobs of the interests.")
    exploration: ExplorationConfig = pydantic.Field(ExplorationConfig(), description="Knobs of the explorations.")
    token_budget: int = pydantic.Field(165_000, ge=0, description="Tokens that the table may cost, uncached.")
    max_new_tokens: int = pydantic.Field(40, ge=8, description="Token limit of a sentence.")
    users_per_batch: int = pydantic.Field(16, ge=1, description="Users that are written, and stored, together.")
    num_actors: int = pydantic.Field(1, ge=1, description="Loaded models.")
    cpus_per_actor: float = pydantic.Field(0, ge=0, description="CPUs and threads of an actor; 0: by the engine.")
    gpus_per_actor: float = pydantic.Field(0, ge=0, description="GPUs of an actor; 0 chooses by the engine.")


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    users_written: int
    users_failed: int
    llm_calls: int
    prompt_tokens: int
    completion_tokens: int
    cache_hit_rate: float
    committed: bool


class PersonaWriter:
    """Batch actor: has personas written, and stores what is usable and what is not.

    Args:
        config: The job's knobs.
        engine: A loaded engine; loads the configured one by default.
        threads: CPU threads of an in-process model; 0 leaves them as they are.
    """

    def __init__(self, config: Config, engine: LanguageEngine | None = None, threads: int = 0):
        if threads and config.engine.kind == "transformers":
            import torch

            torch.set_num_threads(threads)
        self.config = config
        self.writer = load_writer(config.engine, config.student, config.max_new_tokens, engine)
        self.engine = self.writer.engine

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Writes the personas of a batch (``content_key``, ``request``) and returns what they cost, in one row."""
        # A batch may come again when its actor died after the append.
        wanted = pl.DataFrame(batch).join(
            known_keys(self.config.warehouse, batch["content_key"].to_pylist()),
            on="content_key",
            how="anti",
            maintain_order="left",
        )
        before = self.engine.usage
        if wanted.height:
            requests = [Request.model_validate_json(request) for request in wanted["request"]]
            self._write(wanted["content_key"].to_list(), requests, before)
        spent = self.engine.usage.minus(before)
        return pa.table({"users": [batch.num_rows]} | {name: [count] for name, count in spent._asdict().items()})

    def _write(self, keys: list[str], requests: list[Request], before: Usage) -> None:
        personas = self.writer.write(requests)
        spent = self.engine.usage.minus(before)
        stored: list[dict[str, Any]] = []
        dead: list[dict[str, Any]] = []
        for row, (key, request, written) in enumerate(zip(keys, requests, personas, strict=True)):
            # The engine counts what a batch cost; its users bear equal parts.
            part = Usage(*(n // len(keys) + (row < n % len(keys)) for n in spent))
            common = {
                "content_key": key,
                "attempts": written.attempts,
                "prompt_tokens": part.prompt_tokens,
                "completion_tokens": part.completion_tokens,
                "created_timestamp": dt.datetime.now(dt.UTC),
            }
            if not written.sentences:
                dead.append(common | written.problem._asdict())
                continue
            labels = {
                c: label for a in request.anchors for c, label in zip(a.candidates, a.candidate_labels, strict=True)
            }
            stored.append(
                common
                | {
                    "text": compose(written.sentences, [labels[c] for _, c in written.explored]),
                    "described": [i.cluster for i, _ in written.sentences],
                    "explored": [c for _, c in written.explored],
                    "anchors": [a for a, _ in written.explored],
                }
            )
        self.config.warehouse.append(PERSONA_STORE, pa.Table.from_pylist(stored, PERSONA_STORE.schema))
        self.config.warehouse.append(PERSONA_DEAD_LETTERS, pa.Table.from_pylist(dead, PERSONA_DEAD_LETTERS.schema))


def known_keys(warehouse: Warehouse, keys: list[str]) -> pl.DataFrame:
    """Which of ``keys`` are in the store, or among the dead letters that an answer stands behind: ``content_key``."""
    wanted = pc.field("content_key").isin(pa.array(keys, pa.string()))
    answered = wanted & (pc.field("reason") != NEVER_ANSWERED)
    found = [pl.DataFrame({"content_key": []}, schema={"content_key": pl.String})]
    found += [
        pl.DataFrame(warehouse.read(table, ["content_key"], rows))
        for table, rows in ((PERSONA_STORE, wanted), (PERSONA_DEAD_LETTERS, answered))
        if warehouse.exists(table)
    ]
    return pl.concat(found).unique()


def make_stores(warehouse: Warehouse, *tables: Table) -> None:
    """Makes tables that actors append to, once: two that create one at the same time would conflict."""
    for table in tables:
        if not warehouse.exists(table):
            warehouse.write(table, table.schema.empty_table(), version=APPEND_ONLY)


def resources_of(config: Config) -> tuple[float, float]:
    """CPUs and GPUs of an actor that writes, on the cluster at hand."""
    import ray

    most = max(node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["Alive"])
    cpus = config.cpus_per_actor or (0.5 if config.engine.kind == "openai" else min(2.0, most))
    on_gpu = config.engine.kind == "transformers" and config.engine.device == "cuda"
    gpus = config.gpus_per_actor or (1.0 if on_gpu else 0.0)
    return cpus, gpus


def write_missing(config: Config, plan: Plan) -> tuple[Usage, float]:
    """Writes what of the plan is neither in the store nor among the dead letters.

    Returns:
        What was spent, and the share of the plan's contents that were there already.
    """
    wanted = plan.users.select("content_key", "request").unique("content_key", maintain_order=True)
    missing = wanted.join(
        known_keys(config.warehouse, wanted["content_key"].to_list()),
        on="content_key",
        how="anti",
        maintain_order="left",
    )
    spent = Usage()
    if not missing.height:
        return spent, 1.0
    make_stores(config.warehouse, PERSONA_STORE, PERSONA_DEAD_LETTERS)
    cpus, gpus = resources_of(config)
    size = config.users_per_batch
    blocks = [missing.slice(i, size).to_arrow() for i in range(0, missing.height, size)]
    arguments = (config, None, max(int(cpus), 1))
    written = map_blocks(blocks, PersonaWriter, arguments, actors=config.num_actors, cpus=cpus, gpus=gpus)
    progress = Progress("personas", missing.height, "users")
    for row in written.iter_rows():
        batch = Usage(*(int(row[name]) for name in Usage._fields))
        spent = spent.plus(batch)
        progress.add(int(row["users"]), tokens=batch.completion_tokens)
        # As it goes: an actor looks its batch up in the store, and each batch is a file.
        config.warehouse.compact(PERSONA_STORE)
    for table in (PERSONA_STORE, PERSONA_DEAD_LETTERS):
        config.warehouse.compact(table)
    return spent, 1 - missing.height / wanted.height


def assemble(config: Config, plan: Plan) -> pl.DataFrame:
    """Plan and store as rows of `USER_PERSONAS`, still without embeddings; users without a text are left out."""
    wanted = pc.field("content_key").isin(pa.array(plan.users["content_key"].to_list(), pa.string()))
    store = (
        pl.DataFrame(config.warehouse.read(PERSONA_STORE, filters=wanted))
        if config.warehouse.exists(PERSONA_STORE)
        else pl.DataFrame(PERSONA_STORE.schema.empty_table())
    )
    store = store.unique("content_key", keep="first", maintain_order=True)
    users = plan.users.join(
        store.select("content_key", "text", "described", "explored", "anchors"), on="content_key", maintain_order="left"
    )
    described = users.select("user_id", pl.col("described").alias("cluster")).explode("cluster")
    interests = plan.interests.join(described, on=["user_id", "cluster"], how="semi", maintain_order="left")
    fields = ["cluster", "label", "share", "evidence_item_ids", "evidence_titles"]
    interests = interests.group_by("user_id", maintain_order=True).agg(pl.struct(fields).alias("interests"))
    picked = users.select("user_id", pl.col("explored").alias("cluster"), pl.col("anchors").alias("anchor_cluster"))
    picked = picked.explode("cluster", "anchor_cluster").drop_nulls()
    explorations = picked.join(plan.candidates, on=["user_id", "cluster", "anchor_cluster"], maintain_order="left")
    explorations = explorations.group_by("user_id", maintain_order=True).agg(
        pl.struct(["cluster", "label", "anchor_cluster", "similarity"]).alias("explorations")
    )
    return (
        users.join(interests, on="user_id", maintain_order="left")
        .join(explorations, on="user_id", how="left", maintain_order="left")
        .with_columns(
            pl.col("explorations").fill_null([]),
            pl.lit(config.persona_version).alias("persona_version"),
            (pl.col("last_event") + pl.duration(microseconds=1)).alias("event_timestamp"),
        )
        .rename({"text": "persona"})
    )


def parameters(config: Config) -> dict[str, Any]:
    """What a plan is made with: knobs, and what else decides a text. Kept beside the table, for who plans again."""
    identity = {
        "engine": config.engine.identity,
        "max_new_tokens": config.max_new_tokens,
        "code": config.code_version,
    } | writer_identity(config.student)
    return {
        "interests": dataclasses.asdict(config.interests),
        "exploration": dataclasses.asdict(config.exploration),
        "token_budget": config.token_budget,
        "max_new_tokens": config.max_new_tokens,
        "writer": "teacher" if config.student is None else "student",
        "identity": identity,
    }


def plan_personas(config: Config, user_ids: list[str] | None = None) -> Plan:
    """What the job asks the model for.

    Args:
        config: The job's knobs.
        user_ids: Users whose personas are planned whatever they cost; by default all that the budget covers.
    """
    said = parameters(config)
    return make_plan(
        config.warehouse,
        interests=config.interests,
        exploration=config.exploration,
        token_budget=config.token_budget if user_ids is None else ANY_COST,
        tokens_of=functools.partial(tokens_of, said["writer"], max_new_tokens=config.max_new_tokens),
        identity=said["identity"],
        user_ids=user_ids,
    )


def run(config: Config) -> Result:
    """Writes `PERSONA_STORE`, `PERSONA_DEAD_LETTERS`, `USER_PERSONAS` and `PERSONA_COVERAGE`."""
    plan = plan_personas(config)
    spent, hit_rate = write_missing(config, plan)
    rows = assemble(config, plan)
    embedded = embed(config.warehouse, config.encoder, rows["persona"].to_list(), stage="persona embeddings")
    now = dt.datetime.now(dt.UTC)
    kept = [c.name for c in USER_PERSONAS.columns if c.name not in ("embedding", "created_timestamp")]
    table = rows.select(kept).to_arrow()
    table = table.append_column("embedding", as_lists(embedded.vectors))
    table = table.append_column("created_timestamp", pa.array([now] * rows.height, pa.timestamp("us", "UTC")))
    written, failed = rows.height, plan.users.height - rows.height
    coverage = {
        "users": plan.num_users,
        "users_eligible": plan.num_eligible,
        "users_written": written,
        "users_failed": failed,
        "users_over_budget": plan.num_over_budget,
        "users_too_little_history": plan.num_users - plan.num_eligible,
        "token_budget": config.token_budget,
        "tokens_planned": int(plan.users["tokens"].sum()),
        "parameters": json.dumps(parameters(config), sort_keys=True),
        "created_timestamp": now,
    }
    config.warehouse.write(PERSONA_COVERAGE, pa.Table.from_pylist([coverage], PERSONA_COVERAGE.schema), config.version)
    committed = config.warehouse.write(USER_PERSONAS, table, config.version).committed
    return Result(
        users_written=written,
        users_failed=failed,
        llm_calls=spent.calls,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
        cache_hit_rate=hit_rate,
        committed=committed,
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
