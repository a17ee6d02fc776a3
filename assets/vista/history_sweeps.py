"""The asset `vista/history_sweeps`."""

import datetime as dt
from typing import Any

import dagster as dg
import pyarrow as pa
import pydantic

from assets.failures import data_errors_are_final
from assets.figures import inline
from assets.knobs import Knobs
from assets.policies import experiment
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, Tracking
from assets.vista import sweep_report
from assets.vista.history_tracking import log_sweeps
from models.identity import version_of
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.history import HISTORY_SWEEPS
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS

CODE_VERSION = "2"
SWEEPS = ("seeds", "precision", "staleness", "length")


class HistorySweepsConfig(Knobs):
    """What is swept, and the model in the middle."""

    sweeps: list[str] = pydantic.Field([*SWEEPS], description="Which sweeps.")
    num_seeds: list[int] = pydantic.Field([4, 8, 16, 32, 64], description="Summary tokens, each trained.")
    precisions: list[str] = pydantic.Field(["fp32", "fp16", "int8", "int4"], description="Of kept summaries.")
    missed: list[int] = pydantic.Field([0, 1, 5, 20, 100], description="Newest events that a summary has not seen.")
    lengths: list[int] = pydantic.Field(
        [10, 25, 50, 100, 200, 1_000_000], description="Most events seen, each trained; a million is all."
    )
    seeds: int = pydantic.Field(5, ge=1, description="Trainings of each point, with seeds 0, 1, ...")
    epochs: int = pydantic.Field(8, ge=1, description="Most epochs.")
    width: int = pydantic.Field(32, ge=1, description="Width of a token.")
    dropout: float = pydantic.Field(0.2, ge=0, lt=1, description="Dropout.")
    history_events: int = pydantic.Field(200, ge=1, description="Most events of a history, but for its own sweep.")
    use_semantic_ids: bool = pydantic.Field(False, description="Whether items also carry their semantic ID's codes.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users and seeds.")
    cpus: int = pydantic.Field(1, ge=1, description="CPUs of a training; as many run at once as the cluster has.")
    gpus: float = pydantic.Field(0.0, ge=0, description="GPUs of a training; a fraction lets several share one.")


COPIED = ("sweeps", "num_seeds", "precisions", "missed", "lengths", "history_events", "resamples", "cpus", "gpus")


def job_config(tables: Tables, config: HistorySweepsConfig) -> Any:
    """The job's config.

    Raises:
        ValueError: If a sweep is unknown, or there is none.
    """
    if not config.sweeps or not set(config.sweeps) <= set(SWEEPS):
        raise ValueError(f"sweeps is {config.sweeps}: give some of {', '.join(SWEEPS)}.")
    from ray_jobs.histories.sweeps import Config

    standard = Config.model_fields
    return Config.model_validate(
        {
            "warehouse": tables.warehouse(),
            "artifacts": tables.artifacts(),
            "inputs": {
                "raw_interactions": tables.version(RAW_INTERACTIONS),
                "splits": tables.version(SPLITS),
                "semantic_ids": tables.version(SEMANTIC_IDS) if config.use_semantic_ids else None,
            },
            "seeds": range(config.seeds),
            "training": standard["training"].default.model_copy(update={"epochs": config.epochs}),
            "arguments": standard["arguments"].default | {"width": config.width, "dropout": config.dropout},
            **{name: getattr(config, name) for name in COPIED},
        }
    )


def said_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """A table and a plot of each sweep."""
    made: dict[str, Any] = {}
    for sweep in dict.fromkeys(x["sweep"] for x in lines):
        made[f"{sweep}_table"] = dg.MetadataValue.md(sweep_report.table_markdown(lines, sweep))
        made[f"{sweep}_plot"] = inline(sweep_report.plot(lines, sweep), f"AUC and cost by {sweep}")
    return made


@dg.asset(
    key=["vista", "history_sweeps"],
    group_name="vista",
    deps=[table.name.split("/") for table in (RAW_INTERACTIONS, SPLITS, SEMANTIC_IDS)],
    code_version=CODE_VERSION,
    **experiment("sweep_summaries"),
    metadata=definition_metadata(HISTORY_SWEEPS),
)
@data_errors_are_final
def history_sweeps(
    context: dg.AssetExecutionContext,
    config: HistorySweepsConfig,
    tables: Tables,
    ray_jobs: RayJobs,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """What a summary of a history may cost: VISTA's metrics by seeds, precision, staleness and length, beside the cost.

    Grain: a sweep, a point and a metric, with a 95% interval over users and seeds. Read by who sizes the cache and its
    refresh. On demand, by the job `sweep_summaries`: no refresh makes it.

    If this is red: the sentence names the input that is missing or the training that failed; materialize the input, or
    run the job again. Finished trainings are kept, so that only what is missing is trained.
    """
    report = Report(HISTORY_SWEEPS)
    job = job_config(tables, config)
    params, inputs = config.model_dump(exclude={"cpus", "gpus"}), job.inputs.model_dump()
    version = version_of(inputs=inputs, code=CODE_VERSION, config=params)
    if tables.is_current(HISTORY_SWEEPS, version):
        lines = tables.read(HISTORY_SWEEPS).to_pylist()
        return report.unchanged(tables, version, metadata=said_of(lines) | {"points_scored": 0})
    result = ray_jobs.run(context, "histories.sweeps", job)
    created = {"created_timestamp": dt.datetime.now(dt.UTC)}
    lines = [line.model_dump() | created for line in result.lines]
    params |= {f"version.{name}": found for name, found in inputs.items()}
    run_url = log_sweeps(context, tracking, tables, version, params, lines)
    data = pa.Table.from_pylist(lines, HISTORY_SWEEPS.schema)
    written = tables.write(HISTORY_SWEEPS, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata=said_of(lines) | {"mlflow_run": dg.MetadataValue.url(run_url), "points_scored": result.num_scored},
    )
