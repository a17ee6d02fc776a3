"""How the content experiment is told to MLflow: one parent run, and one child run an arm with its seeds as steps."""

from typing import Any

import dagster as dg

from assets.ranking import ablation_report
from assets.resources import Tables, Tracking
from assets.run_contents import Figure, finished_run, log_figures, log_files, with_interval
from assets.run_inputs import TIE_RULE, log_dataset, partition_tag
from assets.source_revision import source_revision
from ray_jobs.tables.captions import CAPTION_EMBEDDINGS, ITEM_CAPTIONS
from ray_jobs.tables.features import TRAINING_SET

EXPERIMENT = "content_ablation"
Key = tuple[str, str, bool]


def log_experiment(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    version: str,
    params: dict[str, Any],
    result: Any,
    lines: list[dict[str, Any]],
) -> str:
    """Logs the experiment, unless that was already done for this version.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: The warehouse.
        version: Version of the table.
        params: Parameters of the parent run.
        result: `ray_jobs.ranking.content_ablation.Result`.
        lines: Rows of the table.

    Returns:
        Address of the parent run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    known = finished_run(mlflow, tracking, EXPERIMENT, ablation_version=version, role="parent")
    if known:
        return known
    said = "\n".join(f"- {line}" for line in ablation_report.verdicts(lines)) or "- no arm to judge"
    with tracking.run(
        context,
        EXPERIMENT,
        f"content ablation {source_revision()} {version[-8:]}",
        params=params | {"tie_rule": TIE_RULE},
        tags={"ablation_version": version, "role": "parent", "status": "experiment"} | partition_tag(context),
        note="**Hypothesis.** What a language model says about an item helps a ranker, most where IDs know little.\n\n"
        f"**Verdict.**\n{said}",
    ) as run:
        for table in (TRAINING_SET, ITEM_CAPTIONS, CAPTION_EMBEDDINGS):
            log_dataset(mlflow, tables, table, ("experiment",))
        for key in dict.fromkeys((x["split_rule"], x["arm"], x["item_ids"]) for x in lines):
            _log_arm(mlflow, version, key, lines, result.trainings)
        mlflow.log_metrics(
            {
                "num_trainings": len(result.trainings),
                "cost/train_seconds": sum(t.metrics["seconds"] for t in result.trainings),
            }
        )
        log_files(
            mlflow,
            {
                "forest.png": ablation_report.forest_plot(lines),
                "table.md": ablation_report.table_markdown(lines).encode(),
                "table.csv": ablation_report.table_csv(lines),
                "verdicts.md": said.encode(),
                "left_out.txt": ("\n".join(result.left_out) or "nothing was left out").encode(),
            },
        )
        return tracking.run_url(run.info.experiment_id, run.info.run_id)


def _log_arm(mlflow: Any, version: str, key: Key, lines: list[dict[str, Any]], trainings: list[Any]) -> None:
    """A child run: figures with their intervals, and each seed's metrics with the seed as step."""
    rule, arm, ids = key
    mine = [x for x in lines if (x["split_rule"], x["arm"], x["item_ids"]) == key]
    role = "placebo" if ablation_report.is_placebo(arm) else "arm"
    said = [x["verdict"] for x in mine if x["verdict"]]
    tags = {
        "ablation_version": version,
        "role": role,
        "arm": arm,
        "item_ids": str(ids).lower(),
        "split_rule": rule,
        "mlflow.note.content": "\n".join(f"- {line}" for line in said) or "Compared with the other arms there.",
    }
    with mlflow.start_run(run_name=f"{rule} {ablation_report.arm_name(arm, ids)}", nested=True, tags=tags) as run:
        mlflow.log_params({"arm": arm, "item_ids": ids, "split_rule": rule, "role": role})
        found = []
        for x in mine:
            where = "test" if x["slice"] == "all" else f"slice/{x['slice']}"
            name = f"delta/{x['baseline']}/{where}/{x['metric']}" if x["baseline"] else f"{where}/{x['metric']}"
            found += with_interval(name, x)
            if x["relative"] is not None:
                found.append(Figure(f"{name}_relative", x["relative"]))
        for t in trainings:
            if (t.split_rule, t.arm, t.item_ids) == key:
                found += [Figure(f"seed/{name}", value, t.seed) for name, value in t.metrics.items()]
        log_figures(mlflow, run, found)
