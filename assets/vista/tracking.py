"""How a trained summariser is told to MLflow: one run and one registered version a model, however often it is asked."""

import base64
import json
from typing import Any

import dagster as dg
import pyarrow.compute as pc

from assets.resources import Tables, Tracking
from assets.run_contents import Figure, log_figures, log_files
from assets.run_inputs import TIE_RULE, codebook_widths, log_dataset, partition_tag, split_rule
from assets.source_revision import source_revision
from assets.vista.charts import training_curve
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS

EXPERIMENT = "vista"
REGISTERED = "vista_summarizer"
MODEL_FOLDER = "model"
PACKAGES = ("numpy", "pyarrow", "safetensors", "torch")


def log_training(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    fitted: Any,
    *,
    params: dict[str, Any],
    tags: dict[str, str],
) -> str:
    """Logs a finished training and registers its model, unless MLflow already knows it.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: Where the model's artifact is.
        fitted: `ray_jobs.training.Fitted`.
        params: Parameters of the run.
        tags: Tags of the run and of the registered version.

    Returns:
        Address of the run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    client = mlflow.MlflowClient()
    known = client.search_model_versions(f"name = '{REGISTERED}' and tags.model_version = '{fitted.name}'")
    if known:
        run = client.get_run(known[0].run_id)
        return tracking.run_url(run.info.experiment_id, run.info.run_id)
    note = (
        f"**Hypothesis**: {params['num_seeds']} summary tokens carry what a history says about the next likes.\n\n"
        f"**Verdict**: AUC {fitted.metrics['auc']:.4f} on valid ({fitted.final_metrics['valid_auc_low']:.4f} to "
        f"{fitted.final_metrics['valid_auc_high']:.4f} over users), "
        f"best of {fitted.epochs} epochs: epoch {fitted.best_epoch}."
    )
    ends = pc.min_max(tables.read(RAW_INTERACTIONS, ["timestamp"])["timestamp"]).as_py()
    first, last = (ends[end].date().isoformat() for end in ("min", "max"))
    with tracking.run(
        context,
        EXPERIMENT,
        f"vista {first}..{last} {source_revision()} {fitted.name[-8:]}",
        params=params
        | {
            "split_rule": split_rule(tables),
            "tie_rule": TIE_RULE,
            "negatives": "the examples of interactions/splits that were not liked",
            "window_first_day": first,
            "window_last_day": last,
        }
        | codebook_widths(tables),
        tags=tags
        | partition_tag(context)
        | {"model_version": fitted.name, "status": "candidate", "feature_view": "user_vista"},
        note=note,
    ) as run:
        log_figures(mlflow, run, _figures(fitted))
        log_dataset(mlflow, tables, RAW_INTERACTIONS, ("histories",))
        log_dataset(mlflow, tables, SPLITS, ("train", "valid", "test"))
        _log_artifacts(mlflow, fitted)
        with tables.artifacts().local(fitted.artifact) as local:
            mlflow.log_artifacts(str(local), MODEL_FOLDER)
        _register(
            client,
            f"{run.info.artifact_uri}/{MODEL_FOLDER}",
            run.info.run_id,
            tags | {"model_version": fitted.name, "valid_auc": f"{fitted.metrics['auc']:.6f}"},
        )
        return tracking.run_url(run.info.experiment_id, run.info.run_id)


def _figures(fitted: Any) -> list[Figure]:
    """Every epoch's metrics with the epoch as step, and the final ones at the best epoch."""
    named = {
        "auc": "valid/auc",
        "logloss": "valid/logloss",
        "loss": "train/loss",
        "click": "train/click_loss",
        "reconstruction": "train/reconstruction_loss",
        "seconds": "cost/epoch_seconds",
    }
    rows = [
        Figure(named[k], v, int(record["epoch"])) for record in fitted.history for k, v in record.items() if k in named
    ]
    final = {k.replace("_", "/", 1): v for k, v in fitted.final_metrics.items()}
    final["cost/train_seconds"] = fitted.seconds
    # Those of `valid` equal the best epoch's; only their bounds are new.
    kept = {k: v for k, v in final.items() if k not in ("valid/auc", "valid/logloss")}
    return rows + [Figure(k, v, fitted.best_epoch) for k, v in kept.items()]


def _log_artifacts(mlflow: Any, fitted: Any) -> None:
    """The history of the training, its curve, and the packages that load the model."""
    from ray_jobs.ranking.serving_signature import pinned

    picture = (training_curve(fitted.history, fitted.best_epoch).md_str or "").split("base64,")[1].rstrip(")")
    log_files(
        mlflow,
        {
            "plots/training.png": base64.b64decode(picture),
            "history.json": json.dumps(fitted.history, indent=1).encode(),
            "requirements.txt": "".join(f"{package}\n" for package in pinned(PACKAGES)).encode(),
        },
    )


def _register(client: Any, source: str, run_id: str, tags: dict[str, str]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(REGISTERED, description="VISTA; the users' summaries are exported from it.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(
        REGISTERED, source, run_id, tags=tags, description=f"Trained on {json.dumps(tags, sort_keys=True)}."
    )
