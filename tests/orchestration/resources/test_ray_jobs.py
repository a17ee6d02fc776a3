"""The contract of `RayJobs`, held by both twins: in the step, and submitted to a second Ray head through Pipes."""

import sys
import types

import dagster as dg
import pytest

from assets.resources import RayJobs
from orchestration.causes import sentence_of
from orchestration.resources.ray_jobs import LocalRayJobs, SubmittedRayJobs
from ray_jobs.cluster_report import Config
from tests.orchestration.resources.ray_head import RayHead


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory):
    head = RayHead(tmp_path_factory.mktemp("h")).wait()
    yield head
    head.stop()


@pytest.fixture(params=["local", pytest.param("submitted", marks=pytest.mark.services)])
def jobs(request):
    if request.param == "local":
        request.getfixturevalue("ray_cluster")
        return LocalRayJobs()
    return SubmittedRayJobs(address=request.getfixturevalue("ray_head").address, poll_seconds=0.2)


def _materialize(jobs, instance, **knobs):
    seen = {}

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=2, delay=0.01))
    def cluster(context: dg.AssetExecutionContext, ray_jobs: RayJobs) -> dg.MaterializeResult:
        seen["tries"] = seen.get("tries", 0) + 1
        seen["result"] = ray_jobs.run(context, "cluster_report", Config(**knobs))
        return dg.MaterializeResult(metadata={"cpus": seen["result"].num_cpus})

    result = dg.materialize([cluster], resources={"ray_jobs": jobs}, instance=instance, raise_on_error=False)
    return result, seen


def test_a_job_gives_its_result(jobs, instance):
    result, seen = _materialize(jobs, instance, num_tasks=3)
    assert result.success
    assert seen["result"].num_nodes == 1 and seen["result"].num_cpus == 2.0 and seen["result"].ray_version


def test_a_data_error_is_told_in_one_sentence_and_not_retried(jobs, instance):
    result, seen = _materialize(jobs, instance, fail_with="column price is missing; add it")
    assert not result.success and seen["tries"] == 1
    (failed,) = [e for e in result.all_events if e.is_step_failure]
    told = failed.step_failure_data.user_failure_data.description
    assert told.startswith("Ray job cluster_report:") and "column price is missing; add it" in told and "\n" not in told


def _out_of_reach(batch):
    raise ConnectionError("The endpoint does not answer: look if it serves.")


def test_an_error_within_a_batch_is_told_as_itself_and_tried_again(instance, ray_cluster, monkeypatch):
    import ray.data

    job = types.ModuleType("ray_jobs.reaching")
    job.run = lambda config: ray.data.range(1).map_batches(_out_of_reach).materialize()
    monkeypatch.setitem(sys.modules, "ray_jobs.reaching", job)
    tries = []

    @dg.asset(retry_policy=dg.RetryPolicy(max_retries=1, delay=0.01))
    def reaching(context: dg.AssetExecutionContext, ray_jobs: RayJobs) -> None:
        tries.append(1)
        ray_jobs.run(context, "reaching", Config())

    result = dg.materialize([reaching], resources={"ray_jobs": LocalRayJobs()}, instance=instance, raise_on_error=False)
    (failed,) = [e for e in result.all_events if e.is_step_failure]
    assert sentence_of(failed) == (
        "Ray job reaching: ConnectionError: The endpoint does not answer: look if it serves."
    )
    assert len(tries) == 2


@pytest.mark.services
def test_logs_of_a_submitted_job_reach_the_step(ray_head, instance, capfd):
    result, _ = _materialize(SubmittedRayJobs(address=ray_head.address, poll_seconds=0.2), instance, num_tasks=2)
    assert result.success
    assert "task 1 runs on" in capfd.readouterr().out


@pytest.mark.services
def test_an_absent_cluster_is_named(instance):
    result, seen = _materialize(SubmittedRayJobs(address="http://127.0.0.1:9", poll_seconds=0.2), instance)
    assert not result.success
    (failed,) = [e for e in result.all_events if e.is_step_failure]
    assert "127.0.0.1:9 does not answer" in failed.step_failure_data.error.to_string()
