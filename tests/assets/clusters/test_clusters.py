"""The stage from captions to cluster profiles, run as Dagster runs it."""

from pathlib import Path

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from assets.clusters import checks
from assets.clusters.cluster_profiles import cluster_profiles
from assets.clusters.codebooks import CodebooksConfig, clustering_job, codebooks
from assets.clusters.item_embeddings import item_embeddings
from assets.clusters.quantiser_comparison import METHODS, ComparisonConfig, comparison_job, quantiser_comparison
from assets.clusters.registration import REGISTERED
from assets.clusters.semantic_ids import semantic_ids
from orchestration.resources.ray_jobs import LocalRayJobs
from orchestration.resources.text_encoder import PackagedTextEncoder
from ray_jobs.clusters import clustering
from ray_jobs.clusters.codebook_artifacts import load_assessment, load_codebooks
from ray_jobs.clusters.semantic_id_maps import load_semantic_ids, read_semantic_ids
from ray_jobs.embedding_store import as_matrix
from ray_jobs.tables.clusters import (
    CLUSTER_PROFILES,
    CODEBOOKS,
    EMBEDDING_STORE,
    ITEM_EMBEDDINGS,
    QUANTISER_COMPARISON,
    SEMANTIC_IDS,
)
from ray_jobs.tables.interactions import ITEMS
from tests.assets.clusters.seeding import anisotropic, seed_captions, seed_embeddings
from tests.factories import GENRES, seed_interactions

pytestmark = pytest.mark.ray
EVERY_CHECK = [
    c
    for name, c in vars(checks).items()
    if isinstance(c, dg.AssetChecksDefinition) and name != "quantiser_comparison_checks"
]
STAGE = [item_embeddings, codebooks, semantic_ids, cluster_profiles]


@pytest.fixture
def materialize(tables, tracking, instance, ray_cluster):
    def run(assets, ops=None, **config):
        run_config = {"ops": ops or {"clusters__codebooks": {"config": config}}} if ops or config else None
        return dg.materialize(
            assets,
            resources={
                "tables": tables,
                "ray_jobs": LocalRayJobs(),
                "text_encoder": PackagedTextEncoder(),
                "tracking": tracking,
            },
            instance=instance,
            raise_on_error=False,
            run_config=run_config,
        )

    return run


def said(result, asset):
    return {k: v.value for k, v in result.asset_materializations_for_node(asset.op.name)[-1].metadata.items()}


def ids(tables):
    rows = tables.read(SEMANTIC_IDS, ["item_id", "semantic_id"])
    return dict(zip(rows["item_id"].to_pylist(), rows["semantic_id"].to_pylist(), strict=True))


def test_the_whole_stage_and_again(tables, materialize):
    seed_interactions(tables)
    seed_captions(tables, without=("i3",))
    first = materialize([*STAGE, *EVERY_CHECK])
    assert first.success
    assert all(c.passed for c in first.get_asset_check_evaluations())
    assert len({(c.asset_key, c.check_name) for c in first.get_asset_check_evaluations()}) == 16
    embedded = said(first, item_embeddings)
    assert embedded["texts_encoded"] == 40 + len(GENRES), "each item's text, and each genre once"
    assert embedded["items_without_caption"] == 1 and embedded["dimension"] == 384
    assert said(first, codebooks)["training_runs"] == 1 and said(first, codebooks)["unique_rate"] > 0.9
    assert said(first, semantic_ids)["ids_new"] == 0
    profiles = tables.read(CLUSTER_PROFILES).to_pylist()
    assert sum(p["items"] for p in profiles) == 40 and len({p["label"] for p in profiles}) == len(profiles)
    assert any("crime" in p["label"] for p in profiles)
    before = ids(tables)
    again = materialize([*STAGE, *EVERY_CHECK])
    assert again.success and ids(tables) == before
    for asset in STAGE:
        assert said(again, asset)["unchanged"] and said(again, asset)["table_commits"] == 0
    assert said(again, codebooks)["training_runs"] == 0 and said(again, item_embeddings)["texts_encoded"] == 0
    a_new_item_is_encoded_alone_and_moves_nobody(tables, materialize)


def a_new_item_is_encoded_alone_and_moves_nobody(tables, materialize):
    before, standing = ids(tables), tables.version(CODEBOOKS)
    items = tables.read(ITEMS).to_pylist()
    new = items[0] | {"item_id": "i900", "title": "Starship of Doom"}
    tables.write(ITEMS, pa.Table.from_pylist([*items, new], ITEMS.schema), version="one-more")
    result = materialize(STAGE)
    assert result.success
    assert said(result, item_embeddings)["texts_encoded"] == 1
    assert tables.version(CODEBOOKS) == standing and said(result, codebooks)["action"] == "kept"
    after = ids(tables)
    assert said(result, semantic_ids)["ids_new"] == 1 and {k: after[k] for k in before} == before
    rebuilt = materialize([codebooks, semantic_ids], rebuild=True)
    assert rebuilt.success and said(rebuilt, codebooks)["action"] == "fitted"
    assert tables.version(CODEBOOKS) != standing
    now = ids(tables)
    assert said(rebuilt, semantic_ids)["ids_moved"] == sum(now[k] != after[k] for k in after) > 0
    assert load_codebooks(tables.artifacts(), standing).spec.version == standing


def test_publishing_is_blue_green_and_a_pinned_version_stays(tables, tracking, materialize):
    seed_embeddings(tables, anisotropic(num_items=120), "one")
    assert materialize([codebooks, semantic_ids]).success
    blue, before = tables.version(SEMANTIC_IDS), ids(tables)
    assert materialize([codebooks, semantic_ids], rebuild=True, seed=5).success
    green, after = tables.version(SEMANTIC_IDS), ids(tables)
    assert green != blue and after != before
    for version, expected in ((blue, before), (green, after)):
        pinned = load_semantic_ids(tables.artifacts(), version)
        assert {i: pinned.items.semantic_id(i) for i in expected} == expected
        assert all(pinned.items.item(text) == item for item, text in expected.items())
        x = as_matrix(tables.read(ITEM_EMBEDDINGS).sort_by("item_id")["embedding"])
        order = tables.read(ITEM_EMBEDDINGS).sort_by("item_id")["item_id"].to_pylist()
        codes = dict(zip(pinned.items.item_ids, pinned.items.codes_NL.tolist(), strict=True))
        # The last code of an item that came late may be the next best: nobody shares codes.
        assert pinned.codebooks.quantiser.encode(x)[:, :-1].tolist() == [codes[i][:-1] for i in order]
        assert len(set(map(tuple, codes.values()))) == len(codes)
    mlflow = tracking.connect("semantic_ids")
    model = mlflow.MlflowClient().get_registered_model(REGISTERED)
    for alias, version in (("serving", green), ("previous", blue)):
        found = mlflow.MlflowClient().get_model_version(REGISTERED, model.aliases[alias])
        assert found.tags["semantic_id_version"] == version
    folder = Path(mlflow.artifacts.download_artifacts(f"{found.source}"))
    assert read_semantic_ids(folder).items.texts == load_semantic_ids(tables.artifacts(), blue).items.texts


def test_an_rq_vae_is_a_matter_of_config(tables, materialize):
    seed_embeddings(tables, anisotropic(num_items=120), "one")
    knobs = {"method": "rq_vae", "hidden": [16], "latent": 16, "epochs": 3, "learning_rate": 5e-3}
    result = materialize([codebooks, semantic_ids, checks.codebooks_have_not_collapsed], **knobs)
    assert result.success and said(result, codebooks)["method"] == "rq_vae"
    standing = load_codebooks(tables.artifacts(), tables.version(CODEBOOKS))
    assert standing.quantiser.method == "rq_vae" and tables.read(SEMANTIC_IDS).num_rows == 120
    again = materialize([codebooks, semantic_ids], **knobs)
    assert said(again, codebooks)["training_runs"] == 0 and said(again, semantic_ids)["unchanged"]
    # New items get codes of the standing network.
    before = ids(tables)
    seed_embeddings(tables, np.concatenate([anisotropic(120), anisotropic(5, seed=9)]), "more")
    more = materialize([codebooks, semantic_ids], **knobs)
    assert said(more, codebooks)["action"] == "kept" and said(more, semantic_ids)["ids_new"] == 5
    assert {k: ids(tables)[k] for k in before} == before
    wrong = materialize([codebooks], method="rq_magic")
    message = wrong.failure_data_for_node(codebooks.op.name).user_failure_data.description
    assert not wrong.success and "rq_kmeans, rq_vae" in message


def test_knobs_of_the_rq_vae_reach_its_training_from_codebooks_and_comparison_alike(tables):
    seed_embeddings(tables, anisotropic(num_items=60), "one")
    knobs = {"batch_size": 77, "epochs": 3, "latent": 16, "levels": 2, "seed": 5}
    job = comparison_job(ComparisonConfig(**knobs), tables, LocalRayJobs()).clustering
    assert job == clustering_job(CodebooksConfig(**knobs), tables, LocalRayJobs())
    training = clustering.rqvae_job(job, skipped=("i1",))
    assert (training.batch_size, training.training.epochs, training.training.seed) == (77, 3, 5)
    assert (training.quantiser.latent, training.quantiser.levels, training.skipped) == (16, 2, ("i1",))


def test_quantisers_are_compared_on_the_same_embeddings(tables, materialize):
    seed_embeddings(tables, anisotropic(num_items=200), "one")
    knobs = {
        "clusters__quantiser_comparison": {
            "config": {"hidden": [16], "latent": 16, "epochs": 40, "learning_rate": 5e-3}
        }
    }
    result = materialize([quantiser_comparison, checks.quantiser_comparison_checks], ops=knobs)
    assert result.success and all(c.passed for c in result.get_asset_check_evaluations())
    rows = tables.read(QUANTISER_COMPARISON).to_pylist()
    assert {(r["method"], r["level"]) for r in rows} == {(m, i) for m in METHODS for i in range(3)}
    for method in METHODS:
        first, *_, last = [r for r in rows if r["method"] == method]
        assert last["error"] < first["error"] and 0 < last["unique_rate"] <= 1 and last["width"] == first["width"]
    assert said(result, quantiser_comparison)["items_held"] == 20
    again = materialize([quantiser_comparison], ops=knobs)
    assert said(again, quantiser_comparison)["training_runs"] == 0


def test_a_collapse_is_not_published_and_the_old_ids_keep_serving(tables, materialize):
    good = anisotropic(num_items=120)
    seed_embeddings(tables, good, "good")
    assert materialize([codebooks, semantic_ids, checks.codebooks_have_not_collapsed]).success
    before, standing, version = ids(tables), tables.version(CODEBOOKS), tables.version(SEMANTIC_IDS)
    seed_embeddings(tables, np.ones((120, 32), np.float32), "constant")
    result = materialize([codebooks, semantic_ids, checks.codebooks_have_not_collapsed])
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed and check.blocking and "120 items share" in check.description
    assert check.metadata["unique_rate"].value < check.metadata["unique_rate_threshold"].value
    assert not result.asset_materializations_for_node(semantic_ids.op.name)
    assert said(result, codebooks)["action"] == "rejected"
    assert ids(tables) == before and tables.version(SEMANTIC_IDS) == version and tables.version(CODEBOOKS) == standing
    pinned = load_semantic_ids(tables.artifacts(), version)
    assert {i: pinned.items.semantic_id(i) for i in before} == before
    # Run alone, past the check, the asset refuses as well.
    alone = materialize([semantic_ids])
    assert not alone.success and ids(tables) == before
    message = alone.failure_data_for_node(semantic_ids.op.name).user_failure_data.description
    assert "not published" in message and "keep serving" in message
    # Profiles of the old IDs are not made out of the new embeddings either.
    seed_interactions(tables, num_items=120)
    seed_captions(tables)
    assert not materialize([cluster_profiles]).success
    # Mended embeddings get their old IDs back: nothing had been replaced.
    seed_embeddings(tables, good, "good-again")
    mended = materialize([codebooks, semantic_ids, checks.codebooks_have_not_collapsed])
    assert mended.success and ids(tables) == before and said(mended, codebooks)["action"] == "kept"


def test_a_first_collapse_publishes_nothing(tables, materialize):
    seed_embeddings(tables, np.ones((30, 8), np.float32), "constant")
    result = materialize([codebooks, semantic_ids, checks.codebooks_have_not_collapsed])
    assert not result.get_asset_check_evaluations()[0].passed
    assert not tables.warehouse().exists(SEMANTIC_IDS)
    seed_embeddings(tables, anisotropic(30, 8), "good")
    mended = materialize([codebooks, semantic_ids, checks.codebooks_have_not_collapsed])
    assert mended.success and "no longer tell" in said(mended, codebooks)["reason"]


def test_a_catalogue_of_three_items(tables, materialize):
    seed_interactions(tables, num_users=2, num_items=3, events_per_user=1)
    seed_captions(tables)
    result = materialize([*STAGE, *EVERY_CHECK])
    assert result.success and all(c.passed for c in result.get_asset_check_evaluations())
    assert tables.read(SEMANTIC_IDS).num_rows == 3


def test_drift_of_the_embeddings_calls_for_a_fit(tables, materialize):
    seed_embeddings(tables, anisotropic(200, 16, seed=1), "one")
    assert materialize([codebooks]).success
    shifted = anisotropic(200, 16, seed=1) * np.linspace(1, -1, 16, dtype=np.float32)
    seed_embeddings(tables, shifted, "two")
    result = materialize([codebooks])
    assert said(result, codebooks)["action"] == "fitted"
    assert load_assessment(tables.artifacts(), "two").quality.unique_rate > 0.7
    seed_embeddings(tables, np.concatenate([shifted, anisotropic(100, 16, seed=2)]), "three")
    grown = materialize([codebooks])
    assert "grown by 50%" in said(grown, codebooks)["reason"]


def test_checks_see_bad_embeddings(tables, materialize):
    from ray_jobs.embedding_store import as_lists

    seed_embeddings(tables, anisotropic(10, 8), "good")
    rows = tables.read(ITEM_EMBEDDINGS)
    x = as_matrix(rows["embedding"])
    x[0] *= 3
    x[5:] = x[5]
    tables.write(ITEM_EMBEDDINGS, rows.set_column(1, "embedding", as_lists(x)), "bad")
    assert not checks.embeddings_have_unit_length(tables).passed
    assert checks.embeddings_are_distinct(tables).metadata["distinct_share"].value == pytest.approx(0.6)


def test_texts_are_encoded_once(tables, ray_cluster):
    from ray_jobs.embedding_store import embed

    encoder = PackagedTextEncoder().encoder()
    first = embed(tables.warehouse(), encoder, ["a train", "a boat", "a train"], stage="test")
    assert (first.num_texts, first.num_encoded) == (2, 2) and (first.vectors[0] == first.vectors[2]).all()
    second = embed(tables.warehouse(), encoder, ["a boat", "a horse"], stage="test")
    assert second.num_encoded == 1 and second.hit_rate == 0.5
    assert np.allclose(second.vectors[0], first.vectors[1])
    assert tables.read(EMBEDDING_STORE).num_rows == 3
