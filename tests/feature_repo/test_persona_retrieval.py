"""From a user to items in one request: Feast's real store, a real queue, and vectors of the real encoder."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from models.personas.retrieval import RetrievalConfig, near_clusters, retrieve
from orchestration.resources.ledger import ledger_twin
from ray_jobs.databases import shared_engine
from ray_jobs.personas import serving as persona_serving
from ray_jobs.personas.retrieval import Config, PersonaRetriever
from ray_jobs.tables.clusters import CLUSTER_PROFILES, ITEM_EMBEDDINGS, SEMANTIC_IDS
from ray_jobs.tables.features import ITEM_POPULARITY
from ray_jobs.text_encoding import TextEncoder, TextEncoderConfig
from tests.factories import CREATED
from tests.feature_repo.test_online_personas import CLUSTERS, HISTORY, INTERESTS, NOW, persona, seed_histories, twin

LABELS = {1: "crime", 2: "war", 3: "space", 4: "music", 7: "noir"}
ITEMS = {f"i{n}": CLUSTERS.get(f"i{n}", list(LABELS)[n % 5]) for n in range(1, 61)}
TOLD = {
    "interests": [{"cluster": 2, "label": "war", "share": 0.5, "evidence_item_ids": ["i3"]}],
    "explorations": [{"cluster": 7, "label": "noir", "anchor_cluster": 2, "similarity": 0.5}],
}


def row(table, **given):
    zeros = {
        c.name: 0 if pa.types.is_integer(c.type) else [] if pa.types.is_list(c.type) else "" for c in table.columns
    }
    times = {name: CREATED for name in ("created_timestamp", "event_timestamp") if name in zeros}
    return zeros | times | given


def put(tables, table, rows):
    tables.write(table, pa.Table.from_pylist([row(table, **r) for r in rows], table.schema), "seeded")


@pytest.fixture(scope="module")
def vectors():
    encode = TextEncoder(TextEncoderConfig()).encode
    item_ND = encode([f"{LABELS[c]} story number {i}" for i, c in ITEMS.items()])
    return item_ND, encode(list(LABELS.values()))


@pytest.fixture
def catalogue(tables, vectors):
    item_ND, _ = vectors
    put(tables, ITEM_EMBEDDINGS, [{"item_id": i, "embedding": v.tolist()} for i, v in zip(ITEMS, item_ND, strict=True)])
    put(tables, SEMANTIC_IDS, [{"item_id": i, "cluster": c} for i, c in ITEMS.items()])
    put(tables, ITEM_POPULARITY, [{"item_id": f"i{n}", "num_likes": n, "mean_value": 0.0} for n in range(6, 61)])
    profiles = []
    for cluster, label in LABELS.items():
        mean = item_ND[[c == cluster for c in ITEMS.values()]].mean(0)
        profiles.append({"cluster": cluster, "label": label, "centroid": (mean / np.linalg.norm(mean)).tolist()})
    put(tables, CLUSTER_PROFILES, profiles)
    return tables


@pytest.fixture
def retriever(tmp_path, catalogue):
    queue = ledger_twin(f"sqlite:///{tmp_path}/ledger.db").persona_queue()
    features = twin(tmp_path)
    opened = features.persona_store().open()
    seed_histories(opened)
    reader = persona_serving.Config(
        store=features.persona_store(),
        queue=queue,
        persona_version="v1",
        catalogue=persona_serving.load_catalogue(catalogue.warehouse()),
        interests=INTERESTS,
    )
    config = Config(
        reader=reader,
        warehouse=catalogue.warehouse(),
        encoder=TextEncoderConfig(),
        retrieval=RetrievalConfig(budget=10),
    )
    yield PersonaRetriever(Config.model_validate(config.model_dump()), opened)
    shared_engine(queue.url).dispose()


def by_the_rule(retriever, vectors, history, interest, exploration):
    """What the documented rule takes, over whole matrices."""
    item_ND, label_CD = vectors
    order = np.argsort([*ITEMS])  # The catalogue is in the order of the ids.
    ids, cluster_N = np.array([*ITEMS])[order], np.array([*ITEMS.values()])[order]
    weights = 0.5 ** (np.arange(len(history)) / INTERESTS.half_life)
    query_D = weights @ np.array([item_ND[[*ITEMS].index(i)] for i in history])
    nearest = np.argsort(-(item_ND[order] @ query_D), kind="stable")
    masks = []
    for cluster in (interest, exploration):
        text = label_CD[[*LABELS].index(cluster)]
        near = near_clusters(text[None], retriever.centroid_CD, retriever.config.retrieval)[0]
        masks.append(np.isin(cluster_N[nearest], np.array([*LABELS])[near])[None])
    open_N = ~np.isin(ids[nearest], history)
    return ids[nearest][retrieve(*masks, open_N[None], retriever.config.retrieval)[0]].tolist()


def test_a_fresh_persona_restricts_what_the_users_vector_finds(retriever, vectors):
    retriever.reader.store.write([persona(**TOLD)])
    found = retriever.retrieve("reader", "r1", NOW)
    assert (found.answer.state, found.answer.source, found.query) == ("fresh", "persona", "vector")
    assert found.item_ids == by_the_rule(retriever, vectors, HISTORY["reader"], interest=2, exploration=7)
    assert len(found.item_ids) == 10 and not set(found.item_ids) & set(HISTORY["reader"])
    assert found.sources.count("exploration") == 3
    explored = [i for i, s in zip(found.item_ids, found.sources, strict=True) if s == "exploration"]
    assert all(LABELS[ITEMS[i]] == "noir" for i in explored)
    assert found == retriever.retrieve("reader", "r1", NOW)
    counts = retriever.counts()
    assert counts["fresh"] == counts["requests"] == counts["by_vector"] == 2 and counts["topics_by_text"] == 4
    assert counts["items_exploration"] == 6 and counts["items_short"] == 0


def test_a_stale_persona_still_restricts_and_its_refresh_is_asked_for(retriever):
    retriever.reader.store.write([persona(**TOLD, written=NOW - dt.timedelta(days=30))])
    stale = retriever.retrieve("reader", "r1", NOW)
    retriever.reader.store.write([persona(**TOLD)])
    fresh = retriever.retrieve("reader", "r1", NOW)
    assert (stale.answer.state, fresh.answer.state) == ("stale", "fresh") and stale.item_ids == fresh.item_ids
    retriever.reader.asking.flush()
    assert retriever.counts()["enqueued"] == 1


def test_without_a_persona_the_history_restricts_and_without_a_history_what_is_popular(retriever, vectors):
    found = retriever.retrieve("newcomer", "r1", NOW)
    assert (found.answer.source, found.query, found.answer.exploration) == ("clusters", "vector", None)
    assert "exploration" not in found.sources and len(found.item_ids) == 10
    nobody = retriever.retrieve("nobody", "r1", NOW)
    assert (nobody.answer.source, nobody.query) == ("popular", "popularity")
    likes = [int(i[1:]) for i in nobody.item_ids]
    assert likes == sorted(likes, reverse=True) and len(likes) == 10
    interest = nobody.answer.interest["cluster"]
    first = [i for i, s in zip(nobody.item_ids, nobody.sources, strict=True) if s == "interest"]
    assert interest in {ITEMS[i] for i in first}
    counts = retriever.counts()
    assert counts["from_clusters"] == counts["from_popular"] == counts["by_popularity"] == 1


def test_labels_of_the_users_own_and_clusters_that_are_gone_cost_no_request(retriever):
    own = {"interests": [TOLD["interests"][0] | {"label": "trench poems"}], "explorations": TOLD["explorations"]}
    retriever.reader.store.write([persona(**own)])
    assert len(retriever.retrieve("reader", "r1", NOW).item_ids) == 10
    gone = {"interests": [TOLD["interests"][0] | {"cluster": 99}], "explorations": []}
    retriever.reader.store.write([persona(**gone)])
    found = retriever.retrieve("reader", "r1", NOW)
    assert found.sources == ["neighbours"] * 10, "unrestricted: nothing stands for the interest"
    counts = retriever.counts()
    assert counts["topics_by_centroid"] == counts["topics_by_text"] == counts["unknown_cluster"] == 1


def test_a_store_that_is_away_leaves_what_is_popular(retriever):
    retriever.reader.away_until = float("inf")
    found = retriever.retrieve("reader", "r1", NOW)
    assert (found.answer.source, found.query) == ("popular", "popularity") and len(found.item_ids) == 10
    assert retriever.counts()["store_unavailable"] == 1


def test_items_of_another_encoder_are_refused(retriever, catalogue):
    put(catalogue, ITEM_EMBEDDINGS, [])
    rows = [{"item_id": i, "embedding": [1.0, 0.0]} for i in ITEMS]
    data = pa.Table.from_pylist([row(ITEM_EMBEDDINGS, **r) for r in rows], ITEM_EMBEDDINGS.schema)
    catalogue.write(ITEM_EMBEDDINGS, data, "other")
    with pytest.raises(ValueError, match="materialize clusters/item_embeddings again"):
        PersonaRetriever(retriever.config, retriever.reader.store)
