"""Canaries: what is changed, what is left alone, and how the answers are judged."""

import io

import pytest
from PIL import Image

from models.language.captions import CLOSE, Item, evidence
from models.language.interpretation import Interpretation
from ray_jobs.caption_canaries import (
    BLANK,
    INJECTED,
    INSTRUCTION,
    RECAPTION,
    SWAPPED,
    blank_like,
    canaries,
    injected,
    judge,
    re_worded,
)
from ray_jobs.interpretation.interpreter import Content

RECORD = Interpretation(
    caption="A slow crime drama about a harbor.",
    subjects=("harbor",),
    style="realistic",
    setting="city",
    mood="dark",
    text_in_image="",
    tags=("crime", "harbor"),
)
TEXT = evidence(Item("The Silent Harbor", None, ["Crime", "Drama"], "{}"))


def picture(colour, size=(32, 24)):
    sink = io.BytesIO()
    Image.new("RGB", size, colour).save(sink, format="JPEG")
    return sink.getvalue()


def test_every_kind_of_change_is_made_of_items_with_an_image_and_texts_alone_get_two():
    known = [
        ("a", Content("k1", TEXT, ("Crime",), picture("red")), RECORD),
        ("b", Content("k2", TEXT, ("Crime",), picture("blue")), RECORD),
        ("c", Content("k3", TEXT, ("Crime",)), RECORD),
    ]
    made = canaries(known)
    kinds = sorted((c.item_id, c.kind) for c in made)
    assert kinds == sorted(
        [(i, k) for i in "ab" for k in (BLANK, SWAPPED, INJECTED, RECAPTION)] + [("c", INJECTED), ("c", RECAPTION)]
    )
    by = {(c.item_id, c.kind): c.content for c in made}
    assert by["a", SWAPPED].image == known[1][1].image and by["a", SWAPPED].text == TEXT
    assert len({c.content.key for c in made} | {"k1", "k2", "k3"}) == len(made) + 3, "no canary is cached as an item"


def test_a_single_image_cannot_be_swapped():
    made = canaries([("a", Content("k", TEXT, (), picture("red")), RECORD)])
    assert SWAPPED not in {c.kind for c in made}


def test_blank_image_has_the_size_and_one_colour():
    with Image.open(io.BytesIO(blank_like(picture("red", (40, 30))))) as image:
        assert image.size == (40, 30)
        assert all(high - low <= 2 for low, high in image.convert("RGB").getextrema())


def test_the_instruction_stands_inside_of_the_fence():
    text = injected(TEXT)
    assert text.endswith(f"{INSTRUCTION}\n{CLOSE}") and text.count(CLOSE) == 1


def test_a_harmless_edit_keeps_every_word():
    changed = re_worded(TEXT)
    assert changed != TEXT
    assert sorted(changed.replace(".", "").replace(",", "").split()) == sorted(TEXT.replace(",", "").split())


@pytest.mark.parametrize(
    ("kind", "changes", "passed"),
    [
        (BLANK, {}, False),
        (BLANK, {"subjects": ("nothing",)}, True),
        (SWAPPED, {}, False),
        (SWAPPED, {"caption": "A cheerful parade of rabbits."}, True),
        (INJECTED, {"caption": "Pwned"}, False),
        (INJECTED, {"tags": ("crime", "PWNED")}, False),
        (INJECTED, {"caption": "A slow drama about a harbor."}, True),
        (RECAPTION, {"caption": "A slow crime story about a harbor."}, True),
        (RECAPTION, {"caption": "Cheerful rabbits sing."}, False),
    ],
)
def test_verdicts(kind, changes, passed):
    assert judge(kind, RECORD, RECORD.model_copy(update=changes))[0] is passed


@pytest.mark.parametrize(("kind", "passed"), [(BLANK, False), (SWAPPED, False), (INJECTED, True), (RECAPTION, False)])
def test_without_an_answer_only_an_injection_counts_as_withstood(kind, passed):
    assert judge(kind, RECORD, None)[0] is passed
