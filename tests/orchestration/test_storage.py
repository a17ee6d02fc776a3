"""One `dagster.yaml` for both: the shipped instance keeps its records in SQLite, or in PostgreSQL when a URL is set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import dagster as dg

@dg.asset(pool="llm")
def thing() -> None: ...

with dg.DagsterInstance.get() as instance:
    assert dg.materialize([thing], instance=instance).success
    made = instance.get_latest_materialization_event(dg.AssetKey("thing")) is not None
    limit = instance.get_concurrency_config().pool_config.default_pool_limit
    switches = instance.telemetry_enabled, instance.nux_enabled, instance.run_monitoring_enabled
    print(type(instance.event_log_storage).__name__, made, *switches, limit)
"""


def _run(home: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BELVEDERE_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=clean | {"DAGSTER_HOME": str(ROOT), "BELVEDERE_HOME": str(home)} | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_the_shipped_instance_keeps_its_records_in_sqlite_below_home(tmp_path):
    before = set(os.listdir(ROOT))
    assert _run(tmp_path) == "SqliteEventLogStorage True False False True 1"
    assert (tmp_path / "dagster").is_dir()
    assert set(os.listdir(ROOT)) == before, "nothing is left beside dagster.yaml"


@pytest.mark.services
def test_the_shipped_instance_keeps_its_records_in_postgresql(tmp_path, postgres_url):
    import psycopg

    url = postgres_url.replace("postgresql://", "postgresql+psycopg2://")
    assert _run(tmp_path, BELVEDERE_DAGSTER_POSTGRES_URL=url) == "PostgresEventLogStorage True False False True 1"
    with psycopg.connect(postgres_url) as database:
        (count,) = database.execute("SELECT count(*) FROM event_logs WHERE asset_key = '[\"thing\"]'").fetchone()
    assert count >= 2
