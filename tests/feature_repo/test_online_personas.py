"""Personas online, and the requests that read them, in Feast's real stores."""

import contextlib
import datetime as dt
import sqlite3

import pyarrow as pa
import pytest
import sqlalchemy as sa

from feature_repo import online
from feature_repo.entities import item, user
from feature_repo.latest import REMOVED
from feature_repo.views import item_semantic_ids, user_activity
from models.personas.freshness import Event, ServedPersona, clusters_digest
from models.personas.interests import InterestConfig
from orchestration.resources.features import features_twin
from orchestration.resources.ledger import ledger_twin
from ray_jobs.databases import shared_engine
from ray_jobs.personas.serving import Catalogue, Config, PersonaReader
from ray_jobs.personas.sql_queue import PERSONA_REFRESH, PersonaQueue

NOW = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
INTERESTS = InterestConfig(max_interests=2)
CATALOGUE = Catalogue(labels={1: "crime", 2: "war", 3: "space", 4: "music"}, popular=[3, 4, 1])
HISTORY = {"reader": ["i1", "i2", "i3", "i4"], "newcomer": ["i1", "i2", "i3"], "nobody": []}
CLUSTERS = {"i1": 1, "i2": 1, "i3": 2, "i4": 2, "i5": 3}
DIGEST = clusters_digest([Event(i, True, CLUSTERS[i]) for i in HISTORY["reader"]], INTERESTS, 20)


def twin(folder, redis=""):
    return features_twin(
        online_path=f"{folder}/online.db",
        redis=redis,
        registry_url=f"sqlite:///{folder}/registry.db",
        offline_root=f"{folder}/offline",
        storage_options={},
    )


def persona(user_id="reader", **more):
    made = ServedPersona(
        user_id=user_id,
        content_key="k1",
        persona="Likes crime; and “quotes”.",
        interests=[{"cluster": n, "label": f"l{n}", "share": 0.25, "evidence_item_ids": ["i1"]} for n in range(3)],
        explorations=[{"cluster": 7, "label": "noir", "anchor_cluster": 1, "similarity": 0.5}],
        clusters=DIGEST,
        persona_version="v1",
        written=NOW,
    )
    return ServedPersona(**(vars(made) | more))


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.services)])
def store(request, tmp_path):
    """An empty online store of each kind."""
    redis = f"127.0.0.1:{request.getfixturevalue('redis_port')}" if request.param == "redis" else ""
    return twin(tmp_path, redis).persona_store().open()


def rows_of(key, columns):
    times = {
        n: pa.array([NOW] * len(columns[key]), pa.timestamp("us", "UTC"))
        for n in ("event_timestamp", "created_timestamp")
    }
    return pa.table(columns | times | {REMOVED: pa.array([False] * len(columns[key]))})


def seed_histories(store):
    feast = store.store
    feast.apply(
        [user, item, user_activity.batch_source, user_activity, item_semantic_ids.batch_source, item_semantic_ids]
    )
    users = [u for u in HISTORY if HISTORY[u]]
    lists = {"recent_item_ids": [HISTORY[u] for u in users], "recent_labels": [[1] * len(HISTORY[u]) for u in users]}
    counts = {n: pa.array([len(HISTORY[u]) for u in users], pa.int64()) for n in ("num_events", "num_likes")}
    rows = {"user_id": users, **counts, "mean_value": [1.0] * len(users), **lists}
    online.write(feast, "user_activity", [rows_of("user_id", rows)])
    ids = {"item_id": list(CLUSTERS), "codes": [[c] for c in CLUSTERS.values()], "cluster": list(CLUSTERS.values())}
    online.write(feast, "item_semantic_ids", [rows_of("item_id", ids | {"codebook_version": ["x"] * len(CLUSTERS)})])


def test_what_is_written_is_read_and_what_is_removed_is_gone(store):
    assert store.look_up("reader", 20) == (None, []), "before anything was published"
    other = persona("other", persona="Likes war.")
    store.write([persona(), other])
    assert store.read(["reader", "stranger", "other"]) == {"reader": persona(), "other": other}
    older = persona(written=NOW - dt.timedelta(days=1), persona="An older one that is written later.")
    store.write([older])
    assert store.read(["reader"]) == {"reader": older}, "the last write counts"
    store.remove(["reader"])
    assert store.read(["reader", "other"]) == {"other": other} and store.read([]) == {}


def test_a_damaged_row_counts_as_missing_and_keeps_nobody_else_from_theirs(store, caplog):
    values = {f: [getattr(persona(), f)] * 2 for f in ("persona", "clusters", "content_key")}
    values |= {"interests": ["]", "[]"], "explorations": ["[]"] * 2, "persona_version": ["v1"] * 2}
    store._write(["secret-name", "other"], values | {"written_ms": [1, 1]}, [NOW] * 2, removed=False)
    assert set(store.read(["secret-name", "other"])) == {"other"}
    assert "is damaged" in caplog.text and "secret-name" not in caplog.text
    store.write([persona("secret-name", written=NOW + dt.timedelta(seconds=1))])
    assert set(store.read(["secret-name", "other"])) == {"secret-name", "other"}


def test_a_request_sees_persona_and_newest_events(store):
    seed_histories(store)
    store.write([persona()])
    assert store.look_up("reader", 2) == (persona(), [Event("i1", True, 1), Event("i2", True, 1)])
    assert store.look_up("nobody", 2) == (None, [])


@pytest.fixture
def queue(tmp_path):
    yield ledger_twin(f"sqlite:///{tmp_path}/ledger.db").persona_queue()
    shared_engine(f"sqlite:///{tmp_path}/ledger.db").dispose()


@pytest.fixture
def reader_of(tmp_path, queue):
    """Makes a reader over a store with histories; opened once."""
    features = twin(tmp_path)
    opened = features.persona_store().open()
    seed_histories(opened)

    def make(queue=queue, store=opened, **more):
        config = Config(
            store=features.persona_store(),
            queue=queue,
            persona_version="v1",
            catalogue=CATALOGUE,
            interests=INTERESTS,
            **more,
        )
        return PersonaReader(config, store)

    return make


def asked(queue):
    columns = PERSONA_REFRESH.c
    with shared_engine(queue.url).begin() as connection:
        found = connection.execute(sa.select(columns.user_id, columns.reason, columns.clusters).order_by(columns.id))
        return [tuple(row) for row in found]


def test_a_fresh_persona_is_used_and_nothing_is_asked_for(reader_of, queue):
    reader = reader_of()
    reader.store.write([persona()])
    answers = [reader.read("reader", f"r{n}", NOW) for n in range(40)]
    assert {(a.state, a.source, a.persona.persona) for a in answers} == {("fresh", "persona", persona().persona)}
    assert {a.interest["cluster"] for a in answers} == {0, 1, 2} and answers[0].exploration["label"] == "noir"
    reader.asking.flush()
    assert asked(queue) == [] and reader.counts() == {"fresh": 40, "from_persona": 40}


@pytest.mark.parametrize(
    "old",
    [{"clusters": "others"}, {"persona_version": "v0"}, {"written": NOW - dt.timedelta(days=30)}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_stale_persona_serves_while_its_refresh_is_asked_for_once(reader_of, queue, old):
    reader = reader_of()
    reader.store.write([persona(**old)])
    for n in range(3):
        answer = reader.read("reader", f"r{n}", NOW)
        assert answer.state == "stale" and answer.persona == persona(**old)
    reader.asking.flush()
    assert asked(queue) == [("reader", "stale", DIGEST)]
    assert reader.counts() == {"stale": 3, "from_persona": 3, "enqueued": 1, "known": 0}
    elsewhere = reader_of()
    elsewhere.read("reader", "r", NOW)
    elsewhere.asking.flush()
    assert elsewhere.counts()["known"] == 1 and len(asked(queue)) == 1, "another process asks for the same"


def test_without_a_persona_clusters_of_the_history_serve_and_then_what_is_popular(reader_of, queue):
    reader = reader_of()
    answers = [reader.read("newcomer", f"r{n}", NOW) for n in range(40)]
    assert {(a.state, a.source, a.persona) for a in answers} == {("missing", "clusters", None)}
    assert {a.interest["label"] for a in answers} == {"crime", "war"}, "the history's own"
    stranger = [reader.read("nobody", f"r{n}", NOW) for n in range(40)]
    assert {(a.state, a.source, a.exploration) for a in stranger} == {("missing", "popular", None)}
    assert {a.interest["label"] for a in stranger} == {"space", "music"}, "the two most popular"
    reader.asking.flush()
    assert [row[:2] for row in asked(queue)] == [("newcomer", "missing")], "nobody can write one without a history"


def test_a_request_goes_on_while_the_queue_is_away_and_the_next_one_asks_again(reader_of, queue):
    away = PersonaQueue(url="postgresql://nobody@127.0.0.1:9/ledger")
    reader = reader_of(queue=away)
    assert reader.read("newcomer", "r1", NOW).source == "clusters"
    reader.asking.flush()
    assert reader.counts() == {"missing": 1, "from_clusters": 1, "queue_unavailable": 1}
    reader.asking.queue = queue
    reader.read("newcomer", "r2", NOW)
    reader.asking.flush()
    assert [row[0] for row in asked(queue)] == ["newcomer"]


def test_requests_do_not_wait_for_a_queue_that_is_locked(reader_of, queue):
    reader = reader_of(max_waiting=1)
    with shared_engine(queue.url).begin():
        for n in range(4):
            reader.read("reader" if n % 2 else "newcomer", f"r{n}", NOW)
            reader.asking.asked.clear()
        dropped = reader.counts()["dropped"]
    reader.asking.flush()
    assert dropped >= 2 and len(asked(queue)) >= 1


def test_a_request_goes_on_while_the_online_store_is_away(reader_of, tmp_path):
    reader = reader_of(store_pause_seconds=3600)
    with contextlib.closing(sqlite3.connect(tmp_path / "online.db")) as broken:
        broken.execute("DROP TABLE belvedere_user_persona_text")
    for n in range(2):
        answer = reader.read("newcomer", f"r{n}", NOW)
        assert answer.source == "popular" and answer.interest["label"] in ("space", "music")
    online.empty(reader.store.store, "user_persona_text")
    assert reader.read("newcomer", "r", NOW).source == "popular", "it is left alone for a while"
    reader.away_until = 0.0
    assert reader.read("newcomer", "r", NOW).source == "clusters"
    assert reader.counts()["store_unavailable"] == 3


def test_an_id_that_cannot_be_read_keeps_nobody_else_from_their_persona(reader_of):
    reader = reader_of(store_pause_seconds=3600)
    for user_id in ("\ud800", None):
        assert reader.read(user_id, "r", NOW).source == "popular"
    assert reader.read("newcomer", "r", NOW).source == "clusters"
    assert reader.counts()["unreadable"] == 2 and "store_unavailable" not in reader.counts()
