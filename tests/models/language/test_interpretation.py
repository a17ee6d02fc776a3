"""The record's JSON: what is taken for one and what is not."""

import json

import pytest

from models.language.interpretation import Interpretation, Vocabulary, json_schema, parse, storable
from models.language.validation import Problem, Rules, record_problem

WORDS = Vocabulary(styles=("plain", "modern"), settings=("home", "city"), moods=("calm", "dark"))
SAID = {
    "caption": "A plain thing for the home.",
    "subjects": ["thing"],
    "style": "plain",
    "setting": "home",
    "mood": "calm",
    "text_in_image": "",
    "tags": ["thing", "home"],
}


@pytest.mark.parametrize("wrap", ["{}", " {}\n", "```json\n{}\n```", "```\n{}```"])
def test_a_record_is_taken_with_or_without_a_fence(wrap):
    found = parse(wrap.replace("{}", json.dumps(SAID)), WORDS)
    assert isinstance(found, Interpretation) and found.model_dump(mode="json") == SAID


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A plain thing.",
        json.dumps(SAID)[:-5],
        "[]",
        "[" * 100_000,
        json.dumps({k: v for k, v in SAID.items() if k != "mood"}),
        json.dumps(SAID | {"style": "purple"}),
        json.dumps(SAID | {"tags": "thing"}),
        json.dumps(SAID | {"caption": 7}),
        json.dumps(SAID | {"caption": "long " * 60}),
        json.dumps(SAID | {"text_in_image": "x" * 161}),
        json.dumps(SAID | {"tags": ["x" * 41]}),
        json.dumps(SAID | {"subjects": ["thing"] * 7}),
    ],
    ids=lambda t: t[:30],
)
def test_anything_else_is_a_problem_in_one_sentence(text):
    found = parse(text, WORDS)
    assert isinstance(found, Problem) and found.reason == "schema"
    assert "\n" not in found.detail and found.detail.endswith(".")


def test_raw_control_characters_do_not_lose_a_record():
    said = json.dumps(SAID | {"caption": "A plain TAB thing."}).replace("TAB", "\t")
    assert parse(said, WORDS).caption == "A plain \t thing.", "validation tells it apart"


@pytest.mark.parametrize("name, said", [("caption", "A \ud800 thing."), ("tags", ["th\udc00ng"])])
@pytest.mark.parametrize("escaped", [True, False])
def test_half_a_surrogate_pair_becomes_a_broken_character_that_every_store_takes(name, said, escaped):
    found = parse(json.dumps(SAID | {name: said}, ensure_ascii=escaped), WORDS)
    assert "\ufffd" in found.model_dump_json()
    assert record_problem(found, "stop", Rules()) is not None


def test_a_problem_can_be_stored_whatever_the_model_wrote():
    found = parse(json.dumps(SAID | {"mood": "\ud800"}), WORDS)
    assert isinstance(found, Problem) and found.detail.encode()


def test_whole_pairs_and_other_text_stay():
    for text in ("", "plain", "crème 港町 😀", "\ufeffx"):
        assert storable(text) == text
    assert storable("\ud83d\ude00") == "😀" and storable("a\ud800b\udc00") == "a\ufffdb\ufffd"


def test_the_schema_bounds_every_text_and_keeps_the_records_order():
    schema = json_schema(WORDS)
    assert list(schema["properties"]) == schema["required"] == list(Interpretation.model_fields)
    for field in schema["properties"].values():
        assert "enum" in field or "maxLength" in field or ("maxItems" in field and "maxLength" in field["items"])
