"""Personas between two materializations: what the workers of the queue and the readers of requests are told."""

import datetime as dt
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
import pyarrow.compute as pc
import pydantic

from assets.personas.students import released_student
from assets.personas.user_personas import CODE_VERSION, PersonasConfig, knobs_of, version_in_force
from assets.resources import Features, LanguageModel, Ledger, Tables, TextEncoder, Tracking
from ray_jobs.tables.personas import PERSONA_DEAD_LETTERS, PERSONA_STORE, USER_PERSONAS

if TYPE_CHECKING:
    from ray_jobs.personas import refresh as persona_refresh
    from ray_jobs.personas import retrieval as persona_retrieval
    from ray_jobs.personas import serving as persona_serving
    from ray_jobs.personas.sql_queue import PersonaQueue

KEY = dg.AssetKey(["personas", "user_personas"])
# Of whom histories are read, and whose rows are locked, together.
USERS_AT_ONCE = 10_000


class RefreshConfig(PersonasConfig):
    """Knobs of a drain. Those of the personas must be the asset's own, or readers take what it wrote for outdated."""

    token_budget: int = pydantic.Field(0, ge=0, description="Tokens after which a worker leases no more; 0: no limit.")
    window: int = pydantic.Field(20, ge=1, description="Newest events whose clusters are compared.")
    max_age_days: float = pydantic.Field(7.0, gt=0, description="Age from which a persona is stale.")
    lease_seconds: float = pydantic.Field(120.0, gt=0, description="How long the users of a lost worker wait.")
    unsafe_terms: dict[str, list[str]] = pydantic.Field(
        default_factory=dict, description="Terms by category, beside the default ones of models/personas/safety.py."
    )
    unsafe_categories: list[str] = pydantic.Field(
        default_factory=list, description="What the language model may flag as well; empty: it is not asked."
    )
    warm: bool = pydantic.Field(False, description="First asks for every user of personas/user_personas.")
    replay: bool = pydantic.Field(False, description="First queues the dead letters again.")


class Means(NamedTuple):
    """The resources that personas are refreshed and read with.

    Attributes:
        tables: The warehouse.
        features: Where personas are served from.
        ledger: Where the queue is.
        language_model: What writes.
        text_encoder: Part of the version.
        tracking: Where a released student is registered.
    """

    tables: Tables
    features: Features
    ledger: Ledger
    language_model: LanguageModel
    text_encoder: TextEncoder
    tracking: Tracking


def _shared(
    means: Means,
    config: RefreshConfig,
) -> dict[str, Any]:
    from models.personas.freshness import FreshnessConfig

    tables, engine, encoder = means.tables, means.language_model.engine(), means.text_encoder.encoder()
    student = released_student(config.writer, means.language_model, tables, means.tracking)
    interests, exploration = knobs_of(config)
    return {
        "engine": engine,
        "student": student,
        "encoder": encoder,
        "interests": interests,
        "exploration": exploration,
        "persona_version": version_in_force(tables, engine, encoder, interests, exploration, student),
        "freshness": FreshnessConfig(window=config.window, max_age_seconds=config.max_age_days * 86_400),
        "queue": means.ledger.persona_queue(),
        "store": means.features.persona_store(),
    }


def refresh_config(
    means: Means,
    config: RefreshConfig,
    owner: str,
) -> "persona_refresh.Config":
    """Config of the job that drains the queue.

    Args:
        means: What it works with.
        config: Knobs.
        owner: Name of the drain.
    """
    from models.personas.safety import SafetyConfig
    from ray_jobs.personas import refresh as persona_refresh
    from ray_jobs.personas import writing as persona_writing

    shared = _shared(means, config)
    writing = persona_writing.Config(
        warehouse=means.tables.warehouse(),
        version="",
        code_version=CODE_VERSION,
        users_per_batch=config.users_per_batch,
        num_actors=config.num_actors,
        **{k: shared.pop(k) for k in ("engine", "student", "encoder", "interests", "exploration", "persona_version")},
    )
    safety = SafetyConfig(
        terms={category: tuple(terms) for category, terms in config.unsafe_terms.items()},
        categories=tuple(config.unsafe_categories),
    )
    return persona_refresh.Config(
        writing=writing,
        owner=owner,
        safety=safety,
        token_budget=config.token_budget,
        lease_seconds=config.lease_seconds,
        **shared,
    )


def reader_config(
    means: Means,
    config: RefreshConfig | None = None,
) -> "persona_serving.Config":
    """Config of `ray_jobs.personas.serving.PersonaReader`, for whoever serves requests.

    Make it again when the version in force changes: after `personas/user_personas` was materialized.

    Args:
        means: What it works with.
        config: The knobs of the drain.
    """
    from ray_jobs.personas import serving as persona_serving

    shared = _shared(means, config or RefreshConfig.model_validate({}))
    kept = ("interests", "persona_version", "freshness", "queue", "store")
    catalogue = persona_serving.load_catalogue(means.tables.warehouse())
    return persona_serving.Config(catalogue=catalogue, **{k: shared[k] for k in kept})


def retriever_config(means: Means, config: RefreshConfig | None = None, budget: int = 50) -> "persona_retrieval.Config":
    """Config of `ray_jobs.personas.retrieval.PersonaRetriever`, for whoever serves candidates.

    Args:
        means: What it works with.
        config: The knobs of the drain.
        budget: Items of a request.
    """
    from models.personas.retrieval import RetrievalConfig
    from ray_jobs.personas import retrieval as persona_retrieval

    return persona_retrieval.Config(
        reader=reader_config(means, config),
        warehouse=means.tables.warehouse(),
        encoder=means.text_encoder.encoder(),
        retrieval=RetrievalConfig(budget=budget),
    )


def ask_for_written(tables: Tables, job: "persona_refresh.Config") -> int:
    """Asks for a refresh of every user of `personas/user_personas`, whose texts are paid for already.

    Returns:
        How many were not known to the queue, or not lately.
    """
    from ray_jobs.personas.batches import history_digests
    from ray_jobs.personas.planning import read_newest
    from ray_jobs.personas.queue import Wanted

    users = tables.read(USER_PERSONAS, ["user_id"])["user_id"].to_pylist()
    asked = 0
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        history = read_newest(tables.warehouse(), some, job.freshness.window)
        digests = history_digests(history, job.writing.interests, job.freshness.window)
        wanted = [Wanted(u, "missing", clusters, job.writing.persona_version) for u, clusters in digests.items()]
        asked += sum(job.queue.enqueue(wanted))
    return asked


def tokens_today(tables: Tables, now: dt.datetime | None = None) -> int:
    """Tokens that writing personas has cost since midnight (UTC), by whomever: texts and dead letters bear their cost.

    Args:
        tables: The warehouse.
        now: The moment; the clock's by default.
    """
    midnight = (now or dt.datetime.now(dt.UTC)).replace(hour=0, minute=0, second=0, microsecond=0)
    spent = 0
    for table in (PERSONA_STORE, PERSONA_DEAD_LETTERS):
        if tables.warehouse().exists(table):
            columns = ["prompt_tokens", "completion_tokens"]
            found = tables.read(table, columns, pc.field("created_timestamp") >= pc.scalar(midnight))
            spent += sum(pc.sum(found[name]).as_py() or 0 for name in columns)
    return spent


def observed(queue: "PersonaQueue", max_age_seconds: float, persona_version: str) -> dict[str, int | float]:
    """What the queue looks like, as metadata."""
    stats, freshness = queue.stats(), queue.freshness(max_age_seconds, persona_version)
    return {
        "queue_depth": stats.depth,
        "queue_due": stats.due,
        "queue_leased": stats.leased,
        "queue_oldest_seconds": round(stats.oldest_seconds, 1),
        "dead_refreshes": stats.failed,
        "served_users": freshness.users,
        "stale_users": freshness.stale,
        "share_stale": round(freshness.share_stale, 4),
    }
