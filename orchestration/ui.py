"""`make ui`: the Dagster webserver and daemon and the MLflow UI, until Ctrl-C."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import dagster as dg

from orchestration.quiet import be_quiet
from orchestration.settings import Settings


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=1):
            return True
    except OSError:
        return False


def main() -> int:
    """Starts the three servers, each in a process group of its own, and ends them all together."""
    be_quiet()
    settings = Settings()
    # A server of this machine listens where links say that it is.
    dagster_port = str(urlsplit(settings.dagster_ui).port or 3000)
    mlflow_port = str(urlsplit(settings.mlflow_ui).port or 5000)
    root = Path(__file__).resolve().parent.parent
    settings.home.mkdir(parents=True, exist_ok=True)
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True)
    (settings.home / "mlflow").mkdir(exist_ok=True)
    os.environ |= {
        "BELVEDERE_HOME": str(settings.home),
        "DAGSTER_HOME": str(root),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    # Webserver and daemon would both make a database that is not there yet, and one of them would fail.
    with dg.DagsterInstance.get():
        pass
    tool = Path(sys.executable).parent
    commands = {
        "dagster-webserver": [
            str(tool / "dagster-webserver"),
            "-w",
            "workspace.yaml",
            "-h",
            "127.0.0.1",
            "-p",
            dagster_port,
        ],
        "dagster-daemon": [str(tool / "dagster-daemon"), "run", "-w", "workspace.yaml"],
        "mlflow": [
            str(tool / "mlflow"),
            "server",
            "--backend-store-uri",
            settings.mlflow_tracking_uri,
            "--default-artifact-root",
            settings.mlflow_artifacts,
            "--workers",
            "1",
            "--host",
            "127.0.0.1",
            "--port",
            mlflow_port,
        ],
    }
    if settings.mlflow_tracking_uri.startswith("http"):
        del commands["mlflow"]
    running: dict[str, subprocess.Popen[bytes]] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for name, command in commands.items():
            log = (logs / f"{name}.log").open("ab")
            running[name] = subprocess.Popen(
                command,
                cwd=root,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        told: set[str] = set()
        addresses = {
            "dagster-webserver": ("Dagster", f"http://127.0.0.1:{dagster_port}"),
            "mlflow": ("MLflow", settings.mlflow_runs),
        }
        while True:
            for name, process in running.items():
                if process.poll() is not None:
                    print(f"{name} ended by itself: its log is {logs / (name + '.log')}.", file=sys.stderr)
                    return 1
                if name in addresses and name not in told and _answers(addresses[name][1]):
                    told.add(name)
                    print(f"{addresses[name][0]}: {addresses[name][1]}", flush=True)
            time.sleep(0.5)
    except KeyboardInterrupt:
        print("Stopping.")
        return 0
    finally:
        for how, patience in ((signal.SIGINT, 8.0), (signal.SIGKILL, 2.0)):
            for process in running.values():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, how)
            deadline = time.monotonic() + patience
            while time.monotonic() < deadline and any(p.poll() is None for p in running.values()):
                time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
