"""The stage from cluster profiles to personas, run as Dagster runs it, by a real engine with a hand-written model."""

import dagster as dg
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from assets.clusters.cluster_profiles import cluster_profiles
from assets.clusters.semantic_ids import semantic_ids_version
from assets.personas import checks
from assets.personas.user_personas import user_personas
from orchestration.resources.language_model import EmbeddedLanguageModel
from orchestration.resources.ray_jobs import LocalRayJobs
from orchestration.resources.text_encoder import PackagedTextEncoder
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.tables.personas import PERSONA_COVERAGE, PERSONA_DEAD_LETTERS, PERSONA_STORE, USER_PERSONAS
from tests.assets.clusters.seeding import EPOCH, seed_captions, seed_embeddings
from tests.assets.personas.parrot import UNUSABLE, USABLE, write_parrot
from tests.factories import CREATED, GENRES, seed_interactions

pytestmark = pytest.mark.ray
EVERY_CHECK = [c for c in vars(checks).values() if isinstance(c, dg.AssetChecksDefinition)]


@pytest.fixture(scope="module")
def parrots(tmp_path_factory):
    return {s: write_parrot(tmp_path_factory.mktemp("parrot"), s) for s in (USABLE, UNUSABLE)}


def seed_clusters(tables, width: int = 16) -> None:
    """Two clusters a genre: what a user has seen of one leaves the other to explore."""
    items = tables.read(ITEMS, ["item_id", "categories"]).to_pylist()
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(len(GENRES), 16)) + 1.5
    genre = [GENRES.index(i["categories"][0]) for i in items]
    half = [int(i["item_id"][1:]) % 2 for i in items]
    vectors = np.array([centers[g] + 0.8 * h + 0.05 * rng.normal(size=16) for g, h in zip(genre, half, strict=True)])
    seed_embeddings(tables, np.pad(vectors, ((0, 0), (0, width - 16))), "embeddings-1")
    rows = [
        {
            "item_id": i["item_id"],
            "codes": [g * 2 + h],
            "collision": n,
            "semantic_id": f"{g * 2 + h}-{n}",
            "cluster": g * 2 + h,
            "codebook_version": "codes-1",
            "event_timestamp": EPOCH,
            "created_timestamp": CREATED,
        }
        for n, (i, g, h) in enumerate(zip(items, genre, half, strict=True))
    ]
    version = semantic_ids_version(embeddings="embeddings-1", codebooks="codes-1")
    tables.write(SEMANTIC_IDS, pa.Table.from_pylist(rows, SEMANTIC_IDS.schema), version=version)


@pytest.fixture
def materialize(tables, tracking, instance, ray_cluster, parrots):
    def run(assets=(user_personas, *EVERY_CHECK), sentence=USABLE, **config):
        config = {"min_events": 3, "min_likes": 2, "users_per_batch": 4} | config
        return dg.materialize(
            list(assets),
            instance=instance,
            raise_on_error=False,
            run_config={"ops": {"personas__user_personas": {"config": config}}} if user_personas in assets else None,
            resources={
                "tables": tables,
                "ray_jobs": LocalRayJobs(),
                "text_encoder": PackagedTextEncoder(),
                "language_model": EmbeddedLanguageModel(cache_dir="", folder=str(parrots[sentence])),
                "tracking": tracking,
            },
        )

    return run


@pytest.fixture
def seeded(tables, materialize):
    seed_interactions(tables, num_users=12, num_items=60, events_per_user=14)
    seed_captions(tables)
    seed_clusters(tables)
    assert materialize([cluster_profiles]).success
    return tables


def said(result):
    assert result.success, [e.event_specific_data.error.to_string()[-1500:] for e in result.get_step_failure_events()]
    return {k: v.value for k, v in result.asset_materializations_for_node(user_personas.op.name)[-1].metadata.items()}


def test_a_killed_run_resumes_without_paying_twice_and_personas_are_grounded(seeded, materialize):
    # What a killed run leaves: a store that has some contents, and no table of personas of this version.
    assert materialize([user_personas], token_budget=6000).success
    first = seeded.read(PERSONA_STORE)
    result = materialize()
    told = said(result)
    assert {c.check_name: c.passed for c in result.get_asset_check_evaluations()} == dict.fromkeys(
        ["schema", "volume", "semantic", "grounding", "novelty", "coverage"], True
    )
    store = seeded.read(PERSONA_STORE)
    old = set(first["content_key"].to_pylist())
    assert 0 < len(old) < store.num_rows == len(set(store["content_key"].to_pylist()))
    assert told["cache_hit_rate"] == pytest.approx(first.num_rows / store.num_rows, abs=1e-3)
    new = store.filter(pa.array([k not in old for k in store["content_key"].to_pylist()]))
    assert told["prompt_tokens"] == sum(new["prompt_tokens"].to_pylist()) > told["completion_tokens"] > 0
    assert told["llm_calls"] >= sum(new["attempts"].to_pylist())
    assert told["users"] == 12 == told["users_written"] + told["users_too_little_history"]
    assert told["users_failed"] == told["users_over_budget"] == 0
    assert told["samples"].count("user •••") == 5 and "u1 " not in told["samples"]
    rows = seeded.read(USER_PERSONAS).to_pylist()
    assert any(r["explorations"] for r in rows)
    events = pl.DataFrame(seeded.read(SPLITS))
    for row in rows:
        assert row["persona"].startswith("Likes crime comedy") and len(row["embedding"]) == 384
        assert row["interests"][0]["evidence_titles"][0] in row["persona"]
        shares = [i["share"] for i in row["interests"]]
        assert shares == sorted(shares, reverse=True)
        own = events.filter(pl.col("user_id") == row["user_id"])
        assert (row["event_timestamp"] - own["timestamp"].max()).total_seconds() == pytest.approx(1e-6)
        assert row["num_events"] == own.height
    again = said(materialize())
    assert again["unchanged"] and again["llm_calls"] == 0 and again["users_written"] == told["users_written"]
    assert seeded.read(PERSONA_STORE).num_rows == store.num_rows


def test_the_budget_goes_to_the_most_active_users(tables, materialize):
    seed_interactions(tables, num_users=6, num_items=60, events_per_user=20)
    splits = pl.DataFrame(tables.read(SPLITS))
    kept = {f"u{n}": 20 - 3 * n for n in range(6)}
    splits = splits.filter(pl.col("position") < pl.col("user_id").replace_strict(kept))
    tables.write(SPLITS, splits.to_arrow().cast(SPLITS.schema), "fewer")
    seed_captions(tables)
    seed_clusters(tables)
    assert materialize([cluster_profiles]).success
    result = materialize(token_budget=2500)
    told = said(result)
    written = set(tables.read(USER_PERSONAS)["user_id"].to_pylist())
    assert "u0" in written and written < {f"u{n}" for n in range(5)}, "u5 is the least active"
    assert told["users_over_budget"] > 0 and told["tokens_planned"] <= 2500
    assert told["users"] == sum(told[f"users_{k}"] for k in ("written", "failed", "over_budget", "too_little_history"))
    assert materialize(token_budget=1).success
    assert tables.read(USER_PERSONAS).num_rows == 0


def test_a_model_that_refuses_gives_dead_letters_and_no_stand_ins(seeded, materialize):
    result = materialize(sentence=UNUSABLE)
    told = said(result)
    assert told["users_written"] == 0 and told["users_failed"] > 0
    assert seeded.read(USER_PERSONAS).num_rows == 0 and seeded.read(PERSONA_STORE).num_rows == 0
    letters = seeded.read(PERSONA_DEAD_LETTERS).to_pylist()
    assert len(letters) == told["users_failed"] and {r["reason"] for r in letters} == {"refusal"}
    coverage = next(c for c in result.get_asset_check_evaluations() if c.check_name == "coverage")
    assert not coverage.passed and "could not be written" in coverage.description
    # Greedy decoding would give the same again: what is dead is not paid for twice.
    calls = said(materialize(sentence=UNUSABLE, token_budget=150_000))["llm_calls"]
    assert calls == 0


def test_three_users_and_a_catalogue_of_five(tables, materialize):
    seed_interactions(tables, num_users=3, num_items=5, events_per_user=5)
    seed_captions(tables)
    seed_clusters(tables)
    assert materialize([cluster_profiles]).success
    said(materialize())
    nobody = materialize(min_events=100)
    assert nobody.success and said(nobody)["users_too_little_history"] == 3


def test_checks_catch_what_is_made_up(seeded):
    events = pl.DataFrame(seeded.read(SPLITS)).join(
        pl.DataFrame(seeded.read(SEMANTIC_IDS, ["item_id", "cluster"])), on="item_id"
    )
    own = events.filter((pl.col("user_id") == "u0") & (pl.col("label") == 1)).row(0, named=True)
    unseen = sorted(
        set(seeded.read(ITEMS)["item_id"].to_pylist())
        - set(events.filter(pl.col("user_id") == "u0")["item_id"].to_list())
    )[0]

    def write(evidence, explored, version):
        row = {
            "user_id": "u0",
            "content_key": "k",
            "persona": "Likes stories about crime.",
            "num_events": 14,
            "embedding": [1.0],
            "persona_version": "v",
            "event_timestamp": CREATED,
            "created_timestamp": CREATED,
            "interests": [
                {
                    "cluster": 0,
                    "label": "crime",
                    "share": 1.0,
                    "evidence_item_ids": evidence,
                    "evidence_titles": ["T"] * len(evidence),
                }
            ],
            "explorations": [{"cluster": c, "label": "x", "anchor_cluster": 0, "similarity": 0.5} for c in explored],
        }
        seeded.write(USER_PERSONAS, pa.Table.from_pylist([row], USER_PERSONAS.schema), version)
        counted = {c.name: 0 for c in PERSONA_COVERAGE.columns} | {
            "users": 12,
            "users_written": 1,
            "users_too_little_history": 11,
            "parameters": "{}",
            "created_timestamp": CREATED,
        }
        seeded.write(PERSONA_COVERAGE, pa.Table.from_pylist([counted], PERSONA_COVERAGE.schema), version)
        return (
            checks.every_claim_is_in_the_history(seeded),
            checks.explorations_are_new(seeded),
            checks.every_user_is_accounted_for(seeded),
        )

    grounding, novelty, coverage = write([own["item_id"]], [], "true")
    assert grounding.passed and novelty.passed and coverage.passed
    grounding, novelty, _ = write([own["item_id"], unseen], [own["cluster"]], "made-up")
    assert not grounding.passed and grounding.metadata["wrong"].value == 1
    sample = grounding.metadata["failing_sample"].text
    assert unseen in sample and "u0" not in sample
    assert not novelty.passed and novelty.metadata["wrong"].value == 1
    assert not write([], [97, 97], "empty")[0].passed
    assert not checks.explorations_are_new(seeded).passed, "one cluster twice"
    row = seeded.read(PERSONA_COVERAGE).to_pylist()[0] | {"users_too_little_history": 3}
    seeded.write(PERSONA_COVERAGE, pa.Table.from_pylist([row], PERSONA_COVERAGE.schema), "wrong")
    assert not checks.every_user_is_accounted_for(seeded).passed
