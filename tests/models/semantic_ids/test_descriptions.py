import pytest

from models.semantic_ids.descriptions import Description, of_terms, parsed, problem_of

TERMS = ["tense crime thriller", "The Silent Harbor", "A slow crime drama about an old secret."]
SIBLINGS = [Description("Harbor crimes", "Slow crime dramas of the old harbor.", "model")]


def reason(answer, truncated=False):
    told = ["Quiet crime dramas in which old secrets come to light."]
    found = problem_of(answer, terms=TERMS, titles=TERMS[1:2], prompt=told, siblings=SIBLINGS, truncated=truncated)
    return found.reason if found else None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Tense crime thrillers: Crime thrillers about what a harbor hides.", None),
        ("Slow crimes: Crime thrillers about what a harbor hides. A crime drama about a", None),
        ("Tenten crime: Crime thrillers about what a harbor hides.", "foreign_name"),
        ("Old crime: The Silent Harbor, Harbor Silent, crime.", "titles_only"),
        ("Crime thrillers about what a harbor hides.", "no_name"),
        ("A very long name of a group of things: Crime thrillers in a harbor.", "no_name"),
        ("Sunny gardens: Crime thrillers about what a harbor hides.", "foreign_name"),
        ("Crime: Thrillers with Humphrey that play in a harbor.", "foreign_name"),
        ("Harbor Crimes: Crime thrillers about what a harbor hides.", "taken_name"),
        ("Old crime: Slow crime dramas of the old harbor.", "taken_sentence"),
        ("Old crime: Quiet crime dramas in which old secrets come.", "echo"),
        ("Old crime: I cannot describe this crime drama.", "refusal"),
        ("Old crime: A tense crime thriller about a", "truncated"),
    ],
)
def test_what_an_answer_must_be(answer, expected):
    assert reason(answer, truncated=expected == "truncated") == expected


def test_what_stands_in_differs_from_siblings():
    first = of_terms("dark crime drama", ["Heat", "Fargo"], [])
    assert first == Description("dark crime drama", "Dark crime drama, such as Heat and Fargo.", "terms")
    assert of_terms("dark crime drama", ["Heat"], [first]).name == "dark crime drama (Heat)"
    assert parsed("**Old crime**: It is told. And again.") == ("Old crime", "It is told.")
