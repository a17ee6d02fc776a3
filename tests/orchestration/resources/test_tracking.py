import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import dagster as dg
import pytest

from orchestration.resources.tracking import EmbeddedTracking, ServerTracking, tracking_twin


@pytest.fixture(scope="module")
def server(tmp_path_factory, migrated_mlflow):
    """A real MLflow server on a free port; its process group ends with the test."""
    import shutil

    home = tmp_path_factory.mktemp("mlflow-server")
    shutil.copy(migrated_mlflow, home / "mlflow.db")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            f"sqlite:///{home}/mlflow.db",
            "--artifacts-destination",
            str(home / "artifacts"),
        ],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).read()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield address
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(30)


@pytest.fixture(params=["embedded", pytest.param("server", marks=pytest.mark.services)])
def twin(request, tracking):
    if request.param == "embedded":
        return tracking
    return tracking_twin(request.getfixturevalue("server"), "file:///nowhere/at/all", "http://ui:5000")


def test_a_run_is_linked_both_ways_and_keeps_its_artifacts(twin, instance):
    found = {}

    @dg.asset
    def logs(context: dg.AssetExecutionContext):
        with twin.run(context, "contract", "a run", params={"seed": 3}, tags={"candidate": "x"}, note="**why**") as run:
            mlflow = twin.connect("contract")
            mlflow.log_metric("auc", 0.5)
            mlflow.log_dict({"a": 1}, "figures.json")
        found["run"] = run.info.run_id

    result = dg.materialize([logs], instance=instance)
    mlflow = twin.connect("contract")
    run = mlflow.MlflowClient().get_run(found["run"])
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "3"} and run.data.metrics == {"auc": 0.5}
    assert run.data.tags["dagster.run_id"] == result.run_id and run.data.tags["dagster.asset_key"] == "logs"
    assert run.data.tags["mlflow.note.content"] == "**why**" and run.data.tags["git.sha"]
    assert instance.get_run_by_id(result.run_id).tags["mlflow/run_id"] == found["run"]
    assert mlflow.artifacts.load_dict(f"runs:/{found['run']}/figures.json") == {"a": 1}
    assert twin.run_url(run.info.experiment_id, found["run"]).endswith(
        f"/#/experiments/{run.info.experiment_id}/runs/{found['run']}"
    )


def test_connecting_twice_uses_one_experiment(twin):
    first = twin.connect("again").get_experiment_by_name("again").experiment_id
    assert twin.connect("again").get_experiment_by_name("again").experiment_id == first


def test_a_failed_step_leaves_a_failed_run(twin, instance):
    @dg.asset
    def fails(context: dg.AssetExecutionContext):
        with twin.run(context, "contract", "fails", params={}, tags={}, note=""):
            raise ValueError("no")

    assert not dg.materialize([fails], instance=instance, raise_on_error=False).success
    runs = (
        twin.connect("contract")
        .MlflowClient()
        .search_runs(
            [twin.connect("contract").get_experiment_by_name("contract").experiment_id], "attributes.run_name = 'fails'"
        )
    )
    assert [r.info.status for r in runs] == ["FAILED"]


def test_nothing_is_written_below_the_working_directory(tracking, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mlflow = tracking.connect("place")
    with mlflow.start_run() as run:
        mlflow.log_text("x", "x.txt")
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/mlflow/artifacts/place/")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("uri", "root", "kind", "kept"),
    [
        ("sqlite:////x/mlflow.db", "file:///x/artifacts", EmbeddedTracking, "file:///x/artifacts"),
        ("http://mlflow:5000", "file:///x/artifacts", ServerTracking, ""),
        ("http://mlflow:5000", "s3://bucket/mlflow", ServerTracking, "s3://bucket/mlflow"),
        ("postgresql+psycopg://mlflow@db/mlflow", "s3://bucket/mlflow", ServerTracking, "s3://bucket/mlflow"),
    ],
)
def test_settings_choose_the_twin(uri, root, kind, kept):
    made = tracking_twin(uri, root, "http://ui")
    assert type(made) is kind and made.artifact_root == kept
