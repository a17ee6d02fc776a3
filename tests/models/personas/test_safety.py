"""The safety filter finds what it lists, in any writing, and leaves titles alone."""

import pytest

from models.personas.safety import DEFAULT_TERMS, Flag, SafetyConfig, flagged_by_terms

EVERY = [(category, number, term) for category, terms in DEFAULT_TERMS.items() for number, term in enumerate(terms, 1)]


@pytest.mark.parametrize(("category", "number", "term"), EVERY)
def test_every_listed_term_is_found(category, number, term):
    assert flagged_by_terms(f"Enjoys films, {term}, and walks.", SafetyConfig()) == Flag(category, f"term {number}")


@pytest.mark.parametrize("text", ["This person IS  GAY.", "is ｇａｙ", "It is\ngay!"])
def test_case_spaces_and_unicode_do_not_hide_a_term(text):
    assert flagged_by_terms(text, SafetyConfig()).category == "orientation"


@pytest.mark.parametrize(
    "text",
    [
        "Likes dark stories and horror movies, for example Nightmare on Elm Street, A and Body Snatcher, The.",
        "Is drawn to serious war films, for example Schindler's List and Full Metal Jacket.",
        "The favourite is Christian Bale, the taste is black comedy; Kill Bill is among them.",
        "Likes this gaylord story.",
    ],
)
def test_hard_subjects_of_titles_are_safe(text):
    assert flagged_by_terms(text, SafetyConfig()) is None


def test_a_deployment_adds_and_replaces_terms_and_the_version_tells():
    own = SafetyConfig(terms={"brand": ("Acme Corp",), "origin": ()})
    assert flagged_by_terms("Buys from ACME corp.", own) == Flag("brand", "term 1")
    assert flagged_by_terms("is a refugee", own) is None and flagged_by_terms("is gay", own) is not None
    assert len({own.version, SafetyConfig().version, SafetyConfig(categories=("hate",)).version}) == 3
