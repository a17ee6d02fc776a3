"""How the comparison of history models is told to MLflow: one parent run, one child run a model with seeds as steps."""

import tempfile
from pathlib import Path
from typing import Any

import dagster as dg

from assets.resources import Tables, Tracking
from assets.run_inputs import TIE_RULE, log_dataset, partition_tag
from assets.source_revision import source_revision
from assets.vista import history_report, sweep_report
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS

EXPERIMENT = "history_models"
METRICS_AT_ONCE = 1000


def log_comparison(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    version: str,
    params: dict[str, Any],
    result: Any,
    lines: list[dict[str, Any]],
) -> str:
    """Logs the comparison, unless that was already done for this version.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: The warehouse.
        version: Version of the table.
        params: Parameters of the parent run.
        result: `ray_jobs.history_results.Result`.
        lines: Rows of the table.

    Returns:
        Address of the parent run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    client = mlflow.MlflowClient()
    known = _finished(mlflow, client, tracking, version, "parent")
    if known:
        return known
    said = "\n".join(f"- {line}" for line in history_report.verdicts(lines)) or "- nothing to compare"
    with tracking.run(
        context,
        EXPERIMENT,
        f"history models {source_revision()} {version[-8:]}",
        params=params | {"tie_rule": TIE_RULE},
        tags={"comparison_version": version, "role": "parent", "status": "experiment"} | partition_tag(context),
        note="**Hypothesis.** A summary of a history that candidates attend to says as much as the history itself.\n\n"
        f"**Verdict.**\n{said}",
    ) as run:
        for table in (RAW_INTERACTIONS, SPLITS):
            log_dataset(mlflow, tables, table, ("experiment",))
        for objective, model in dict.fromkeys((x["objective"], x["model"]) for x in lines):
            _log_model(mlflow, client, version, objective, model, lines, result.trainings)
        mlflow.log_metrics(
            {
                "num_trainings": len(result.trainings),
                "cost/train_seconds": sum(t.metrics["seconds"] for t in result.trainings),
            }
        )
        with tempfile.TemporaryDirectory() as folder:
            for name, content in {
                "plot.png": history_report.plot(lines),
                "table.md": history_report.table_markdown(lines).encode(),
                "table.csv": history_report.table_csv(lines),
                "trials.md": history_report.trials_markdown(result.tuned).encode(),
                "verdicts.md": said.encode(),
            }.items():
                (Path(folder) / name).write_bytes(content)
            mlflow.log_artifacts(folder)
        return tracking.run_url(run.info.experiment_id, run.info.run_id)


def _finished(mlflow: Any, client: Any, tracking: Tracking, version: str, role: str) -> str:
    """Address of a finished run of this version; empty if there is none."""
    experiment = mlflow.get_experiment_by_name(EXPERIMENT).experiment_id
    asked = f"tags.comparison_version = '{version}' and tags.role = '{role}' and attributes.status = 'FINISHED'"
    done = client.search_runs([experiment], asked)
    return tracking.run_url(experiment, done[0].info.run_id) if done else ""


def log_sweeps(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    version: str,
    params: dict[str, Any],
    lines: list[dict[str, Any]],
) -> str:
    """Logs the sweeps, unless that was already done for this version: a metric a sweep, its points as steps.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: The warehouse.
        version: Version of the table.
        params: Parameters of the run.
        lines: Rows of the table.

    Returns:
        Address of the run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    client = mlflow.MlflowClient()
    known = _finished(mlflow, client, tracking, version, "sweeps")
    if known:
        return known
    with tracking.run(
        context,
        EXPERIMENT,
        f"summary sweeps {source_revision()} {version[-8:]}",
        params=params,
        tags={"comparison_version": version, "role": "sweeps", "status": "experiment"} | partition_tag(context),
        note="What a summary of a history may cost; steps are the points of a sweep.",
    ) as run:
        for table in (RAW_INTERACTIONS, SPLITS):
            log_dataset(mlflow, tables, table, ("experiment",))
        now, found = run.info.start_time, []
        for x in lines:
            name = f"{x['sweep']}/{x['metric']}"
            ends = (("", "value"), ("_low", "low"), ("_high", "high"))
            found += [(f"{name}{end}", x[column], int(x["place"])) for end, column in ends]
            if x["metric"] == sweep_report.METRICS[0]:
                found.append((f"{x['sweep']}/{x['cost_name']}", x["cost"], int(x["place"])))
        client.log_batch(
            run.info.run_id, metrics=[mlflow.entities.Metric(name, float(v), now, step) for name, v, step in found]
        )
        with tempfile.TemporaryDirectory() as folder:
            for sweep in dict.fromkeys(x["sweep"] for x in lines):
                (Path(folder) / f"{sweep}.png").write_bytes(sweep_report.plot(lines, sweep))
                (Path(folder) / f"{sweep}.md").write_text(sweep_report.table_markdown(lines, sweep), encoding="utf-8")
            mlflow.log_artifacts(folder)
        return tracking.run_url(run.info.experiment_id, run.info.run_id)


def _log_model(
    mlflow: Any,
    client: Any,
    version: str,
    objective: str,
    model: str,
    lines: list[dict[str, Any]],
    trainings: list[Any],
) -> None:
    """A child run: figures with their intervals, and each seed's metrics with the seed as step."""
    mine = [x for x in lines if (x["objective"], x["model"]) == (objective, model)]
    role = "control" if history_report.is_control(model) else "model"
    said = [x["verdict"] for x in mine if x["verdict"]]
    tags = {
        "comparison_version": version,
        "role": role,
        "model": model,
        "objective": objective,
        "mlflow.note.content": "\n".join(f"- {line}" for line in said) or "Compared with the other models there.",
    }
    with mlflow.start_run(run_name=f"{objective} {model}", nested=True, tags=tags) as run:
        mlflow.log_params({"model": model, "objective": objective, "role": role, "trial": mine[0]["trial"]})
        now, found = run.info.start_time, []
        for x in mine:
            name = f"delta/{x['baseline']}/test/{x['metric']}" if x["baseline"] else f"test/{x['metric']}"
            found += [
                (f"{name}{end}", x[column], 0) for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))
            ]
        for t in trainings:
            if (t.objective, t.model) == (objective, model):
                found += [(f"seed/{name}", value, t.seed) for name, value in t.metrics.items()]
        metrics = [mlflow.entities.Metric(name, float(value), now, step) for name, value, step in found]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            client.log_batch(run.info.run_id, metrics=metrics[start : start + METRICS_AT_ONCE])
