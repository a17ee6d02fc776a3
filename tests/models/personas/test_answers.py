"""The student's answer: what is written under the schema is read back, and whatever else is told by its reason."""

import json

import jsonschema
import pytest

from models.personas.answers import Answer, Claim, answer_schema, parse_answer, write_answer

ITEMS = [[1, 2], [3]]
TOPICS = [["film noir", "heist"], ["western"]]
ANSWER = Answer((Claim((1, 2), "Enjoys slow crime."), Claim((3,), 'Says "war".')), (1, 0))


def changed(**parts):
    return json.dumps(json.loads(write_answer(ANSWER, TOPICS)) | parts)


def test_what_is_written_fits_the_schema_and_is_read_back():
    text = write_answer(ANSWER, TOPICS)
    jsonschema.validate(json.loads(text), answer_schema(ITEMS, TOPICS))
    assert parse_answer(text, 3, 2, TOPICS) == ANSWER and "\n" not in text
    told = parse_answer('{"likes_1": {"items": [1, 1], "text": " a\tb\x01 "}}', 1, 1, [])
    assert told == Answer((Claim((1,), "a b\x01"),), ())
    nothing = write_answer(Answer((), ()), [])
    assert parse_answer(nothing, 0, 0, []) == Answer((), ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Sure! Here is a person.", "not_json"),
        ("[" * 20_000, "not_json"),
        ("[]", "wrong_counts"),
        (changed(likes_3={"items": [1], "text": "x"}), "wrong_counts"),
        (json.dumps({k: v for k, v in json.loads(changed()).items() if k != "new_2"}), "wrong_counts"),
        (changed(likes_1="crime"), "wrong_form"),
        (changed(likes_1={"items": [1], "text": 3}), "wrong_form"),
        (changed(likes_1={"items": [], "text": "x"}), "no_evidence"),
        (changed(likes_1={"items": [True], "text": "x"}), "no_evidence"),
        (changed(likes_1={"items": [4], "text": "x"}), "unknown_item"),
        (changed(new_2="film noir"), "unknown_topic"),
        (changed(new_2=["western"]), "unknown_topic"),
    ],
)
def test_every_other_answer_has_a_reason(text, reason):
    found = parse_answer(text, 3, 2, TOPICS)
    assert found.reason == reason
    if reason != "not_json":
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(text), answer_schema(ITEMS, TOPICS))


def test_a_claim_may_cite_its_own_interest_only():
    other = changed(likes_2={"items": [2], "text": "x"})
    assert parse_answer(other, 3, 2, TOPICS).claims[1].items == (2,), "what nothing held is judged by the gates"
    with pytest.raises(jsonschema.ValidationError, match="2 is not one of"):
        jsonschema.validate(json.loads(other), answer_schema(ITEMS, TOPICS))
