import pytest

from models.language.sentences import find_problem

TERMS = ["tense crime drama", "Fargo", "The Usual Suspects"]
EXAMPLE = ["Enjoys slow crime dramas in which old secrets come to light."]


@pytest.mark.parametrize(
    "text",
    [
        "Likes tense crime stories with a dark sense of humor.",
        "Is drawn to crime drama such as Fargo (and The Usual Suspects).",
        "Goûte le crime noir, avec mesure.",
    ],
)
def test_usable_sentences(text):
    assert find_problem(text, terms=TERMS, prompt=EXAMPLE) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "too_short"),
        ("Likes crime.", "too_short"),
        ("Likes crime " + " ".join(f"w{i}" for i in range(40)), "too_long"),
        ("I'm sorry, but I cannot describe crime.", "refusal"),
        ("Likes crime stories about heroes and heroes in the past.", "repetition"),
        ("Likes crime of the night and drama of the night too.", "repetition"),
        ("Loves crime, more crime, and even more crime every day.", "repetition"),
        ("Likes crime; drama; Fargo; The Usual Suspects too.", "malformed"),
        ("Likes crime drama (with a twist that never closes.", "malformed"),
        ("Enjoys slow crime dramas in which old secrets lie buried.", "echo"),
        ("Likes crime drama like Fargo and The Godfather.", "foreign_name"),
        ("Likes gardening and long walks by the sea.", "off_topic"),
    ],
)
def test_reasons(text, reason):
    problem = find_problem(text, terms=TERMS, prompt=EXAMPLE)
    assert problem is not None and problem.reason == reason and problem.detail.endswith(".")


def test_an_answer_cut_inside_a_sentence_is_not_used():
    assert find_problem("Likes tense crime stories with a", terms=TERMS, truncated=True).reason == "truncated"
    assert find_problem("Likes tense crime stories.", terms=TERMS, truncated=True) is None
