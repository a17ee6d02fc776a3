"""A cluster's name and sentence: what a model's answer must be to be used, and what stands where none is usable."""

import re
from collections.abc import Collection
from typing import NamedTuple

from models.personas.validation import EMPTY_WORDS, Problem, find_problem, words_of

MODEL, TERMS = "model", "terms"
MAX_NAME_WORDS = 5
SEPARATOR = ":"


class Description(NamedTuple):
    """What a cluster is called.

    Attributes:
        name: A few words, unlike those of every other cluster.
        sentence: One sentence, unlike those of every other cluster.
        written_by: `model`, or `terms` where no answer was usable: the label, and a sentence of it and of titles.
    """

    name: str
    sentence: str
    written_by: str


def parsed(answer: str) -> tuple[str, str]:
    """Name and sentence of an answer ``Name: sentence``; an empty name where it has none."""
    name, separator, sentence = answer.partition(SEPARATOR)
    return (name.strip(" *\"'"), sentence.strip()) if separator else ("", answer.strip())


def problem_of(
    answer: str, *, terms: Collection[str], prompt: Collection[str], siblings: Collection[Description], truncated: bool
) -> Problem | None:
    """The first rule that an answer breaks, or None.

    Args:
        answer: What the model wrote.
        terms: Label, titles and captions of the cluster: what it may name.
        prompt: Instructions and examples that it may not repeat.
        siblings: Descriptions that are taken.
        truncated: Whether the answer was cut at the token limit.
    """
    name, sentence = parsed(answer)
    words = words_of(name)
    if not 1 <= len(words) <= MAX_NAME_WORDS or re.search(r"[<>|;{}\[\]]", name):
        return Problem("no_name", f"It starts with no name of at most {MAX_NAME_WORDS} words and a colon.")
    known = {w for term in terms for w in words_of(term)} - EMPTY_WORDS
    if not known & {w for word in words for w in (word, word.removesuffix("s"), f"{word}s")}:
        return Problem("foreign_name", f"The name {name!r} has nothing of the cluster.")
    if found := find_problem(sentence, terms=[*terms, name], prompt=prompt, truncated=truncated):
        return found
    if any(name.lower() == s.name.lower() for s in siblings):
        return Problem("taken_name", f"Another cluster is called {name!r}.")
    if any(words_of(sentence) == words_of(s.sentence) for s in siblings):
        return Problem("taken_sentence", "Another cluster is described alike.")
    return None


def of_terms(label: str, titles: list[str], siblings: Collection[Description]) -> Description:
    """The description that needs no model: the label, and which items stand in the middle.

    Args:
        label: The cluster's label, unlike all other labels.
        titles: Items nearest to its centroid.
        siblings: Descriptions that are taken.
    """
    name = label if all(label.lower() != s.name.lower() for s in siblings) else f"{label} ({titles[0]})"
    shown = " and ".join(dict.fromkeys(titles[:2]))
    return Description(name, f"{label[:1].upper()}{label[1:]}, such as {shown}.", TERMS)
