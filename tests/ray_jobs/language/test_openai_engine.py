"""The endpoint engine against a server that misbehaves, and against a real llama.cpp server."""

import contextlib
import json
import socket
import threading
import time

import pytest

from ray_jobs.language import endpoint, replies
from ray_jobs.language.engine import (
    ChoiceError,
    EngineSetupError,
    EngineUnavailableError,
    LanguageEngineConfig,
    Message,
    Usage,
    load_engine,
)
from tests.ray_jobs.language.checkpoints import ANIMALS
from tests.ray_jobs.language.fault_server import FaultServer
from tests.ray_jobs.language.llama_server import llama_cpp

SHARED = [Message("system", "Describe."), Message("user", "title: River"), Message("assistant", "A tale. | sad")]
MOODS = ["sad", "funny"]


def engine_for(server, **changes):
    return load_engine(
        LanguageEngineConfig(
            **{
                "kind": "openai",
                "model": "m",
                "revision": "1",
                "base_url": server.url,
                "max_retries": 3,
                "timeout_seconds": 60,
                "max_in_flight": 4,
            }
            | changes
        )
    )


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_DELAY", 0.01)


def user_of(body):
    return body["messages"][-1]["content"]


def test_answers_keep_their_order_and_count_their_tokens(monkeypatch):
    monkeypatch.setenv("BELVEDERE_LLM_API_KEY", "secret-1")
    with FaultServer(lambda body, n: {"text": f" about {user_of(body)} ", "seconds": 0.05 * (n % 3)}) as server:
        engine = engine_for(server)
        users = [f"item {i}" for i in range(12)]
        answers = engine.complete(SHARED, users, 20)
        assert [a.text for a in answers] == [f"about {u}" for u in users]
        assert engine.usage == Usage(12, 120, 36)
        assert 1 < server.peak <= 4
        body = server.bodies[0]
        assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"]
        assert (body["temperature"], body["max_tokens"], body["stop"], body["model"]) == (0, 20, ["\n"], "m")
        assert all(h["Authorization"] == "Bearer secret-1" for h in server.headers)
        assert "secret-1" not in engine.config.model_dump_json()


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429},
        {"status": 500},
        {"status": 503},
        {"status": 408},
        {"raw": '{"choices": [{"mess'},
        {"raw": "<html>"},
        {"raw": '{"choices": []}'},
        {"raw": "[]"},
        {"seconds": 4.0},
    ],
    ids=lambda f: json.dumps(f)[:30],
)
def test_transient_faults_are_tried_again(fault):
    # What was computed in vain is charged all the same: it is asked for once more, not again and again.
    times = 1 if "raw" in fault else 2
    with FaultServer(lambda body, n: fault if n < times else "fine") as server:
        engine = engine_for(server, timeout_seconds=2.0 if "seconds" in fault else 60.0)
        assert engine.complete(SHARED, ["x"], 8)[0].text == "fine"
        assert len(server.bodies) == times + 1 and engine.usage.calls == 1


@pytest.mark.parametrize("fault, attempts", [({"status": 429}, 3), ({"raw": "garbage"}, 2)])
def test_a_fault_that_stays_is_one_sentence_and_no_answer(fault, attempts):
    with FaultServer(lambda body, n: fault) as server:
        with pytest.raises(EngineUnavailableError, match=f"gave .* in {attempts} attempts") as error:
            engine_for(server, max_retries=2).complete(SHARED, ["x"], 8)
        assert "\n" not in str(error.value) and isinstance(error.value, OSError), "the orchestrator tries it again"


def test_nobody_listens():
    with FaultServer(lambda body, n: "x") as server:
        engine = engine_for(server, max_retries=1)
    with pytest.raises(EngineUnavailableError, match="ConnectError"):
        engine.complete(SHARED, ["x"], 8)


@pytest.mark.parametrize("dated", [False, True])
def test_retry_after_is_honoured(dated):
    import datetime as dt
    import email.utils

    # Dates have whole seconds.
    until = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(seconds=3)
    said = email.utils.format_datetime(until, usegmt=True) if dated else "1"
    fault = {"status": 429, "headers": {"Retry-After": said}}
    with FaultServer(lambda body, n: fault if n == 0 else "fine") as server:
        assert engine_for(server).complete(SHARED, ["x"], 8)[0].text == "fine"
        if dated:
            assert dt.datetime.now(dt.UTC) >= until, "however late the first answer came"
        else:
            assert server.times[1] - server.times[0] >= 0.9


OVERFLOWING = "Mon, 01 Jan 2024 00:00:99999999999999999999 GMT"


@pytest.mark.parametrize("said, counted", [(10**400, replies.MOST_TOKENS), (-1, 0), (1e400, 0), (True, 0), ("9", 0)])
def test_no_count_of_tokens_breaks_a_batch(said, counted):
    raw = json.dumps({"choices": [{"message": {"content": "fine"}}], "usage": {"completion_tokens": said}})
    reply, call = replies.read_answer(raw.encode(), [{"role": "user", "content": "x"}], 0.0)
    assert reply.text == "fine" and call.completion_tokens in (counted, 1)


NO_ENDPOINTS = ("", "http://", "ftp://h/v1", "http://[oops/v1", "http://h:99999/v1", "http://h/\x01", "http://xn--/v1")


@pytest.mark.parametrize("url", NO_ENDPOINTS)
def test_what_is_no_endpoint_is_refused_before_anything_is_asked(url):
    with pytest.raises(EngineSetupError, match="is no endpoint: set BELVEDERE_LLM_BASE_URL"):
        endpoint.Endpoint(LanguageEngineConfig(kind="openai", model="m", revision="1", base_url=url))


def test_an_address_is_taken_as_files_hold_it_and_never_shown_with_its_password():
    with FaultServer(lambda body, n: "fine") as server:
        engine = engine_for(server, base_url=server.url.replace("//", "//me:secret-3@") + "\n")
        assert engine.complete(SHARED, ["x"], 8)[0].text == "fine"
        server.answer = lambda body, n: {"status": 503}
        with pytest.raises(EngineUnavailableError, match=f"endpoint {server.url}/chat") as error:
            engine.complete(SHARED, ["x"], 8)
    assert "secret-3" not in str(error.value)
    for wrong in ("ftp://me:secret-3@host/v1", "http://me:secret-3@host:99999/v1"):
        with pytest.raises(EngineSetupError, match="is no endpoint") as error:
            engine_for(server, base_url=wrong)
        assert "secret-3" not in str(error.value)


def test_a_key_is_taken_as_files_hold_it_and_refused_where_it_cannot_be_sent(monkeypatch):
    config = LanguageEngineConfig(kind="openai", model="m", revision="1", base_url="http://127.0.0.1:1/v1")
    monkeypatch.setenv(config.api_key_variable, "sk-abc\n")
    assert endpoint.Endpoint(config).key == "sk-abc"
    monkeypatch.setenv(config.api_key_variable, "sk-ä")
    with pytest.raises(EngineSetupError, match="characters beyond ASCII"):
        endpoint.Endpoint(config)


@pytest.mark.parametrize(
    "said, seconds",
    [("soon", None), (OVERFLOWING, None), ("nan", None), ("-1", 0.0), ("61", 61.0), ("Wed, 21 Oct 2015 07:28:00", 0.0)],
)
def test_retry_after_is_read_in_every_form(said, seconds):
    assert replies.retry_after(replies.httpx.Headers({"Retry-After": said})) == seconds


def test_nobody_waits_for_tomorrow():
    fault = {"status": 429, "headers": {"Retry-After": "86400"}}
    with FaultServer(lambda body, n: fault) as server:
        with pytest.raises(EngineUnavailableError, match="asks to wait 86,400 s, in 1 attempts"):
            engine_for(server).complete(SHARED, ["x"], 8)
        assert len(server.bodies) == 2, "and a trivial prompt, to see whose fault it is"


@pytest.mark.parametrize(
    "status, says",
    [(402, "top up"), (401, "BELVEDERE_LLM_API_KEY"), (403, "refused the key"), (404, "does not know model 'm'")],
)
def test_wrong_setup_is_told_at_once(status, says):
    with FaultServer(lambda body, n: {"status": status}) as server:
        with pytest.raises(EngineSetupError, match=says):
            engine_for(server).complete(SHARED, ["x"], 8)
        assert len(server.bodies) == 1
    with pytest.raises(EngineSetupError, match="is no endpoint"):
        load_engine(LanguageEngineConfig(kind="openai", model="m", revision="", base_url="localhost:1"))


def test_a_refused_prompt_does_not_spoil_the_batch():
    def answer(body, n):
        return {
            "bad": {"status": 400, "raw": "too long"},
            "filtered": {"finish": "content_filter", "text": ""},
            "cut": {"finish": "length", "text": "A lo"},
        }.get(user_of(body), "fine")

    with FaultServer(answer) as server:
        answers = engine_for(server).complete(SHARED, ["good", "bad", "filtered", "cut"], 8)
    assert [a.finish for a in answers] == ["stop", "error", "error", "length"]
    assert "400: too long" in answers[1].error and "content filter" in answers[2].error


@pytest.mark.parametrize("fault", [{"status": 500}, {"raw": "garbage"}])
def test_one_prompt_that_breaks_the_endpoint_does_not_lose_the_others(fault):
    with FaultServer(lambda body, n: fault if user_of(body).startswith("bad") else "fine") as server:
        engine = engine_for(server, max_retries=1)
        assert [a.finish for a in engine.complete(SHARED, ["good", "bad"], 8)] == ["stop", "error"]
        (alone,) = engine.complete(SHARED, ["bad"], 8)
        assert alone.finish == "error" and "in 2 attempts" in alone.error
        assert engine.choose(SHARED, ["good"], [["fine"]]) == [0]
        with pytest.raises(ChoiceError):
            engine.choose(SHARED, ["bad"], [["fine"]])


@pytest.mark.parametrize("status", [302, 400, 422])
def test_an_endpoint_that_refuses_everything_makes_no_dead_letters(status):
    with FaultServer(lambda body, n: {"status": status, "raw": "no such parameter: stop"}) as server:
        told = f"status {status}: no such parameter: stop.*refuses a trivial prompt, too"
        with pytest.raises(EngineSetupError, match=told):
            engine_for(server).complete(SHARED, ["x", "y"], 8)
        assert server.bodies[-1]["messages"][:-1] == server.bodies[0]["messages"][:-1], "the examples are part of it"


def test_an_answer_that_drips_is_late_too():
    def drip():
        with listener.accept()[0] as peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            with contextlib.suppress(OSError):
                for _ in range(300):
                    peer.sendall(b" ")
                    time.sleep(0.1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, daemon=True).start()
        config = LanguageEngineConfig(
            kind="openai",
            model="m",
            revision="1",
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1",
            timeout_seconds=1.0,
            max_retries=0,
        )
        with pytest.raises(EngineUnavailableError, match="TimeoutError after at most 1 s"):
            load_engine(config).complete(SHARED, ["x"], 8)


def test_tokens_are_estimated_where_the_endpoint_does_not_count():
    raw = json.dumps({"choices": [{"message": {"content": "abcdefgh"}}]})
    with FaultServer(lambda body, n: {"raw": raw}) as server:
        (answer,) = engine_for(server).complete([], ["x" * 40], 8)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.finish) == ("abcdefgh", 10, 2, "stop")


def test_choice_is_asked_under_a_schema_and_checked():
    def answer(body, n):
        if "response_format" not in body:
            return "funny"
        return {
            "json": json.dumps({"choice": "sad"}),
            "bare": '"Sad".',
            "other": '{"choice": "angry"}',
            "prose": "I think it is a sad one",
            "garbage": "{{{",
            "list": "[1]",
        }[user_of(body)]

    users = ["json", "bare", "other", "prose", "garbage", "list"]
    with FaultServer(answer) as server:
        assert engine_for(server).choose(SHARED, users, [MOODS] * 6) == [0, 0, 1, 1, 1, 1]
        asked = [b for b in server.bodies if "response_format" in b]
        assert len(asked) == 6 and len(server.bodies) == 10
        schema = asked[0]["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["choice"]["enum"] == MOODS
        assert asked[0]["messages"][2]["content"] == '{"choice": "sad"}', "examples have the form that is asked for"
        again = [b for b in server.bodies if "response_format" not in b]
        assert all("exactly one of these and nothing else: sad; funny" in user_of(b) for b in again)


def test_a_choice_that_never_comes_is_told_with_the_others_answers():
    told = pytest.raises(ChoiceError, match="1 of 2 prompts got no valid option.*purple")
    with FaultServer(lambda body, n: "sad" if user_of(body) == "good" else "purple") as server, told as error:
        engine_for(server).choose(SHARED, ["good", "odd"], [MOODS] * 2)
    assert error.value.chosen == [0, None] and set(error.value.reasons) == {1}


@pytest.fixture(scope="module")
def llama_server():
    with llama_cpp() as url:
        yield url


def test_a_real_server_answers_counts_and_chooses(llama_server):
    engine = load_engine(LanguageEngineConfig(kind="openai", model="smollm2", revision="q4", base_url=llama_server))
    answers = engine.complete(ANIMALS, ["crow", "cod"], 6)
    assert all(a.text for a in answers) and all(a.prompt_tokens > 5 and a.completion_tokens > 0 for a in answers)
    assert {a.finish for a in answers} <= {"stop", "length"}
    assert engine.choose(ANIMALS, ["salmon", "crow"], [["bird", "fish"]] * 2) == [1, 0]
    assert engine.usage.calls >= 4


def test_two_owners_models_of_one_name_are_two_models():
    mine, yours = (
        LanguageEngineConfig(kind="openai", model=f"{owner}/m", revision="").identity for owner in ("me", "you")
    )
    assert mine != yours
    here, there = (
        LanguageEngineConfig(kind="transformers", model=f"/{place}/m", revision="1").identity for place in ("a", "b")
    )
    assert here == there, "a folder's place does not change its weights"
