"""What the tests of promotion and rollback do: a night of the stage, and what it leaves behind."""

import datetime as dt
import json
import tempfile
from pathlib import Path

import dagster as dg
import pyarrow as pa

from assets.experiments.candidates import candidates
from assets.experiments.challenger import challenger
from assets.experiments.champion import champion
from assets.experiments.checks import (
    assignment_checks,
    candidates_checks,
    challenger_checks,
    champion_checks,
    gate,
    promotion_recorded,
    sample_ratio,
)
from assets.experiments.readable import PREPROCESSING
from orchestration.jobs.rollback_model import RollbackConfig, rollback_model
from ray_jobs.tables.experiments import (
    CHALLENGER,
)
from ray_jobs.tables.vista import USER_SUMMARIES
from tests.assets.experiments.seeding import seed_rankers

CHAIN = [candidates, challenger, champion]
CHECKS = [
    candidates_checks,
    challenger_checks,
    champion_checks,
    gate,
    promotion_recorded,
    assignment_checks,
    sample_ratio,
]
SKILLS = {"popularity": 0.2, "dlrm": 0.8}


def night(platform, instance, **more):
    return dg.materialize(
        [*CHAIN, gate, promotion_recorded],
        resources=platform,
        instance=instance,
        raise_on_error=False,
        **more,
    )


def row(platform):
    return platform["tables"].read(CHALLENGER).to_pylist()[0]


def aliases(platform):
    client = platform["tracking"].connect("ranking").MlflowClient()
    found = client.search_registered_models("name = 'ranker'")
    return (
        {
            alias: client.get_model_version("ranker", str(v)).tags["candidate"]
            + "@"
            + client.get_model_version("ranker", str(v)).tags["candidate_version"]
            for alias, v in found[0].aliases.items()
        }
        if found
        else {}
    )


def launch(job, platform, instance, op, config):
    return job.execute_in_process(
        resources=platform, instance=instance, raise_on_error=False, run_config=dg.RunConfig(ops={op: config})
    )


def back(platform, instance, **config):
    return launch(rollback_model, platform, instance, "move_champion_back", RollbackConfig(**config))


def first_champion(platform, instance):
    """dlrm@v1 serves."""
    seed_rankers(platform["tables"], platform["tracking"], SKILLS)
    assert night(platform, instance).success
    assert aliases(platform) == {"champion": "dlrm@v1"}


def second_champion(platform, instance):
    """dlrm@v1 served, and a better one that came the next night serves now."""
    first_champion(platform, instance)
    seed_rankers(platform["tables"], platform["tracking"], SKILLS | {"wide": 0.97})
    assert night(platform, instance).success
    assert aliases(platform) == {"champion": "wide@v1", "previous": "dlrm@v1"}


def trained_on(platform, name, **versions):
    """Lets a ranker's files say which content it reads."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / PREPROCESSING).write_text(json.dumps({"content_versions": versions}))
        platform["tables"].artifacts().put(Path(folder), f"rankers/{name}/v1")


def serve_summaries(platform, version):
    """Lets VISTA summaries of a version be what requests are served."""
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    row = {"user_id": "u", "num_events": 1, "summary": b"", "scales": [], "is_latest": True}
    row |= {"event_timestamp": now, "created_timestamp": now, "summary_version": version}
    platform["tables"].write(USER_SUMMARIES, pa.Table.from_pylist([row], USER_SUMMARIES.schema), version)
