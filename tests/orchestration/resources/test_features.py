"""The contract of `Features`, held by the embedded twin and by the one with PostgreSQL and Redis."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from feature_repo import erasure, latest, online
from feature_repo.versions import ContentVersionError, require_content_versions
from models.personas.freshness import ServedPersona
from orchestration.resources.choice import resources
from orchestration.resources.features import LocalFeatures, RedisFeatures, features_twin
from orchestration.settings import Settings
from ray_jobs.personas.store import StoreConfig

CREATED = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
CAPTIONS = pa.schema(
    [
        ("item_id", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("token_version", pa.string()),
        ("event_timestamp", pa.timestamp("us", "UTC")),
        ("created_timestamp", pa.timestamp("us", "UTC")),
    ]
)


@pytest.fixture
def bucket(tmp_path):
    """A bucket of a real S3 server in this process, and the options that reach it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "AWS_ACCESS_KEY_ID": "key/with+signs",
        "AWS_SECRET_ACCESS_KEY": "secret/+=",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    boto3.client(
        "s3",
        endpoint_url=options["AWS_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="k",
        aws_secret_access_key="s",
    ).create_bucket(Bucket="bucket")
    yield f"s3://bucket/{tmp_path.name}", options  # All servers of a process share their content.
    server.stop()


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("services", marks=pytest.mark.services),
        pytest.param("object_storage", marks=pytest.mark.services),
    ]
)
def features(request, tmp_path):
    """Each twin."""
    if request.param == "object_storage":
        root, options = request.getfixturevalue("bucket")
        return features_twin(
            online_path=str(tmp_path / "online.db"),
            redis="",
            storage_options=options,
            registry_url=f"sqlite:///{tmp_path}/registry.db",
            offline_root=root,
        )
    if request.param == "embedded":
        return features_twin(
            online_path=str(tmp_path / "online.db"),
            redis="",
            storage_options={},
            registry_url=f"sqlite:///{tmp_path}/registry.db",
            offline_root=str(tmp_path / "offline"),
        )
    port = request.getfixturevalue("redis_port")
    return features_twin(
        online_path="",
        redis=f"127.0.0.1:{port}",
        storage_options={},
        registry_url=request.getfixturevalue("postgres_url"),
        offline_root=str(tmp_path / "offline"),
    )


def captions(tokens, version="v1"):
    rows = [
        {"item_id": i, "token_ids": t, "token_version": version, "event_timestamp": EPOCH, "created_timestamp": CREATED}
        for i, t in tokens.items()
    ]
    return pa.Table.from_pylist(rows, CAPTIONS)


def put(features, version, rows, before=None):
    """Publishes captions and writes what changed; returns the store and how many were written and removed."""
    features.publish("item_captions", rows, version, version)
    store = features.store()
    changed = latest.changes(
        features.publications(),
        "item_captions",
        "item_id",
        version=version,
        until=NOW,
        before=before and (before, NOW),
        batch_rows=2,
    )
    return store, online.write(store, "item_captions", changed)


def tokens(store, *items):
    found = online.read(store, ["item_captions:token_ids"], "item_id", list(items))
    return [row["item_captions__token_ids"] for row in found]


def test_what_is_published_is_served_offline_and_online(features):
    assert features.online_is_empty()
    store, counts = put(features, "a", captions({"x": [1, 2], "y": [], "z": [3]}))
    assert counts == (3, 0) and not features.online_is_empty()
    assert tokens(store, "x", "y", "z", "nobody") == [[1, 2], [], [3], None]
    import pandas as pd

    frame = pd.DataFrame({"item_id": ["x", "nobody"], "event_timestamp": [NOW, NOW]})
    joined = store.get_historical_features(entity_df=frame, features=["item_captions:token_ids"]).to_arrow()
    assert joined["token_ids"].to_pylist() == [[1, 2], None]


def test_new_content_of_an_old_event_arrives_and_removed_entities_go(features):
    put(features, "a", captions({"x": [1], "y": [2], "z": [3]}))
    store, counts = put(features, "b", captions({"x": [1], "y": [20]}), before="a")
    # `z` is gone; `y` must arrive although its event is as old as before; `x` is the same and not written.
    assert tokens(store, "x", "y", "z") == [[1], [20], None]
    assert counts == (1, 1)


def test_a_reader_refuses_other_content(features):
    store, _ = put(features, "a", captions({"x": [1]}))
    require_content_versions(store, {"item_captions": "a"})
    store, _ = put(features, "b", captions({"x": [1]}, "b"))
    with pytest.raises(ContentVersionError, match="serves content version b, not a"):
        require_content_versions(store, {"item_captions": "a"})
    with pytest.raises(ContentVersionError, match="not applied"):
        require_content_versions(store, {"user_vista": "a"})


def test_applying_twice_changes_nothing_and_reaches_a_second_process(features):
    put(features, "a", captions({"x": [1]}))
    first, second = features.store(), features.store()
    assert [v.name for v in second.list_feature_views()] == ["item_captions", "user_persona_text"]
    assert first.list_feature_views() == second.list_feature_views()
    assert tokens(second, "x") == [[1]]
    assert {e.name for e in second.list_entities()} >= {"item", "user"}


def test_a_job_reaches_the_online_personas_by_configuration_alone(features):
    features.store()
    config = StoreConfig.model_validate_json(features.persona_store().model_dump_json())
    persona = ServedPersona("u", "k", "Likes crime.", [{"cluster": 1}], [], "c", "v", NOW)
    config.open().write([persona])
    put(features, "a", captions({"x": [1]}))
    assert config.open().look_up("u", 20) == (persona, []), "applying views again leaves what was pushed"


def test_emptying_a_view_leaves_nothing(features):
    store, _ = put(features, "a", captions({"x": [1]}))
    online.empty(store, "item_captions")
    assert tokens(store, "x") == [None]


def test_a_forgotten_entity_leaves_the_online_store_and_every_published_version(features):
    put(features, "a", captions({"x-to-forget": [1], "y": [2], "gone before": [3]}))
    # What was removed by null features is still a key.
    store, _ = put(features, "b", captions({"x-to-forget": [5], "y": [2]}), before="a")
    leaving = ["x-to-forget", "gone before", "nobody"]
    assert features.held_online("item_id", leaving) == 2
    assert features.forget_online("item_id", leaving) == 2
    assert features.held_online("item_id", leaving) == features.forget_online("item_id", leaving) == 0
    assert tokens(store, "x-to-forget", "y") == [None, [2]]
    published = features.publications()
    if "://" not in published.root:  # What a killed erasure leaves, of which nothing can be read.
        killed = Path(published.root, "item_captions/v/_part.parquet")
        killed.parent.mkdir(exist_ok=True)
        killed.write_bytes(b"PAR1")
    assert erasure.views(published, "item_id") == ["item_captions"] and erasure.views(published, "user_id") == []
    assert erasure.held(published, "item_captions", "item_id", leaving) == 3
    assert erasure.erase(published, "item_captions", "item_id", leaving) == (3, 2)
    assert erasure.erase(published, "item_captions", "item_id", leaving) == (0, 0)
    assert published.current("item_captions").num_rows == 1 and published.current("item_captions").version == "b"
    assert tokens(features.store(), "y") == [[2]]
    if isinstance(features, LocalFeatures):
        assert b"x-to-forget" not in Path(features.online_path).read_bytes(), "not in free pages either"


def test_settings_choose_the_twin(tmp_path):
    embedded = resources(Settings(home=tmp_path))["features"]
    assert isinstance(embedded, LocalFeatures) and embedded.online_store_name() == "sqlite"
    served = resources(
        Settings(
            home=tmp_path, feast_redis="cache:6379,password=secret", feast_registry_url="postgresql://feast@db/feast"
        )
    )["features"]
    assert isinstance(served, RedisFeatures) and served.online_store_name() == "redis cache:6379"
    assert served.registry_url == "postgresql://feast@db/feast"
