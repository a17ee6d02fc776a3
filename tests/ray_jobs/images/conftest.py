"""An object store of this machine for the tests of image files."""

import contextlib
import subprocess
import sys
import time

import pytest

from tests.services import free_port


@pytest.fixture(scope="session")
def object_store():
    """Credentials of a real S3 server (moto) with the bucket ``lake``."""
    import boto3
    from botocore.exceptions import EndpointConnectionError

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    client = boto3.client(
        "s3",
        endpoint_url=options["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    for _ in range(100):
        with contextlib.suppress(EndpointConnectionError):
            client.create_bucket(Bucket="lake")
            break
        time.sleep(0.2)
    yield options
    server.terminate()
    server.wait()
