"""Which texts about a person are shown to nobody: unsafe topics, and guesses that no one may make about a person.

Terms are matched as whole words after Unicode folding. A list of terms finds what it lists: a deployment adds its own,
and a classifier beside it.
"""

import dataclasses
import unicodedata
from typing import NamedTuple

from models.identity import version_of
from models.language.sentences import words_of

# Phrases, because single words ("war", "nazi", "suicide") are what titles of films and books are about.
DEFAULT_TERMS: dict[str, tuple[str, ...]] = {
    "self_harm": ("kill yourself", "kill themselves", "wants to die", "commit suicide", "self-harm", "cut themselves"),
    "sexual_minors": ("sexual children", "sexual minors", "child porn", "child pornography", "underage sex"),
    "violence": ("how to kill", "wants to kill", "build a bomb", "make a bomb", "mass shooting"),
    "hate": ("racial slur", "inferior race", "white supremacy", "ethnic cleansing is"),
    "health": ("has cancer", "has depression", "is depressed", "is an addict", "is pregnant", "mental illness of"),
    "orientation": ("is gay", "is lesbian", "is bisexual", "is homosexual", "is transgender"),
    "belief": ("is jewish", "is a jew", "is muslim", "is a muslim", "is a christian", "is hindu", "votes for"),
    "origin": ("is an immigrant", "is a refugee", "ethnic origin", "racial origin"),
}


class Flag(NamedTuple):
    """Why a text is unsafe.

    Attributes:
        category: The category.
        rule: ``term <number>`` of the category's list, or ``classifier``; never the text itself.
    """

    category: str
    rule: str


@dataclasses.dataclass(frozen=True)
class SafetyConfig:
    """What is unsafe.

    Attributes:
        terms: Terms by category; they replace the default ones where they name the same category.
        categories: What a classifier may flag, beside ``safe``; empty: no classifier is asked.
    """

    terms: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    categories: tuple[str, ...] = ()

    @property
    def all_terms(self) -> dict[str, tuple[str, ...]]:
        """The terms in force, by category."""
        return DEFAULT_TERMS | self.terms

    @property
    def version(self) -> str:
        """Identity of the filter without its classifier's model."""
        return version_of(terms=self.all_terms, categories=self.categories)


def _words(text: str) -> list[str]:
    return words_of(unicodedata.normalize("NFKC", text).replace("’", "'"))


def flagged_by_terms(text: str, config: SafetyConfig) -> Flag | None:
    """The first category whose terms a text contains, or None.

    Args:
        text: What would be shown.
        config: The filter.
    """
    said = f" {' '.join(_words(text))} "
    for category, terms in config.all_terms.items():
        for number, term in enumerate(terms, start=1):
            words = _words(term)
            if words and f" {' '.join(words)} " in said:
                return Flag(category, f"term {number}")
    return None
