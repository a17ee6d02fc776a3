"""The trained VISTA: inputs are events, labelled examples and semantic IDs; one Ray Train run a version."""

import datetime as dt
import json
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import GPU_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, Tracking
from assets.vista.charts import training_curve
from assets.vista.tracking import log_training
from models.identity import version_of
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from ray_jobs.tables.vista import VISTA_MODELS

# Bump it too when a default of `ray_jobs.vista.training.Config` that is no knob here changes.
CODE_VERSION = "2"


class SummarizerConfig(Knobs):
    """Knobs of the model and of its training."""

    family: str = pydantic.Field("vista", description="`vista`, or `vista_causal`: new events extend its cache.")
    num_seeds: int = pydantic.Field(16, ge=1, description="Summary tokens of a user.")
    width: int = pydantic.Field(32, ge=1, description="Width of a token.")
    heads: int = pydantic.Field(2, ge=1, description="Attention heads; the width is a multiple of them.")
    layers: int = pydantic.Field(2, ge=1, description="Blocks of stage 1.")
    target_layers: int = pydantic.Field(1, ge=1, description="Blocks of stage 2.")
    attention: str = pydantic.Field("quasi_linear", description="`quasi_linear` or `softmax`, in stage 1.")
    reconstruction_weight: float = pydantic.Field(0.1, ge=0, description="Weight of the reconstruction loss; 0: none.")
    stop_gradient: bool = pydantic.Field(True, description="Whether reconstruction targets are constants.")
    history_events: int = pydantic.Field(128, ge=1, description="Most events of a history; the newest are kept.")
    block_examples: int = pydantic.Field(16, ge=1, description="Examples that share a history; staleness of the cache.")
    batch_blocks: int = pydantic.Field(64, ge=1, description="Most blocks in a batch.")
    epochs: int = pydantic.Field(4, ge=1, description="Most epochs.")
    patience: int = pydantic.Field(2, ge=1, description="Epochs without a better AUC on valid before it stops.")
    learning_rate: float = pydantic.Field(5e-3, gt=0, description="Learning rate.")
    epoch_decay: float = pydantic.Field(0.6, gt=0, le=1, description="Factor on the rate after every epoch.")
    embedding_std: float = pydantic.Field(0.1, gt=0, description="Spread of new embeddings.")
    amp: str = pydantic.Field("off", description="`off` or `bf16`.")
    seed: int = pydantic.Field(0, description="Seed of weights, dropout and order.")
    use_semantic_ids: bool = pydantic.Field(True, description="Whether items also carry their semantic ID's codes.")


@dg.asset(
    key=["vista", "summarizer"],
    group_name="vista",
    kinds={"ray", "pytorch", "mlflow"},
    pool=GPU_POOL,
    deps=[["interactions", "raw_interactions"], ["interactions", "splits"], ["clusters", "semantic_ids"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(VISTA_MODELS),
    tags={"tier": "gold"},
)
@data_errors_are_final
def summarizer(
    context: dg.AssetExecutionContext, config: SummarizerConfig, tables: Tables, ray_jobs: RayJobs, tracking: Tracking
) -> dg.MaterializeResult:
    """The trained VISTA model, which turns a user's whole history into a few summary tokens.

    One row: the model in force, its metrics and its artifact. Point in time: a history holds only what came before
    its candidates. `vista/user_summaries` is exported from it. If this is red: run it again; training resumes after
    its last whole epoch and nothing finished is trained twice. A red `auc_above_floor` means that it learned nothing:
    look at the curve, then at `interactions/splits`.
    """
    report = Report(VISTA_MODELS)
    inputs = {
        "raw_interactions": tables.version(RAW_INTERACTIONS),
        "splits": tables.version(SPLITS),
        "semantic_ids": tables.warehouse().version(SEMANTIC_IDS) if config.use_semantic_ids else None,
    }
    version = version_of(inputs=inputs, params=config.model_dump(), code=CODE_VERSION)
    if tables.is_current(VISTA_MODELS, version):
        return report.unchanged(tables, version, {"training_runs": 0, "epochs_run": 0})
    job = _job(config, tables, ray_jobs, inputs)
    fitted = ray_jobs.run(context, "vista.training", job).fitted
    params = config.model_dump() | {f"{name}_version": found for name, found in inputs.items()}
    url = log_training(
        context,
        tracking,
        tables,
        fitted,
        params=params,
        tags={f"{name}_version": str(found) for name, found in inputs.items()}
        | {"split_rule": "interactions/splits.split"},
    )
    rows = _row(fitted, params, tables)
    written = tables.write(VISTA_MODELS, rows, version)
    return report.result(
        version=version,
        data=rows,
        committed=written.committed,
        metadata=fitted.final_metrics
        | {
            "training_runs": int(fitted.trained),
            "epochs": fitted.epochs,
            "epochs_run": fitted.epochs_run,
            "best_epoch": fitted.best_epoch,
            "resumed_from_epoch": fitted.resumed_from_epoch,
            "usd": 0.0,
            "train_seconds": fitted.seconds,
            "num_parameters": fitted.num_parameters,
            "num_tokens": config.num_seeds,
            "width": config.width,
            "model_version": fitted.name,
            "artifact": tables.artifacts().uri(fitted.artifact),
            "mlflow_run": dg.MetadataValue.url(url),
            "training_curve": training_curve(fitted.history, fitted.best_epoch),
        },
    )


def _job(config: SummarizerConfig, tables: Tables, ray_jobs: RayJobs, inputs: dict[str, str | None]) -> Any:
    """The job's config; imports torch, so only when there is something to train."""
    from ray_jobs.histories.data import Inputs
    from ray_jobs.training_task import TrainingOptions
    from ray_jobs.vista import training as vista_training

    asked = config.model_dump()
    network = vista_training.Network(**{k: v for k, v in asked.items() if k in vista_training.Network.model_fields})
    standard = vista_training.Config.model_fields["training"].default.model_dump()
    training = TrainingOptions(**standard | {k: v for k, v in asked.items() if k in TrainingOptions.model_fields})
    return vista_training.Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        inputs=Inputs.model_validate(inputs),
        family=config.family,
        network=network,
        training=training,
        history_events=config.history_events,
        block_examples=config.block_examples,
        batch_blocks=config.batch_blocks,
        **ray_jobs.placement(),
    )


def _row(fitted: Any, params: dict[str, Any], tables: Tables) -> pa.Table:
    """The row of the model."""
    final = fitted.final_metrics
    newest = pc.max(tables.read(RAW_INTERACTIONS, ["timestamp"])["timestamp"]).as_py()
    return pa.Table.from_pylist(
        [
            {
                "model_version": fitted.name,
                "artifact": fitted.artifact,
                "valid_auc": final["valid_auc"],
                "valid_auc_low": final["valid_auc_low"],
                "valid_auc_high": final["valid_auc_high"],
                "valid_logloss": final["valid_logloss"],
                "valid_examples": int(final["valid_examples"]),
                "test_auc": final["test_auc"],
                "best_epoch": fitted.best_epoch,
                "epochs": fitted.epochs,
                "num_parameters": fitted.num_parameters,
                "num_tokens": params["num_seeds"],
                "width": params["width"],
                "params": json.dumps(params, sort_keys=True),
                "metrics": json.dumps({"final": final, "history": fitted.history}, sort_keys=True),
                "event_timestamp": newest,
                "created_timestamp": dt.datetime.now(dt.UTC),
            }
        ],
        VISTA_MODELS.schema,
    )
