"""How a trained candidate becomes one MLflow run with one version of a registered model."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa

from assets.ranking import plots
from assets.ranking.specs import CandidateSpec
from assets.resources import Tables, Tracking
from assets.run_contents import Figure, log_figures, log_files
from assets.run_inputs import TIE_RULE, codebook_widths, log_dataset, partition_tag, split_rule
from assets.source_revision import source_revision
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.ranking import predictions

EXPERIMENT = "ranking"
RANK_TIES = "count against the target"
PACKAGES = ("mlflow", "numpy", "pandas", "polars", "pyarrow", "safetensors", "scipy", "torch")
MAX_DIFFERENCE = 1e-5
ERROR_EXAMPLES = 50
SOURCES = Path(__file__).resolve().parents[2]


class Registration(NamedTuple):
    """Where a candidate stands in MLflow."""

    experiment_id: str
    run_id: str
    model_name: str
    model_version: str


def register(
    context: dg.AssetExecutionContext, tracking: Tracking, tables: Tables, spec: CandidateSpec, job: Any, result: Any
) -> tuple[Registration, bool]:
    """Logs the run and registers the model, unless that was already done for this version.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: The warehouse.
        spec: The candidate.
        job: `ray_jobs.ranking.training.Config` that made it.
        result: `ray_jobs.ranking.training.Result`.

    Returns:
        Where it stands, and whether this call put it there.
    """
    mlflow = tracking.connect(EXPERIMENT)
    done = _standing(mlflow, spec, job.version)
    if done is not None:
        return done, False
    table = tables.read(predictions(spec.name))
    name = f"{spec.name} {result.window[0]}..{result.window[1]} {source_revision()}"
    with tracking.run(
        context,
        EXPERIMENT,
        name,
        params=run_params(spec, job, result, split_rule(tables)) | codebook_widths(tables),
        tags=run_tags(spec, job, tables) | content_tags(result) | partition_tag(context),
        note=run_note(spec, result),
    ) as run:
        log_dataset(mlflow, tables, TRAINING_SET, ("train", "valid", "test"))
        _log_metrics(mlflow, run, result)
        log_files(mlflow, run_artifacts(table, result))
        version = _log_model(mlflow, run, tables, spec, job, table, result)
    return Registration(run.info.experiment_id, run.info.run_id, spec.model_name, version), True


def _standing(mlflow: Any, spec: CandidateSpec, version: str) -> Registration | None:
    """The finished registration of a version, if an earlier attempt got that far."""
    client = mlflow.MlflowClient()
    for found in client.search_model_versions(f"name = '{spec.model_name}' and tags.ranker_version = '{version}'"):
        run = client.get_run(found.run_id)
        if run.info.status == "FINISHED":
            return Registration(run.info.experiment_id, run.info.run_id, spec.model_name, str(found.version))
    return None


def run_params(spec: CandidateSpec, job: Any, result: Any, split: str) -> dict[str, Any]:
    """Parameters of the run."""
    said = {
        "candidate": spec.name,
        "kind": spec.kind,
        "inputs": ",".join(spec.inputs) or "ids,counts,recent",
        "k": 10,
        "seed": job.training.seed,
        "split_rule": split,
        "tie_rule": TIE_RULE,
        "rank_ties": RANK_TIES,
        "negatives": "observed non-likes; the interest head: the whole catalogue",
        "resamples": job.resamples,
        "window_first_day": result.window[0],
        "window_last_day": result.window[1],
        "num_recent": job.num_recent,
        "version.ranker": job.version,
        "version.training_set": job.training_set,
        "num_parameters": result.num_parameters,
        **{f"rows.{split}": rows for split, rows in result.split_rows.items()},
    }
    if not spec.is_floor:
        said |= {f"network.{k}": v for k, v in job.network.model_dump().items()}
        said |= {f"training.{k}": v for k, v in job.training.model_dump().items() if k != "seed"}
        said |= {"batch_size": job.batch_size, "interest_weight": job.interest_weight, "best_epoch": result.best_epoch}
    return said


def run_tags(spec: CandidateSpec, job: Any, tables: Tables) -> dict[str, str]:
    """Tags of the run, beside those that every run has."""
    from ray_jobs.ranking.data import feature_refs

    return {
        "candidate": spec.name,
        "status": "candidate",
        "ab_experiment": "none",
        "ranker_version": job.version,
        "feature_service": spec.feature_service,
        "feature_refs": ",".join(feature_refs(spec.kind, spec.inputs)),
        "dataset": tables.uri(TRAINING_SET),
        "artifact": job.artifact,
        "is_floor": str(spec.is_floor).lower(),
        **{f"version.{t.name}": tables.version(t) for t in spec.tables},
    }


def content_tags(result: Any) -> dict[str, str]:
    """Versions of the content that the ranker was trained on, and refuses to do without."""
    return {f"content.{column}": version for column, version in result.content_versions.items()}


def run_note(spec: CandidateSpec, result: Any) -> str:
    """Note on top of the run: hypothesis and findings. `ranking/leaderboard` adds the paired verdict."""
    rows = [
        f"| {f.metric} | {f.value:.4f} | {f.low:.4f} to {f.high:.4f} | {f.num_examples:,} |"
        for f in result.figures
        if f.slice == "all"
    ]
    return "\n".join(
        [
            f"**Hypothesis.** {spec.hypothesis}",
            "",
            f"**What it is.** {spec.what[0].upper()}{spec.what[1:]}.",
            "",
            "**Test split, evaluated once** (95% intervals, users resampled)",
            "",
            "| metric | value | interval | count |",
            "|---|---|---|---|",
            *rows,
            "",
            "**Verdict.** Paired comparison pending in `ranking/leaderboard`.",
            *(f"- {line}" for line in result.left_out),
        ]
    )


def _log_metrics(mlflow: Any, run: Any, result: Any) -> None:
    figures = [Figure(name, value) for name, value in result.metrics.items()]
    for record in result.history:
        step = int(record["epoch"])
        figures += [Figure(f"epoch/{name}", value, step) for name, value in record.items() if name != "epoch"]
    log_figures(mlflow, run, figures)


def run_artifacts(table: pa.Table, result: Any) -> dict[str, bytes]:
    """Files of the run by path."""
    frame = pl.DataFrame(table).filter(pl.col("split") == "test")
    p, label = frame["score"].to_numpy(), frame["label"].to_numpy()
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(["slice", "metric", "value", "low", "high", "num_examples", "num_users"])
    writer.writerows([f.slice, f.metric, f.value, f.low, f.high, f.num_examples, f.num_users] for f in result.figures)
    wrong = (
        frame.drop("user_id", "created_timestamp")
        .with_columns(pl.col("slices").list.join(" "), error=(pl.col("score") - pl.col("label")).abs())
        .sort("error", descending=True)
        .head(ERROR_EXAMPLES)
    )
    by_slice = [(f.slice, f.value, f.low, f.high) for f in result.figures if f.metric == "auc"]
    made = {
        "plots/roc.png": plots.roc(p, label),
        "plots/precision_recall.png": plots.precision_recall(p, label),
        "plots/calibration.png": plots.calibration(p, label),
        "slices/slices.csv": sink.getvalue().encode(),
        "slices/auc.png": plots.bars(by_slice, "AUC", "AUC by slice, test"),
        "examples/largest_errors.csv": wrong.write_csv().encode(),
        "slices/left_out.txt": ("\n".join(result.left_out) or "nothing was left out").encode(),
        "figures.json": json.dumps([f.model_dump() for f in result.figures], indent=1).encode(),
    }
    if result.history:
        made["plots/training.png"] = plots.history(result.history, result.best_epoch)
    return made


def _log_model(
    mlflow: Any, run: Any, tables: Tables, spec: CandidateSpec, job: Any, table: pa.Table, result: Any
) -> str:
    """Logs and registers the model, loads it back and compares its scores with those of the evaluation."""
    from ray_jobs.ranking.serving_signature import example_rows, pinned, signature, without_users

    sample = example_rows(tables.warehouse(), spec.kind, spec.inputs)
    asked = sample.drop(columns=["example_id"])
    client = mlflow.MlflowClient()
    with tables.artifacts().local(job.artifact) as folder:
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(SOURCES / "ray_jobs" / "ranking" / "serving_model.py"),
            artifacts={"ranker": str(folder)},
            code_paths=[str(SOURCES / "models"), str(SOURCES / "ray_jobs")],
            signature=signature(spec.kind, spec.inputs),
            input_example=without_users(asked),
            pip_requirements=pinned(PACKAGES),
            registered_model_name=spec.model_name,
            metadata={"ranker_version": job.version, "feature_service": spec.feature_service},
        )
    version = str(info.registered_model_version)
    path = list(sys.path)
    loaded = mlflow.pyfunc.load_model(info.model_uri)
    # The model's own copy of the code must not shadow the platform's, here or in Ray workers that inherit the path.
    sys.path[:] = path
    expected = pl.DataFrame(table).select("example_id", "score")
    found = pl.DataFrame(
        {"example_id": sample["example_id"].tolist(), "served": loaded.predict(asked)["score"].to_numpy()}
    )
    both = found.join(expected, on="example_id", how="left")
    difference = float(np.abs(both["served"].to_numpy() - both["score"].to_numpy()).max(initial=0.0))
    if not difference <= MAX_DIFFERENCE:
        raise dg.Failure(
            f"The registered model {spec.model_name} v{version} scores up to {difference:.2g} away from its "
            "evaluation: what would be served is not what was measured. Do not promote it.",
            allow_retries=False,
        )
    mlflow.log_metric("parity/max_difference", difference)
    client.update_registered_model(
        spec.model_name, description=f"{spec.what[0].upper()}{spec.what[1:]}. {spec.hypothesis}"
    )
    auc = result.metrics.get("test/auc", float("nan"))
    client.update_model_version(
        spec.model_name,
        version,
        description=(
            f"Ranker {job.version} trained on {result.window[0]} to {result.window[1]}; test AUC {auc:.4f}. "
            f"Inputs: Feast service `{spec.feature_service}`."
        ),
    )
    for key, value in {
        "ranker_version": job.version,
        "candidate": spec.name,
        "feature_service": spec.feature_service,
        "training_set": tables.version(TRAINING_SET),
        "artifact": job.artifact,
        "validation": "pending",
        **content_tags(result),
    }.items():
        client.set_model_version_tag(spec.model_name, version, key, value)
    return version
