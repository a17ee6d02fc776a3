"""What the last attempts left undone is found, lost runs are told from slow ones, and good work is not redone."""

import os
import socket
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from assets.resources import PROCESS_TAG, Tables
from orchestration.refresh import materialize, reap_lost_runs, unfinished


class Fails:
    """Which assets fail now."""

    names: set[str] = set()
    made: list[str] = []


def _asset(name, *deps, **kwargs):
    @dg.asset(key=["s", name], deps=[["s", d] for d in deps], **kwargs)
    def made() -> None:
        if name in Fails.names:
            raise dg.Failure(f"{name} has bad input.", allow_retries=False)
        Fails.made.append(name)

    return made


@pytest.fixture
def chain():
    Fails.names, Fails.made = set(), []

    @dg.asset_check(asset=["s", "b"], blocking=True)
    def b_is_good():
        severity = dg.AssetCheckSeverity.WARN if "b_warns" in Fails.names else dg.AssetCheckSeverity.ERROR
        return dg.AssetCheckResult(passed=not Fails.names & {"b_check", "b_warns"}, severity=severity)

    days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-04")
    return dg.Definitions(
        [
            _asset("days", partitions_def=days, backfill_policy=dg.BackfillPolicy.single_run()),
            _asset("a", "days"),
            _asset("b", "a"),
            _asset("c", "b"),
            _asset("aside"),
        ],
        asset_checks=[b_is_good],
    )


def _names(keys):
    return sorted(k.path[-1] for k in keys)


def test_nothing_made_yet_is_all_unfinished_and_a_whole_run_finishes_it(chain, instance):
    left = unfinished(instance, chain)
    assert _names(left.assets) == ["a", "aside", "b", "c", "days"]
    assert list(left.partitions.values()) == [["2026-01-01", "2026-01-02", "2026-01-03"]]
    assert materialize(instance, chain, days=("2026-01-01", "2026-01-03")).success
    assert unfinished(instance, chain).assets == []


def test_only_what_failed_and_what_follows_is_made_again(chain, instance):
    Fails.names = {"b"}
    assert not materialize(instance, chain, days=("2026-01-01", "2026-01-03")).success
    left = unfinished(instance, chain)
    assert _names(left.assets) == ["b", "c"] and left.partitions == {}
    Fails.names, Fails.made = set(), []
    assert materialize(instance, chain, left.assets).success
    assert Fails.made == ["b", "c"]
    assert unfinished(instance, chain).assets == []


def test_a_refused_asset_is_unfinished_though_it_was_made(chain, instance):
    Fails.names = {"b_check"}
    materialize(instance, chain, days=("2026-01-01", "2026-01-03"))
    assert _names(unfinished(instance, chain).assets) == ["b", "c"]


def test_a_warning_leaves_nothing_undone(chain, instance):
    Fails.names = {"b_warns"}
    assert materialize(instance, chain, days=("2026-01-01", "2026-01-03")).success
    assert unfinished(instance, chain).assets == []


def test_missing_days_are_found(chain, instance):
    materialize(instance, chain, days=("2026-01-01", "2026-01-02"))
    left = unfinished(instance, chain)
    assert _names(left.assets) == ["days"] and list(left.partitions.values()) == [["2026-01-03"]]


def test_a_run_whose_process_is_gone_is_marked_failed_and_a_living_one_is_left_alone(instance):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    runs = [
        create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags={PROCESS_TAG: process})
        for process in (f"{host}:{gone.pid}", f"{host}:{os.getpid()}", f"elsewhere:{gone.pid}")
    ]
    assert reap_lost_runs(instance) == [runs[0].run_id]
    assert instance.get_run_by_id(runs[0].run_id).status == dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(runs[1].run_id).status == dg.DagsterRunStatus.STARTED


def test_a_run_that_is_executed_again_is_known_by_its_own_process(tables, instance):
    @dg.asset
    def thing(tables: Tables) -> None: ...

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    inherited = {PROCESS_TAG: f"{socket.gethostname()}:{gone.pid}"}
    result = dg.materialize([thing], resources={"tables": tables}, instance=instance, tags=inherited)
    assert instance.get_run_by_id(result.run_id).tags[PROCESS_TAG] == f"{socket.gethostname()}:{os.getpid()}"


def test_the_mending_job_is_known_by_its_process_too(instance):
    from orchestration.jobs.refresh import rematerialize_failed

    done = rematerialize_failed.execute_in_process(
        instance=instance, run_config={"ops": {"rematerialize_what_failed": {"config": {"dry_run": True}}}}
    )
    assert instance.get_run_by_id(done.run_id).tags[PROCESS_TAG] == f"{socket.gethostname()}:{os.getpid()}"
