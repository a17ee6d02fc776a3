"""The stage as Dagster runs it: train, export, checks; the second run does nothing."""

import dagster as dg
import polars as pl
import pytest

import assets.vista.checks as checks
from assets.vista.summarizer import summarizer
from assets.vista.tracking import REGISTERED
from assets.vista.user_summaries import user_summaries
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.vista import USER_SUMMARIES, VISTA_MODELS
from tests.factories import seed_interactions

KNOBS = {
    "ops": {
        "vista__summarizer": {
            "config": {"num_seeds": 4, "width": 16, "epochs": 4, "learning_rate": 0.01, "block_examples": 4}
        },
        "vista__user_summaries": {"config": {"shards": 2}},
    }
}
STAGE = [
    summarizer,
    user_summaries,
    checks.summarizer_checks,
    checks.user_summaries_checks,
    checks.model_is_above_the_floor,
    checks.summaries_are_faithful,
    checks.values_are_whole,
    checks.every_user_has_one_latest,
]


def materialize(tables, tracking, instance, what=STAGE, knobs=KNOBS, raise_on_error=True):
    return dg.materialize(
        what,
        resources={"tables": tables, "tracking": tracking, "ray_jobs": LocalRayJobs()},
        instance=instance,
        run_config=knobs,
        raise_on_error=raise_on_error,
    )


def metadata(result, name):
    return {k: v.value for k, v in result.asset_materializations_for_node(f"vista__{name}")[0].metadata.items()}


def fulfils_the_checklist(client, version, tables, dagster_run):
    """The MLflow run of a training says what every run says."""
    run = client.get_run(version.run_id)
    tags, params = run.data.tags, run.data.params
    assert run.info.status == "FINISHED" and version.description
    assert tags["git.sha"] in run.info.run_name and params["window_first_day"] + ".." in run.info.run_name
    assert "**Hypothesis**" in tags["mlflow.note.content"] and "**Verdict**" in tags["mlflow.note.content"]
    assert {"seed", "tie_rule", "negatives", "window_last_day", "semantic_id_widths", "num_seeds"} <= set(params)
    assert params["split_rule"] == "global_time"
    assert tags["dagster.run_id"] == dagster_run and tags["dagster.asset_key"] == "vista/summarizer"
    assert {"dagster.partition", "status", "feature_view", "model_version"} <= set(tags)
    used = {
        next(t.value for t in i.tags if t.key == "mlflow.data.context"): i.dataset for i in run.inputs.dataset_inputs
    }
    assert set(used) == {"histories", "train", "valid", "test"}
    assert tables.version(SPLITS) in used["train"].digest and tables.uri(SPLITS) in used["train"].source
    files = {f.path for folder in ("", "plots", "model") for f in client.list_artifacts(version.run_id, folder)}
    assert {"plots/training.png", "history.json", "requirements.txt", "model/model.safetensors"} <= files
    metrics = set(run.data.metrics)
    assert {"valid/auc", "valid/auc_low", "valid/auc_high", "test/auc", "cost/train_seconds"} <= metrics


@pytest.mark.ray
def test_the_stage_runs_and_then_has_nothing_to_do(tables, tracking, instance, ray_cluster, monkeypatch):
    seed_interactions(tables, num_users=40, events_per_user=20)
    first = materialize(tables, tracking, instance)
    outcomes = {(e.asset_key.path[-1], e.check_name): e.passed for e in first.get_asset_check_evaluations()}
    assert first.success and len(outcomes) == 10
    assert all(v for k, v in outcomes.items() if k[1] != "auc_above_floor")
    said = metadata(first, "summarizer")
    assert said["training_runs"] == 1 and said["resumed_from_epoch"] == 0 and said["epochs_run"] == said["epochs"]
    assert "data:image/png;base64" in said["training_curve"] and said["mlflow_run"].startswith("http")
    assert metadata(first, "user_summaries")["relative_error_max"] < 0.02
    row = tables.read(VISTA_MODELS).to_pylist()[0]
    client = tracking.connect("vista").MlflowClient()
    versions = client.search_model_versions(f"name = '{REGISTERED}'")
    assert [v.tags["model_version"] for v in versions] == [row["model_version"]]
    assert len(client.get_metric_history(versions[0].run_id, "valid/auc")) == said["epochs"]

    fulfils_the_checklist(client, versions[0], tables, first.run_id)
    again = materialize(tables, tracking, instance)
    assert metadata(again, "summarizer")["training_runs"] == 0 and metadata(again, "summarizer")["unchanged"]
    assert metadata(again, "user_summaries")["table_commits"] == 0
    assert len(client.search_model_versions(f"name = '{REGISTERED}'")) == 1

    # A lost commit after a finished training: neither trained nor registered twice.
    tables.write(VISTA_MODELS, tables.read(VISTA_MODELS), "lost")
    mended = materialize(
        tables, tracking, instance, [summarizer], {"ops": {"vista__summarizer": KNOBS["ops"]["vista__summarizer"]}}
    )
    assert metadata(mended, "summarizer")["training_runs"] == 0 and metadata(mended, "summarizer")["table_commits"] == 1
    assert len(client.search_model_versions(f"name = '{REGISTERED}'")) == 1

    users = pl.from_arrow(tables.read(USER_SUMMARIES))
    monkeypatch.setattr(checks, "ROWS_AT_ONCE", 3)
    assert checks.values_are_whole(tables).passed
    cut = pl.when(pl.int_range(pl.len()) == 4).then(pl.col("summary").bin.head(5)).otherwise("summary").alias("summary")
    tables.write(USER_SUMMARIES, users.with_columns(cut).to_arrow().cast(USER_SUMMARIES.schema), "cut")
    found = checks.values_are_whole(tables)
    assert not found.passed and found.metadata["failing_sample"].value == "[4]"
    tables.write(USER_SUMMARIES, users.filter(pl.col("user_id") != "u3").to_arrow(), "holed")
    found = checks.every_user_has_one_latest(tables)
    assert not found.passed and found.metadata["users_wrong"].value == 1


@pytest.mark.ray
def test_bad_data_fails_once_with_one_sentence(tables, tracking, instance, ray_cluster):
    seed_interactions(tables, num_users=6)
    nothing = pl.from_arrow(tables.read(SPLITS)).with_columns(split=pl.lit("test"))
    tables.write(SPLITS, nothing.to_arrow().cast(SPLITS.schema), "all-test")
    result = materialize(tables, tracking, instance, [summarizer], {}, raise_on_error=False)
    failed = result.get_step_failure_events()[0].step_failure_data
    assert not result.success and "No example is in the split `train`" in failed.user_failure_data.description
    assert len(result.filter_events(lambda e: e.is_step_restarted)) == 0


def test_a_worthless_model_blocks_and_an_untested_one_warns(tables):
    import datetime as dt

    import pyarrow as pa

    def row(**changes):
        plain = {c.name: {"string": "{}", "double": 0.4}.get(str(c.type), 1) for c in VISTA_MODELS.columns}
        now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        tables.write(
            VISTA_MODELS,
            pa.Table.from_pylist(
                [plain | {"event_timestamp": now, "created_timestamp": now} | changes], VISTA_MODELS.schema
            ),
            version=str(changes),
        )
        return checks.model_is_above_the_floor(tables)

    worthless, untested = row(valid_examples=9), row(valid_examples=0, valid_auc_low=0.5)
    good = row(valid_auc_low=0.6)
    assert not worthless.passed and worthless.severity == dg.AssetCheckSeverity.ERROR
    assert not untested.passed and untested.severity == dg.AssetCheckSeverity.WARN
    assert good.passed
