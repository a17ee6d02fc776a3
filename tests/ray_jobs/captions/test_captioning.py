"""The captioning job: plan, cache, repair, dead letters, and what survives a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from ray_jobs.captions import captioning
from ray_jobs.captions.captioner import Captioner
from ray_jobs.captions.plan import EPOCH, Config, item_captions, plan
from ray_jobs.interpretation.interpreter import InterpreterConfig
from ray_jobs.tables.captions import (
    CALL_LEDGER,
    CAPTION_STORE,
)
from ray_jobs.tables.interactions import ITEMS
from tests.factories import seed_interactions
from tests.ray_jobs.captioned import ANYTHING, SHORT, as_batch, caption_all, config_for, store, write_items
from tests.ray_jobs.language.checkpoints import tiny_config, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("tiny"), context=4096, every_byte=False)


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


KILLED = """
import json, sys
import ray
from orchestration.quiet import be_quiet
be_quiet()
from ray_jobs.captions import captioning
config = captioning.Config.model_validate(json.loads(sys.stdin.read()))
ray.init(address="local", num_cpus=1, object_store_memory=80 * 2**20, include_dashboard=False, log_to_driver=False)
captioning.run(config)
print("finished", flush=True)
"""


def test_kill_in_mid_work_loses_no_stored_caption_and_pays_none_twice(ray_cluster, tables, folder):
    seed_interactions(tables, num_items=80)
    config = config_for(tables, folder, batch_size=2)
    run = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(__file__).parents[3],
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
    )
    run.stdin.write(json.dumps(config.model_dump(mode="json")))
    run.stdin.close()
    while run.poll() is None and tables.warehouse().num_rows(CAPTION_STORE) < 6:
        time.sleep(0.05)
    assert run.poll() is None, f"ended before it could be killed, with {run.returncode}"
    workers = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGKILL)
    assert "finished" not in run.stdout.read() and run.wait() == -signal.SIGKILL
    # Ray ends the workers of a lost driver within seconds; until then a batch in flight may still be stored.
    assert not psutil.wait_procs(workers, timeout=120)[1]
    kept = store(tables)
    todo = plan(config)
    assert 6 <= kept.height < 80 and todo.num_cached == kept.height
    done = captioning.run(config.model_copy(update={"batch_size": 64, "run_id": "r2"}))
    assert done.num_generated == todo.wanted.height == done.llm_calls, "only what was not stored is paid"
    after = store(tables)
    assert after.height == after["content_key"].n_unique() == done.num_contents, "no duplicate, no loss"
    assert after.join(kept, on=kept.columns, how="semi", nulls_equal=True).height == kept.height, "stored rows stand"
