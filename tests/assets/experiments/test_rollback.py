"""Rollback of a champion against a real MLflow registry: one step, what it refuses, what is held for it."""

import dagster as dg

from ray_jobs.tables.experiments import (
    CHAMPION,
)
from ray_jobs.tables.vista import HELD_SUMMARIES
from ray_jobs.vista.summary_rollout import held_version
from tests.assets.experiments.nights import (
    SKILLS,
    aliases,
    back,
    first_champion,
    night,
    row,
    second_champion,
    serve_summaries,
    trained_on,
)
from tests.assets.experiments.results import why
from tests.assets.experiments.seeding import seed_rankers


def test_rollback_takes_one_step_and_the_bad_model_does_not_come_back(platform, instance):
    second_champion(platform, instance)
    result = back(platform, instance, reason="it answers too slowly")
    assert result.success
    assert aliases(platform) == {"champion": "dlrm@v1"}
    move = platform["ledger"].promotions()[-1]
    assert (move.kind, move.before.label, move.after.label, move.reason) == (
        "rollback",
        "wide@v1",
        "dlrm@v1",
        "it answers too slowly",
    )
    assert {c.name: (c.status, c.status_reason) for c in platform["ledger"].candidates()}["wide"] == (
        "rejected",
        "rolled back: it answers too slowly",
    )
    shown = {r["alias"]: r["candidate"] for r in platform["tables"].read(CHAMPION).to_pylist()}
    assert shown == {"champion": "dlrm"}
    assert result.asset_materializations_for_node("move_champion_back")[0].asset_key == dg.AssetKey(
        ["experiments", "champion"]
    )
    # The next night the same model is still the best one on paper.
    assert night(platform, instance).success
    assert row(platform)["decision"] == "keep" and "too slowly" in row(platform)["reason"]
    assert aliases(platform) == {"champion": "dlrm@v1"}


def test_a_second_rollback_is_refused_unless_the_version_is_named(platform, instance):
    second_champion(platform, instance)
    assert back(platform, instance, reason="it answers too slowly").success
    again = back(platform, instance, reason="and again")
    assert not again.success
    assert "no previous model to roll back to" in why(again) and "it answers too slowly" in why(again)
    assert back(platform, instance, reason="it was the network", to_version="2").success
    assert aliases(platform) == {"champion": "wide@v1"}
    assert "champion already" in why(back(platform, instance, reason="once more", to_version="2"))
    assert "no version 99" in why(back(platform, instance, reason="a typing error", to_version="99"))
    assert [m.kind for m in platform["ledger"].promotions()] == ["promote", "promote", "rollback", "rollback"]


def test_rollback_refuses_a_model_that_cannot_read_what_is_served(platform, instance):
    second_champion(platform, instance)
    trained_on(platform, "dlrm", user_summary_version="A")
    serve_summaries(platform, "B")
    refused = back(platform, instance)
    assert not refused.success and why(refused).startswith(
        "Version 1 (dlrm@v1) reads VISTA summaries of version A, but vista/user_summaries holds B, so that it would"
    )
    assert aliases(platform)["champion"] == "wide@v1" and len(platform["ledger"].promotions()) == 2
    serve_summaries(platform, "A")
    assert back(platform, instance).success and aliases(platform) == {"champion": "dlrm@v1"}


def test_what_is_held_for_a_champion_is_dropped_when_another_comes(platform, instance):
    warehouse = platform["tables"].warehouse()
    first_champion(platform, instance)
    trained_on(platform, "dlrm", user_summary_version="A")
    warehouse.write(HELD_SUMMARIES, HELD_SUMMARIES.schema.empty_table(), "A")
    assert night(platform, instance).success and held_version(warehouse) == "A"
    seed_rankers(platform["tables"], platform["tracking"], SKILLS | {"wide": 0.97})
    assert night(platform, instance).success and aliases(platform)["champion"] == "wide@v1"
    assert held_version(warehouse) is None


def test_rollback_without_a_champion_is_refused(platform, instance):
    assert "never been a champion" in why(back(platform, instance))
