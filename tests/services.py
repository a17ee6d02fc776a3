"""Real PostgreSQL, Redis and S3 (moto) for contract tests, started on free ports; the first two from Debian.

Not by pytest-postgresql: PostgreSQL refuses to run as root, which containers and CI are, and the plug-in starts it
as whoever runs the tests.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

STARTS_WITHIN = 60.0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} does not listen on port {port}:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def _running(command: list[str], port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        _wait_for(port, process, log)
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _postgres_binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3]))
    where = str(found[-1]) if found else shutil.which(name)
    if where is None:
        raise RuntimeError("PostgreSQL is not installed: apt-get install postgresql (as .ci/run does).")
    return where


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """SQLAlchemy URL of the server, without driver and without a database's name."""
    # Not below pytest's folders, which only their owner may enter: the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="belvedere-postgres-") as folder:
        yield from _postgres(Path(folder))


def _postgres(folder: Path) -> Iterator[str]:
    server = PostgresServer(folder)
    with server.running():
        yield server.url


class PostgresServer:
    """A PostgreSQL of its own that can be killed and started again.

    Args:
        folder: Where its data is.
        settings: Server settings beside those that make it fast.
    """

    def __init__(self, folder: Path, settings: dict[str, str] | None = None):
        self.folder, self.port, self.as_owner = folder, free_port(), []
        self.url = f"postgresql://belvedere@127.0.0.1:{self.port}"
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self.as_owner = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        made = subprocess.run(
            [
                *self.as_owner,
                _postgres_binary("initdb"),
                "-D",
                str(folder / "data"),
                "-U",
                "belvedere",
                "--auth=trust",
                "--no-sync",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
            ],
            capture_output=True,
            text=True,
            cwd="/",
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stderr[-2000:]}")
        self.settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
        } | (settings or {})

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Runs the server; it takes connections."""
        import psycopg

        command = [*self.as_owner, _postgres_binary("postgres"), "-D", str(self.folder / "data"), "-p", str(self.port)]
        for name, value in self.settings.items():
            command += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + STARTS_WITHIN
        with _running(command, self.port, self.folder) as self.process:
            while True:
                try:
                    psycopg.connect(f"{self.url}/postgres").close()
                    break
                except psycopg.OperationalError:  # It listens before it takes connections.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
            yield

    def kill(self) -> None:
        """Kills the server and all its processes with SIGKILL: each backend has a group of its own."""
        found = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        backends = [int(child) for listed in found for child in listed.read_text().split()]
        os.killpg(self.process.pid, signal.SIGKILL)
        for backend in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def postgres_url(postgres_server, request) -> Iterator[str]:
    """URL of an empty database, ``postgresql://user@host:port/name``; put a driver after ``postgresql`` as you need."""
    import psycopg

    name = f"test_{abs(hash(request.node.nodeid))}"
    admin = psycopg.connect(f"{postgres_server}/postgres", autocommit=True)
    with admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        yield f"{postgres_server}/{name}"
        admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory) -> Iterator[int]:
    """Port of the Redis server."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise RuntimeError("Redis is not installed: apt-get install redis-server (as .ci/run does).")
    folder = tmp_path_factory.mktemp("redis")
    port = free_port()
    command = [
        binary,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        str(folder),
    ]
    with _running(command, port, folder):
        yield port


@pytest.fixture
def redis_port(redis_server) -> Iterator[int]:
    """Port of an empty Redis."""
    import redis

    with redis.Redis(port=redis_server) as client:
        client.flushall()
        yield redis_server
        client.flushall()


@pytest.fixture(scope="session")
def object_store(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Credentials of a real S3 server (moto) with the bucket ``lake``, as `deltalake` takes them."""
    import boto3

    port = free_port()
    options = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    # In a process of its own: deltalake holds the GIL while it waits for an answer.
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, port, tmp_path_factory.mktemp("moto")):
        client = boto3.client(
            "s3",
            endpoint_url=options["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="lake")
        yield options
