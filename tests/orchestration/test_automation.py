"""The automation conditions of the real assets: what the sensor `automation` asks for, and when."""

import datetime as dt

import dagster as dg
import pytest

from assets.policies import ON_DEMAND_TAG
from orchestration.definitions import defs

CODE_LOCATION = defs()
GRAPH = CODE_LOCATION.resolve_asset_graph()
ALL = GRAPH.materializable_asset_keys
EVENING = dt.datetime(2026, 11, 21, 22, tzinfo=dt.UTC)


NIGHT = dt.datetime(2026, 11, 22, 2, 1, tzinfo=dt.UTC)
MINUTE = dt.timedelta(minutes=1)
ITEMS, EVENTS = (dg.AssetKey(["interactions", name]) for name in ("items", "raw_interactions"))


def _make(instance, *keys, days=()):
    for key in keys:
        for day in days or [None]:
            instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=day))


@pytest.fixture
def tick(instance):
    """Evaluates all conditions at a moment; returns what is asked for, with the partitions."""
    cursor = None

    def evaluate(moment):
        nonlocal cursor
        result = dg.evaluate_automation_conditions(CODE_LOCATION, instance, cursor=cursor, evaluation_time=moment)
        cursor = result.cursor
        return {key: result.get_requested_partitions(key) for key in ALL if result.get_num_requested(key)}

    return evaluate


def test_a_night_reads_the_sources_takes_late_days_in_again_and_refreshes_what_follows(instance, tick):
    days = [(NIGHT.date() - dt.timedelta(days=n)).isoformat() for n in (3, 2, 1)]
    _make(instance, EVENTS, days=days)
    _make(instance, *(ALL - {EVENTS}))
    tick(EVENING)
    assert tick(EVENING + MINUTE) == {}, "nothing changed, nothing is asked for"
    assert ITEMS in tick(NIGHT)
    _make(instance, *(ALL - {EVENTS}))
    assert tick(NIGHT + MINUTE)[EVENTS] == set(days)
    _make(instance, EVENTS, days=days)
    below = {key for key in GRAPH.get(EVENTS).child_keys if not ON_DEMAND_TAG.items() <= GRAPH.get(key).tags.items()}
    assert below and below <= set(tick(NIGHT + 2 * MINUTE))
    _make(instance, *(ALL - {EVENTS}))
    assert EVENTS not in tick(NIGHT + 3 * MINUTE) and EVENTS not in tick(NIGHT + 60 * MINUTE), "once a night"


def test_a_mended_asset_is_enough_to_refresh_what_follows_from_it(instance, tick):
    _make(instance, EVENTS, days=[(NIGHT.date() - dt.timedelta(days=1)).isoformat()])
    _make(instance, *(ALL - {EVENTS}))
    tick(EVENING)
    _make(instance, dg.AssetKey(["captions", "item_captions"]))
    asked = set(tick(EVENING + MINUTE))
    children = GRAPH.get(dg.AssetKey(["captions", "item_captions"])).child_keys
    on_demand = {key for key in children if ON_DEMAND_TAG.items() <= GRAPH.get(key).tags.items()}
    assert on_demand and children - on_demand <= asked and not on_demand & asked
    assert ITEMS not in asked and EVENTS not in asked
