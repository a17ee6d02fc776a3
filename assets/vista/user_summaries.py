"""The cache of summary tokens: inputs are the trained model and all events; one Ray Data export a version."""

import dagster as dg
import pydantic

from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import GPU_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables
from models.identity import version_of
from models.vista.cache import CACHE_CODE, CacheFormat, Precision
from ray_jobs.tables.interactions import RAW_INTERACTIONS
from ray_jobs.tables.vista import USER_SUMMARIES, VISTA_MODELS

CODE_VERSION = "2"


class UserSummariesConfig(Knobs):
    """Knobs of the export. Only the format changes what is stored, and with it the content version."""

    precision: Precision = pydantic.Field(
        "int8", description="How a value is stored: `int8`, `int4`, `fp16` or `fp32`."
    )
    scales_per_token: int = pydantic.Field(1, ge=1, description="Scales of a token, for int8 and int4.")
    incremental: bool = pydantic.Field(
        False, description="Go on from what is stored of each user with new events; falls back to making all anew."
    )
    shards: int = pydantic.Field(8, ge=1, description="Buckets of users; a killed export resumes at the next one.")
    actors: int = pydantic.Field(1, ge=1, description="Ray actors that hold the model.")
    gpus_per_actor: float = pydantic.Field(0.0, ge=0, description="GPUs of each actor.")


@dg.asset(
    key=["vista", "user_summaries"],
    group_name="vista",
    kinds={"ray", "pytorch", "deltalake"},
    deps=[["vista", "summarizer"], ["interactions", "raw_interactions"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    pool=GPU_POOL,
    metadata=definition_metadata(USER_SUMMARIES),
    tags={"tier": "gold", "pii": "true"},
)
@data_errors_are_final
def user_summaries(
    context: dg.AssetExecutionContext, config: UserSummariesConfig, tables: Tables, ray_jobs: RayJobs
) -> dg.MaterializeResult:
    """The cache of VISTA summary tokens: every user's history, as the ranker reads it.

    One row a snapshot: after every block of events (so that training rows can join the summary of their moment) and
    after the last event (`is_latest`, served online); never inside of a tie in time. int8 with one scale a token, or
    as `precision` says. `summary_version` names the model and the format, not the events: rankers refuse another one
    than they learned from. `features` publishes it, `ranking` attends to it. The job `refresh_summaries` brings it up
    to date by new events alone. If this is red: run it again; the export resumes at the next shard of users, and
    readers see the former version until all of it is there.
    """
    report = Report(USER_SUMMARIES)
    model, raw = tables.version(VISTA_MODELS), tables.version(RAW_INTERACTIONS)
    form = CacheFormat(config.precision, config.scales_per_token)
    version = form.versioned(version_of(model=model, raw_interactions=raw, code=CODE_VERSION, cache=CACHE_CODE))
    if tables.is_current(USER_SUMMARIES, version):
        return report.unchanged(tables, version, {"shards_run": 0})
    from ray_jobs.vista import export as vista_export

    row = tables.read(VISTA_MODELS, ["model_version"], expect_version=model)
    done = ray_jobs.run(
        context,
        "vista.export",
        vista_export.Config(
            warehouse=tables.warehouse(),
            artifacts=tables.artifacts(),
            version=version,
            model=row["model_version"][0].as_py(),
            raw_interactions=raw,
            precision=config.precision,
            scales_per_token=config.scales_per_token,
            incremental=config.incremental,
            shards=config.shards,
            actors=config.actors,
            gpus_per_actor=config.gpus_per_actor,
        ),
    )
    return report.result(
        version=version,
        num_rows=done.snapshots,
        committed=done.committed,
        metadata=done.model_dump(exclude={"version", "committed"}) | {"training_runs": 0, "usd": 0.0},
    )
