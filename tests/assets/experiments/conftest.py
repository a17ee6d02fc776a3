"""The stage's resources, embedded."""

import dagster as dg
import pytest

from orchestration.ledger.database import ready_engine
from orchestration.resources.ledger import ledger_twin
from orchestration.resources.ray_jobs import LocalRayJobs


@pytest.fixture
def platform(tables, tracking, tmp_path, ray_cluster):
    """Every resource that the stage needs, embedded."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    yield {"tables": tables, "tracking": tracking, "ledger": ledger_twin(url), "ray_jobs": LocalRayJobs()}
    ready_engine(url).dispose()
    ready_engine.cache_clear()


@pytest.fixture
def instance():
    """In memory: what is recorded of runs is not what these tests look at."""
    with dg.DagsterInstance.ephemeral() as made:
        yield made
