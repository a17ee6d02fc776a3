"""Tokens and embeddings of captions as assets, with their checks, on a small catalogue with written captions."""

import dagster as dg
import numpy as np
import pyarrow as pa
import pytest

from assets.captions import token_checks
from assets.captions.caption_embeddings import caption_embeddings
from assets.captions.caption_tokens import caption_tokens
from orchestration.resources.ray_jobs import LocalRayJobs
from orchestration.resources.text_encoder import PackagedTextEncoder
from ray_jobs.captions.plan import EPOCH
from ray_jobs.embedding_store import as_lists
from ray_jobs.tables.captions import (
    CAPTION_EMBEDDINGS,
    CAPTION_HEALTH,
    CAPTION_RETRIEVAL,
    CAPTION_TOKENS,
    CAPTION_VOCABULARY,
    ITEM_CAPTIONS,
)
from ray_jobs.tables.interactions import SPLITS
from tests.assets.captions.seeding import seed_item_captions
from tests.factories import CREATED, seed_interactions

TOKEN_CHECKS = [
    token_checks.caption_tokens_checks,
    token_checks.tokens_are_sets,
    token_checks.tokens_are_healthy,
]
EMBEDDING_CHECKS = [
    token_checks.caption_embeddings_checks,
    token_checks.embeddings_have_unit_length,
    token_checks.captions_find_their_items,
]


def materialize(tables, instance, assets, **config):
    return dg.materialize(
        assets,
        instance=instance,
        raise_on_error=False,
        resources={"tables": tables, "ray_jobs": LocalRayJobs(), "text_encoder": PackagedTextEncoder()},
        run_config={"ops": {"captions__caption_tokens": {"config": config}}} if config else None,
    )


def said(result, asset):
    return {k: v.value for k, v in result.asset_materializations_for_node(asset.op.name)[-1].metadata.items()}


def test_tokens_end_to_end_and_then_only_when_the_training_period_changes(tables, instance):
    seed_interactions(tables)
    seed_item_captions(tables)
    first = materialize(tables, instance, [caption_tokens, *TOKEN_CHECKS])
    assert first.success and all(e.passed for e in first.get_asset_check_evaluations())
    shown = said(first, caption_tokens)
    assert shown["items"] == 40 and shown["poor_items"] == 0 and shown["previous_jaccard"] == "not measured"
    assert shown["recaption_jaccard"] == shown["unknown_share_new"] == "not measured"
    assert shown["tokens_per_item"].startswith("![") and shown["document_frequencies"].startswith("![")
    assert "| tag | 6 |" in shown["fields"] and shown["examples"].count("\n") == 21
    health = tables.read(CAPTION_HEALTH).to_pylist()
    version = tables.version(CAPTION_TOKENS)
    assert {r["tokens_version"] for r in health} == {version} and tables.version(CAPTION_VOCABULARY) == version
    assert {r["measure"]: r["value"] for r in health}["duplicate_sets"] == shown["duplicate_sets"]

    again = materialize(tables, instance, [caption_tokens])
    assert said(again, caption_tokens)["unchanged"] and tables.warehouse().num_rows(CAPTION_HEALTH) == len(health)
    more = tables.read(SPLITS)
    tables.write(SPLITS, pa.concat_tables([more, more.slice(0, 1)]), version="more-events-of-known-items")
    assert said(materialize(tables, instance, [caption_tokens]), caption_tokens)["unchanged"]

    trained = more.filter(pa.compute.not_equal(more["item_id"], "i7"))
    tables.write(SPLITS, trained, version="one-item-less")
    changed = said(materialize(tables, instance, [caption_tokens]), caption_tokens)
    assert changed["training_items"] == 39 and changed["unknown_share_new"] != "not measured"
    assert 0.5 < changed["previous_jaccard"] < 1 and changed["token_version"] == shown["token_version"]


def test_parameters_are_part_of_both_versions(tables, instance):
    seed_interactions(tables, num_items=12)
    seed_item_captions(tables)
    one = said(materialize(tables, instance, [caption_tokens]), caption_tokens)
    two = said(materialize(tables, instance, [caption_tokens], max_trigrams=0), caption_tokens)
    assert one["token_version"] != two["token_version"] and one["version"] != two["version"]
    assert two["trigram_share"] == 0 < one["trigram_share"]


def test_a_training_period_without_captions_is_one_sentence_without_retry(tables, instance):
    seed_interactions(tables, num_items=12)
    seed_item_captions(tables)
    tables.write(SPLITS, SPLITS.schema.empty_table(), version="none")
    result = materialize(tables, instance, [caption_tokens])
    failure = result.failure_data_for_node("captions__caption_tokens").user_failure_data
    assert "No item of the training period has a caption" in failure.description
    assert not tables.warehouse().exists(CAPTION_TOKENS)


def tokens(tables, rows, version="t"):
    made = [
        {
            "item_id": item,
            "token_ids": ids,
            "tokens": [f"tag:{i}" for i in ids],
            "weights": weights or [1.0] * len(ids),
            "token_version": "v",
            "event_timestamp": EPOCH,
            "created_timestamp": CREATED,
        }
        for item, ids, weights in rows
    ]
    tables.write(CAPTION_TOKENS, pa.Table.from_pylist(made, CAPTION_TOKENS.schema), version=version)


@pytest.mark.parametrize(
    "ids, weights",
    [([3, 2], None), ([2, 2], None), ([0, 2], None), ([2, 3], [1.0]), ([2, 3], [1.0, 0.0])],
)
def test_token_sets_that_are_none_block(tables, ids, weights):
    seed_interactions(tables, num_items=2)
    seed_item_captions(tables)
    tokens(tables, [("i0", ids, weights), ("i1", [1, 5, 9], None)])
    found = token_checks.tokens_are_sets(tables=tables)
    assert not found.passed and found.metadata["failing_sample"].value == "i0"
    tokens(tables, [("i1", [1, 5, 9], None)], version="one-too-few")
    found = token_checks.tokens_are_sets(tables=tables)
    assert not found.passed and "1 sets stand for 2 captions" in found.description
    tokens(tables, [("i0", [], None), ("i1", [1, 5, 9], None)], version="good")
    assert token_checks.tokens_are_sets(tables=tables).passed


@pytest.mark.parametrize(
    "measured, complaint",
    [
        ({}, None),
        ({"poor_items": 9.0}, "22.5% of the items have fewer than three informative tokens (threshold 20%)"),
        ({"duplicate_sets": 0.3}, "30.0% share their tokens with another item (threshold 20%)"),
        ({"recaption_jaccard": 0.4}, "re-captioned items keep 40% of their tokens (threshold 50%)"),
    ],
)
def test_tokens_that_say_little_are_told(tables, measured, complaint):
    from ray_jobs.captions.health import health_rows

    tokens(tables, [("i0", [], None), ("i1", [1, 5, 9], None)])
    never = token_checks.tokens_are_healthy(tables=tables)
    assert not never.passed and "never measured" in never.description
    sound = {"items": 40.0, "poor_items": 0.0, "duplicate_sets": 0.0}
    tables.warehouse().append(CAPTION_HEALTH, health_rows(sound | {"duplicate_sets": 1.0}, "an older version", "v"))
    tables.warehouse().append(CAPTION_HEALTH, health_rows(sound | measured, "t", "v"))
    found = token_checks.tokens_are_healthy(tables=tables)
    assert found.passed == (complaint is None) and (complaint or "") in (found.description or "")
    assert ("not measured" in str(found.metadata["recaption_jaccard"].value)) == ("recaption_jaccard" not in measured)
    assert found.metadata["failing_sample"].value == ("i0, i1" if "poor_items" in measured else "")


@pytest.mark.ray
def test_embeddings_end_to_end_and_captions_find_their_items(tables, instance, ray_cluster):
    seed_interactions(tables)
    seed_item_captions(tables)
    first = materialize(tables, instance, [caption_embeddings, *EMBEDDING_CHECKS])
    assert first.success and all(e.passed for e in first.get_asset_check_evaluations())
    shown = said(first, caption_embeddings)
    assert shown["dimension"] == 384 and shown["texts_encoded"] == shown["texts_distinct"] > 40
    places = tables.read(CAPTION_RETRIEVAL)
    assert places.num_rows == shown["items_sought_by_caption"] == 40
    assert all(2 <= n <= 40 for n in places["candidates"].to_pylist())
    assert tables.read(CAPTION_EMBEDDINGS)["item_id"].to_pylist() == sorted(f"i{i}" for i in range(40))
    (check,) = [e for e in first.get_asset_check_evaluations() if e.check_name == "retrieval"]
    assert check.metadata["lift_low"].value > 0 and "| chance |" in check.metadata["compared"].value
    again = materialize(tables, instance, [caption_embeddings])
    assert said(again, caption_embeddings)["unchanged"] and said(again, caption_embeddings)["texts_encoded"] == 0


def test_captions_that_find_nothing_are_told(tables):
    rows = [
        {
            "item_id": f"i{i}",
            "category": "war",
            "candidates": 9,
            "rank": float(i % 9 + 1),
            "control_ranks": [float(i % 7 + 1), float(i % 5 + 3)],
            "embedding_version": "v",
            "created_timestamp": CREATED,
        }
        for i in range(45)
    ]
    tables.write(CAPTION_RETRIEVAL, pa.Table.from_pylist(rows, CAPTION_RETRIEVAL.schema), version="generic")
    found = token_checks.captions_find_their_items(tables=tables)
    assert not found.passed and found.severity == dg.AssetCheckSeverity.WARN
    assert "generic; change prompt or model" in found.description
    assert found.metadata["lift_low"].value <= 0 and found.metadata["failing_sample"].value.startswith("i17, i26")


def test_embeddings_that_are_not_numbers_block(tables):
    seed_interactions(tables, num_items=2)
    seed_item_captions(tables)
    made = tables.read(ITEM_CAPTIONS, ["item_id", "event_timestamp", "created_timestamp"])
    made = made.append_column("embedding_version", pa.array(["v", "v"]))
    for vectors, passed in (([[1, 0], [0, np.nan]], False), ([[1, 0], [0, 0]], False), ([[1, 0], [0.6, 0.8]], True)):
        rows = made.append_column("embedding", as_lists(np.array(vectors, np.float32)))
        rows = rows.select([c.name for c in CAPTION_EMBEDDINGS.columns])
        tables.write(CAPTION_EMBEDDINGS, rows, version=str(vectors))
        found = token_checks.embeddings_have_unit_length(tables=tables)
        assert found.passed == passed and found.metadata["failing_sample"].value == ("" if passed else "i1")


def test_a_lone_item_has_nothing_to_be_told_from(tables):
    tables.write(CAPTION_RETRIEVAL, CAPTION_RETRIEVAL.schema.empty_table(), version="none")
    found = token_checks.captions_find_their_items(tables=tables)
    assert found.passed and "nothing to tell apart" in found.description
