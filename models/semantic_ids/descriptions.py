"""A cluster's name and sentence: what a model's answer must be to be used, and what stands where none is usable."""

import re
from collections.abc import Collection
from typing import NamedTuple

from models.language.sentences import EMPTY_WORDS, Problem, find_problem, words_of

MODEL, TERMS = "model", "terms"
MAX_NAME_WORDS = 5
MIN_OWN_WORDS = 2
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
    """Name and first sentence of an answer ``Name: sentence``; an empty name where it has none."""
    name, separator, said = answer.partition(SEPARATOR)
    sentence = re.split(r"(?<=[.!?])\s", (said if separator else answer).strip(), maxsplit=1)[0]
    return (name.strip(" *\"'") if separator else "", sentence)


def problem_of(
    answer: str,
    *,
    terms: Collection[str],
    titles: Collection[str],
    prompt: Collection[str],
    siblings: Collection[Description],
    truncated: bool,
) -> Problem | None:
    """The first rule that an answer breaks, or None.

    Args:
        answer: What the model wrote.
        terms: Label, titles and captions of the cluster: what it may name, and all that the name is made of.
        titles: The titles alone: a sentence says more than they do.
        prompt: Instructions and examples that it may not repeat.
        siblings: Descriptions that are taken.
        truncated: Whether the answer was cut at the token limit.
    """
    name, sentence = parsed(answer)
    words = words_of(name)
    if not 1 <= len(words) <= MAX_NAME_WORDS or re.search(r"[<>|;{}\[\]]", name):
        return Problem("no_name", f"It starts with no name of at most {MAX_NAME_WORDS} words and a colon.")
    known = {w for term in terms for w in words_of(term)} | EMPTY_WORDS
    if strange := next((w for w in words if not {w, w.removesuffix("s"), f"{w}s"} & known), None):
        return Problem("foreign_name", f"The name {name!r} has {strange!r}, which is not in the cluster.")
    named = {w for title in titles for w in words_of(title)}
    if len([w for w in words_of(sentence) if w not in named | EMPTY_WORDS]) < MIN_OWN_WORDS:
        return Problem("titles_only", "The sentence says little beside titles.")
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
