"""Fixtures that every test may use: a fresh home, real tables in it, one shared Ray cluster."""

import os
import tempfile

import hypothesis
import pytest

from orchestration.quiet import be_quiet
from tests.services import object_store, postgres_server, postgres_url, redis_port, redis_server  # noqa: F401

_session_home = tempfile.TemporaryDirectory(prefix="belvedere-tests-")
os.environ["BELVEDERE_HOME"] = _session_home.name
os.environ["OMP_NUM_THREADS"] = "1"
for name in [n for n in os.environ if n.startswith("BELVEDERE_") and n != "BELVEDERE_HOME"] + ["RAY_ADDRESS"]:
    os.environ.pop(name, None)
be_quiet()
# A busy machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture
def tables(tmp_path):
    """The embedded warehouse and artifact store, empty."""
    from orchestration.resources.tables import LocalTables

    return LocalTables(warehouse_root=str(tmp_path / "warehouse"), artifact_root=str(tmp_path / "artifacts"))


@pytest.fixture(scope="session")
def migrated_mlflow(tmp_path_factory):
    """An MLflow database of the current schema; making one takes seconds, copying it none."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{folder}/mlflow.db", f"file://{folder}/artifacts")
    return folder / "mlflow.db"


@pytest.fixture
def tracking(tmp_path, migrated_mlflow):
    """The embedded MLflow, empty."""
    import shutil

    from orchestration.resources.tracking import EmbeddedTracking

    (tmp_path / "mlflow").mkdir()
    shutil.copy(migrated_mlflow, tmp_path / "mlflow" / "mlflow.db")
    return EmbeddedTracking(
        tracking_uri=f"sqlite:///{tmp_path}/mlflow/mlflow.db", artifact_root=f"{tmp_path}/mlflow/artifacts"
    )


@pytest.fixture(scope="session")
def ray_cluster():
    """One local Ray cluster for the whole session."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=128 * 2**20,
        include_dashboard=False,
        logging_level="error",
        log_to_driver=False,
        namespace="belvedere",
    )
    yield
    ray.shutdown()


@pytest.fixture
def instance(tmp_path):
    """A Dagster instance of its own."""
    import dagster as dg

    with dg.instance_for_test(temp_dir=str(tmp_path)) as made:
        yield made
