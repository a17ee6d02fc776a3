import dagster as dg
import polars as pl
import pytest

from assets.ranking import ablation_report
from assets.ranking.ablation_checks import content_ablation_checks, placebos_do_nothing
from assets.ranking.content_ablation import ARMS, PLACEBOS, content_ablation
from models.ranking import ablation
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.ranking import CONTENT_ABLATION
from tests.training_sets import seed_caption_embeddings, seed_training_set

FAST = {
    "seeds": 2,
    "split_rules": ["global_time"],
    "contents": ["dense", "dense_permuted"],
    "item_ids": [True],
    "epochs": 1,
    "batch_size": 256,
    "width": 8,
    "resamples": 50,
}


class OnTheTestsCluster(LocalRayJobs):
    """Jobs run on the cluster that the tests share."""

    def join(self) -> None:
        return


def materialize(tables, tracking, instance, **changes):
    return dg.materialize(
        [content_ablation, content_ablation_checks, placebos_do_nothing],
        resources={"tables": tables, "tracking": tracking, "ray_jobs": OnTheTestsCluster()},
        instance=instance,
        run_config={"ops": {"ranking__content_ablation": {"config": FAST | changes}}},
        raise_on_error=False,
    )


def said(result):
    (made,) = result.asset_materializations_for_node("ranking__content_ablation")
    return {name: value.value for name, value in made.metadata.items()}


def failure_of(result):
    return next(e.step_failure_data.error for e in result.all_events if e.is_step_failure).message


def test_the_experiment_is_a_table_a_plot_and_a_parent_run_with_a_child_an_arm(tables, tracking, instance, ray_cluster):
    seed_training_set(tables, num_users=60, num_items=40, per_user=12, late_share=0.2)
    assert "captions/caption_embeddings does not exist yet" in failure_of(materialize(tables, tracking, instance))
    seed_caption_embeddings(tables, num_items=40)
    result = materialize(tables, tracking, instance)
    assert result.success
    shown = said(result)
    assert shown["training_runs"] == 6 and "data:image/png" in shown["forest"] and "dense + IDs" in shown["table"]
    assert "dense beside item IDs (all)" in shown["verdicts"]
    assert all(e.passed for e in result.get_asset_check_evaluations() if e.check_name != "placebos_do_nothing")
    client = tracking.connect("content_ablation").MlflowClient()
    experiment = client.get_experiment_by_name("content_ablation").experiment_id
    runs = client.search_runs([experiment])
    (parent,) = [r for r in runs if r.data.tags["role"] == "parent"]
    children = {r.data.tags["arm"]: r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {"none", "dense", "dense_permuted"}
    assert children["dense_permuted"].data.tags["role"] == "placebo"
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} >= {"forest.png", "table.csv", "table.md"}
    rows = pl.DataFrame(tables.read(CONTENT_ABLATION))
    lift = rows.row(
        by_predicate=(pl.col("arm") == "dense")
        & (pl.col("slice") == "all")
        & (pl.col("metric") == "auc")
        & (pl.col("baseline") == "none"),
        named=True,
    )
    metrics = children["dense"].data.metrics
    assert metrics["delta/none/test/auc"] == pytest.approx(lift["value"])
    assert metrics["delta/none/test/auc_low"] == pytest.approx(lift["low"]) and lift["verdict"]
    steps = client.get_metric_history(children["dense"].info.run_id, "seed/test/auc")
    assert sorted(m.step for m in steps) == [0, 1], "the seeds are steps"

    again = materialize(tables, tracking, instance)
    assert said(again)["training_runs"] == 0 and said(again)["unchanged"] and said(again)["forest"] == shown["forest"]
    assert len(client.search_runs([experiment])) == 4, "nothing is logged twice"
    refused = materialize(tables, tracking, instance, contents=["pixels"])
    assert "contents is ['pixels']: give some of none, title, dense" in failure_of(refused)
    empty = materialize(tables, tracking, instance, split_rules=["leave_one_out"])
    assert "leave_one_out gives no examples of the split valid" in failure_of(empty)
    assert tables.version(SPLITS) == "ts"


def test_the_launchpad_offers_the_arms_that_there_are():
    assert (ARMS, PLACEBOS) == (ablation.CONTENTS, ablation.PLACEBOS)
    assert all(ablation_report.is_placebo(p) for p in PLACEBOS) and not any(map(ablation_report.is_placebo, ARMS))


def line(arm, value, low, high, *, baseline="none", where="all", counts=None, verdict=None):
    figure = {"value": value, "low": low, "high": high, "relative": value / 0.7, "counts": counts, "verdict": verdict}
    key = {"split_rule": "global_time", "arm": arm, "item_ids": True, "slice": where, "metric": "auc"}
    return key | figure | {"baseline": baseline, "num_seeds": 5, "num_examples": 100, "num_users": 20}


def test_the_table_shows_differences_with_their_signs_and_verdicts_in_order():
    lines = [
        line("none", 0.7, 0.69, 0.71, baseline=""),
        line("tokens", 0.704, 0.69, 0.72, baseline=""),
        line("tokens", 0.02, 0.01, 0.03, where="new_items", counts=True, verdict="second"),
        line("tokens", 0.004, 0.001, 0.007, counts=True, verdict="first"),
    ]
    table = ablation_report.table_markdown(lines).splitlines()
    assert len(table) == 4 and "+0.0040 [+0.0010, +0.0070] | +0.0200 [+0.0100, +0.0300]" in table[3]
    assert table[3].endswith("| +0.57% | yes |") and "0.7000 [0.6900, 0.7100]" in table[2]
    assert ablation_report.verdicts(lines) == ["first", "second"]
    assert ablation_report.forest_plot(lines).startswith(b"\x89PNG")
    assert ablation_report.table_csv(lines).decode().count("\n") == 5
