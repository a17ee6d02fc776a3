"""Terminating a Dagster run, as the button of the UI does it, ends its Ray work; so does the next run after a crash."""

import contextlib
import sys
import time
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget

from orchestration.resources.ray_jobs import SubmittedRayJobs
from ray_jobs.cluster_report import Config
from tests.orchestration.resources.ray_head import RayHead

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 120.0

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory):
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.delenv("MLFLOW_DISABLE_TELEMETRY")
        head = RayHead(tmp_path_factory.mktemp("h"))
    yield head.wait()
    head.stop()


@pytest.fixture
def sleeping_python(tmp_path):
    """Stands for the interpreter of the cluster's nodes; whatever job it is asked for, it sleeps."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ncd {ROOT} && exec {sys.executable} -m tests.orchestration.resources.sleeping_job\n")
    script.chmod(0o755)
    return script


def wait_until(happened, what):
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def is_alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def job_states(head):
    from ray.job_submission import JobSubmissionClient

    return {job.submission_id: job.status for job in JobSubmissionClient(head.address).list_jobs()}


@pytest.mark.parametrize(
    "twin",
    [
        "local",
        pytest.param("joined", marks=pytest.mark.services),
        pytest.param("submitted", marks=pytest.mark.services),
    ],
)
def test_terminating_a_run_ends_its_ray_work(twin, request, instance, tmp_path, sleeping_python, monkeypatch):
    sleepers = tmp_path / "sleepers"
    sleepers.mkdir()
    monkeypatch.setenv("SLEEPING_FOLDER", str(sleepers))
    monkeypatch.setenv("SLEEPING_PYTHON", str(sleeping_python))
    if twin != "local":
        head = request.getfixturevalue("ray_head")
        monkeypatch.setenv("SLEEPING_ADDRESS", head.address if twin == "submitted" else f"127.0.0.1:{head.port}")
    target = ModuleTarget("tests.orchestration.resources.sleeping_location", None, str(ROOT), "sleeping")
    with WorkspaceProcessContext(instance, target) as process, process.create_request_context() as workspace:
        repository = next(iter(workspace.code_locations[0].get_repositories().values()))
        job = repository.get_full_job("sleep")
        run = create_run_for_test(
            instance,
            job_name="sleep",
            remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(),
        )
        instance.launch_run(run.run_id, workspace)
        wait_until(lambda: len(list(sleepers.iterdir())) == 2, "the job's tasks never ran")
        workers = [int(path.name) for path in sleepers.iterdir()]
        wait_until(lambda: all(path.read_text() == "true" for path in sleepers.iterdir()), "telemetry is on there")
        assert all(map(is_alive, workers))

        assert instance.run_launcher.terminate(run.run_id)

        wait_until(lambda: instance.get_run_by_id(run.run_id).is_finished, "the run never ended")
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED
        wait_until(lambda: not any(map(is_alive, workers)), "Ray workers outlive their run")
    assert len(list(sleepers.iterdir())) == 2, "a run that was ended is not tried again"
    if twin == "submitted":
        assert "STOPPED" in {str(s.value) for s in job_states(head).values()}


@pytest.mark.services
def test_a_job_whose_run_was_lost_is_ended_by_the_next_one(instance, ray_head, tmp_path):
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(ray_head.address)
    ended, running = (
        create_run_for_test(instance, status=status)
        for status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.STARTED)
    )
    jobs = {
        run.run_id: client.submit_job(entrypoint="sleep 3600", metadata={"dagster/run-id": run.run_id})
        for run in (ended, running)
    }
    jobs["somebody else's"] = client.submit_job(entrypoint="sleep 3600")
    wait_until(lambda: all(client.get_job_status(j) == JobStatus.RUNNING for j in jobs.values()), "jobs never started")

    @dg.asset
    def cluster(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        SubmittedRayJobs(address=ray_head.address, poll_seconds=0.2).run(context, "cluster_report", Config(num_tasks=1))
        return dg.MaterializeResult()

    assert dg.materialize([cluster], instance=instance).success
    wait_until(lambda: client.get_job_status(jobs[ended.run_id]) == JobStatus.STOPPED, "the lost run's job goes on")
    assert client.get_job_status(jobs[running.run_id]) == JobStatus.RUNNING
    assert client.get_job_status(jobs["somebody else's"]) == JobStatus.RUNNING
