"""No dependency reports home, whatever the user has not set."""

import json
import os
import subprocess
import sys
from pathlib import Path

from orchestration.quiet import TELEMETRY_OFF

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json
import orchestration.definitions
import mlflow.telemetry.utils, ray._common.usage.usage_lib as ray_usage
from huggingface_hub import constants
import dagster as dg

with dg.DagsterInstance.get() as instance:
    print(json.dumps({
        "dagster": instance.telemetry_enabled,
        "mlflow": not mlflow.telemetry.utils.is_telemetry_disabled(),
        "ray": ray_usage.usage_stats_enabled(),
        "huggingface": not constants.HF_HUB_DISABLE_TELEMETRY,
    }))
"""


def test_every_dependency_has_its_telemetry_off(tmp_path):
    clean = {k: v for k, v in os.environ.items() if k not in TELEMETRY_OFF}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=ROOT,
        env=clean | {"DAGSTER_HOME": str(ROOT), "BELVEDERE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reported = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(reported) == {"dagster", "mlflow", "ray", "huggingface"} and not any(reported.values()), reported
