"""The prompt file as messages."""

import json

import pytest

from models.language.interpretation import parse
from models.language.validation import Rules, record_problem
from ray_jobs import prompts
from ray_jobs.interpretation.prompting import interpretation_prompt, with_lines
from tests.ray_jobs.interpretation.contents import PROMPT


def test_examples_are_answers_that_validation_takes():
    for example in PROMPT.examples:
        assert record_problem(example.record, "stop", Rules()) is None
        assert parse(example.record.model_dump_json(), PROMPT.vocabulary) == example.record
        assert example.item.strip().startswith("<item>\n") and example.item.endswith("\n</item>")
    shown = [line for e in PROMPT.examples for line in e.item.splitlines()]
    assert sum(line.startswith("image shows: ") for line in shown) in (2, 3)
    assert any(not e.item.count("image") for e in PROMPT.examples)


def test_words_to_choose_from_are_single_and_different():
    for options in PROMPT.options:
        assert len(set(options)) == len(options) and all(o.isalpha() and o.islower() for o in options)


def test_messages_of_both_forms():
    plain, repair, as_json = PROMPT.messages(0), PROMPT.messages(1), PROMPT.json_messages(0)
    assert plain[0].content == PROMPT.system and repair[0].content == PROMPT.repair_system and plain[1:] == repair[1:]
    assert plain[2].content.split(" | ")[1:] == [PROMPT.examples[0].mood, PROMPT.examples[0].style, "sea"]
    assert json.loads(as_json[2].content)["caption"] == PROMPT.examples[0].caption
    assert all(word in as_json[0].content for options in PROMPT.options for word in options)


def test_lines_stay_within_the_fence():
    assert with_lines("<item>\ntitle: A\n</item>", ["x: 1"]) == "<item>\ntitle: A\nx: 1\n</item>"


def test_a_wrong_prompt_file_is_told(tmp_path, monkeypatch):
    text = (prompts.FOLDER / "item_caption.toml").read_text()
    monkeypatch.setattr(prompts, "FOLDER", tmp_path)
    prompts.prompt_text.cache_clear()
    try:
        (tmp_path / "odd.toml").write_text(text.replace('mood = "dark"', 'mood = "purple"', 1))
        (tmp_path / "bare.toml").write_text('name = "bare"\n')
        with pytest.raises(ValueError, match="odd.toml is no prompt.*'purple' of an example"):
            interpretation_prompt("odd")
        with pytest.raises(ValueError, match="bare.toml is no prompt"):
            interpretation_prompt("bare")
        with pytest.raises(FileNotFoundError, match="no prompt missing"):
            interpretation_prompt("missing")
    finally:
        prompts.prompt_text.cache_clear()
