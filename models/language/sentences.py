"""What a usable sentence about some items is: rules that small models break in known ways, each with a reason code."""

import re
from collections.abc import Collection
from typing import NamedTuple

MIN_WORDS, MAX_WORDS = 4, 30
NGRAM = 3
ECHO_WORDS = 6
REFUSALS = ("as an ai", "i cannot", "i can't", "i'm sorry", "i am sorry", "i'm unable", "language model")
# Words that say nothing about a topic, although labels and titles are full of them.
EMPTY_WORDS = frozenset(
    (
        "a",
        "an",
        "and",
        "at",
        "by",
        "for",
        "from",
        "i",
        "in",
        "is",
        "it",
        "like",
        "likes",
        "my",
        "not",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
        "you",
        "your",
    )
)


class Problem(NamedTuple):
    """Why a text is not usable.

    Attributes:
        reason: Reason code.
        detail: One sentence.
    """

    reason: str
    detail: str


def words_of(text: str) -> list[str]:
    """Words in lower case, with digits, apostrophes and hyphens."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


def _ngrams(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]


def _repeated(words: list[str]) -> str | None:
    """What a sentence says twice: an n-gram, a word beside itself (`heroes and heroes`), or a word three times."""
    grams = _ngrams(words, NGRAM)
    if len(grams) > len(set(grams)):
        return " ".join(next(g for g in grams if grams.count(g) > 1))
    telling = [w for w in words if w not in EMPTY_WORDS]
    beside = next((a for a, b in zip(telling, telling[1:], strict=False) if a == b), None)
    return beside or next((w for w in telling if telling.count(w) > 2), None)


def find_problem(
    text: str, *, terms: Collection[str], prompt: Collection[str] = (), truncated: bool = False
) -> Problem | None:
    """The first rule that a sentence about an interest breaks, or None.

    Args:
        text: What the model wrote.
        terms: Label and titles of the interest: the sentence must name a word of them, and no other name.
        prompt: Instructions and examples that it may not repeat.
        truncated: Whether the answer was cut at the token limit.
    """
    words = words_of(text)
    if truncated and not text.rstrip().endswith((".", "!", "?")):
        return Problem("truncated", "The answer was cut at the token limit, in the middle of a sentence.")
    if len(words) < MIN_WORDS:
        return Problem("too_short", f"{len(words)} words; {MIN_WORDS} are wanted.")
    if len(words) > MAX_WORDS:
        return Problem("too_long", f"{len(words)} words; at most {MAX_WORDS} are wanted.")
    lowered = text.lower()
    if said := next((r for r in REFUSALS if r in lowered), None):
        return Problem("refusal", f"It says {said!r}.")
    if said := _repeated(words):
        return Problem("repetition", f"It repeats {said!r}.")
    if re.search(r"[<>|;:{}\[\]]", text) or text.count("(") != text.count(")"):
        return Problem("malformed", "It holds markup, a list, or a bracket that is not closed.")
    own = set(_ngrams(words, ECHO_WORDS))
    if any(own & set(_ngrams(words_of(part), ECHO_WORDS)) for part in prompt):
        return Problem("echo", "It repeats the prompt instead of describing the interest.")
    known = {w for term in terms for w in words_of(term)}
    names = [w for w in re.findall(r"[^\W\d_][^\s]*", text)[1:] if w[0].isupper()]
    if strange := next((n for n in names if not set(words_of(n)) <= known), None):
        return Problem("foreign_name", f"It names {strange!r}, which is not in the user's evidence.")
    if not (known - EMPTY_WORDS) & set(words):
        return Problem("off_topic", "It names nothing of the interest.")
    return None
