"""The asset `ranking/content_ablation`."""

import datetime as dt
from typing import Any

import dagster as dg
import pyarrow as pa
import pydantic

from assets.failures import data_errors_are_final
from assets.figures import inline
from assets.knobs import Knobs
from assets.policies import experiment
from assets.ranking import ablation_report
from assets.ranking.ablation_tracking import log_experiment
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, Tracking
from models.identity import version_of
from ray_jobs.tables.captions import CAPTION_EMBEDDINGS, ITEM_CAPTIONS
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.tables.ranking import CONTENT_ABLATION

CODE_VERSION = "1"
INPUTS = (TRAINING_SET, SPLITS, ITEMS, ITEM_CAPTIONS, CAPTION_EMBEDDINGS)
ARMS = ("none", "title", "dense", "tokens", "tokens_dense")
RULES = ("global_time", "leave_one_out")
PLACEBOS = ("title_permuted", "dense_permuted", "tokens_permuted", "tokens_random")


class AblationConfig(Knobs):
    """How the experiment is run. The same for all arms; nothing is tuned for one of them."""

    seeds: int = pydantic.Field(5, ge=1, description="Trainings of each arm under each rule, with seeds 0, 1, ...")
    split_rules: list[str] = pydantic.Field([*RULES], description="How examples are split.")
    contents: list[str] = pydantic.Field([*ARMS, *PLACEBOS], description="Arms and placebos; `none` is always run.")
    item_ids: list[bool] = pydantic.Field([True, False], description="Whether items have IDs beside their content.")
    epochs: int = pydantic.Field(30, ge=1, description="Most epochs; training stops early by AUC on validation.")
    patience: int = pydantic.Field(3, ge=1, description="Epochs without a better AUC before it stops.")
    learning_rate: float = pydantic.Field(5e-3, gt=0, description="Learning rate.")
    batch_size: int = pydantic.Field(2048, ge=1, description="Most examples in a batch.")
    width: int = pydantic.Field(32, ge=1, description="Width of embeddings.")
    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users and seeds.")
    cpus: int = pydantic.Field(1, ge=1, description="CPUs of a training; as many run at once as the cluster has.")
    gpus: float = pydantic.Field(0.0, ge=0, description="GPUs of a training; a fraction lets several share one.")


def job_config(tables: Tables, config: AblationConfig) -> Any:
    """The job's config.

    Raises:
        ValueError: If an arm or a split rule is unknown, or there is none.
    """
    for field, given, known in (
        ("contents", config.contents, (*ARMS, *PLACEBOS)),
        ("split_rules", config.split_rules, RULES),
        ("item_ids", config.item_ids, (True, False)),
    ):
        if not given or not set(given) <= set(known):
            raise ValueError(f"{field} is {given}: give some of {', '.join(map(str, known))}.")
    from ray_jobs.ranking.content_ablation import Config
    from ray_jobs.ranking.training import Network
    from ray_jobs.training_task import TrainingOptions

    options = TrainingOptions(
        epochs=config.epochs, patience=config.patience, learning_rate=config.learning_rate, weight_decay=1e-2
    )
    return Config.model_validate(
        {
            "warehouse": tables.warehouse(),
            "artifacts": tables.artifacts(),
            "inputs": {table.name: tables.version(table) for table in INPUTS},
            "code": CODE_VERSION,
            "training_set": tables.version(TRAINING_SET),
            "split_rules": config.split_rules,
            "contents": config.contents,
            "item_ids": config.item_ids,
            "seeds": range(config.seeds),
            "network": Network(width=config.width),
            "training": options,
            **{name: getattr(config, name) for name in ("batch_size", "resamples", "cpus", "gpus")},
        }
    )


def said_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The table, the verdicts and the plot."""
    said = ablation_report.verdicts(lines)
    return {
        "table": dg.MetadataValue.md(ablation_report.table_markdown(lines)),
        "verdicts": dg.MetadataValue.md("\n".join(f"- {line}" for line in said) or "no arm to judge"),
        "forest": inline(ablation_report.forest_plot(lines), "differences in AUC with intervals"),
        "lifts_that_count": sum(bool(x["counts"]) for x in lines),
        "lifts_judged": len(said),
        "published_lift": "+0.35% AUC, relative (arXiv 2605.09338, abstract)",
    }


@dg.asset(
    key=["ranking", "content_ablation"],
    group_name="ranking",
    deps=[table.name.split("/") for table in INPUTS],
    code_version=CODE_VERSION,
    **experiment("content_ablation"),
    metadata=definition_metadata(CONTENT_ABLATION),
)
@data_errors_are_final
def content_ablation(
    context: dg.AssetExecutionContext, config: AblationConfig, tables: Tables, ray_jobs: RayJobs, tracking: Tracking
) -> dg.MaterializeResult:
    """What content is worth to the ranker: every arm's metrics, and its lift over no content, judged by placebos.

    Grain: a split rule, an arm, a slice, a metric and a baseline (empty for the metric itself), with a 95% interval
    over users and seeds. Read by analysts. On demand, by the job `content_ablation`: no refresh makes it. A lift counts
    only if its interval excludes zero and those of its placebos cover zero.

    If this is red: the sentence names the input that is missing or the arm that failed; materialize the input, or run
    the job again. Finished trainings are kept, so that only what is missing is trained.
    """
    report = Report(CONTENT_ABLATION)
    job = job_config(tables, config)
    version = version_of(inputs=job.inputs, code=CODE_VERSION, config=config.model_dump(exclude={"cpus", "gpus"}))
    if tables.is_current(CONTENT_ABLATION, version):
        lines = tables.read(CONTENT_ABLATION).to_pylist()
        return report.unchanged(tables, version, metadata=said_of(lines) | {"training_runs": 0})
    result = ray_jobs.run(context, "ranking.content_ablation", job)
    created = {"created_timestamp": dt.datetime.now(dt.UTC)}
    lines = [line.model_dump() | created for line in result.lines]
    params = config.model_dump() | {f"version.{name}": found for name, found in job.inputs.items()}
    run_url = log_experiment(context, tracking, tables, version, params, result, lines)
    data = pa.Table.from_pylist(lines, CONTENT_ABLATION.schema)
    written = tables.write(CONTENT_ABLATION, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata=said_of(lines)
        | {
            "mlflow_run": dg.MetadataValue.url(run_url),
            "training_runs": result.num_trained,
            "trainings_found": result.num_found,
            "left_out": dg.MetadataValue.md("\n".join(f"- {x}" for x in result.left_out) or "nothing"),
        },
    )
