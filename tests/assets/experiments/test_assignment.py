"""Users are allocated to the arms of the running experiment, and a broken allocation blocks."""

import dagster as dg
import pyarrow as pa

from assets.experiments.assignment import assignment
from assets.experiments.checks import sample_ratio
from ray_jobs.tables.experiments import ASSIGNED_USERS, ASSIGNMENT
from tests.assets.experiments.results import said, why
from tests.factories import seed_interactions


def arms(platform):
    return {r["arm"]: r for r in platform["tables"].read(ASSIGNMENT).to_pylist()}


def assign_users(platform, instance, **config):
    return dg.materialize(
        [assignment, sample_ratio],
        resources=platform,
        instance=instance,
        raise_on_error=False,
        run_config=dg.RunConfig(ops={"experiments__assignment": {"config": config}}),
    )


def test_users_are_allocated_by_the_running_experiment_and_a_ramp_up_is_a_phase(platform, instance):
    seed_interactions(platform["tables"], num_users=60, events_per_user=4)
    assert assign_users(platform, instance).success
    found = arms(platform)
    assert {a: r["weight"] for a, r in found.items()} == {"control": 0.5, "treatment": 0.5}
    assert sum(r["num_users"] for r in found.values()) == 60
    assert not platform["tables"].warehouse().exists(ASSIGNED_USERS), "users are stored on request only"
    assert said(assign_users(platform, instance), "assignment")["unchanged"]
    assert assign_users(platform, instance, arms={"control": 0.2, "treatment": 0.8}, store_users=True).success
    assert {r["phase"] for r in arms(platform).values()} == {2}
    users = platform["tables"].read(ASSIGNED_USERS).to_pylist()
    assert len({u["user_id"] for u in users}) == 60
    counted = {arm: sum(u["arm"] == arm for u in users) for arm in ("control", "treatment")}
    assert counted == {a: r["num_users"] for a, r in arms(platform).items()}
    assert said(assign_users(platform, instance), "assignment")["unchanged"], (
        "the defaults do not take the ramp-up back"
    )
    refused = assign_users(platform, instance, salt="another")
    assert not refused.success and "another salt" in why(refused)


def test_a_broken_assignment_is_flagged_and_blocks(platform, instance):
    seed_interactions(platform["tables"], num_users=60, events_per_user=4)
    assign_users(platform, instance)
    rows = platform["tables"].read(ASSIGNMENT).to_pylist()
    # Fault: 2 % of the second arm's users are dropped on their way to the log.
    for r, count in zip(rows, (500_000, 490_000), strict=True):
        r["num_users"], r["share"] = count, count / 990_000
    platform["tables"].write(ASSIGNMENT, pa.Table.from_pylist(rows, ASSIGNMENT.schema), version="broken")
    result = dg.materialize(
        [assignment, sample_ratio],
        resources=platform,
        instance=instance,
        raise_on_error=False,
        selection=dg.AssetSelection.checks(sample_ratio),
    )
    [evaluation] = result.get_asset_check_evaluations()
    assert not evaluation.passed and evaluation.metadata["p_value"].value < 0.001
    assert "read no result of this experiment" in evaluation.description
    assert not result.success, "the check blocks"
