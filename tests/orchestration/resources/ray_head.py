"""A second Ray head with a job server, as a remote cluster would have."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.services import free_port


class RayHead:
    """`ray start --head` in a process group of its own; ended by that group, never by `ray stop`."""

    def __init__(self, folder: Path):
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        ray = str(Path(sys.executable).with_name("ray"))
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {
            # Two heads on one machine would both listen here, and the later one would take no jobs.
            "DASHBOARD_METRIC_PORT": str(free_port()),
            "AUTOSCALER_METRIC_PORT": str(free_port()),
        }
        # Not below pytest's folders: a path of more than 107 characters is none of a socket.
        self.sessions = tempfile.mkdtemp(prefix="ray-")
        self.log = (folder / "ray-head.log").open("wb")
        self.process = subprocess.Popen(
            [
                ray,
                "start",
                "--head",
                "--block",
                "--num-cpus=2",
                f"--port={self.port}",
                "--node-ip-address=127.0.0.1",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={self.dashboard}",
                f"--ray-client-server-port={free_port()}",
                # Its default port is taken where another Ray runs, and then no job is ever accepted.
                f"--dashboard-agent-listen-port={free_port()}",
                f"--dashboard-agent-grpc-port={free_port()}",
                f"--object-store-memory={128 * 2**20}",
                f"--temp-dir={self.sessions}",
            ],
            env=environment,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            cwd=str(Path.cwd()),
        )

    def wait(self) -> "RayHead":
        """Returns when the job server takes jobs (its agent is up some seconds after it answers)."""
        job = urllib.request.Request(
            f"{self.address}/api/jobs/", data=b'{"entrypoint": "true"}', headers={"Content-Type": "application/json"}
        )
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(Path(self.log.name).read_text())
            try:
                with urllib.request.urlopen(job, timeout=20):
                    return self
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(Path(self.log.name).read_text())

    def stop(self) -> None:
        """Ends the head and everything that it started."""
        group = os.getpgid(self.process.pid)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.log.close()
        shutil.rmtree(self.sessions, ignore_errors=True)
