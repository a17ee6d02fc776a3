"""How the comparison of history models is told to MLflow: one parent run, one child run a model with seeds as steps."""

from typing import Any

import dagster as dg

from assets.resources import Tables, Tracking
from assets.run_contents import Figure, finished_run, log_figures, log_files, with_interval
from assets.run_inputs import TIE_RULE, log_dataset, partition_tag
from assets.source_revision import source_revision
from assets.vista import history_report, sweep_report
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS

EXPERIMENT = "history_models"


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
        result: `ray_jobs.histories.results.Result`.
        lines: Rows of the table.

    Returns:
        Address of the parent run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    known = finished_run(mlflow, tracking, EXPERIMENT, comparison_version=version, role="parent")
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
            _log_model(mlflow, version, objective, model, lines, result.trainings)
        mlflow.log_metrics(
            {
                "num_trainings": len(result.trainings),
                "cost/train_seconds": sum(t.metrics["seconds"] for t in result.trainings),
            }
        )
        log_files(
            mlflow,
            {
                "plot.png": history_report.plot(lines),
                "table.md": history_report.table_markdown(lines).encode(),
                "table.csv": history_report.table_csv(lines),
                "trials.md": history_report.trials_markdown(result.tuned).encode(),
                "verdicts.md": said.encode(),
            },
        )
        return tracking.run_url(run.info.experiment_id, run.info.run_id)


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
    known = finished_run(mlflow, tracking, EXPERIMENT, comparison_version=version, role="sweeps")
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
        found: list[Figure] = []
        for x in lines:
            found += with_interval(f"{x['sweep']}/{x['metric']}", x, int(x["place"]))
            if x["metric"] == sweep_report.METRICS[0]:
                found.append(Figure(f"{x['sweep']}/{x['cost_name']}", x["cost"], int(x["place"])))
        log_figures(mlflow, run, found)
        sweeps = dict.fromkeys(x["sweep"] for x in lines)
        log_files(mlflow, {f"{sweep}.png": sweep_report.plot(lines, sweep) for sweep in sweeps})
        log_files(mlflow, {f"{sweep}.md": sweep_report.table_markdown(lines, sweep).encode() for sweep in sweeps})
        return tracking.run_url(run.info.experiment_id, run.info.run_id)


def _log_model(
    mlflow: Any,
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
        found: list[Figure] = []
        for x in mine:
            name = f"delta/{x['baseline']}/test/{x['metric']}" if x["baseline"] else f"test/{x['metric']}"
            found += with_interval(name, x)
        for t in trainings:
            if (t.objective, t.model) == (objective, model):
                found += [Figure(f"seed/{name}", value, t.seed) for name, value in t.metrics.items()]
        log_figures(mlflow, run, found)
