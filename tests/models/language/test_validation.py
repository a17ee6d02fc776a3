"""What is a caption and what is not."""

import pytest

from models.language.interpretation import Interpretation
from models.language.validation import Rules, problem, prompt_phrases, record_problem

GOOD = "A slow crime drama about secrets in a harbor town."
RULES = Rules()
PHRASES = prompt_phrases(["You describe one item of a catalogue in one short sentence", "A silly farce."], RULES)


@pytest.mark.parametrize(
    "text, finish, reason",
    [
        (GOOD, "stop", None),
        ("A café comedy, naïve and à la mode.", "stop", None),
        ("", "stop", "empty"),
        ("  ", "stop", "empty"),
        ("A film \x07 about noise and other things.", "stop", "unprintable"),
        ("A film about � and more.", "stop", "unprintable"),
        ("A film\nabout two lines of text.", "stop", "unprintable"),
        ("I'm sorry, but there is no item here to describe.", "stop", "refusal"),
        ("I’m sorry, but there is no item here to describe.", "stop", "refusal"),
        ("As an AI language model I have not seen this film.", "stop", "refusal"),
        ("Unfortunately, as an AI, this film is unknown to me.", "stop", "refusal"),
        ("I can't tell what this film is about.", "stop", "refusal"),
        ("I cannot describe any of these things to you.", "stop", "refusal"),
        ("Sorry, but I can’t tell what this film is about.", "stop", "refusal"),
        ("I'm afraid I cannot tell what this film is about.", "stop", "refusal"),
        ("The film is not known, so I am unable to describe it.", "stop", "refusal"),
        ("Please provide the title of the film to describe.", "stop", "refusal"),
        ("A man who was an airline pilot finds his way home.", "stop", None),
        ("A folding stool that doubles as an aid for climbers.", "stop", None),
        ("A yellow car that serves as an airport taxi.", "stop", None),
        ("A robot thriller in which cities fall as an AI wakes up.", "stop", None),
        ("In this ballad Anna says I can't stop loving you.", "stop", None),
        ("Hawaii cannot stop dancing in this loud musical comedy.", "stop", None),
        ("<item> A tale of a town and a harbor </item>", "stop", "prompt_echo"),
        ("title: The Silent Harbor and the town", "stop", "prompt_echo"),
        ("Well, you describe one item of a catalogue in one go.", "stop", "prompt_echo"),
        ("A dark story about a dark story about a night.", "stop", "repetition"),
        ("A light, light, light, light tale of light.", "stop", "repetition"),
        ("1234 5678 90 -- 1 2 3 4 == 5", "stop", "not_text"),
        ("Une comédie légère qui se passe dans une ville.", "stop", "language"),
        ("Eine dunkle Komödie über einen Mann und seine Stadt.", "stop", "language"),
        ("Una comedia romántica sobre una mujer en la ciudad.", "stop", "language"),
        ("Um drama sobre uma mulher em uma cidade pequena.", "stop", "language"),
        ("En mörk komedi om en man som bor på landet.", "stop", "language"),
        ("A tale of gold in the Sierra de la Madre.", "stop", None),
        ("A romantic, sensual romance in Las Vegas.", "stop", None),
        ("A French hero, Cyrano de Bergerac, wins duels.", "stop", None),
        ("これは 港町の 秘密を めぐる 静かな 犯罪 ドラマです", "stop", "language"),
        ("A slow crime drama about secrets in a", "length", "cut"),
        ("A drama.", "stop", "too_short"),
        (" ".join(f"very{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60)), "stop", "too_long"),
    ],
)
def test_reasons(text, finish, reason):
    found = problem(text, finish, RULES, PHRASES)
    assert (found.reason if found else None) == reason
    assert found is None or (found.detail.endswith(".") and len(found.detail) < 200)


def test_bounds_are_configurable():
    loose = Rules(
        min_words=0, max_ngram_repeats=99, min_distinct_share=0, min_letter_share=0, min_latin_share=0, allow_cut=True
    )
    for text in ("a a a a a a a", "12", "これは"):
        assert problem(text, "length", loose) is None


RECORD = Interpretation(
    caption=GOOD,
    subjects=("crime", "harbor town"),
    style="realistic",
    setting="sea",
    mood="dark",
    text_in_image="港町 SALE 50 %",
    tags=("crime", "drama", "harbor"),
)


@pytest.mark.parametrize(
    "changes, finish, reason",
    [
        ({}, "stop", None),
        ({"subjects": (), "tags": (), "text_in_image": ""}, "stop", None),
        ({"subjects": ("R2D2", "crème brûlée")}, "stop", None),
        ({"caption": ""}, "stop", "empty"),
        ({"caption": "I'm sorry, but there is no item here to describe."}, "stop", "refusal"),
        ({"caption": "A dark story about a dark story about a night."}, "stop", "repetition"),
        ({}, "length", "cut"),
        ({"text_in_image": "SALE\x07"}, "stop", "unprintable"),
        ({"text_in_image": "SALE\n50"}, "stop", "unprintable"),
        ({"text_in_image": "x" * 161}, "stop", "unprintable"),
        ({"text_in_image": "SALE </item> new orders"}, "stop", "prompt_echo"),
        ({"text_in_image": "<|im_start|>system"}, "stop", "prompt_echo"),
        ({"subjects": ("crime", "")}, "stop", "not_text"),
        ({"subjects": ("crime", " ")}, "stop", "not_text"),
        ({"tags": ("crime", "!!")}, "stop", "not_text"),
        ({"tags": ("x" * 41,)}, "stop", "not_text"),
        ({"tags": ("cri\ufffdme",)}, "stop", "not_text"),
        ({"tags": ("<|im_end|>",)}, "stop", "prompt_echo"),
        ({"subjects": ("港町", "犯罪"), "tags": ("драма", "κωμωδία", "دراما")}, "stop", None),
        ({"caption": "Тихая драма о тайнах портового города."}, "stop", "language"),
        ({"tags": ("crime", "Crime", "CRIME", "drama")}, "stop", "repetition"),
        ({"tags": ("You describe", "one item", "of a catalogue", "in one short sentence")}, "stop", "prompt_echo"),
    ],
)
def test_reasons_of_a_record(changes, finish, reason):
    found = record_problem(RECORD.model_copy(update=changes), finish, RULES, PHRASES)
    assert (found.reason if found else None) == reason
    assert found is None or (found.detail.endswith(".") and len(found.detail) < 200)
