"""`make ui` as a user sees it: addresses appear, Ctrl-C ends everything."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.services import free_port

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 180.0


def _group_of(session: int) -> list[int]:
    """Living processes whose parent's chain starts at ``session``'s servers: same process group."""
    living = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(group) == session and state != "Z":
            living.append(int(stat.parent.name))
    return living


@pytest.mark.services
def test_the_servers_say_where_they_are_and_ctrl_c_ends_them(tmp_path):
    addresses = {name: f"http://127.0.0.1:{free_port()}" for name in ("Dagster", "MLflow")}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "orchestration.ui"],
        cwd=ROOT,
        env=os.environ
        | {
            "BELVEDERE_HOME": str(tmp_path),
            "BELVEDERE_DAGSTER_UI": addresses["Dagster"],
            "BELVEDERE_MLFLOW_UI": addresses["MLflow"],
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        told = [process.stdout.readline().strip() for _ in addresses]
        pages = {"Dagster": "", "MLflow": "/#/experiments?workflowType=machine_learning"}
        assert sorted(told) == [f"{name}: {address}{pages[name]}" for name, address in addresses.items()]
        for address in addresses.values():
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert answer.status == 200
        children = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(children) == 3 and all(_group_of(child) for child in children)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stdout.read().strip() == "Stopping."
        deadline = time.monotonic() + PATIENCE
        while any(_group_of(child) for child in children):
            assert time.monotonic() < deadline, "a server outlives its command"
            time.sleep(0.1)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
