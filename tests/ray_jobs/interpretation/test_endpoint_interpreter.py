"""The endpoint interpreter against a server that misbehaves in every known way, and against a real llama.cpp server."""

import base64
import datetime as dt
import email.utils
import json

import pytest

from models.language.interpretation import json_schema, parse
from models.language.validation import Rules, record_problem
from ray_jobs.interpretation.interpreter import DETERMINISTIC, INVALID, NEVER_ANSWERED, TRANSIENT
from ray_jobs.interpretation.interpreter import InterpretationParameters as Parameters
from ray_jobs.language import endpoint as client
from ray_jobs.language.engine import EngineSetupError, EngineUnavailableError
from tests.ray_jobs.interpretation.contents import PROMPT, content, endpoint, interpreter, picture, record_json
from tests.ray_jobs.language.fault_server import FaultServer
from tests.ray_jobs.language.llama_server import llama_cpp

GOOD, BAD = content("good", "Good shoe"), content("bad", "Bad shoe")
PAID = {"prompt_tokens": 100, "completion_tokens": 20}
IN_TIME = email.utils.format_datetime(dt.datetime.now(dt.UTC) - dt.timedelta(hours=1), usegmt=True)


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(client, "FIRST_DELAY", 0.01)


def text_of(body):
    last = body["messages"][-1]["content"]
    return last if isinstance(last, str) else last[-1]["text"]


def is_bad(body):
    return "title: Bad" in text_of(body)


def only_bad(fault):
    return lambda body, n: fault if is_bad(body) else record_json()


def outcomes(answer):
    return [call.outcome for call in answer.calls]


def tokens(answer):
    return [(call.prompt_tokens, call.completion_tokens) for call in answer.calls]


NO_ANSWER = [
    ({"status": 429}, ["status 429"] * 3),
    ({"status": 429, "headers": {"Retry-After": "0"}}, ["status 429"] * 3),
    ({"status": 429, "headers": {"Retry-After": IN_TIME}}, ["status 429"] * 3),
    ({"status": 429, "headers": {"Retry-After": "86400"}}, ["status 429"]),
    ({"status": 500}, ["status 500"] * 3),
    ({"status": 503, "raw": "<html>busy</html>"}, ["status 503"] * 3),
    ({"raw": '{"choices": [{"message": {"content": "a'}, ["garbage"] * 2),
    ({"raw": "<html>", "headers": {"Content-Type": "text/html"}}, ["garbage"] * 2),
    ({"raw": "data: {}\n\n", "headers": {"Content-Type": "text/event-stream"}}, ["garbage"] * 2),
    ({"raw": "[" * 100_000}, ["garbage"] * 2),
    ({"raw": "null"}, ["garbage"] * 2),
    ({"raw": '{"choices": [{"message": {"content": 7}}]}'}, ["garbage"] * 2),
    ({"text": record_json(), "cut": 20}, ["RemoteProtocolError"] * 3),
    ({"endless": True}, ["garbage"] * 2),
]


@pytest.mark.parametrize("fault, calls", NO_ANSWER, ids=lambda v: json.dumps(v)[:44])
def test_what_stays_unanswered_may_be_asked_again_and_the_others_go_on(fault, calls):
    with FaultServer(only_bad(fault)) as server:
        good, bad = endpoint(server.url).interpret([GOOD, BAD], 0)
    assert good.record is not None and outcomes(good) == ["ok"]
    assert (bad.record, bad.error_class, bad.problem.reason) == (None, TRANSIENT, NEVER_ANSWERED)
    assert outcomes(bad) == calls and bad.finish == "error" and "\n" not in bad.problem.detail


def test_a_timeout_is_a_call_of_its_own():
    with FaultServer(lambda body, n: {"seconds": 3.0} if is_bad(body) else record_json()) as server:
        good, bad = endpoint(server.url, timeout_seconds=1.0, max_retries=1).interpret([GOOD, BAD], 0)
    assert good.record is not None and outcomes(bad) == ["timeout"] * 2 and bad.error_class == TRANSIENT


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 500}, {"raw": "garbage"}, {"status": 503}])
def test_a_fault_that_passes_leaves_its_call_and_an_answer(fault):
    with FaultServer(lambda body, n: fault if n == 0 else record_json()) as server:
        (answer,) = endpoint(server.url).interpret([GOOD], 0)
    assert answer.record is not None and outcomes(answer)[-1] == "ok" and len(answer.calls) == 2
    assert tokens(answer) == [(0, 0), (10, 3)]


def test_what_was_paid_for_in_vain_is_accounted_for():
    odd = json.dumps({"choices": [], "usage": PAID})
    with FaultServer(lambda body, n: {"raw": odd} if n == 0 else record_json()) as server:
        (answer,) = endpoint(server.url).interpret([GOOD], 0)
    assert outcomes(answer) == ["garbage", "ok"] and tokens(answer) == [(100, 20), (10, 3)]


INVALID_ANSWERS = [
    ({"text": "I would say it is a shoe."}, "schema"),
    ({"text": record_json()[:40], "finish": "length"}, "cut"),
    ({"text": record_json()[:40]}, "schema"),
    ({"text": ""}, "schema"),
    ({"text": record_json(mood="purple")}, "schema"),
    ({"text": record_json(tags="shoe")}, "schema"),
    ({"text": "[" * 50_000}, "schema"),
]


@pytest.mark.parametrize("fault, reason", INVALID_ANSWERS, ids=lambda v: str(v)[:44])
def test_an_answer_that_is_no_record_may_be_repaired_and_was_paid_for(fault, reason):
    with FaultServer(only_bad(fault | {"usage": PAID})) as server:
        good, bad = endpoint(server.url, parameters=Parameters(max_json_tokens=2_048)).interpret([GOOD, BAD], 0)
    assert good.record is not None
    assert (bad.record, bad.error_class, bad.problem.reason) == (None, INVALID, reason)
    assert outcomes(bad) == [reason] and tokens(bad) == [(100, 20)]
    assert bad.text.startswith(fault["text"][:20]), "what it wrote is kept"


REFUSALS = [
    ({"text": None, "refusal": "I can't help with that."}, "refusal", 1),
    ({"text": "", "finish": "content_filter"}, "refused", 1),
    ({"status": 400, "raw": "prompt too long"}, "refused", 1),
    ({"status": 422, "raw": '{"error": "bad image"}'}, "refused", 1),
    ({"status": 413}, "refused", 1),
    ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "refused", 1),
]


@pytest.mark.parametrize("fault, reason, requests", REFUSALS, ids=lambda v: str(v)[:44])
def test_a_refusal_is_never_asked_again(fault, reason, requests):
    with FaultServer(only_bad(fault)) as server:
        good, bad = endpoint(server.url).interpret([GOOD, BAD], 0)
        assert sum(map(is_bad, server.bodies)) == requests
    assert good.record is not None
    assert (bad.record, bad.error_class, bad.problem.reason) == (None, DETERMINISTIC, reason)
    assert len(bad.calls) == requests and outcomes(bad) != ["ok"]


@pytest.mark.parametrize("written", [json.dumps, lambda body: json.dumps(body).replace("<", "\\u003c"), str])
def test_a_refusal_that_quotes_the_request_leaves_no_payload_in_its_sentence(written):
    def answer(body, n):
        quoted = written({"detail": "bad input", "input": body["messages"][-1]["content"]})
        return {"status": 422, "raw": quoted} if is_bad(body) else record_json()

    seen = content("seen", "Bad picture", image=picture("red"))
    with FaultServer(answer) as server:
        _, *refused = endpoint(server.url).interpret([GOOD, BAD, seen], 0)
    for one in refused:
        assert one.problem.reason == "refused" and "status 422" in one.problem.detail, "the cause is told"
        assert "bad input" in one.problem.detail and not any(
            said in one.problem.detail for said in ("Bad shoe", "Bad picture", "base64", "title:")
        )


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 500}, {"raw": "garbage"}, {"endless": True}])
def test_an_endpoint_that_answers_nothing_is_unavailable(fault):
    with FaultServer(lambda body, n: fault) as server:
        with pytest.raises(EngineUnavailableError) as error:
            endpoint(server.url, max_retries=1).interpret([GOOD, BAD], 0)
        assert "\n" not in str(error.value)


def test_an_endpoint_that_is_gone_is_not_asked_for_every_content():
    with FaultServer(lambda body, n: {"status": 503}) as server:
        with pytest.raises(EngineUnavailableError, match="status 503"):
            endpoint(server.url, max_retries=0).interpret([content(str(i), f"Shoe {i}") for i in range(40)], 0)
        assert len(server.bodies) < 12


@pytest.mark.parametrize("status, says", [(401, "API_KEY"), (402, "top up"), (404, "does not know model 'm'")])
def test_wrong_setup_is_one_sentence_unless_answers_would_be_lost(status, says):
    with FaultServer(lambda body, n: {"status": status}) as server, pytest.raises(EngineSetupError, match=says):
        endpoint(server.url).interpret([GOOD, BAD], 0)
    # The key is revoked in the middle of a batch: what was paid for is handed back, nothing more is asked.
    with FaultServer(lambda body, n: record_json() if n == 0 else {"status": status}) as server:
        engine = endpoint(server.url, max_in_flight=1)
        answers = engine.interpret([content(str(i), f"Shoe {i}") for i in range(5)], 0)
        assert len(server.bodies) == 2
    assert [a.record is not None for a in answers] == [True] + [False] * 4
    assert {a.error_class for a in answers[1:]} == {TRANSIENT} and sum(len(a.calls) for a in answers) == 2
    with pytest.raises(EngineSetupError, match="no endpoint"):
        endpoint("localhost:1")


def test_retry_after_and_the_pool_are_honoured():
    slow = {"status": 429, "headers": {"Retry-After": "1"}}
    with FaultServer(lambda body, n: slow if n == 0 else {"text": record_json(), "seconds": 0.1}) as server:
        engine = endpoint(server.url)
        assert engine.interpret([GOOD], 0)[0].record is not None
        assert server.times[1] - server.times[0] >= 0.9
        answers = engine.interpret([content(str(i), f"Shoe {i}") for i in range(12)], 0)
        assert all(a.record for a in answers) and 1 < server.peak <= 4, "at most max_in_flight, but in parallel"


def test_the_request_is_what_the_standard_asks_for(monkeypatch):
    monkeypatch.setenv("BELVEDERE_LLM_API_KEY", "secret-2")
    seen = content("i", "Seen", image=picture("red"))
    with FaultServer(lambda body, n: record_json()) as server:
        engine = endpoint(server.url)
        engine.interpret([seen], 0)
        engine.interpret([seen], 1)
        blind = endpoint(server.url, sees_images=False)
        blind.interpret([seen], 0)
    first, repair, unseen = server.bodies
    image, text = first["messages"][-1]["content"]
    kind, _, encoded = image["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64" and base64.b64decode(encoded) == seen.image
    assert text == {"type": "text", "text": seen.text} and unseen["messages"][-1]["content"] == seen.text
    assert first["response_format"]["json_schema"]["schema"] == json_schema(PROMPT.vocabulary)
    assert first["temperature"] == 0 and first["max_tokens"] == 512 and "frequency_penalty" not in first
    assert repair["messages"][0] != first["messages"][0] and repair["frequency_penalty"] > 0
    assert all(h["Authorization"] == "Bearer secret-2" for h in server.headers)
    for message in first["messages"]:
        if message["role"] == "assistant":
            assert parse(message["content"], PROMPT.vocabulary).caption, "examples have the form that is asked for"


def test_an_endpoint_without_schemas_is_asked_in_plain_words():
    def answer(body, n):
        if "response_format" in body:
            return {"status": 400, "raw": "unknown parameter: response_format"}
        return f"```json\n{record_json()}\n```"

    with FaultServer(answer) as server:
        engine = endpoint(server.url)
        answers = engine.interpret([GOOD, BAD], 0)
        assert all(a.record for a in answers) and [outcomes(a) for a in answers] == [["status 400", "ok"]] * 2
        assert outcomes(engine.interpret([GOOD], 0)[0]) == ["ok"], "it is not offered the schema again"
        assert "one of cheerful, funny" in server.bodies[-1]["messages"][0]["content"]


def test_an_endpoint_that_takes_no_images_is_told_apart_from_images_that_it_refuses():
    seen = content("i", "Seen", image=picture("red"))

    def takes_none(body, n):
        return (
            record_json() if isinstance(body["messages"][-1]["content"], str) else {"status": 400, "raw": "text only"}
        )

    with FaultServer(takes_none) as server:
        with pytest.raises(EngineSetupError, match="BELVEDERE_LLM_SEES_IMAGES=false"):
            endpoint(server.url).interpret([seen, GOOD], 0)
        with pytest.raises(EngineSetupError, match="BELVEDERE_LLM_SEES_IMAGES=false"):
            endpoint(server.url).interpret([seen], 0)
    with FaultServer(lambda body, n: {"status": 400} if text_of(body) == seen.text else record_json()) as server:
        refused, good = endpoint(server.url).interpret([seen, GOOD], 0)
    assert refused.error_class == DETERMINISTIC and good.record is not None


def test_usage_is_the_providers_own():
    usage = PAID | {"prompt_tokens_details": {"cached_tokens": 64, "image_tokens": 30}}
    odd = {"prompt_tokens": "many", "completion_tokens": float("inf"), "prompt_tokens_details": [1]}
    with FaultServer(lambda body, n: {"text": record_json(), "usage": usage if n == 0 else odd}) as server:
        engine = endpoint(server.url)
        (known,), (unknown,) = engine.interpret([GOOD], 0), engine.interpret([GOOD], 0)
    (call,) = known.calls
    assert (call.prompt_tokens, call.completion_tokens, call.cached_tokens, call.image_tokens) == (100, 20, 64, 30)
    assert unknown.record is not None and unknown.calls[0].prompt_tokens > 100, "estimated where nobody counted"


@pytest.fixture(scope="module")
def llama_server():
    with llama_cpp(context=4096, slots=1) as url:
        yield url


def test_a_real_server_writes_records_under_the_schema(llama_server):
    engine = interpreter(
        "endpoint",
        {"kind": "openai", "model": "smollm2", "revision": "q4", "base_url": llama_server, "timeout_seconds": 300},
        Parameters(max_json_tokens=256),
    )
    # One alone: its prompt has a thousand tokens, and the server one thread.
    (answer,) = engine.interpret([content("a", "Red Running Shoe")], 0)
    (call,) = answer.calls
    assert call.prompt_tokens > 500 and call.completion_tokens > 10
    assert answer.record is not None and record_problem(answer.record, answer.finish, Rules(min_words=3)) is None
