"""How measures of personas are told to MLflow: one run a version, with ten personas to browse."""

import tempfile
from pathlib import Path
from typing import Any

import dagster as dg

from assets.personas import measure_report
from assets.resources import Tables, Tracking
from assets.run_inputs import TIE_RULE, codebook_widths, log_dataset, partition_tag
from assets.source_revision import source_revision
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.personas import USER_PERSONAS

EXPERIMENT = "personas"
METRICS_AT_ONCE = 1000


def metrics_of(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Every value as a metric: ``personas/split/period/measure/arm``; ends of the interval beside what is `own`.

    Differences are ``.../measure/own_minus_<baseline>``.
    """
    found: dict[str, float] = {}
    for row in lines:
        where = "/".join(filter(None, (row["personas"], row["split_rule"], row["period"], row["measure"])))
        name = f"{where}/{row['arm']}" + (f"_minus_{row['baseline']}" if row["baseline"] else "")
        found[name] = row["value"]
        if row["arm"] == measure_report.OWN:
            found |= {f"{name}_low": row["low"], f"{name}_high": row["high"]}
    return found


def log_measures(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    version: str,
    params: dict[str, Any],
    result: Any,
    lines: list[dict[str, Any]],
    plot: bytes,
) -> str:
    """Logs the measures, unless that was already done for this version.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: The warehouse.
        version: Version of the table.
        params: Parameters of the run.
        result: `ray_jobs.persona_measures.Result`.
        lines: Rows of the table.
        plot: As `measure_report.measures_plot` draws it.

    Returns:
        Address of the run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    client = mlflow.MlflowClient()
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    done = client.search_runs(
        [experiment.experiment_id], f"tags.measures_version = '{version}' and attributes.status = 'FINISHED'"
    )
    if done:
        return tracking.run_url(experiment.experiment_id, done[0].info.run_id)
    told = "\n".join(f"- {name}: {value:.3f}" for name, value in measure_report.headline(lines).items())
    with tracking.run(
        context,
        EXPERIMENT,
        f"persona measures {source_revision()} {version[-8:]}",
        params=params | {"tie_rule": TIE_RULE} | codebook_widths(tables),
        tags={"measures_version": version, "status": "measured"} | partition_tag(context),
        note="**Hypothesis.** A persona says of its user what is true, and what is true of nobody else.\n\n"
        f"**Verdict.**\n{told or '- nobody has a persona'}",
    ) as run:
        for table in (USER_PERSONAS, SPLITS):
            log_dataset(mlflow, tables, table, ("measured",))
        now = run.info.start_time
        metrics = [mlflow.entities.Metric(name, value, now, 0) for name, value in metrics_of(lines).items()]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            client.log_batch(run.info.run_id, metrics=metrics[start : start + METRICS_AT_ONCE])
        if result.shown:
            mlflow.log_table(measure_report.personas_columns(result.shown), "personas_with_evidence.json")
        with tempfile.TemporaryDirectory() as folder:
            for name, content in {
                "measures.png": plot,
                "measures.md": measure_report.tables_markdown(lines).encode(),
                "measures.csv": measure_report.measures_csv(lines),
                "personas_with_evidence.md": measure_report.personas_markdown(result.shown).encode(),
                "left_out.txt": ("\n".join(result.left_out) or "nothing was left out").encode(),
            }.items():
                (Path(folder) / name).write_bytes(content)
            mlflow.log_artifacts(folder)
        return tracking.run_url(run.info.experiment_id, run.info.run_id)
