"""The asset `vista/history_models`."""

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
from assets.vista import history_report
from assets.vista.history_tracking import log_comparison
from models.identity import version_of
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.history import HISTORY_MODELS
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS

CODE_VERSION = "2"
MODELS = ("sasrec", "hstu", "vista", "vista_causal", "din", "sim", "twin", "mtgr")
VARIANTS = ("sim_hard", "vista_softmax", "vista_no_reconstruction")
OBJECTIVES = ("next_item", "click")
RATES, DROPOUTS = (2e-3, 5e-3), (0.1, 0.4)


class HistoryModelsConfig(Knobs):
    """How models of long histories are compared. Alike for all families: nothing is tuned for one of them."""

    families: list[str] = pydantic.Field(
        [*MODELS], description="Families, and variants of them: `sim_hard`, `vista_softmax`, `vista_no_reconstruction`."
    )
    objectives: list[str] = pydantic.Field([*OBJECTIVES], description="`next_item` and `click`.")
    seeds: int = pydantic.Field(5, ge=1, description="Trainings of each family's chosen trial, with seeds 0, 1, ...")
    learning_rates: list[float] = pydantic.Field([*RATES], description="Trials: each of these with each dropout.")
    dropouts: list[float] = pydantic.Field([*DROPOUTS], description="Trials: each of these with each learning rate.")
    next_item_epochs: int = pydantic.Field(20, ge=1, description="Most epochs of `next_item`.")
    click_epochs: int = pydantic.Field(8, ge=1, description="Most epochs of `click`.")
    patience: int = pydantic.Field(3, ge=1, description="Epochs without a better metric on valid before it stops.")
    width: int = pydantic.Field(32, ge=1, description="Width of a token.")
    heads: int = pydantic.Field(2, ge=1, description="Attention heads; the width is a multiple of them.")
    layers: int = pydantic.Field(2, ge=1, description="Blocks.")
    history_events: int = pydantic.Field(200, ge=1, description="Most events of a history; the newest are kept.")
    block_examples: int = pydantic.Field(
        16, ge=1, description="Examples of a user that share one history; fewer cost more, and see newer events."
    )
    num_negatives: int = pydantic.Field(64, ge=1, description="Items that targets are told from, by scoring models.")
    valid_users: int | None = pydantic.Field(
        None, ge=1, description="Users who decide after each epoch of `next_item`; None: all. Trials are judged by all."
    )
    arguments: dict[str, Any] = pydantic.Field(
        {"click/sasrec": {"token": "event"}}, description="More constructor arguments, by family or objective/family."
    )
    use_semantic_ids: bool = pydantic.Field(False, description="Whether items also carry their semantic ID's codes.")
    recbole_environment: str = pydantic.Field(
        "", description="Folder of an environment with RecBole, made if it is not there; empty: no peer."
    )
    recbole_seeds: int = pydantic.Field(5, ge=1, description="Trainings of RecBole's SASRec.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users and seeds.")
    cpus: int = pydantic.Field(1, ge=1, description="CPUs of a training; as many run at once as the cluster has.")
    gpus: float = pydantic.Field(0.0, ge=0, description="GPUs of a training; a fraction lets several share one.")


COPIED = (
    "width",
    "heads",
    "layers",
    "history_events",
    "block_examples",
    "num_negatives",
    "valid_users",
    "patience",
    "arguments",
)


def job_config(tables: Tables, config: HistoryModelsConfig) -> Any:
    """The job's config.

    Raises:
        ValueError: If a family or an objective is unknown, or there is none.
    """
    for field, given, known in (
        ("families", config.families, (*MODELS, *VARIANTS)),
        ("objectives", config.objectives, OBJECTIVES),
    ):
        if not given or not set(given) <= set(known):
            raise ValueError(f"{field} is {given}: give some of {', '.join(known)}.")
    from ray_jobs.histories.comparison import Config
    from ray_jobs.histories.peers.recbole_environment import python_of

    semantic = tables.version(SEMANTIC_IDS) if config.use_semantic_ids else None
    trials = [{"learning_rate": rate, "dropout": drop} for drop in config.dropouts for rate in config.learning_rates]
    environment = config.recbole_environment
    return Config.model_validate(
        {
            "warehouse": tables.warehouse(),
            "artifacts": tables.artifacts(),
            "inputs": {
                "raw_interactions": tables.version(RAW_INTERACTIONS),
                "splits": tables.version(SPLITS),
                "semantic_ids": semantic,
            },
            "families": config.families,
            "objectives": config.objectives,
            "seeds": range(config.seeds),
            "peer_seeds": range(config.recbole_seeds),
            "grid": trials,
            "epochs": {"next_item": config.next_item_epochs, "click": config.click_epochs},
            "peer_python": python_of(environment) if environment else None,
            **{name: getattr(config, name) for name in (*COPIED, "resamples", "cpus", "gpus")},
        }
    )


def said_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The table, the verdicts and the plot."""
    said = history_report.verdicts(lines)
    return {
        "table": dg.MetadataValue.md(history_report.table_markdown(lines)),
        "verdicts": dg.MetadataValue.md("\n".join(f"- {line}" for line in said) or "nothing to compare"),
        "plot": inline(history_report.plot(lines), "metrics of all models with intervals"),
        "published_shape": "VISTA within 0.002 AUC of HSTU or better, and above DIN (arXiv 2510.22049, Table 2)",
    }


@dg.asset(
    key=["vista", "history_models"],
    group_name="vista",
    deps=[table.name.split("/") for table in (RAW_INTERACTIONS, SPLITS, SEMANTIC_IDS)],
    code_version=CODE_VERSION,
    **experiment("compare_history_models"),
    metadata=definition_metadata(HISTORY_MODELS),
)
@data_errors_are_final
def history_models(
    context: dg.AssetExecutionContext,
    config: HistoryModelsConfig,
    tables: Tables,
    ray_jobs: RayJobs,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """Which model of long histories foretells best: every family's metrics, beside floors, placebos and a peer.

    Grain: an objective, a model, a metric and a baseline (empty for the metric itself), with a 95% interval over users
    and seeds. Read by analysts. On demand, by the job `compare_history_models`: no refresh makes it. Every choice was
    made on the split `valid`; `test` was read once.

    If this is red: the sentence names the input that is missing or the training that failed; materialize the input, or
    run the job again. Finished trainings are kept, so that only what is missing is trained.
    """
    report = Report(HISTORY_MODELS)
    job = job_config(tables, config)
    params = config.model_dump(exclude={"cpus", "gpus", "recbole_environment"}) | {"peer": job.peer_python is not None}
    inputs = job.inputs.model_dump()
    version = version_of(inputs=inputs, code=CODE_VERSION, config=params)
    if tables.is_current(HISTORY_MODELS, version):
        lines = tables.read(HISTORY_MODELS).to_pylist()
        return report.unchanged(tables, version, metadata=said_of(lines) | {"training_runs": 0})
    result = ray_jobs.run(context, "histories.comparison", job)
    created = {"created_timestamp": dt.datetime.now(dt.UTC)}
    lines = [line.model_dump() | created for line in result.lines]
    params |= {f"version.{name}": found for name, found in inputs.items()}
    run_url = log_comparison(context, tracking, tables, version, params, result, lines)
    data = pa.Table.from_pylist(lines, HISTORY_MODELS.schema)
    written = tables.write(HISTORY_MODELS, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata=said_of(lines)
        | {
            "trials": dg.MetadataValue.md(history_report.trials_markdown(result.tuned)),
            "mlflow_run": dg.MetadataValue.url(run_url),
            "training_runs": result.num_trained,
            "trainings_found": result.num_found,
        },
    )
