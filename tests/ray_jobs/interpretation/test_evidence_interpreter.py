"""The embedded interpreter: what is shown to the model, what code fills in, and the real models once."""

import pytest

from models.language.captions import tags
from models.language.interpretation import TEXT_CHARS
from models.language.validation import Rules, prompt_phrases, record_problem
from ray_jobs.interpretation.evidence_interpreter import IMAGE_BYTES, subjects
from ray_jobs.interpretation.image_evidence import Evidence
from ray_jobs.interpretation.interpreter import DETERMINISTIC
from ray_jobs.language.engine import Completion
from tests.ray_jobs.interpretation.contents import HOSTILE, PROMPT, content, interpreter, picture
from tests.ray_jobs.language.checkpoints import smollm2, tiny_llama

TINY = {"kind": "transformers", "revision": "r", "dtype": "float32", "batch_size": 4}
RED, BLUE = picture("red"), picture("blue")


class Eyes:
    """Says of images what a test wants said; the real ones are tested beside `ImageEvidence`."""

    def __init__(self, seen):
        self.seen, self.looks = seen, 0

    def look(self, images):
        self.looks += 1
        return [self.seen[image] for image in images]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return interpreter("evidence", TINY | {"model": str(tiny_llama(tmp_path_factory.mktemp("tiny"), context=4096))})


@pytest.fixture
def seen(engine, monkeypatch):
    def sees(evidence):
        eyes = Eyes(dict.fromkeys((RED, BLUE), evidence))
        monkeypatch.setitem(engine.__dict__, "eyes", eyes)
        return eyes

    return sees


def test_what_is_seen_stands_in_the_fence_and_in_the_record(engine, seen):
    seen(Evidence((("Running Shoe", 0.9), ("sandal", 0.5)), "BIG SALE", ("red", "white"), False))
    with_image, alone = engine.interpret([content("a", "Shoe", image=RED), content("b", "Shoe")], 0)
    lines = with_image.prompt.splitlines()
    assert lines[0] == "<item>" and lines[-1] == "</item>" and alone.prompt == content("b", "Shoe").text
    assert [x for x in lines if x not in alone.prompt.splitlines()] == [
        "image shows: Running Shoe, sandal",
        "text in image: BIG SALE",
        "image colours: red, white",
    ]
    assert (
        with_image.record.subjects[:2] == ("running shoe", "sandal") and with_image.record.text_in_image == "BIG SALE"
    )
    assert alone.record.text_in_image == ""
    assert with_image.calls[0].prompt_tokens > alone.calls[0].prompt_tokens


def test_text_in_an_image_is_data_too(engine, seen):
    seen(Evidence((("a" * 90, 0.9),), HOSTILE * 9, ("red",), False))
    item = content("a", "Shoe", image=RED)
    (answer,) = engine.interpret([item], 0)
    assert answer.prompt.count("</item>") == 1 and "<|" not in answer.prompt
    assert len(answer.prompt.encode()) <= len(item.text.encode()) + IMAGE_BYTES
    assert "<" not in answer.record.text_in_image and len(answer.record.text_in_image) <= TEXT_CHARS
    spent = answer.calls[0].prompt_tokens + answer.calls[0].completion_tokens
    assert spent <= engine.most_tokens([item])[0]


def test_the_eyes_open_only_for_images(engine, seen):
    eyes = seen(Evidence((), "", ("red",), False))
    engine.interpret([content("a", "Shoe"), content("b", "Shirt")], 0)
    assert eyes.looks == 0
    engine.interpret([content("a", "Shoe", image=RED), content("b", "Shirt", image=BLUE)], 0)
    assert eyes.looks == 1, "all images of a batch at once"


def test_a_text_that_is_too_long_does_not_fail_the_others(engine):
    long = content("b", "Shoe")._replace(text="<item>\ntitle: " + "qx " * 3_000 + "\n</item>")
    good, bad = engine.interpret([content("a", "Shoe"), long], 0)
    assert good.record is not None
    assert (bad.error_class, bad.problem.reason, bad.calls) == (DETERMINISTIC, "too_long", ())


def test_subjects_are_what_the_image_shows_and_what_text_and_caption_share():
    text = content("a", "The Red Shoe of Paris", ("Drama",)).text
    assert subjects("A drama about a shoe.", text, ("Drama",), ["Sandal"]) == ("sandal", "shoe", "drama")
    assert subjects("A tale.", text, ("Drama",), []) == ()
    assert len(subjects("A tale.", text, (), [f"thing {i}" for i in range(9)])) == 6


def test_of_items_with_one_text_the_record_is_one():
    """A content's key covers what its text shows: a category beyond that must not decide the record."""
    shown = tuple(f"Shelf {i}" for i in range(8))
    some, more = content("k", "Harbor", shown), content("k", "Harbor", (*shown, "Secrets", "Drama"))
    assert some.text == more.text
    caption = "A drama about secrets on a shelf."
    assert subjects(caption, some.text, some.categories, []) == subjects(caption, more.text, more.categories, [])
    assert tags(caption, some.categories) == tags(caption, more.categories)
    long = "Stories of the old harbor and its many secrets"
    assert "secrets" not in subjects(caption, content("k", "Harbor", (long,)).text, (long,), [])


@pytest.mark.parametrize(
    "categories",
    [("Комедия", "Драма"), ("Κωμωδία", "Δράμα"), ("كوميديا", "دراما"), ("喜剧", "剧情片"), ("हास्य", "नाटक")],
    ids=["Cyrillic", "Greek", "Arabic", "Chinese", "Devanagari"],
)
def test_categories_of_any_script_are_no_fault_of_the_model(engine, monkeypatch, categories):
    def complete(shared, users, *args, **kwargs):
        text = "A quiet story about two sisters in a small town."
        return [Completion(text, 9, 9, "stop", choices=tuple(0 for _ in PROMPT.options)) for _ in users]

    monkeypatch.setattr(engine.engine, "complete", complete)
    (answer,) = engine.interpret([content("a", "Sisters", categories)], 0)
    assert answer.record.tags[:2] == tuple(c.lower() for c in categories)
    assert record_problem(answer.record, answer.finish, Rules(), prompt_phrases(PROMPT.texts(), Rules())) is None


def test_every_try_decodes_by_its_own_rule(engine):
    asked = []
    complete = engine.engine.complete

    def spy(shared, *args, no_repeat_ngram, **kwargs):
        asked.append((shared[0].content, no_repeat_ngram))
        return complete(shared, *args, no_repeat_ngram=no_repeat_ngram, **kwargs)

    engine.engine.complete = spy
    try:
        for attempt in range(3):
            engine.interpret([content("a", "Shoe")], attempt)
    finally:
        engine.engine.complete = complete
    assert asked == [(PROMPT.system, 3), (PROMPT.repair_system, 2), (PROMPT.repair_system, 1)]


def test_the_real_models_write_usable_records():
    config = smollm2()
    engine = interpreter("evidence", config.model_dump())
    items = [
        content("a", "Cordless Drill 18V", ("Tools", "Hardware")),
        content("b", "Parliament Votes on Budget", ("News", "Politics")),
        content("c", "Space Pilots", ("Sci-Fi", "Action")),
        content("d", "Lemon Cake", ("Baking", "Dessert"), image=picture("yellow", "LEMON")),
    ]
    answers = engine.interpret(items, 0)
    phrases = prompt_phrases(PROMPT.texts(), Rules())
    assert [record_problem(a.record, a.finish, Rules(), phrases) for a in answers] == [None] * 4
    drill, news, space, cake = (a.record for a in answers)
    assert drill.mood == "practical" and news.style == "factual" and space.setting == "space"
    assert "image" in answers[3].prompt and "yellow" in answers[3].prompt
    assert len({a.record.caption for a in answers}) == 4
    assert all(a.calls[0].cached_tokens > 400 for a in answers), "the instruction and the examples are computed once"
