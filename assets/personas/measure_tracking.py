"""How measures of personas are told to MLflow: one run a version, with ten personas to browse."""

from typing import Any

import dagster as dg

from assets.personas import measure_report
from assets.resources import Tables, Tracking
from assets.run_contents import Figure, finished_run, log_figures, log_files
from assets.run_inputs import TIE_RULE, codebook_widths, log_dataset, partition_tag
from assets.source_revision import source_revision
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.personas import USER_PERSONAS

EXPERIMENT = "personas"


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
        result: `ray_jobs.personas.measures.Result`.
        lines: Rows of the table.
        plot: As `measure_report.measures_plot` draws it.

    Returns:
        Address of the run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    known = finished_run(mlflow, tracking, EXPERIMENT, measures_version=version)
    if known:
        return known
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
        log_figures(mlflow, run, [Figure(name, value) for name, value in metrics_of(lines).items()])
        if result.shown:
            mlflow.log_table(measure_report.personas_columns(result.shown), "personas_with_evidence.json")
        log_files(
            mlflow,
            {
                "measures.png": plot,
                "measures.md": measure_report.tables_markdown(lines).encode(),
                "measures.csv": measure_report.measures_csv(lines),
                "personas_with_evidence.md": measure_report.personas_markdown(result.shown).encode(),
                "left_out.txt": ("\n".join(result.left_out) or "nothing was left out").encode(),
            },
        )
        return tracking.run_url(run.info.experiment_id, run.info.run_id)
