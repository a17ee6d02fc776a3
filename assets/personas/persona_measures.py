"""Asset `personas/persona_measures`: inputs are the personas and what they were made of."""

import datetime as dt
from typing import Any

import dagster as dg
import pyarrow as pa
import pydantic

from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.personas.measure_report import headline, measures_plot, said_of
from assets.personas.measure_tracking import log_measures
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, TextEncoder, Tracking
from assets.run_inputs import split_rule
from models.identity import version_of
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import CLUSTER_PROFILES, ITEM_EMBEDDINGS, SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.tables.personas import PERSONA_EXAMINED, PERSONA_MEASURES, PERSONA_STUDENTS, USER_PERSONAS

CODE_VERSION = "1"
INPUTS = (USER_PERSONAS, SPLITS, ITEMS, ITEM_CAPTIONS, SEMANTIC_IDS, CLUSTER_PROFILES, ITEM_EMBEDDINGS)
# Where somebody has distilled a student.
IF_THERE = (PERSONA_STUDENTS, PERSONA_EXAMINED)


class MeasuresConfig(Knobs):
    """What the measures are cut by; see `ray_jobs.personas.panel_measures.Knobs`."""

    max_users: int = pydantic.Field(2000, ge=2, description="Users whose planned personas are measured, at random.")
    false_accept_rate: float = pydantic.Field(0.05, gt=0, lt=1, description="Others' citations that pass as grounded.")
    budget: int = pydantic.Field(50, ge=1, description="Items of a request, of which recall is measured.")
    draws: int = pydantic.Field(5, ge=1, description="Random draws of controls, and requests of each user.")
    resamples: int = pydantic.Field(500, ge=1, description="Bootstrap resamples of users.")
    seed: int = pydantic.Field(17, description="Seed of draws and resamples.")


def measures_job(config: MeasuresConfig, tables: Tables, encoder: Any) -> Any:
    """The job's config."""
    from models.personas.retrieval import RetrievalConfig
    from ray_jobs.personas.measures import Config
    from ray_jobs.personas.panel_measures import Knobs

    knobs = config.model_dump(include={"false_accept_rate", "draws", "resamples", "seed"})
    return Config(
        warehouse=tables.warehouse(),
        encoder=encoder,
        max_users=config.max_users,
        knobs=Knobs(retrieval=RetrievalConfig(budget=config.budget), **knobs),
    )


@dg.asset(
    key=["personas", "persona_measures"],
    group_name="personas",
    kinds={"ray", "mlflow", "deltalake"},
    deps=[table.name.split("/") for table in (*INPUTS, PERSONA_STUDENTS)],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(PERSONA_MEASURES),
    tags={"tier": "gold"},
)
@data_errors_are_final
def persona_measures(
    context: dg.AssetExecutionContext,
    config: MeasuresConfig,
    tables: Tables,
    ray_jobs: RayJobs,
    text_encoder: TextEncoder,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """How good personas are, each measure beside its controls, with a 95 % interval over users.

    Grain: a set of personas (those of the table, those that both groupings plan for any user, and those of a student
    and its teacher for held-out users), a split where later events are looked at, a measure, an arm, and a baseline
    where it is a difference. Read by analysts, with ten
    personas and their evidence in MLflow. What looks at later events plans from the training part of each history.
    If this is red: the sentence names the input that is missing; materialize it, or `personas/user_personas` again.
    """
    report, encoder = Report(PERSONA_MEASURES), text_encoder.encoder()
    inputs = {t.name: tables.version(t) for t in INPUTS}
    inputs |= {t.name: found for t in IF_THERE if (found := tables.warehouse().version(t))}
    version = version_of(inputs=inputs, encoder=encoder.identity, code=CODE_VERSION, config=config.model_dump())
    if tables.is_current(PERSONA_MEASURES, version):
        return report.unchanged(tables, version, headline(tables.read(PERSONA_MEASURES).to_pylist()))
    result = ray_jobs.run(context, "personas.measures", measures_job(config, tables, encoder))
    made = {"personas_version": inputs[USER_PERSONAS.name], "created_timestamp": dt.datetime.now(dt.UTC)}
    lines = [line.model_dump() | made for line in result.lines]
    params = config.model_dump() | {f"version.{name}": found for name, found in inputs.items()}
    params["split_rule"] = split_rule(tables)
    plot = measures_plot(lines, params["split_rule"])
    run_url = log_measures(context, tracking, tables, version, params, result, lines, plot)
    data = pa.Table.from_pylist(lines, PERSONA_MEASURES.schema)
    written = tables.write(PERSONA_MEASURES, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata=said_of(lines, plot, result) | {"mlflow_run": dg.MetadataValue.url(run_url)},
    )
