import json
from pathlib import Path

import dagster as dg
import numpy as np
import pandas as pd
import polars as pl
import pytest

from assets.ranking import candidates, checks
from assets.ranking.leaderboard import leaderboard
from assets.ranking.specs import CANDIDATES
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.ranking import LEADERBOARD, RANKERS, predictions
from tests.training_sets import seed_training_set

NAMES = [spec.name for spec in CANDIDATES]
ASSETS = [getattr(candidates, name) for name in NAMES]
CHECKS = [getattr(checks, f"{name}_{kind}") for name in NAMES for kind in ("checks", "registered", "calibrated")] + [
    checks.leaderboard_checks,
    checks.models_beat_popularity,
    checks.every_candidate_is_current,
]
FAST = {"epochs": 3, "patience": 3, "learning_rate": 1e-2, "batch_size": 256, "width": 16, "resamples": 100}


class InProcess(LocalRayJobs):
    """The jobs themselves need no cluster."""

    def join(self) -> None:
        return


def materialize(assets, tables, tracking, instance, config=None, raise_on_error=True):
    names = {key.path[1] for a in assets for key in a.keys} & set(NAMES)
    ops = {f"ranking__{name}": {"config": config or FAST} for name in names}
    return dg.materialize(
        assets,
        resources={"tables": tables, "tracking": tracking, "ray_jobs": InProcess()},
        instance=instance,
        run_config={"ops": ops},
        raise_on_error=raise_on_error,
    )


def said(result, name):
    return {k: v.value for k, v in result.asset_materializations_for_node(f"ranking__{name}")[0].metadata.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, migrated_mlflow):
    """All candidates, the leaderboard and their checks, materialized once; and once more."""
    import shutil

    from orchestration.resources.tables import LocalTables
    from orchestration.resources.tracking import EmbeddedTracking

    home = tmp_path_factory.mktemp("ranking")
    tables = LocalTables(warehouse_root=str(home / "warehouse"), artifact_root=str(home / "artifacts"))
    shutil.copy(migrated_mlflow, home / "mlflow.db")
    tracking = EmbeddedTracking(tracking_uri=f"sqlite:///{home}/mlflow.db", artifact_root=f"{home}/mlflow")
    seed_training_set(tables, num_users=150, num_items=50, late_share=0.2)
    with dg.instance_for_test(temp_dir=str(home)) as instance:
        first = materialize([*ASSETS, leaderboard, *CHECKS], tables, tracking, instance)
        versions = len(tracking.connect("ranking").MlflowClient().search_model_versions())
        second = materialize([*ASSETS, leaderboard, *CHECKS], tables, tracking, instance)
        yield tables, tracking, first, second, versions


def test_every_check_passes(whole):
    _, _, first, second, _ = whole
    for result in (first, second):
        evaluations = result.get_asset_check_evaluations()
        failed = [(e.asset_key.to_user_string(), e.check_name, e.description) for e in evaluations if not e.passed]
        assert len(evaluations) == 7 * 3 + 6 * 2 + 2
        # Three epochs on so few users may not do better: these checks only warn.
        assert [f for f in failed if f[1] not in ("models_beat_popularity", "calibrated")] == []


def test_nothing_changed_means_nothing_is_trained_logged_or_written(whole):
    tables, tracking, first, second, versions = whole
    for name in NAMES:
        assert said(first, name)["training_runs"] == 1 and said(first, name)["model_versions"] == 1
        again = said(second, name)
        assert again["training_runs"] == 0 and again["model_versions"] == 0 and again["table_commits"] == 0
        assert again["mlflow_run_id"] == said(first, name)["mlflow_run_id"] and "test_auc" in again
    assert said(second, "leaderboard")["table_commits"] == 0
    client = tracking.connect("ranking").MlflowClient()
    assert versions == len(NAMES) == len(client.search_model_versions())


def test_every_mlflow_run_fulfils_the_checklist(whole):
    tables, tracking, first, _, _ = whole
    mlflow = tracking.connect("ranking")
    client = mlflow.MlflowClient()
    names = set()
    for row in tables.read(RANKERS).to_pylist():
        run, name = client.get_run(row["run_id"]), row["candidate"]
        tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
        assert run.info.status == "FINISHED"
        assert name in run.info.run_name and "2025-01-01.." in run.info.run_name
        assert tags["git.sha"] in run.info.run_name
        note = tags["mlflow.note.content"]
        assert "**Hypothesis.**" in note and "**Verdict.**" in note and "pending" not in note
        assert {
            "seed",
            "split_rule",
            "tie_rule",
            "negatives",
            "k",
            "window_first_day",
            "window_last_day",
            "version.ranker",
            "version.training_set",
            "semantic_id_widths",
        } <= set(params)
        assert params["split_rule"] == "global_time"
        assert {
            "dagster.run_id",
            "dagster.asset_key",
            "dagster.partition",
            "feature_service",
            "feature_refs",
            "dataset",
            "ranker_version",
            "image.digest",
            "dataset.licence",
            "ab_experiment",
        } <= set(tags)
        assert tags["status"] == "candidate" and tags["dagster.run_id"] == first.run_id
        for metric in ("auc", "logloss", "normalized_entropy", "ece", "hr_at_10", "ndcg_at_10"):
            assert {f"test/{metric}", f"test/{metric}_low", f"test/{metric}_high"} <= set(metrics)
        names.add(frozenset(k for k in metrics if k.startswith(("test/", "slice/"))))
        assert {"latency/p50_ms", "latency/p99_ms", "cost/train_seconds", "parity/max_difference"} <= set(metrics)
        inputs = {
            next(t.value for t in i.tags if t.key == "mlflow.data.context"): i.dataset
            for i in run.inputs.dataset_inputs
        }
        assert set(inputs) == {"train", "valid", "test"}
        assert all(d.digest and tables.uri(TRAINING_SET) in d.source for d in inputs.values())
        files = {
            f.path
            for folder in ("", "plots", "slices", "examples")
            for f in client.list_artifacts(row["run_id"], folder)
        }
        assert {
            "plots/roc.png",
            "plots/calibration.png",
            "plots/precision_recall.png",
            "slices/slices.csv",
            "slices/auc.png",
            "examples/largest_errors.csv",
        } <= files
        if name.startswith("dlrm"):
            history = client.get_metric_history(row["run_id"], "epoch/auc")
            assert [m.step for m in history] == list(range(1, len(history) + 1))
            assert "plots/training.png" in files
        version = client.get_model_version(row["model_name"], row["model_version"])
        assert version.description and version.run_id == row["run_id"]
        assert client.get_registered_model(row["model_name"]).description
        assert {"ranker_version", "candidate", "feature_service", "validation"} <= set(version.tags)
        content = {k: v for k, v in tags.items() if k.startswith("content.")}
        read = {"dlrm_captions": "item_token_version", "dlrm_vista": "user_summary_version"}
        assert content == ({f"content.{read[name]}": "ts"} if name in read else {})
        assert content.items() <= version.tags.items()
        assert not version.aliases, "aliases belong to the stage `experiments`"
        model = mlflow.models.get_model_info(f"models:/{row['model_name']}/{row['model_version']}")
        assert model.signature is not None and model.saved_input_example_info
        folder = mlflow.artifacts.download_artifacts(f"models:/{row['model_name']}/{row['model_version']}")
        kept = json.loads(Path(f"{folder}/input_example.json").read_text())
        users = [row[kept["columns"].index("user_id")] for row in kept["data"]]
        assert all(user.startswith("user ") for user in users), "no user is named where none can be forgotten"
        requirements = Path(f"{folder}/requirements.txt").read_text().splitlines()
        assert all("==" in line for line in requirements)
        assert any(line.startswith("torch==") for line in requirements)
    assert len(names) == 1, "every candidate has the same metrics"


def test_the_registered_model_scores_what_was_measured(whole):
    tables, tracking, *_ = whole
    mlflow = tracking.connect("ranking")
    data = pl.DataFrame(tables.read(TRAINING_SET)).filter(pl.col("split") == "test").head(50)
    for row in tables.read(RANKERS).to_pylist():
        model = mlflow.pyfunc.load_model(f"models:/{row['model_name']}/{row['model_version']}")
        wanted = model.metadata.get_input_schema().input_names()
        request = pd.DataFrame({n: data[n].to_list() for n in wanted if n in data.columns})
        for column in request.columns:
            if pd.api.types.is_numeric_dtype(request[column]):
                request[column] = request[column].astype(float)
            elif column == "user_summary":
                request[column] = [v or b"" for v in request[column]]
        expected = data.join(pl.DataFrame(tables.read(predictions(row["candidate"]))), on="example_id")["score"]
        assert np.allclose(model.predict(request)["score"], expected, atol=1e-6), row["candidate"]
        alone = model.predict(pd.DataFrame({"user_id": ["nobody"], "item_id": ["nothing"]}))
        assert 0 < alone["score"][0] < 1


def test_the_leaderboard_compares_everybody_with_the_baselines(whole):
    tables, tracking, first, _, _ = whole
    board = pl.DataFrame(tables.read(LEADERBOARD))
    whole_split = board.filter(pl.col("slice") == "all")
    assert set(whole_split.filter(pl.col("baseline") == "")["candidate"]) == set(NAMES)
    assert set(whole_split.filter(pl.col("baseline") == "dlrm")["candidate"]) == set(NAMES) - {"dlrm"}
    shown = said(first, "leaderboard")
    assert all(f"| {name} |" in shown["leaderboard"] for name in NAMES)
    assert "dlrm_captions" in shown["verdicts"] and "base64" in shown["auc_plot"]
    assert all(run in shown["compare_in_mlflow"] for run in tables.read(RANKERS)["run_id"].to_pylist())


def test_materializations_link_run_model_and_feature_service(whole):
    _, tracking, first, _, _ = whole
    for spec in CANDIDATES:
        shown = said(first, spec.name)
        assert shown["mlflow_run"].endswith(shown["mlflow_run_id"]) and shown["mlflow_run"].startswith(tracking.ui)
        assert shown["registered_model"] == f"ranker_{spec.name}" and shown["feature_service"] == spec.feature_service
        assert (
            shown["test_auc_low"] <= shown["test_auc"] <= shown["test_auc_high"] and "base64" in shown["auc_by_slice"]
        )


def test_other_parameters_are_another_version(tables, tracking, instance):
    seed_training_set(tables, num_users=40)
    one = materialize([candidates.popularity], tables, tracking, instance)
    two = materialize([candidates.popularity], tables, tracking, instance, FAST | {"seed": 1})
    back = materialize([candidates.popularity], tables, tracking, instance)
    assert said(one, "popularity")["version"] != said(two, "popularity")["version"]
    assert said(back, "popularity")["version"] == said(one, "popularity")["version"]
    # Going back finds the trained ranker and its run again.
    assert said(back, "popularity")["training_runs"] == 0 and said(back, "popularity")["model_versions"] == 0
    assert said(back, "popularity")["mlflow_run_id"] == said(one, "popularity")["mlflow_run_id"]


def test_a_crash_before_registration_trains_nothing_twice(tables, tracking, instance, monkeypatch):
    seed_training_set(tables, num_users=40)

    def down(*args, **kwargs):
        raise dg.Failure("MLflow is away.", allow_retries=False)

    with monkeypatch.context() as broken:
        broken.setattr(candidates, "register", down)
        assert not materialize([candidates.dlrm], tables, tracking, instance, raise_on_error=False).success
    mended = said(materialize([candidates.dlrm], tables, tracking, instance), "dlrm")
    assert mended["training_runs"] == 0 and mended["model_versions"] == 1


def test_a_missing_input_is_one_sentence_and_final(tables, tracking, instance):
    seed_training_set(tables, num_users=20)
    import shutil

    shutil.rmtree(f"{tables.warehouse_root}/captions/caption_tokens")
    result = materialize([candidates.dlrm_captions], tables, tracking, instance, raise_on_error=False)
    failure = result.failure_data_for_node("ranking__dlrm_captions")
    assert "captions/caption_tokens does not exist yet" in failure.user_failure_data.description
    assert not [e for e in result.all_events if e.event_type_value == "STEP_UP_FOR_RETRY"]


def test_every_candidate_has_a_service_of_its_own_with_exactly_what_it_reads():
    from feature_repo import services
    from ray_jobs.ranking.data import feature_refs

    for spec in CANDIDATES:
        service = getattr(services, spec.feature_service)
        served = {f"{view.name}:{f.name}" for view in service.feature_view_projections for f in view.features}
        assert set(feature_refs(spec.kind, spec.inputs)) == served, spec.name
    assert len({spec.feature_service for spec in CANDIDATES}) == len(CANDIDATES)
