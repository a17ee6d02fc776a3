"""From real failed runs, checks and clocks to alerts."""

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._daemon.types import DaemonHeartbeat

from orchestration.causes import deepest
from orchestration.heartbeat import beat
from orchestration.sensors import sensors
from orchestration.settings import Settings
from orchestration.watch import (
    Cursor,
    Directory,
    Limits,
    failed_run,
    grown_quarantine,
    looks,
    oldest_queued,
    stale_assets,
)

ROOT = Path(__file__).resolve().parents[2]
HOUR = dt.timedelta(hours=1)
DAYS = dg.DailyPartitionsDefinition("2026-11-01")


def owned(name, **more):
    return dict(
        key=["stage", name],
        owners=["team:stage"],
        metadata={"runbook": dg.MetadataValue.url("http://docs/stage.md")},
        **more,
    )


@dg.asset(**owned("told"))
def told():
    raise dg.Failure("The file events.csv has no column user_id:\n  add it.", allow_retries=False)


@dg.asset(**owned("raised", partitions_def=DAYS))
def raised():
    try:
        try:
            {}["needle"]
        except KeyError as error:
            raise ValueError("wrapped") from error
    except ValueError as error:
        raise RuntimeError("outermost") from error


@dg.asset(**owned("checked"))
def checked():
    return None


@dg.asset_check(asset=["stage", "checked"], blocking=True)
def never_negative():
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.ERROR, description="Column value holds -1.")


@dg.asset_check(asset=["stage", "checked"])
def rather_many():
    return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description="Only 3 rows.")


@dg.asset(**owned("below", deps=[["stage", "checked"]]))
def below():
    return None


@dg.op
def lonely_op():
    raise ValueError("The candidate is unknown.")


@dg.job(description="A plain job.")
def lonely_job():
    lonely_op()


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", dagster_ui="http://dagster", runbook_base="http://docs")


@pytest.fixture
def defs(settings):
    return dg.Definitions(
        assets=[told, raised, checked, below],
        asset_checks=[never_negative, rather_many],
        jobs=[lonely_job],
        sensors=sensors(settings),
        executor=dg.in_process_executor,
    )


@pytest.fixture
def directory(defs, settings):
    return Directory(defs.resolve_asset_graph(), settings)


def run_assets(defs, instance, names, **more):
    return defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance,
        raise_on_error=False,
        asset_selection=[dg.AssetKey(["stage", n]) for n in names],
        **more,
    )


def failure_event(result):
    return next(e for e in result.all_events if e.is_run_failure)


def alerts_of(defs, instance, directory, names, **more):
    result = run_assets(defs, instance, names, **more)
    assert not result.success
    return failed_run(instance, instance.get_run_by_id(result.run_id), failure_event(result), directory)


def test_a_failure_that_explains_itself_is_quoted(defs, instance, directory):
    [alert] = alerts_of(defs, instance, directory, ["told"])
    assert alert.cause == "The file events.csv has no column user_id: add it."
    assert (alert.owner, alert.asset, alert.partition, alert.runbook) == (
        "team:stage",
        "stage/told",
        "",
        "http://docs/stage.md",
    )
    assert alert.link.startswith("http://dagster/runs/") and "rematerialize_failed" in alert.hint


def test_the_root_of_a_chain_of_exceptions_is_the_cause(defs, instance, directory):
    [alert] = alerts_of(defs, instance, directory, ["raised"], partition_key="2026-11-02")
    assert alert.cause == "KeyError: 'needle'"
    assert alert.partition == "2026-11-02"


def test_every_failed_asset_speaks_and_what_was_skipped_does_not(defs, instance, directory):
    found = alerts_of(defs, instance, directory, ["told", "checked", "below"])
    assert sorted(a.asset for a in found) == ["stage/checked", "stage/told"]
    [check] = [a for a in found if a.asset == "stage/checked"]
    assert check.kind == "check" and check.cause == "Column value holds -1."


def test_a_plain_job_speaks_for_itself(instance, directory):
    result = lonely_job.execute_in_process(instance=instance, raise_on_error=False)
    [alert] = failed_run(instance, instance.get_run_by_id(result.run_id), failure_event(result), directory)
    assert (alert.asset, alert.cause) == ("job lonely_job", "The candidate is unknown.")
    assert alert.runbook == "http://docs/lonely_job.md" and alert.owner == "team:ml-platform"
    assert directory.job_page("__ASSET_JOB") == "http://docs/runbooks/alerts.md"


def test_runs_that_somebody_else_speaks_for_are_silent(defs, instance, directory):
    assert alerts_of(defs, instance, directory, ["told"], tags={"dagster/will_retry": "true"}) == []
    assert alerts_of(defs, instance, directory, ["told"], tags={"child_run": "another"}) == []


def test_a_run_whose_process_was_lost_says_so(defs, instance, directory):
    job = defs.resolve_implicit_global_asset_job_def()
    run = instance.create_run_for_job(job, tags={})
    instance.report_run_failed(run, "The process of this run (host:1) was lost.")
    event = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE).records[0].event_log_entry
    [alert] = failed_run(instance, instance.get_run_by_id(run.run_id), event.dagster_event, directory)
    assert "was lost" in alert.cause


def test_an_error_that_crossed_a_ray_task_is_told_by_its_last_line():
    from dagster._utils.error import SerializableErrorInfo

    remote = SerializableErrorInfo(
        'ray.exceptions.RayTaskError(ValueError): ray::map() (pid=7)\n  File "x.py", line 1, in f\n'
        "    raise ValueError(1)\nValueError: bad image\n",
        [],
        "RayTaskError",
    )
    outer = SerializableErrorInfo(
        "Error occurred while executing op", [], "DagsterExecutionStepExecutionError", cause=remote
    )
    assert deepest(outer) == "ValueError: bad image"
    assert deepest(SerializableErrorInfo("", [], "SomeError")) == "SomeError"


def test_the_sensor_of_failed_runs_sends_one_alert(defs, instance, settings):
    sensor = next(s for s in defs.sensors if s.name == "failed_runs")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    for _ in range(2):
        result = run_assets(defs, instance, ["told"])
        context = dg.build_run_status_sensor_context(
            "failed_runs", failure_event(result), instance, result.dagster_run, repository_def=defs.get_repository_def()
        ).for_run_failure()
        sensor(context)
    lines = (settings.home / "alerts.jsonl").read_text().splitlines()
    assert [json.loads(line)["asset"] for line in lines] == ["stage/told"]


def test_a_tick_of_the_daemon_sees_a_run_that_no_daemon_launched(defs, instance, settings):
    sensor = next(s for s in defs.sensors if s.name == "failed_runs")
    repository = defs.get_repository_def()

    def tick(cursor=None):
        context = dg.build_sensor_context(instance, cursor, repository_def=repository, sensor_name="failed_runs")
        return sensor.evaluate_tick(context).cursor

    cursor = tick()
    run_assets(defs, instance, ["told", "checked"])
    cursor = tick(cursor)
    assert tick(cursor) == cursor
    lines = [json.loads(line) for line in (settings.home / "alerts.jsonl").read_text().splitlines()]
    assert sorted(line["asset"] for line in lines) == ["stage/checked", "stage/told"]


def test_the_sensor_of_alerts_and_that_of_runs_see_a_failed_check_once(defs, instance, settings):
    by_name = {s.name: s for s in defs.sensors}
    repository = defs.get_repository_def()
    result = run_assets(defs, instance, ["checked"])
    by_name["failed_runs"](
        dg.build_run_status_sensor_context(
            "failed_runs", failure_event(result), instance, result.dagster_run, repository_def=repository
        ).for_run_failure()
    )
    context = dg.build_sensor_context(instance=instance, repository_def=repository)
    said = by_name["alerts"](context)
    assert "1 alerts delivered, 1 already known" in said.skip_message
    again = dg.build_sensor_context(instance=instance, repository_def=repository, cursor=context.cursor)
    assert "0 alerts delivered, 0 already known" in by_name["alerts"](again).skip_message
    lines = [json.loads(line) for line in (settings.home / "alerts.jsonl").read_text().splitlines()]
    assert [(line["cause"], line["severity"]) for line in lines] == [
        ("Column value holds -1.", "error"),
        ("Only 3 rows.", "warning"),
    ]


def test_looking_again_after_nothing_happened_raises_nothing(defs, instance, directory):
    run_assets(defs, instance, ["checked"])
    cursor, now = Cursor(), dt.datetime.now(dt.UTC)
    assert len(list(looks(instance, directory, cursor, now))) == 2
    cursor = Cursor.read(cursor.text())
    assert list(looks(instance, directory, cursor, now)) == []
    run_assets(defs, instance, ["checked"])
    assert len(list(looks(instance, directory, cursor, now))) == 2, "a new evaluation is news"


def fresh(name, deps=()):
    @dg.asset(
        **owned(
            name,
            deps=[["stage", d] for d in deps],
            freshness_policy=dg.FreshnessPolicy.time_window(fail_window=5 * HOUR),
        )
    )
    def made():
        return None

    return made


def test_the_first_stale_asset_of_a_chain_speaks_for_those_below(instance, settings):
    defs = dg.Definitions(assets=[fresh("a"), fresh("b", ["a"]), fresh("c"), fresh("never")])
    directory = Directory(defs.resolve_asset_graph(), settings)
    assert stale_assets(instance, directory, dt.datetime.now(dt.UTC)) == [], "a new platform is not stale"
    run_assets(defs, instance, ["a", "b", "c"])
    now = dt.datetime.now(dt.UTC)
    limits = Limits(silent=1000 * HOUR)
    assert stale_assets(instance, directory, now + 4 * HOUR, limits) == []
    found = stale_assets(instance, directory, now + 6 * HOUR, limits)
    assert [a.asset for a in found] == ["stage/a", "stage/c"]
    assert "was last made 6 hours ago" in found[0].cause and found[0].owner == "team:stage"


def test_a_platform_where_nothing_ran_says_so_once(instance, settings):
    defs = dg.Definitions(assets=[fresh("a"), fresh("c")])
    run_assets(defs, instance, ["a", "c"])
    directory = Directory(defs.resolve_asset_graph(), settings)
    [alert] = stale_assets(instance, directory, dt.datetime.now(dt.UTC) + 31 * HOUR)
    assert alert.asset == "platform" and "31 hours" in alert.cause


def test_a_quarantine_that_grows_by_much_is_worth_an_alert(instance, directory):
    seen = {}

    def look(rows):
        instance.report_runless_asset_event(
            dg.AssetMaterialization(["interactions", "quarantine"], metadata={"dagster/row_count": rows})
        )
        return [a.cause for a in grown_quarantine(instance, directory, seen)]

    assert grown_quarantine(instance, directory, seen) == []
    assert look(99) == []
    assert look(199) == ["The quarantine grew from 99 to 199 rows."]
    assert look(250) == [] and look(10) == [] and seen == {"rows": 10}
    assert look(10_000) and look(11_000) == [], "a tenth more is below the share"


def test_a_run_that_waits_too_long_is_worth_an_alert(defs, instance, directory):
    assert oldest_queued(instance, directory, dt.datetime.now(dt.UTC)) == []
    job = defs.resolve_implicit_global_asset_job_def()
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("belvedere"), "here"), job.name)
    instance.create_run_for_job(job, status=dg.DagsterRunStatus.QUEUED, remote_job_origin=origin)
    now = dt.datetime.now(dt.UTC)
    assert oldest_queued(instance, directory, now) == []
    [alert] = oldest_queued(instance, directory, now + HOUR)
    assert alert.kind == "queue" and "60 minutes" in alert.cause


def test_a_dead_daemon_is_seen_from_outside(instance, settings):
    assert beat(instance, settings) == 1
    [line] = (settings.home / "alerts.jsonl").read_text().splitlines()
    assert "sensor" in json.loads(line)["cause"] and json.loads(line)["kind"] == "daemon"


def test_living_daemons_are_no_alert(instance, settings):
    for kind in instance.get_required_daemon_types():
        instance.add_daemon_heartbeat(DaemonHeartbeat(dt.datetime.now(dt.UTC).timestamp(), kind, "here"))
    assert beat(instance, settings) == 0 and not (settings.home / "alerts.jsonl").exists()


def test_records_that_cannot_be_read_are_an_alert_though_the_ledger_is_away_too(tmp_path):
    away = "postgresql+{driver}://nobody@127.0.0.1:9/nowhere"
    program = "import sys; from orchestration.heartbeat import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env=os.environ
        | {
            "DAGSTER_HOME": str(ROOT),
            "BELVEDERE_HOME": str(tmp_path),
            "BELVEDERE_DAGSTER_POSTGRES_URL": away.format(driver="psycopg2"),
            "BELVEDERE_LEDGER_URL": away.format(driver="psycopg"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    [line] = (tmp_path / "alerts.jsonl").read_text().splitlines()
    alert = json.loads(line)
    assert alert["kind"] == "daemon" and "records cannot be read" in alert["cause"] and "\n" not in alert["cause"]


def test_automation_or_the_schedule_drives_the_lineage_but_not_both(tmp_path):
    from orchestration.schedules import schedules

    for url, automated in (("", False), ("postgresql+psycopg2://dagster", True)):
        settings = Settings(home=tmp_path, dagster_postgres_url=url)
        automation = next(s for s in sensors(settings) if s.name == "automation")
        [nightly] = schedules([dg.define_asset_job("refresh_daily")], settings)
        assert (automation.default_status == dg.DefaultSensorStatus.RUNNING) is automated
        assert (nightly.default_status == dg.DefaultScheduleStatus.RUNNING) is not automated


def test_the_nightly_run_takes_the_last_days_in_again(tmp_path):
    from orchestration.schedules import schedules

    settings = Settings(home=tmp_path, first_day="2026-11-01")
    [nightly] = schedules([dg.define_asset_job("refresh_daily")], settings)
    asked = nightly(dg.build_schedule_context(scheduled_execution_time=dt.datetime(2026, 11, 22, 2, tzinfo=dt.UTC)))
    assert (
        asked.tags["dagster/asset_partition_range_start"],
        asked.tags["dagster/asset_partition_range_end"],
    ) == ("2026-11-19", "2026-11-21")
    assert asked.run_key == "2026-11-22"
    early = nightly(dg.build_schedule_context(scheduled_execution_time=dt.datetime(2026, 11, 1, 2, tzinfo=dt.UTC)))
    assert isinstance(early, dg.SkipReason)
    with pytest.raises(ValueError, match="refresh_daily"):
        schedules([], settings)
