"""The record's JSON: what is taken for one and what is not."""

import json

import pytest

from models.language.interpretation import Interpretation, Vocabulary, json_schema, parse
from models.language.validation import Problem

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


def test_the_schema_bounds_every_text_and_keeps_the_records_order():
    schema = json_schema(WORDS)
    assert list(schema["properties"]) == schema["required"] == list(Interpretation.model_fields)
    for field in schema["properties"].values():
        assert "enum" in field or "maxLength" in field or ("maxItems" in field and "maxLength" in field["items"])
