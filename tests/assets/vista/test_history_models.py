"""The comparison as an asset: a table, a plot, a parent run with a child a model; what the checks say."""

import dagster as dg
import polars as pl
import pytest

from assets.vista.history_checks import (
    every_seed_is_there,
    history_models_checks,
    models_beat_floors,
    placebos_do_nothing,
)
from assets.vista.history_models import MODELS, VARIANTS, history_models
from models.long_history import families
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.tables.history import HISTORY_MODELS
from tests.factories import CREATED, seed_interactions

FAST = {
    "families": ["sasrec"],
    "objectives": ["next_item"],
    "seeds": 1,
    "learning_rates": [1e-2],
    "dropouts": [0.1],
    "next_item_epochs": 1,
    "width": 8,
    "layers": 1,
    "history_events": 16,
    "resamples": 50,
}


class OnTheTestsCluster(LocalRayJobs):
    """Jobs run on the cluster that the tests share."""

    def join(self) -> None:
        return


def materialize(tables, tracking, instance, **changes):
    return dg.materialize(
        [history_models, history_models_checks, models_beat_floors, placebos_do_nothing, every_seed_is_there],
        resources={"tables": tables, "tracking": tracking, "ray_jobs": OnTheTestsCluster()},
        instance=instance,
        run_config={"ops": {"vista__history_models": {"config": FAST | changes}}},
        raise_on_error=False,
    )


def said(result):
    (made,) = result.asset_materializations_for_node("vista__history_models")
    return {name: value.value for name, value in made.metadata.items()}


def failure_of(result):
    return next(e.step_failure_data.error for e in result.all_events if e.is_step_failure).message


def test_the_comparison_is_a_table_a_plot_and_a_parent_run_with_a_child_a_model(
    tables, tracking, instance, ray_cluster
):
    seed_interactions(tables, num_users=30, events_per_user=12)
    result = materialize(tables, tracking, instance)
    assert result.success
    shown = said(result)
    assert shown["training_runs"] == 1 and "data:image/png" in shown["plot"] and "| sasrec |" in shown["table"]
    assert "| next_item | sasrec | 0.01 | 0.1 |" in shown["trials"] and "sasrec against popularity" in shown["verdicts"]
    checks = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert all(e.passed for e in checks.values() if e.severity == dg.AssetCheckSeverity.ERROR)
    assert checks["placebos_do_nothing"].passed
    client = tracking.connect("history_models").MlflowClient()
    experiment = client.get_experiment_by_name("history_models").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [r for r in runs if r.data.tags["role"] == "parent"]
    children = {r.data.tags["model"]: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {"popularity", "item_knn", "markov_chain", "sasrec", "sasrec_shuffled"}
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} >= {"plot.png", "table.csv", "trials.md"}
    rows = pl.DataFrame(tables.read(HISTORY_MODELS))
    (row,) = rows.filter(
        pl.col("model").eq("sasrec") & pl.col("metric").eq("hr_at_50") & pl.col("baseline").eq("")
    ).to_dicts()
    assert children["sasrec"].data.metrics["test/hr_at_50"] == pytest.approx(row["value"])
    assert row["trial"] and row["train_seconds"] > 0
    again = said(materialize(tables, tracking, instance))
    assert again["training_runs"] == 0 and again["unchanged"] and again["plot"] == shown["plot"]
    refused = materialize(tables, tracking, instance, families=["bert"])
    assert "families is ['bert']: give some of sasrec, hstu" in failure_of(refused)


def line(model, value, *, baseline="", objective="click", seeds=2):
    return {
        "objective": objective,
        "model": model,
        "metric": "auc" if objective == "click" else "ndcg_at_10",
        "baseline": baseline,
        "value": value,
        "low": value - 0.01,
        "high": value + 0.01,
        "num_seeds": seeds,
        "num_examples": 100,
        "num_users": 10,
        "trial": None,
        "train_seconds": None,
        "verdict": None,
        "created_timestamp": CREATED,
    }


def test_checks_tell_what_does_not_beat_a_floor_a_leak_and_missing_seeds(tables):
    def evaluated(*lines):
        table = pl.DataFrame(list(lines), infer_schema_length=None).to_arrow()
        tables.write(HISTORY_MODELS, HISTORY_MODELS.conform(table), str(lines))
        return [check(tables) for check in (models_beat_floors, placebos_do_nothing, every_seed_is_there)]

    good = line("vista", 0.1, baseline="popularity"), line("vista_shuffled", -0.1, baseline="popularity")
    assert [r.passed for r in evaluated(*good)] == [True, True, True]
    floor, leak, seeds = evaluated(
        line("vista", 0.005, baseline="popularity"),
        line("vista_shuffled", 0.02, baseline="popularity"),
        line("din", 0.1, baseline="popularity", seeds=1),
    )
    assert "vista (click, popularity): not shown to beat" in floor.description
    assert "vista_shuffled (click, popularity): beats popularity" in leak.description
    assert not seeds.passed and "different numbers of seeds" in seeds.description


def test_the_launchpad_offers_the_families_that_there_are():
    assert set(MODELS) == set(families.FAMILIES) and set(VARIANTS) == set(families.VARIANTS)
