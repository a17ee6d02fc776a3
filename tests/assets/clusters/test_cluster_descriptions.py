"""Clusters get names of a real engine, unlike their siblings', once."""

import dagster as dg
import pytest

from assets.clusters import checks
from assets.clusters.cluster_descriptions import cluster_descriptions
from assets.clusters.cluster_profiles import cluster_profiles
from assets.clusters.codebooks import codebooks
from assets.clusters.item_embeddings import item_embeddings
from assets.clusters.semantic_ids import semantic_ids
from orchestration.resources.language_model import EmbeddedLanguageModel
from orchestration.resources.ray_jobs import LocalRayJobs
from orchestration.resources.text_encoder import PackagedTextEncoder
from ray_jobs.tables.clusters import CLUSTER_DESCRIPTIONS, CLUSTER_PROFILES
from tests.assets.clusters.seeding import seed_captions
from tests.assets.personas.parrot import GENRES, write_parrot
from tests.factories import seed_interactions

pytestmark = pytest.mark.ray


def test_names_are_written_once_and_differ(tables, tracking, instance, ray_cluster, tmp_path):
    seed_interactions(tables)
    seed_captions(tables)
    folder = write_parrot(tmp_path / "parrot", f"Story: Tales of {GENRES} for everyone.")
    resources = {
        "tables": tables,
        "tracking": tracking,
        "ray_jobs": LocalRayJobs(),
        "text_encoder": PackagedTextEncoder(),
        "language_model": EmbeddedLanguageModel(cache_dir="", folder=str(folder)),
    }
    above = [item_embeddings, codebooks, semantic_ids, cluster_profiles]
    assert dg.materialize(above, resources=resources, instance=instance).success

    def describe():
        asked = [cluster_descriptions, checks.cluster_descriptions_checks]
        result = dg.materialize(asked, resources=resources, instance=instance)
        assert all(c.passed for c in result.get_asset_check_evaluations())
        made = result.asset_materializations_for_node(cluster_descriptions.op.name)[-1].metadata
        return {k: v.value for k, v in made.items()}

    first = describe()
    rows = tables.read(CLUSTER_DESCRIPTIONS).to_pylist()
    assert len(rows) == tables.read(CLUSTER_PROFILES).num_rows == len({r["name"] for r in rows})
    assert len({r["description"] for r in rows}) == len(rows)
    # The model always says the same: one cluster may have it, its siblings are asked again and named by their terms.
    assert first["num_by_model"] == 1 and first["llm_calls"] == 2 * len(rows) - 1
    assert {r["name"] for r in rows if r["written_by"] == "model"} == {"Story"}
    assert describe()["unchanged"]
    seed_captions(tables, version="captions-2")
    assert describe()["num_cached"] == len(rows), "the same evidence is not paid for twice"
