"""User personas: inputs are splits, items, captions and clusters; the version is theirs with model and prompts."""

from typing import TYPE_CHECKING, Literal

import dagster as dg
import pydantic

from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.personas.samples import sample_personas
from assets.personas.students import released_student
from assets.policies import LLM_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import LanguageModel, RayJobs, Tables, TextEncoder, Tracking
from models.identity import version_of
from ray_jobs.tables.clusters import CLUSTER_PROFILES, SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.tables.personas import PERSONA_COVERAGE, USER_PERSONAS

if TYPE_CHECKING:
    from models.personas.exploration import ExplorationConfig
    from models.personas.interests import InterestConfig
    from ray_jobs.language.engine import LanguageEngineConfig
    from ray_jobs.personas.writers import StudentConfig
    from ray_jobs.text_encoding import TextEncoderConfig

CODE_VERSION = "2"
NOTHING_SPENT = dict.fromkeys(["llm_calls", "prompt_tokens", "completion_tokens", "usd"], 0) | {"cache_hit_rate": 1.0}


class PersonasConfig(Knobs):
    """Knobs of the personas."""

    writer: str = pydantic.Field("", description="`teacher` or `student`; empty: the platform's choice.")
    token_budget: int = pydantic.Field(0, ge=0, description="Tokens that all may cost; 0: the platform's budget.")
    min_events: int = pydantic.Field(10, ge=1, description="Least number of events of a user with enough history.")
    min_likes: int = pydantic.Field(5, ge=1, description="Least number of liked items of such a user.")
    max_interests: int = pydantic.Field(3, ge=1, description="Interests of a persona.")
    num_explorations: int = pydantic.Field(2, ge=0, description="Novel topics of a persona.")
    grouping: Literal["semantic_ids", "salient_terms"] = pydantic.Field(
        "semantic_ids", description="What interests are: clusters of semantic IDs, or the user's own groups by terms."
    )
    users_per_batch: int = pydantic.Field(16, ge=1, description="Users that are written, and stored, together.")
    num_actors: int = pydantic.Field(1, ge=1, description="Loaded models.")


@dg.asset(
    key=["personas", "user_personas"],
    group_name="personas",
    kinds={"ray", "llm", "deltalake"},
    deps=[
        ["interactions", "splits"],
        ["interactions", "items"],
        ["clusters", "semantic_ids"],
        ["clusters", "cluster_profiles"],
        ["captions", "item_captions"],
    ],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    pool=LLM_POOL,
    metadata=definition_metadata(USER_PERSONAS),
    tags={"tier": "gold", "pii": "true", "cost-class": "llm"},
)
@data_errors_are_final
def user_personas(
    context: dg.AssetExecutionContext,
    config: PersonasConfig,
    tables: Tables,
    ray_jobs: RayJobs,
    language_model: LanguageModel,
    text_encoder: TextEncoder,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Natural-language persona of each user within the token budget: interests shown by items, and what is new to try.

    One row a user, the most active first; the rest is counted in `personas/coverage`. `features/user_personas` serves
    its embedding. Texts are kept by content in `personas/persona_store`, so nothing is paid for twice.
    If this is red: the model could not be reached (the error names it), or a check found a persona that its user's
    history does not carry; run `rematerialize_failed`, what was written is kept.
    """
    from ray_jobs.personas import writing as persona_writing
    from ray_jobs.personas.writers import writer_identity

    report, engine, encoder = Report(USER_PERSONAS), language_model.engine(), text_encoder.encoder()
    interests, exploration = knobs_of(config)
    budget = config.token_budget or language_model.persona_token_budget
    student = released_student(config.writer, language_model, tables, tracking)
    persona_version = version_in_force(tables, engine, encoder, interests, exploration, student)
    version = version_of(
        personas=persona_version, splits=tables.version(SPLITS), items=tables.version(ITEMS), budget=budget
    )
    if tables.is_current(USER_PERSONAS, version):
        return report.unchanged(tables, version, coverage(tables) | NOTHING_SPENT | {"model": engine.named})
    job = persona_writing.Config(
        warehouse=tables.warehouse(),
        engine=engine,
        student=student,
        encoder=encoder,
        version=version,
        persona_version=persona_version,
        code_version=CODE_VERSION,
        interests=interests,
        exploration=exploration,
        token_budget=budget,
        users_per_batch=config.users_per_batch,
        num_actors=config.num_actors,
    )
    done = ray_jobs.run(context, "personas.writing", job)
    data = tables.read(USER_PERSONAS)
    return report.result(
        version=version,
        data=data,
        committed=done.committed,
        metadata=coverage(tables)
        | {
            "llm_calls": done.llm_calls,
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "usd": engine.usd(done.prompt_tokens, done.completion_tokens),
            "cache_hit_rate": round(done.cache_hit_rate, 4),
            "personas_without_exploration": sum(not e for e in data["explorations"].to_pylist()),
            "model": engine.named,
            **writer_identity(student),
            "samples": sample_personas(data),
        },
    )


def knobs_of(config: PersonasConfig) -> tuple["InterestConfig", "ExplorationConfig"]:
    """The knobs as interests and explorations take them."""
    from models.personas.exploration import ExplorationConfig
    from models.personas.interests import InterestConfig

    interests = InterestConfig(**config.model_dump(include={"min_events", "min_likes", "max_interests", "grouping"}))
    return interests, ExplorationConfig(num_anchors=config.num_explorations)


def version_in_force(
    tables: Tables,
    engine: "LanguageEngineConfig",
    encoder: "TextEncoderConfig",
    interests: "InterestConfig",
    exploration: "ExplorationConfig",
    student: "StudentConfig | None",
) -> str:
    """Version of the personas that these models and knobs write from the tables as they are."""
    from ray_jobs.personas.writers import writer_identity

    return version_of(
        ids=tables.version(SEMANTIC_IDS),
        profiles=tables.version(CLUSTER_PROFILES),
        engine=engine.identity,
        encoder=encoder.identity,
        interests=interests,
        exploration=exploration,
        code=CODE_VERSION,
        **writer_identity(student),
    )


def coverage(tables: Tables) -> dict[str, int]:
    """How many users have a persona and why the others have none, as metadata."""
    (row,) = tables.read(PERSONA_COVERAGE, [c.name for c in PERSONA_COVERAGE.columns[:-1]]).to_pylist()
    return row
