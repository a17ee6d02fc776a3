"""What captions cost: repairs, dead letters and their replay, budgets, the call ledger, canaries, revisions."""

import json
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from models.language.validation import Rules
from ray_jobs.captions import captioning
from ray_jobs.captions.accounts import mend_accounts
from ray_jobs.captions.budget import Budget
from ray_jobs.captions.captioner import TRANSIENT_RUNS, Captioner
from ray_jobs.captions.plan import compare_revisions, item_captions, plan
from ray_jobs.tables.captions import (
    CALL_LEDGER,
    CAPTION_CANARIES,
    CAPTION_DEAD_LETTERS,
    CAPTION_STORE,
    ITEM_CAPTIONS,
)
from tests.ray_jobs.captioned import (
    caption_all,
    config_for,
    endpoint,
    most_tokens,
    record,
    store,
    title_of,
    write_items,
)
from tests.ray_jobs.language.fault_server import FaultServer


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
        assert store(tables, CALL_LEDGER).height == len(server.bodies), "requests in vain are in the ledger, too"
        server.answer = lambda body, n: record()
        assert caption_all(config)["calls"] == 3
    assert store(tables)["content_key"].n_unique() == 6
    assert not tables.warehouse().exists(CAPTION_DEAD_LETTERS), "an outage is no dead letter"


def test_what_was_paid_for_in_vain_is_in_the_ledger(tables):
    """An endpoint that charges for answers that are none, whatever it is asked."""
    write_items(tables, ["one", "two"])
    billed = json.dumps({"usage": {"prompt_tokens": 10, "completion_tokens": 3}, "choices": "none"})
    with FaultServer(lambda body, n: {"status": 200, "raw": billed}) as server:
        with pytest.raises(ConnectionError, match="no chat completion"):
            caption_all(config_for(tables, "", interpreter=endpoint(server), rules=Rules()))
        ledger = store(tables, CALL_LEDGER)
        assert ledger.height == len(server.bodies) and ledger["prompt_tokens"].sum() == 10 * len(server.bodies)
    assert not any(tables.warehouse().exists(t) for t in (CAPTION_STORE, CAPTION_DEAD_LETTERS))


def test_what_fails_alone_in_every_run_is_given_up_and_stops_nobody(tables):
    """A content that the endpoint never answers, while it answers others: not an outage, even where it is alone."""
    write_items(tables, ["poison", "fine"])
    with FaultServer(lambda body, n: {"status": 503} if "poison" in json.dumps(body) else record()) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules())
        for run in range(TRANSIENT_RUNS):
            assert plan(config).wanted.height == (1 if run else 2), "what failed for a passing reason is tried again"
            assert caption_all(config)["dead"] == 1
        rows = store(tables, CAPTION_DEAD_LETTERS).sort("created_timestamp").to_dicts()
        assert [r["error_class"] for r in rows] == ["transient"] * (TRANSIENT_RUNS - 1) + ["deterministic"]
        assert [r["attempts"] for r in rows] == [1, 2, 3] and len({r["first_seen"] for r in rows}) == 1
        assert store(tables, CALL_LEDGER).height == len(server.bodies)
        assert plan(config).wanted.is_empty() and store(tables).height == 1


KILLED = """
import sys
from ray_jobs.captions.plan import Config
from tests.ray_jobs.captioned import caption_all
caption_all(Config.model_validate_json(sys.stdin.read()))
"""


def test_a_kill_pays_again_only_for_what_was_in_flight(tables):
    """The process dies in the middle of a batch of 40 that an endpoint answers."""
    write_items(tables, [f"Title {n}" for n in range(40)])
    in_time = 21
    with FaultServer(lambda body, n: record() if n < in_time else {"text": record(), "seconds": 60}) as server:
        config = config_for(tables, "", interpreter=endpoint(server, max_in_flight=4), rules=Rules(), batch_size=40)
        command = [sys.executable, "-W", "ignore", "-c", KILLED]
        run = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        run.stdin.write(config.model_dump_json())
        run.stdin.close()
        warehouse = tables.warehouse()
        # The ledger comes after the store.
        while run.poll() is None and not (warehouse.exists(CALL_LEDGER) and warehouse.num_rows(CALL_LEDGER) == in_time):
            time.sleep(0.05)
        assert run.poll() is None
        run.kill()
        run.wait()
        assert store(tables, CALL_LEDGER)["prompt_tokens"].sum() == 10 * in_time, "what was paid is on record"
        server.answer = lambda body, n: record()
        assert caption_all(config)["calls"] == 40 - in_time, "and is paid once"
        assert store(tables)["content_key"].n_unique() == store(tables).height == 40
        assert len(server.bodies) <= 40 + 4, "but for the requests in flight"


def test_what_a_kill_left_out_of_the_accounts_is_entered(tables, monkeypatch):
    """The process dies between the store and the ledger: nothing is paid for again, and the books add up."""
    write_items(tables, ["one", "two", "three"])
    with FaultServer(lambda body, n: record()) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules())
        with monkeypatch.context() as killed:
            killed.setattr(Captioner, "_keep_accounts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                caption_all(config)
        kept, before = store(tables)["content_key"].n_unique(), len(server.bodies)
        assert kept and not tables.warehouse().exists(CALL_LEDGER)
        assert mend_accounts(config) == kept and mend_accounts(config) == 0
        assert caption_all(config)["calls"] == 3 - kept and len(server.bodies) <= before + 3 - kept
    paid, held = store(tables, CALL_LEDGER), store(tables)
    for name in ("prompt_tokens", "completion_tokens"):
        assert paid[name].sum() == held[name].sum() > 0
    assert paid["call_id"].n_unique() == paid.height == held.height == 3


def test_a_budget_is_never_overspent_and_what_it_paid_for_is_kept(ray_cluster, tables):
    write_items(tables, [f"Title {n}" for n in range(12)])
    with FaultServer(lambda body, n: record()) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), batch_size=3)
        # A call costs 13 tokens: the third has no room for its most.
        limited = config.model_copy(update={"token_budget": most_tokens(config) + 20})
        with pytest.raises(Exception, match=r"contents were captioned and are kept, \d+ are left") as caught:
            captioning.run(limited)
        assert "BELVEDERE_CAPTION_TOKEN_BUDGET" in str(caught.value)
        ledger = store(tables, CALL_LEDGER)
        spent = ledger["prompt_tokens"].sum() + ledger["completion_tokens"].sum()
        kept = store(tables).height
        assert kept == 2 and 0 < spent <= limited.token_budget and len(server.bodies) == ledger.height
        with pytest.raises(Exception, match="are kept|is kept"):
            captioning.run(limited)
        again = store(tables, CALL_LEDGER)
        assert again["prompt_tokens"].sum() + again["completion_tokens"].sum() <= limited.token_budget, (
            "one run, one budget"
        )
        kept = store(tables).height
        done = captioning.run(config.model_copy(update={"run_id": "r2"}))
        assert done.num_generated == 12 - kept == done.llm_calls, "a new budget pays only for what is left"


def test_a_run_goes_on_until_its_money_is_spent_at_the_prices_of_the_ledger(ray_cluster, tables):
    """Answers are twenty times as dear as prompts, and few of the tokens."""
    write_items(tables, [f"Title {n}" for n in range(12)])
    used = {"prompt_tokens": 1_000, "completion_tokens": 10}
    prices = {"usd_per_million_prompt_tokens": 1.0, "usd_per_million_completion_tokens": 20.0}
    with FaultServer(lambda body, n: {"text": record(), "usage": used}) as server:
        config = config_for(tables, "", interpreter=endpoint(server, **prices), rules=Rules(), batch_size=3)
        most = most_tokens(config) * 20 / 1e6
        done = captioning.run(config.model_copy(update={"usd_budget": most + 12 * 0.0012}))
    assert done.num_generated == 12 and done.usd == pytest.approx(12 * 0.0012), "each cost 0.0012, not 0.0202 USD"


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


def test_an_outage_in_mid_repair_keeps_what_was_answered_and_accounts_for_it(tables):
    """The first batch of answers is paid for; the endpoint goes away before the repairs."""
    write_items(tables, ["fine", "poor"])
    asked = []

    def answer(body, number):
        asked.append(title_of(body))
        if len(asked) > 2:
            return {"status": 503}
        return record(caption="A drama.") if asked[-1] == "poor" else record()

    with FaultServer(answer) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules())
        with pytest.raises(ConnectionError, match="status 503"):
            caption_all(config)
        ledger = store(tables, CALL_LEDGER)
        assert ledger["prompt_tokens"].sum() == 20 and ledger["completion_tokens"].sum() == 6
        assert store(tables).height == 1 and not tables.warehouse().exists(CAPTION_DEAD_LETTERS)
        server.answer = lambda body, n: record()
        assert caption_all(config)["calls"] == 1, "only the poor one is asked again"


def test_a_repair_without_room_in_the_budget_stays_open(tables):
    write_items(tables, ["poor"])
    with FaultServer(lambda body, n: record(caption="A drama.")) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules())
        captioner = Captioner(config, budget=Budget(tokens=most_tokens(config) + 5, usd=0.0, usd_per_token=0.0))
        totals = caption_all(config, captioner)
        assert (totals["deferred"], totals["dead"], totals["stored"], totals["calls"]) == (1, 0, 0, 1)
        assert store(tables, CALL_LEDGER).height == 1, "what it cost is accounted for"
        server.answer = lambda body, n: record()
        assert caption_all(config)["stored"] == 1, "a new budget pays for it"
