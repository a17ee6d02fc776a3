"""The stage as Dagster runs it, on real Feast, Delta Lake and SQLite."""

import datetime as dt
import subprocess
import sys
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest

from assets.features import checks, joining
from assets.features.item_popularity import item_popularity
from assets.features.online_store import OnlineStoreConfig, online_store
from assets.features.training_set import PointInTime, TrainingSetConfig, training_set
from assets.features.user_activity import UserActivityConfig, user_activity
from feature_repo import online
from orchestration.resources.features import features_twin
from orchestration.resources.tables import LocalTables
from ray_jobs.tables.captions import CAPTION_TOKENS
from ray_jobs.tables.features import ITEM_POPULARITY, ONLINE_PUBLICATIONS, TRAINING_SET, USER_ACTIVITY
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.vista import USER_SUMMARIES
from tests.assets.features.seeding import seed_derived
from tests.factories import seed_interactions

ROOT = Path(__file__).resolve().parents[3]
ASSETS = [item_popularity, user_activity, training_set, online_store]
OWN_CHECKS = [checks.no_rows_lost, checks.offline_equals_online]
ALL_CHECKS = [
    *OWN_CHECKS,
    checks.item_popularity_checks,
    checks.user_activity_checks,
    checks.training_set_checks,
    checks.online_store_checks,
]


def world(folder, **interactions):
    """Tables with everything that features are made of, and the embedded Feast."""
    tables = LocalTables(warehouse_root=str(folder / "warehouse"), artifact_root=str(folder / "artifacts"))
    seed_interactions(tables, **interactions)
    seed_derived(tables)
    return {
        "tables": tables,
        "features": features_twin(
            online_path=str(folder / "feast/online.db"),
            redis="",
            registry_url=f"sqlite:///{folder}/feast/registry.db",
            offline_root=str(folder / "feast/offline"),
            storage_options={},
        ),
    }


def run(resources, selection=(*ASSETS, *OWN_CHECKS), instance=None, **config):
    return dg.materialize(
        list(selection),
        resources=resources,
        instance=instance,
        raise_on_error=False,
        run_config={"ops": {f"features__{name}": {"config": values} for name, values in config.items()}}
        if config
        else None,
    )


def said(result, name):
    (found,) = [
        e.materialization
        for e in result.get_asset_materialization_events()
        if e.asset_key == dg.AssetKey(["features", name])
    ]
    return {k: v.value for k, v in found.metadata.items()}


def first_cause(result):
    """The message of the first failed step's first cause."""
    failed = next(e for e in result.all_events if e.event_type_value == "STEP_FAILURE")
    return (
        failed.step_failure_data.user_failure_data.description
        if failed.step_failure_data.user_failure_data
        else str(failed.step_failure_data.error)
    )


def truth(tables):
    """The training set's counts by a join in polars that knows nothing of Feast."""
    examples = pl.DataFrame(tables.read(SPLITS)).sort("timestamp", maintain_order=True)
    found = examples.select("example_id", "user_id", "item_id", "timestamp")
    for table, key, names in (
        (ITEM_POPULARITY, "item_id", {"num_events": "item_num_events", "mean_value": "item_mean_value"}),
        (
            USER_ACTIVITY,
            "user_id",
            {"num_events": "user_num_events", "num_likes": "user_num_likes", "recent_item_ids": "user_recent_item_ids"},
        ),
        (USER_SUMMARIES, "user_id", {"summary": "user_summary", "scales": "user_summary_scales"}),
    ):
        rows = pl.DataFrame(tables.read(table))
        if table is USER_SUMMARIES:
            rows = rows.sort("num_events").unique(["user_id", "event_timestamp"], keep="last", maintain_order=True)
        rows = rows.sort("event_timestamp", maintain_order=True).select(key, "event_timestamp", *names).rename(names)
        found = found.join_asof(rows, left_on="timestamp", right_on="event_timestamp", by=key, coalesce=True).drop(
            "event_timestamp", strict=False
        )
    return found.sort("example_id")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Everything materialized once, with sampled negatives; for tests that only read."""
    resources = world(tmp_path_factory.mktemp("features"), implicit=True)
    with dg.instance_for_test() as instance:
        result = run(resources, [*ASSETS, *ALL_CHECKS], instance, training_set={"chunk_rows": 170})
        assert result.success
        yield resources, result, instance


def test_training_set_equals_a_hand_written_join(made):
    tables = made[0]["tables"]
    found = pl.DataFrame(tables.read(TRAINING_SET)).sort("example_id")
    wanted = truth(tables)
    assert found.height == wanted.height == tables.read(SPLITS).num_rows
    for name in (
        "item_num_events",
        "item_mean_value",
        "user_num_events",
        "user_num_likes",
        "user_recent_item_ids",
        "user_summary",
        "user_summary_scales",
    ):
        assert found[name].to_list() == wanted[name].to_list(), name
    assert found["item_token_version"].unique().to_list() == ["tokens-v1"]
    carried = found.filter(pl.col("user_summary").is_not_null())["user_summary_version"]
    assert carried.unique().to_list() == ["vista-v1"] and carried.len() < found["user_summary_version"].len()
    assert 0 < found["user_num_events"].null_count() < found.height
    assert found["item_token_ids"].null_count() == 0 and found["item_token_ids"].list.len().min() == 0


def test_no_example_knows_its_own_moment_or_the_future(made):
    found = pl.DataFrame(made[0]["tables"].read(TRAINING_SET))
    seen = found.filter(pl.col("user_num_events").is_not_null())
    assert (seen["user_num_events"] <= seen["position"]).all()
    together = found.filter(~pl.col("sampled")).group_by("user_id", "event_timestamp").agg(pl.col("user_num_events"))
    assert together.filter(pl.col("user_num_events").list.n_unique() > 1).height == 0, "one moment, one history"


def test_every_check_passes_and_gives_its_figures(made):
    evaluations = {(e.asset_key.path[-1], e.check_name): e for e in made[1].get_asset_check_evaluations()}
    assert len(evaluations) == 4 * 3 + 2 and all(e.passed for e in evaluations.values())
    figures = {k: v.value for k, v in evaluations["training_set", "no_rows_lost"].metadata.items()}
    assert figures["rows_in"] == figures["rows_out"] == figures["distinct_ids_out"] == 1200
    assert figures["label_sum_in"] == figures["label_sum_out"] == 600
    figures = {k: v.value for k, v in evaluations["online_store", "offline_equals_online"].metadata.items()}
    assert figures["values_compared"] > 500 and figures["differing"] == 0


def test_online_store_tells_rows_latency_and_services(made):
    metadata = said(made[1], "online_store")
    assert metadata["rows_user_activity"] == 30 and metadata["rows_user_persona"] == 15
    assert 0 < metadata["latency_p50_ms"] <= metadata["latency_p99_ms"]
    assert len(metadata["feature_services"]) == 6
    (row,) = [r for r in made[0]["tables"].read(ONLINE_PUBLICATIONS).to_pylist() if r["view"] == "user_vista"]
    assert row["services"] == ["ranker_dlrm_vista_v1"] and row["content_version"] == "vista-v1"


def test_a_second_run_does_nothing_and_its_checks_stand(made):
    resources, first, instance = made
    before = first.get_asset_check_evaluations()
    result = run(resources, [*ASSETS, *ALL_CHECKS], instance, training_set={"chunk_rows": 999})
    assert result.success
    for name in ("item_popularity", "user_activity", "training_set", "online_store"):
        assert said(result, name)["table_commits"] == 0 and said(result, name)["unchanged"], name
        assert said(result, name)["version"] == said(first, name)["version"]
    assert len(result.get_asset_check_evaluations()) == len(before)


def test_nothing_to_do_needs_no_feast(made):
    resources = made[0]
    code = f"""
import dagster as dg, sys
from tests.assets.features.test_lineage import ASSETS
from orchestration.resources.features import features_twin
from orchestration.resources.tables import LocalTables
tables = LocalTables(warehouse_root={resources["tables"].warehouse_root!r}, artifact_root="")
f = features_twin(online_path={resources["features"].online_path!r}, redis="", storage_options=dict(),
                  registry_url={resources["features"].registry_url!r},
                  offline_root={resources["features"].offline_root!r})
modules = set(sys.modules)
print(dg.materialize(ASSETS, resources=dict(tables=tables, features=f)).success, "feast.feature_view" in sys.modules)
""".replace(
        "from tests.assets.features.test_lineage import ASSETS",
        (
            "from assets.features.item_popularity import item_popularity as a\n"
            "from assets.features.user_activity import user_activity as b\n"
            "from assets.features.training_set import training_set as c\n"
            "from assets.features.online_store import online_store as d\nASSETS = [a, b, c, d]"
        ),
    )
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.strip().splitlines()[-1:] == ["True False"], ran.stderr[-2000:]


def test_activity_in_shares_of_users_is_the_same(made, tmp_path):
    tables = made[0]["tables"]
    other = LocalTables(warehouse_root=str(tmp_path / "w"), artifact_root=str(tmp_path / "a"))
    other.write(SPLITS, tables.read(SPLITS), "s")
    config = UserActivityConfig(events_in_memory=250)
    dg.materialize(
        [user_activity], resources={"tables": other}, run_config=dg.RunConfig({"features__user_activity": config})
    )
    rows = [
        pl.DataFrame(t.read(USER_ACTIVITY)).drop("created_timestamp").sort("user_id", "event_timestamp")
        for t in (tables, other)
    ]
    assert rows[0].equals(rows[1])


def test_only_what_changed_is_published_and_written(tmp_path):
    resources = world(tmp_path, num_users=8, events_per_user=6)
    assert run(resources).success
    tables = resources["tables"]
    changed = tables.read(CAPTION_TOKENS).to_pylist()
    for row in changed[:3]:
        row["token_ids"] = [99]
    tables.write(CAPTION_TOKENS, pa.Table.from_pylist(changed[:-1], CAPTION_TOKENS.schema), "three changed, one gone")
    result = run(resources)
    assert result.success and all(e.passed for e in result.get_asset_check_evaluations())
    rows = {r["view"]: r for r in tables.read(ONLINE_PUBLICATIONS).to_pylist()}
    assert (rows["item_captions"]["rows_written"], rows["item_captions"]["rows_removed"]) == (3, 1)
    assert said(result, "online_store")["views_written"] == 1 and said(result, "training_set")["table_commits"] == 1
    store = resources["features"].store()
    asked = online.read(store, ["item_captions:token_ids"], "item_id", [changed[0]["item_id"], changed[-1]["item_id"]])
    assert [r["item_captions__token_ids"] for r in asked] == [[99], None]
    assert said(run(resources), "online_store")["table_commits"] == 0


def test_a_lost_online_store_is_filled_again_and_a_rebuild_repairs(tmp_path):
    resources = world(tmp_path, num_users=4, events_per_user=5)
    served = [item_popularity, user_activity, online_store]
    assert run(resources, served).success
    Path(resources["features"].online_path).unlink()
    result = run(resources, served)
    assert result.success and said(result, "online_store")["views_written"] == 7
    # Somebody writes into the store past the platform: the check sees it, a rebuild mends it.
    store = resources["features"].store()
    user = resources["tables"].read(USER_ACTIVITY)["user_id"][0].as_py()
    store.write_to_online_store(
        "user_persona",
        inputs={
            "user_id": [user],
            "embedding": [[9.0]],
            "persona_version": ["other"],
            "event_timestamp": [dt.datetime.now(dt.UTC)],
            "created_timestamp": [dt.datetime.now(dt.UTC)],
        },
    )
    result = run(resources, [checks.offline_equals_online, online_store])
    (found,) = result.get_asset_check_evaluations()
    assert not found.passed and "user_persona.embedding of •••" in found.description
    assert user not in str(found.metadata), "metadata of checks is kept for ever"
    result = run(resources, [checks.offline_equals_online, online_store], online_store={"rebuild": True})
    assert result.success and result.get_asset_check_evaluations()[0].passed


def test_rows_of_the_future_wait_until_they_are_due(tmp_path):
    resources = world(tmp_path, num_users=3, events_per_user=4)
    tables = resources["tables"]
    past = "2025-01-02T12:00:00+00:00"  # On the second of three days of events.
    served = [item_popularity, user_activity, online_store, checks.offline_equals_online]
    result = run(resources, served, online_store={"end": past})
    assert result.success
    rows = {r["view"]: r for r in tables.read(ONLINE_PUBLICATIONS).to_pylist()}
    assert rows["user_activity"]["rows"] == 2 and rows["item_captions"]["next_due"] is None
    assert rows["user_activity"]["next_due"] == dt.datetime(2025, 1, 3, 0, 0, 0, 1, dt.UTC)
    assert said(run(resources, served, online_store={"end": past}), "online_store")["unchanged"]
    result = run(resources, served)
    assert said(result, "online_store")["rows_user_activity"] == 3
    assert result.get_asset_check_evaluations()[-1].passed and said(run(resources, served), "online_store")["unchanged"]


def test_the_future_is_refused(tmp_path):
    resources = world(tmp_path, num_users=2, events_per_user=3)
    result = run(resources, [item_popularity, user_activity, online_store], online_store={"end": "2999-01-01"})
    assert not result.success and "lies in the future" in first_cause(result)
    assert not resources["tables"].warehouse().exists(ONLINE_PUBLICATIONS)
    assert OnlineStoreConfig().end == ""


def test_knowledge_time_hides_what_was_written_later(tmp_path):
    resources = world(tmp_path, num_users=4, events_per_user=5)
    tables = resources["tables"]
    assert run(resources, [item_popularity, user_activity, training_set]).success
    by_event = pl.DataFrame(tables.read(TRAINING_SET))
    first = tables.version(TRAINING_SET)
    assert by_event["item_token_ids"].null_count() == 0
    result = run(
        resources,
        [item_popularity, user_activity, training_set, checks.no_rows_lost],
        training_set={"point_in_time": PointInTime.KNOWLEDGE.name},
    )
    assert result.success and tables.version(TRAINING_SET) != first
    by_knowledge = pl.DataFrame(tables.read(TRAINING_SET))
    # Everything was written long after the examples' moments.
    for name in joining.FEATURES:
        assert by_knowledge[name].null_count() == by_knowledge.height == by_event.height
    assert TrainingSetConfig().point_in_time is PointInTime.EVENT


def test_lost_and_changed_rows_are_found_and_named(tmp_path):
    resources = world(tmp_path, num_users=4, events_per_user=5)
    tables = resources["tables"]
    assert run(resources, [item_popularity, user_activity, training_set]).success
    rows = tables.read(TRAINING_SET)
    lost = rows.slice(1)
    doubled = pa.concat_tables([lost, rows.slice(1, 1)])
    turned = rows.set_column(4, "label", pa.array([1 - v for v in rows["label"].to_pylist()], pa.int8()))
    for n, (broken, sentence) in enumerate(((lost, "e0-0"), (doubled, "20 rows"), (turned, "positives"))):
        tables.write(TRAINING_SET, broken, f"broken{n}")
        result = dg.materialize(
            [checks.no_rows_lost],
            resources=resources,
            selection=dg.AssetSelection.checks(checks.no_rows_lost),
            raise_on_error=False,
        )
        (found,) = result.get_asset_check_evaluations()
        assert not found.passed and sentence in found.description, found.description


def test_mixed_content_versions_are_refused(tmp_path):
    resources = world(tmp_path, num_users=2, events_per_user=3)
    tables = resources["tables"]
    rows = tables.read(CAPTION_TOKENS).to_pylist()
    rows[0]["token_version"] = "older"
    tables.write(CAPTION_TOKENS, pa.Table.from_pylist(rows, CAPTION_TOKENS.schema), "mixed")
    result = run(resources, [item_popularity, user_activity, training_set])
    assert not result.success and "mixes versions older, tokens-v1" in first_cause(result)


def test_a_join_that_drops_rows_never_becomes_a_table(tmp_path, monkeypatch):
    resources = world(tmp_path, num_users=3, events_per_user=4)
    from feature_repo.asof_offline_store import AsofRetrievalJob

    whole = AsofRetrievalJob._to_arrow_internal
    monkeypatch.setattr(AsofRetrievalJob, "_to_arrow_internal", lambda self, timeout=None: whole(self).slice(1))
    result = run(resources, [item_popularity, user_activity, training_set])
    assert not result.success and not resources["tables"].warehouse().exists(TRAINING_SET)


def test_a_user_without_persona_and_a_tiny_catalogue(tmp_path):
    resources = world(tmp_path, num_users=1, num_items=2, events_per_user=2)
    result = run(resources)
    assert result.success and all(e.passed for e in result.get_asset_check_evaluations())
    assert resources["tables"].read(TRAINING_SET).num_rows == 2


def test_missing_input_is_said_in_one_sentence(tmp_path):
    tables = LocalTables(warehouse_root=str(tmp_path / "w"), artifact_root=str(tmp_path / "a"))
    result = dg.materialize([item_popularity], resources={"tables": tables}, raise_on_error=False)
    assert "materialize the asset interactions/splits first" in first_cause(result)
