"""What every interpreter must do, whatever its model: the three kinds, on random weights or a server that answers."""

import json

import jsonschema
import pytest

from models.language.interpretation import json_schema, parse
from ray_jobs.interpretation.interpreter import DETERMINISTIC, INVALID, InterpretationParameters
from tests.ray_jobs.interpretation.checkpoints import tiny_idefics3, tiny_llava
from tests.ray_jobs.interpretation.contents import (
    HOSTILE,
    PROMPT,
    content,
    endpoint,
    interpreter,
    picture,
    record_json,
)
from tests.ray_jobs.language.checkpoints import tiny_llama
from tests.ray_jobs.language.fault_server import FaultServer

RED, BLUE = picture("red"), picture("blue")
CONTENTS = [
    content("a", "Runner", image=RED),
    content("b", "Two Cooks", ("Comedy",)),
    content("c", "Walker", ("Shoes", "Men"), "A shoe for long walks.", image=BLUE),
]
# Random weights write until the grammar ends it.
LONG = InterpretationParameters(max_json_tokens=1_500)
VISION = {"kind": "transformers", "revision": "r", "dtype": "float32", "batch_size": 2}


def answer(body, number):
    """A model that says of each prompt something of its own, so that answers cannot be mixed up unseen."""
    last = body["messages"][-1]["content"]
    sees = not isinstance(last, str)
    text = last[1]["text"] if sees else last
    title = next(line for line in text.splitlines() if line.startswith("title: "))
    words = [w for w in title.removeprefix("title: ").split() if w.isalpha()][:3]
    return record_json(f"A plain thing named {' '.join(words)} with {'a picture' if sees else 'no picture'} of it.")


@pytest.fixture(scope="module", params=["evidence", "idefics3", "llava", "endpoint"])
def engine(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "evidence":
        yield interpreter("evidence", VISION | {"model": str(tiny_llama(folder, context=4096))})
    elif request.param == "endpoint":
        with FaultServer(answer) as server:
            yield endpoint(server.url)
    else:
        make = tiny_idefics3 if request.param == "idefics3" else tiny_llava
        yield interpreter("vision", VISION | {"model": str(make(folder))}, LONG)


@pytest.fixture(scope="module")
def answers(engine):
    return engine.interpret(CONTENTS, 0)


def test_records_are_valid_under_the_schema(answers):
    schema = json_schema(PROMPT.vocabulary)
    for one in answers:
        if one.record is None:
            # Random weights write broken characters, which the grammar counts in another way than the schema.
            assert "\ufffd" in one.text and (one.problem.reason, one.error_class) == ("schema", INVALID)
            continue
        assert one.problem is None and one.error_class == "" and one.finish in ("stop", "length")
        said = one.record.model_dump(mode="json")
        jsonschema.validate(said, schema)
        assert list(said) == schema["required"], "the order of the keys is kept"
        assert parse(json.dumps(said), PROMPT.vocabulary) == one.record
    assert any(one.record for one in answers)


def test_greedy_decoding_is_repeatable_and_keeps_the_order(engine, answers):
    again = engine.interpret(CONTENTS[::-1], 0)[::-1]
    assert [a.record for a in again] == [a.record for a in answers]
    assert [a.prompt for a in again] == [a.prompt for a in answers]


def test_usage_adds_up_and_stays_below_what_was_reserved(engine, answers):
    for one, most in zip(answers, engine.most_tokens(CONTENTS), strict=True):
        (call,) = one.calls
        assert (
            call.outcome == ("ok" if one.record else "schema") and call.prompt_tokens > 0 and call.completion_tokens > 0
        )
        assert call.prompt_tokens + call.completion_tokens <= most
        assert 0 <= call.image_tokens + call.cached_tokens <= call.prompt_tokens and call.seconds >= 0


def test_a_repair_asks_in_other_words(engine):
    (repaired,) = engine.interpret(CONTENTS[1:2], 2)
    assert repaired.record is not None or repaired.error_class == "invalid_output"
    assert repaired.calls


def test_one_bad_content_does_not_fail_the_others(engine, answers):
    if engine.config.kind == "endpoint":
        pytest.skip("an endpoint decodes its images itself; see the fault list")
    mixed = [CONTENTS[0], content("bad", "Broken", image=b"\xff\xd8 this is no image"), CONTENTS[1]]
    good, bad, also_good = engine.interpret(mixed, 0)
    assert (good.record, also_good.record) == (answers[0].record, answers[1].record)
    assert (bad.record, bad.error_class, bad.problem.reason) == (None, DETERMINISTIC, "image_unreadable")
    assert bad.calls == () and bad.finish == "error"


def test_hostile_text_stays_data(engine):
    item = content("h", HOSTILE, (HOSTILE,), HOSTILE, image=RED)
    assert item.text.count("</item>") == 1 and "<|" not in item.text
    (with_image, alone) = engine.interpret([item, item._replace(key="h2", image=None)], 0)
    for one in (with_image, alone):
        assert one.calls and one.prompt.startswith("<item>\n") and one.prompt.endswith("\n</item>")
        assert one.prompt.count("</item>") == 1
        assert one.error_class in ("", "invalid_output")


def test_nothing_is_asked_of_nothing(engine):
    assert engine.interpret([], 0) == [] and engine.most_tokens([]) == []
