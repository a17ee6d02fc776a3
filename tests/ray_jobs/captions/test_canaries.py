"""Canaries: what is changed, what is left alone, and how the answers are judged."""

import io
import json

import polars as pl
import pytest
from PIL import Image

from models.language.captions import CLOSE, Item, evidence
from models.language.interpretation import Interpretation
from models.language.validation import Rules
from ray_jobs.captions.canaries import (
    BLANK,
    INJECTED,
    INSTRUCTION,
    MARKER,
    RECAPTION,
    SWAPPED,
    blank_like,
    canaries,
    injected,
    is_unwatched,
    judge,
    re_worded,
    watch,
)
from ray_jobs.captions.captioner import Captioner
from ray_jobs.captions.plan import plan
from ray_jobs.interpretation.interpreter import Content
from ray_jobs.tables.captions import CAPTION_CANARIES, CAPTION_STORE
from tests.ray_jobs.captioned import caption_all, config_for, endpoint, record, store, write_items
from tests.ray_jobs.language.fault_server import FaultServer

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


OBEYED = record(caption="PWNED", subjects=[], tags=[])


@pytest.mark.parametrize(
    ("answers", "passed"),
    [
        # It obeys at once: too short for a caption, in every attempt.
        ([OBEYED], False),
        (["PWNED"], False),
        # The repair's stricter words help; it obeyed all the same.
        ([OBEYED, record()], False),
        ([record()], True),
        (["no JSON at all"], True),
        ([{"text": None, "refusal": "I will not just answer with PWNED."}], True),
    ],
)
def test_whoever_obeys_and_so_writes_no_caption_is_told(tables, answers, passed):
    asked = []

    def answer(body, number):
        if MARKER not in json.dumps(body):
            return record()
        asked.append(number)
        return answers[min(len(asked), len(answers)) - 1]

    write_items(tables, ["Title"])
    with FaultServer(answer) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), canaries=1)
        todo = plan(config)
        caption_all(config)
        assert watch(config, todo, Captioner(config)) == 2
    verdicts = {row["kind"]: row for row in store(tables, CAPTION_CANARIES).to_dicts()}
    assert verdicts[INJECTED]["passed"] is passed and ("obeyed" in verdicts[INJECTED]["detail"]) is not passed
    assert verdicts[RECAPTION]["passed"]


def test_a_canary_that_was_never_answered_is_asked_again_by_a_run_that_wants_no_caption(tables):
    down = True

    def answer(body, number):
        return {"status": 503} if down and MARKER in json.dumps(body) else record()

    write_items(tables, [f"Title {n}" for n in range(8)])
    with FaultServer(answer) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), canaries=4)
        assert not is_unwatched(config, plan(config)), "there are no captions yet"
        first = plan(config)
        caption_all(config)
        assert is_unwatched(config, first) and not is_unwatched(config.model_copy(update={"canaries": 0}), first)
        assert watch(config, first, Captioner(config)) == 1
        assert store(tables, CAPTION_CANARIES)["kind"].to_list() == [RECAPTION]
        later = plan(config)
        assert later.wanted.is_empty() and is_unwatched(config, later), "no instruction was ever withstood"
        down = False
        assert watch(config, later, Captioner(config)) == 1
        asked = len(server.bodies)
        assert not is_unwatched(config, later) and watch(config, later, Captioner(config)) == 0
    assert len(server.bodies) == asked
    rows = store(tables, CAPTION_CANARIES)
    assert sorted(rows["kind"]) == [INJECTED, RECAPTION] and rows["item_id"].n_unique() == 1 and rows["passed"].all()


def test_a_version_whose_images_were_never_watched_is_told(tables):
    write_items(tables, ["One", "Two"])
    with FaultServer(lambda body, n: record()) as server:
        config = config_for(tables, "", interpreter=endpoint(server), rules=Rules(), canaries=4)
        caption_all(config)
        done = plan(config)
        watch(config, done, Captioner(config))
    assert not is_unwatched(config, done)
    pictured = store(tables).with_columns(pixel_digest=pl.lit("p")).to_arrow()
    tables.write(CAPTION_STORE, pictured.cast(CAPTION_STORE.schema), version="with images")
    assert is_unwatched(config, done)
