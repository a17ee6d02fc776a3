"""The captioning job: plan, cache, repair, dead letters, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pyarrow as pa
import pytest

from models.language.validation import Rules
from ray_jobs import captioning
from ray_jobs.caption_plan import EPOCH, Config, compare_revisions, item_captions, plan
from ray_jobs.captioner import Captioner
from ray_jobs.interpretation.interpreter import Content, InterpretationParameters, InterpreterConfig
from ray_jobs.interpretation.loading import load_interpreter
from ray_jobs.language.engine import LanguageEngineConfig
from ray_jobs.prompts import load_prompt
from ray_jobs.tables.captions import (
    CALL_LEDGER,
    CAPTION_CANARIES,
    CAPTION_DEAD_LETTERS,
    CAPTION_STORE,
    ITEM_CAPTIONS,
)
from ray_jobs.tables.interactions import ITEMS
from tests.factories import CREATED, seed_interactions
from tests.ray_jobs.language.checkpoints import tiny_config, tiny_llama
from tests.ray_jobs.language.fault_server import FaultServer

# A random model writes no English: these bounds take whatever it writes, so that the job's own work can be seen.
ANYTHING = Rules(
    min_words=0,
    max_words=999,
    max_chars=9999,
    min_latin_share=0,
    min_letter_share=0,
    max_ngram_repeats=999,
    min_distinct_share=0,
    allow_cut=True,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny"), context=4096, every_byte=False)


SHORT = InterpretationParameters(max_new_tokens=8)


def evidence_of(folder, **changes):
    return InterpreterConfig(kind="evidence", engine=tiny_config(folder, **({"batch_size": 8} | changes)))


def config_for(tables, folder, **changes):
    return Config(
        **{
            "warehouse": tables.warehouse(),
            "artifacts": tables.artifacts(),
            "interpreter": evidence_of(folder),
            "rules": ANYTHING,
            "parameters": SHORT,
            "canaries": 0,
            "run_id": "r1",
            "batch_size": 4,
            "cpus_per_actor": 1.0,
        }
        | changes
    )


@pytest.mark.parametrize(
    "engine, changes, nodes, gpus, pool",
    [
        ({}, {}, [2.0], 0, (2, 1.0, 0.0)),
        ({}, {}, [1.0], 0, (1, 1.0, 0.0)),
        ({}, {}, [16.0], 0, (4, 4.0, 0.0)),
        ({}, {"num_actors": 1}, [2.0], 0, (1, 2.0, 0.0)),
        ({}, {"cpus_per_actor": 8.0}, [2.0], 0, (1, 2.0, 0.0)),
        ({"device": "cuda"}, {}, [8.0, 8.0], 2, (2, 1.0, 1.0)),
        ({"device": "cuda"}, {"gpus_per_actor": 0.5}, [8.0], 1, (2, 1.0, 0.5)),
        ({"kind": "openai"}, {}, [2.0], 0, (1, 0.5, 0.0)),
    ],
)
def test_pool_follows_engine_and_cluster(tables, engine, changes, nodes, gpus, pool):
    kind = "endpoint" if engine.get("kind") == "openai" else "evidence"
    interpreter = InterpreterConfig(kind=kind, engine=tiny_config(Path("x"), **engine))
    config = Config(warehouse=tables.warehouse(), artifacts=tables.artifacts(), interpreter=interpreter, **changes)
    assert config.pool(nodes, gpus) == pool


def write_items(tables, titles, version="1"):
    rows = [
        {
            "item_id": f"i{n}",
            "title": title,
            "description": None,
            "categories": ["Drama"],
            "image_uri": None,
            "attributes": "{}",
            "available_from": None,
            "created_timestamp": CREATED,
        }
        for n, title in enumerate(titles)
    ]
    tables.write(ITEMS, pa.Table.from_pylist(rows, ITEMS.schema), version=version)


def as_batch(part):
    batch = {name: part[name].to_numpy() for name in ("content_key", "item_id", "text")}
    batch["pixel_digest"] = np.array(part["pixel_digest"].to_list(), object)
    batch["categories"] = np.array([*part["categories"].to_list(), None], object)[:-1]
    return batch


def caption_all(config, captioner=None):
    """What the actors do, batch by batch, without Ray; returns summed counts."""
    captioner = captioner or Captioner(config)
    totals = {}
    wanted = plan(config).wanted
    for at in range(0, wanted.height, config.batch_size):
        part = wanted.slice(at, config.batch_size)
        done = captioner(as_batch(part))
        assert json.loads(str(done.pop("traces")[0]))
        totals = {name: totals.get(name, 0) + int(count[0]) for name, count in done.items()}
    return totals


def store(tables, table=CAPTION_STORE):
    return pl.from_arrow(tables.read(table))


def test_a_second_run_calls_nothing(ray_cluster, tables, folder):
    seed_interactions(tables, num_items=14)
    config = config_for(tables, folder, num_actors=2)
    first = captioning.run(config)
    assert (first.num_items, first.num_contents, first.num_cached) == (14, 14, 0)
    assert first.num_generated + first.num_dead_letters == 14 and first.num_generated > 7
    assert first.llm_calls == 14 + first.num_dead_letters + sum(a > 1 for a in store(tables)["attempts"])
    kept = store(tables)
    assert kept["content_key"].n_unique() == kept.height == first.num_generated
    assert kept["prompt_tokens"].sum() <= first.prompt_tokens == store(tables, CALL_LEDGER)["prompt_tokens"].sum()
    again = captioning.run(config)
    assert (again.llm_calls, again.prompt_tokens, again.completion_tokens, again.num_generated) == (0, 0, 0, 0)
    assert again.num_cached + again.num_dead_before == 14 and again.cache_hit_rate == 1.0
    rows = item_captions(config)
    assert rows.num_rows == first.num_generated and set(rows["caption_version"].to_pylist()) == {first.caption_version}


def test_the_store_is_compacted_while_it_grows(ray_cluster, tables, folder):
    from deltalake import DeltaTable

    seed_interactions(tables, num_items=48)
    done = captioning.run(config_for(tables, folder, batch_size=1, num_actors=1))
    assert done.num_generated == store(tables).height > 40
    names = [c["operation"] for c in DeltaTable(tables.warehouse().uri(CAPTION_STORE)).history()][::-1]
    assert "WRITE" in names[names.index("OPTIMIZE") :], "an actor reads every file of it for every batch"


def test_one_changed_character_of_the_prompt_misses_everything(tables, folder, monkeypatch, tmp_path):
    from ray_jobs import prompts

    write_items(tables, ["River", "King", "Winter"])
    config = config_for(tables, folder)
    caption_all(config)
    assert plan(config).wanted.is_empty()
    text = (prompts.FOLDER / "item_caption.toml").read_text()
    (tmp_path / "item_caption.toml").write_text(text.replace("one short English", "one Short English", 1))
    monkeypatch.setattr(prompts, "FOLDER", tmp_path)
    prompts.prompt_text.cache_clear()
    try:
        assert plan(config).wanted.height == 3
    finally:
        prompts.prompt_text.cache_clear()


def applied(config, change):
    known = config.interpreter
    if "engine" in change:
        return {"interpreter": known.model_copy(update={"engine": known.engine.model_copy(update=change["engine"])})}
    return {"interpreter": known.model_copy(update=change["interpreter"])} if "interpreter" in change else change


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": SHORT.model_copy(update={"max_new_tokens": 9})},
        {"interpreter": {"sees_images": False}},
        {"rules": ANYTHING.model_copy(update={"min_words": 1})},
        {"engine": {"revision": "other"}},
        {"engine": {"dtype": "bfloat16"}},
    ],
)
def test_whatever_decides_a_caption_is_in_its_key(tables, folder, change):
    config = config_for(tables, folder)
    change = applied(config, change)
    assert config.model_copy(update=change).caption_version != config.caption_version


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 7}, {"num_actors": 3}, {"cpus_per_actor": 4.0}, {"engine": {"cache_dir": "/x", "batch_size": 99}}],
)
def test_whatever_does_not_decide_it_is_not(tables, folder, change):
    config = config_for(tables, folder)
    change = applied(config, change)
    assert config.model_copy(update=change).caption_version == config.caption_version


def test_items_of_equal_content_share_one_call(tables, folder):
    write_items(tables, ["River", "King", "River", " River\n", "River"])
    config = config_for(tables, folder)
    todo = plan(config)
    assert (todo.items.height, todo.num_contents, todo.wanted.height) == (5, 2, 2)
    totals = caption_all(config)
    assert totals["stored"] == 2
    rows = item_captions(config).to_pylist()
    assert len(rows) == 5 and len({r["caption"] for r in rows if r["item_id"] != "i1"}) == 1
    assert {r["event_timestamp"] for r in rows} == {EPOCH}


def test_the_order_of_items_does_not_matter(tables, folder, tmp_path):
    from orchestration.resources.tables import LocalTables

    seed_interactions(tables, num_items=9)
    other = LocalTables(warehouse_root=str(tmp_path / "other"), artifact_root=str(tmp_path / "a"))
    items = tables.read(ITEMS)
    other.write(ITEMS, items.take(pa.array([4, 2, 8, 0, 7, 1, 3, 6, 5])), version="x")
    made = []
    for place in (tables, other):
        config = config_for(place, folder)
        caption_all(config)
        made.append(item_captions(config).drop_columns(["created_timestamp"]))
    assert made[0].equals(made[1])


def test_a_new_item_costs_only_itself(tables, folder):
    write_items(tables, ["River", "King"])
    config = config_for(tables, folder)
    caption_all(config)
    write_items(tables, ["River", "King", "Garden"], version="2")
    todo = plan(config)
    assert todo.wanted["item_id"].to_list() == ["i2"] and todo.num_cached == 2
    assert caption_all(config)["calls"] == 1


def test_a_batch_that_comes_again_is_not_paid_again(tables, folder):
    write_items(tables, ["River", "King", "Garden"])
    config = config_for(tables, folder)
    captioner = Captioner(config)
    part = plan(config).wanted
    batch = as_batch(part)
    first, again = captioner(batch), captioner(batch)
    assert (int(first["stored"][0]), int(first["calls"][0])) == (3, 3)
    assert (int(again["done"][0]), int(again["stored"][0]), int(again["calls"][0])) == (3, 0, 0)
    assert store(tables).height == 3


def test_the_plan_prices_a_run_before_it_spends(tables, folder):
    write_items(tables, [f"Title {n}" for n in range(10)])
    engine = tiny_config(folder).model_copy(
        update={"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 10.0}
    )
    todo = plan(config_for(tables, folder, interpreter=InterpreterConfig(kind="evidence", engine=engine)))
    assert todo.wanted.height == 10 and 2_000 < todo.prompt_tokens < 20_000
    assert todo.usd == pytest.approx((todo.prompt_tokens + 10 * todo.completion_tokens) / 1e6)
    assert not tables.warehouse().exists(CAPTION_STORE), "a plan writes nothing"


def endpoint(server, **changes):
    engine = LanguageEngineConfig(
        kind="openai", model="m", revision="1", base_url=server.url, max_retries=0, usd_per_million_prompt_tokens=1e6
    )
    return InterpreterConfig(kind="endpoint", engine=engine.model_copy(update=changes))


RECORD = {
    "caption": "A slow drama about letters in a winter town.",
    "subjects": ["letters"],
    "style": "realistic",
    "setting": "town",
    "mood": "sad",
    "text_in_image": "",
    "tags": ["drama", "letters"],
}


def record(**changes):
    """An answer as the prompt's schema wants it."""
    known = load_prompt("item_caption")["vocabulary"]
    words = {name: known[f"{name}s"][0] for name in ("style", "setting")}
    return json.dumps(RECORD | words | changes)


def title_of(body):
    user = body["messages"][-1]["content"]
    user = user if isinstance(user, str) else " ".join(part.get("text", "") for part in user)
    return user.split("title: ")[1].split("\n")[0]


def test_repair_then_dead_letter_then_replay(tables):
    """Rules as in production, and a model that answers by script."""
    said = {
        "fine": [record()],
        "mended": [record(caption="A drama."), record()],
        "lost": [record(caption="A drama."), record(caption="I cannot help with that one.")],
        "moodless": [record(mood="purple")],
        "refused": [None],
    }
    asked = []

    def answer(body, number):
        title = title_of(body)
        asked.append((title, body["messages"][0]["content"]))
        text = said[title][min(sum(t == title for t, _ in asked), len(said[title])) - 1]
        return {"status": 400, "raw": "filtered"} if text is None else text

    write_items(tables, list(said))
    with FaultServer(answer) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), batch_size=5)
        totals = caption_all(config)
        assert (totals["stored"], totals["dead"], totals["deferred"]) == (2, 3, 0)
        assert sorted(store(tables)["attempts"]) == [1, 2] and set(store(tables)["mood"]) == {"sad"}
        dead = {r["item_id"]: r for r in store(tables, CAPTION_DEAD_LETTERS).to_dicts()}
        assert {i: r["error_class"] for i, r in dead.items()} == {
            "i2": "invalid_output",
            "i3": "invalid_output",
            "i4": "deterministic",
        }
        assert dead["i2"]["reason"] == "refusal" and dead["i2"]["attempts"] == config.parameters.tries
        assert "filtered" not in dead["i2"]["detail"] and "letters" not in dead["i2"]["detail"], "no payload"
        assert len({system for title, system in asked if title == "lost"}) == 2, "a repair has a prompt of its own"
        ledger = store(tables, CALL_LEDGER)
        answered = [body for body in server.bodies if title_of(body) != "refused"]
        assert ledger.filter(pl.col("prompt_tokens") > 0).height == len(answered)
        assert ledger["prompt_tokens"].sum() == 10 * len(answered) and ledger["completion_tokens"].sum() == 3 * len(
            answered
        ), "to the token of what the provider counts, failed and billed ones included"
        assert ledger["usd"].sum() == pytest.approx(10.0 * len(answered))
        todo = plan(config)
        assert (todo.num_dead, todo.wanted.height) == (3, 0), "a dead letter is not tried again by itself"
        assert [r["item_id"] for r in item_captions(config).to_pylist()] == ["i0", "i1"]
        said["lost"] = said["moodless"] = [record()]
        again = config.model_copy(update={"replay": True, "run_id": "r2"})
        assert sorted(plan(again).wanted["item_id"]) == ["i2", "i3", "i4"]
        assert caption_all(again)["stored"] == 2
    assert plan(config).num_dead == 1
    assert len(item_captions(config)) == 4


def test_what_was_generated_stays_when_the_endpoint_goes(tables):
    write_items(tables, [f"Title {n}" for n in range(6)])
    with FaultServer(lambda body, n: record() if n < 3 else {"status": 503}) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), batch_size=3)
        with pytest.raises(ConnectionError, match="status 503"):
            caption_all(config)
        assert store(tables).height == 3
        server.answer = lambda body, n: record()
        assert caption_all(config)["calls"] == 3
    assert store(tables)["content_key"].n_unique() == 6
    assert not tables.warehouse().exists(CAPTION_DEAD_LETTERS), "an outage is no dead letter"


def test_a_budget_is_never_overspent_and_what_it_paid_for_is_kept(ray_cluster, tables):
    write_items(tables, [f"Title {n}" for n in range(12)])
    with FaultServer(lambda body, n: record()) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), batch_size=3)
        most = load_interpreter(config.interpreter, config.prompt, config.parameters).most_tokens([Content("k", "x")])
        # A call costs 13 tokens: the third has no room for its most.
        limited = config.model_copy(update={"token_budget": most[0] + 20})
        with pytest.raises(Exception, match=r"contents were captioned and are kept, \d+ are left") as caught:
            captioning.run(limited)
        assert "BELVEDERE_CAPTION_TOKEN_BUDGET" in str(caught.value)
        ledger = store(tables, CALL_LEDGER)
        spent = ledger["prompt_tokens"].sum() + ledger["completion_tokens"].sum()
        kept = store(tables).height
        assert kept == 2 and 0 < spent <= limited.token_budget and len(server.bodies) == ledger.height
        done = captioning.run(config.model_copy(update={"run_id": "r2"}))
        assert done.num_generated == 12 - kept == done.llm_calls, "a new budget pays only for what is left"


def test_canaries_of_a_run_are_kept_apart_and_made_once(ray_cluster, tables):
    write_items(tables, [f"Title {n}" for n in range(8)])
    obey = lambda body, n: record(tags=["pwned"]) if "PWNED" in json.dumps(body) else record()  # noqa: E731
    with FaultServer(obey) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), canaries=4)
        done = captioning.run(config)
        assert done.num_canaries == 2 and len(server.bodies) == done.llm_calls == 10
        rows = store(tables, CAPTION_CANARIES)
        assert dict(zip(rows["kind"], rows["passed"], strict=True)) == {"injected_text": False, "recaption": True}
        assert store(tables).height == 8, "a canary is nobody's caption"
        assert set(store(tables, CALL_LEDGER)["purpose"]) == {"caption", "canary"}
        again = captioning.run(config)
    assert (again.llm_calls, again.num_canaries) == (0, 0) and store(tables, CAPTION_CANARIES).height == 2


def test_two_revisions_stand_side_by_side(tables):
    write_items(tables, [f"Title {n}" for n in range(3)])
    with FaultServer(lambda body, n: record()) as server:
        old = config_for(tables, "", interpreter=endpoint(server), rules=Rules())
        caption_all(old)
        tables.write(ITEM_CAPTIONS, item_captions(old), version="1")
        server.answer = lambda body, n: record(caption="A slow film about letters in a winter town.")
        new = config_for(tables, "", interpreter=endpoint(server, revision="2"), rules=Rules())
        caption_all(new)
    both = store(tables)
    assert sorted(both.group_by("caption_version").len()["len"]) == [3, 3]
    assert set(tables.read(ITEM_CAPTIONS)["caption_version"].to_pylist()) == {old.caption_version}
    compared = compare_revisions(new, item_captions(new))
    assert (compared.published, compared.num_both, compared.num_equal) == (old.caption_version, 3, 0)
    assert compared.same_words == pytest.approx(4 / 6)
    assert plan(old).wanted.is_empty(), "the old one costs nothing when it comes back"


KILLED = """
import json, sys
import ray
from orchestration.quiet import be_quiet
be_quiet()
from ray_jobs import captioning
config = captioning.Config.model_validate(json.loads(sys.stdin.read()))
ray.init(address="local", num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
captioning.run(config)
print("finished", flush=True)
"""


def test_kill_in_mid_work_loses_no_stored_caption_and_pays_none_twice(ray_cluster, tables, folder):
    seed_interactions(tables, num_items=300)
    config = config_for(tables, folder, batch_size=2)
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[2],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
    )
    run.stdin.write(json.dumps(config.model_dump(mode="json")))
    run.stdin.close()
    while run.poll() is None and tables.warehouse().num_rows(CAPTION_STORE) < 6:
        time.sleep(0.05)
    workers = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGKILL)
    assert "finished" not in run.stdout.read() and run.wait() == -signal.SIGKILL
    # Ray ends the workers of a lost driver within seconds; until then a batch in flight may still be stored.
    assert not psutil.wait_procs(workers, timeout=120)[1]
    kept = store(tables)
    todo = plan(config)
    assert 6 <= kept.height < 300 and todo.num_cached == kept.height
    done = captioning.run(config.model_copy(update={"batch_size": 64, "run_id": "r2"}))
    assert done.num_generated == todo.wanted.height == done.llm_calls, "only what was not stored is paid"
    after = store(tables)
    assert after.height == after["content_key"].n_unique() == done.num_contents, "no duplicate, no loss"
    assert after.join(kept, on=kept.columns, how="semi", nulls_equal=True).height == kept.height, "stored rows stand"
