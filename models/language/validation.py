"""Validation of what a model wrote: is it a caption, or something that only looks like one?"""

import collections
import re
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import pydantic

from models.language.words import STOPWORDS, words

if TYPE_CHECKING:
    from models.language.interpretation import Interpretation

REFUSALS = (
    "as a language model",
    "as an ai language model",
    "i am an ai",
    "i'm an ai",
    "i am unable",
    "i'm unable",
    "i am sorry",
    "i'm sorry",
    "i apologize",
    "cannot assist",
    "can't assist",
    "cannot help with",
    "not able to provide",
    "unable to provide",
    "against my guidelines",
    "please provide",
)
# Within a sentence these are quoted, or said of somebody.
_OPENINGS = ("as an ai", "i cannot", "i can't")
_REFUSAL = re.compile(
    rf"^\s*(?:(?:sorry|apologies|unfortunately|i'm afraid|i am afraid)\W+(?:but\W+)?)?({'|'.join(_OPENINGS)})\b"
    rf"|\b({'|'.join(REFUSALS)})\b"
)
_MARKUP = re.compile(
    r"</?item>|<\|[^|]*\|>|```|^\s*(?:title|categories|description|answer|assistant|user|system)\s*:", re.IGNORECASE
)
_CONTROL = re.compile(r"</?item>|<\|[^|]*\|>|```", re.IGNORECASE)
# Above this code point a letter is not of the Latin script.
_LATIN_END = 0x0250
# Sentences have words such as these, and so they tell the languages of one script apart. Left out are those that two
# languages share, and what is in names.
_ENGLISH = STOPWORDS - {"a", "an", "as", "do", "he", "in", "me", "no", "on", "so", "was"}
_FOREIGN = frozenset(
    word
    for line in """
au aus aux avec av che da dans das de dei del della dem der des du e eine einem einen einer el em en es est et ett für
gli het ich il im ist la las le les lo los mit nel och os para più por pour på qui que sobre som su sur und um uma un
una une uno vom von y zijn zum zur è är über
""".splitlines()
    for word in line.split()
)
_FOREIGN_WORDS = 2


class Rules(pydantic.BaseModel, frozen=True):
    """Bounds of a usable caption."""

    min_words: int = pydantic.Field(default=5, description="Fewest words.")
    max_words: int = pydantic.Field(default=40, description="Most words.")
    max_chars: int = pydantic.Field(default=280, description="Most characters.")
    max_word_chars: int = pydantic.Field(default=40, description="Most characters of a subject or a tag.")
    max_text_chars: int = pydantic.Field(default=160, description="Most characters of the text in the image.")
    min_latin_share: float = pydantic.Field(default=0.8, description="Least share of Latin letters; 0: any language.")
    min_letter_share: float = pydantic.Field(
        default=0.6, description="Least share of letters among visible characters."
    )
    max_ngram_repeats: int = pydantic.Field(default=1, description="How often one word trigram may occur.")
    min_distinct_share: float = pydantic.Field(default=0.6, description="Least share of different words.")
    echo_words: int = pydantic.Field(
        default=8, description="So many words in a row out of the prompt are an echo of it."
    )
    allow_cut: bool = pydantic.Field(
        default=False, description="Whether a text that was cut at the token limit is usable."
    )


class Problem(NamedTuple):
    """Why a text is not usable.

    Attributes:
        reason: Reason code.
        detail: One sentence.
    """

    reason: str
    detail: str


def ngrams(items: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` neighbours."""
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def prompt_phrases(texts: Iterable[str], rules: Rules) -> frozenset[tuple[str, ...]]:
    """The word runs of a prompt whose appearance in an answer is an echo."""
    return frozenset(gram for text in texts for gram in ngrams(words(text), rules.echo_words))


def problem(text: str, finish: str, rules: Rules, phrases: frozenset[tuple[str, ...]] = frozenset()) -> Problem | None:
    """Says what is wrong with ``text``, or None.

    Args:
        text: What the model wrote.
        finish: ``stop`` or ``length``.
        rules: Bounds.
        phrases: Word runs of the prompt, see `prompt_phrases`.
    """
    if not text.strip():
        return Problem("empty", "The model wrote nothing.")
    if not _printable(text):
        return Problem("unprintable", "The text holds broken or unprintable characters.")
    found = words(text)
    if refusal := _REFUSAL.search(text.lower().replace("’", "'")):
        return Problem("refusal", f"The text holds the refusal phrase '{refusal[1] or refusal[2]}'.")
    if _MARKUP.search(text):
        return Problem("prompt_echo", "The text holds the prompt's markup.")
    if any(gram in phrases for gram in ngrams(found, rules.echo_words)):
        return Problem("prompt_echo", f"The text repeats {rules.echo_words} words in a row out of the prompt.")
    visible = [c for c in text if not c.isspace()]
    letters = [c for c in visible if unicodedata.category(c).startswith("L")]
    if len(letters) < rules.min_letter_share * len(visible):
        return Problem("not_text", f"Only {len(letters)} of {len(visible)} characters are letters.")
    if sum(ord(c) < _LATIN_END for c in letters) < rules.min_latin_share * len(letters):
        return Problem("language", "The text is not in a Latin script, but the prompt asks for English.")
    if rules.min_latin_share and _is_foreign(set(found)):
        return Problem("language", "The text is in another language, but the prompt asks for English.")
    if (most := max(collections.Counter(ngrams(found, 3)).values(), default=0)) > rules.max_ngram_repeats:
        return Problem("repetition", f"One run of three words occurs {most} times.")
    if found and len(set(found)) < rules.min_distinct_share * len(found):
        return Problem("repetition", f"Only {len(set(found))} of {len(found)} words are different.")
    if finish == "length" and not rules.allow_cut:
        return Problem("cut", "The text was cut at the token limit.")
    if len(found) < rules.min_words:
        return Problem("too_short", f"The text has {len(found)} words, fewer than {rules.min_words}.")
    if len(found) > rules.max_words or len(text) > rules.max_chars:
        return Problem("too_long", f"The text has {len(found)} words and {len(text)} characters.")
    return None


def _is_foreign(found: set[str]) -> bool:
    """Whether these words are a sentence of another language; names alone do not make them one."""
    return len(found & _FOREIGN) >= _FOREIGN_WORDS and found.isdisjoint(_ENGLISH)


def record_problem(
    record: "Interpretation", finish: str, rules: Rules, phrases: frozenset[tuple[str, ...]] = frozenset()
) -> Problem | None:
    """Says what is wrong with an interpretation, or None.

    Args:
        record: What the model says of an item.
        finish: ``stop`` or ``length``.
        rules: Bounds.
        phrases: Word runs of the prompt, see `prompt_phrases`.
    """
    if found := problem(record.caption, finish, rules, phrases):
        return found
    # What an image says is not the model's: any language, any words.
    if not _printable(record.text_in_image) or len(record.text_in_image) > rules.max_text_chars:
        return Problem("unprintable", "The text in the image is too long, or holds broken or unprintable characters.")
    if _CONTROL.search(record.text_in_image):
        return Problem("prompt_echo", "The text in the image holds the prompt's markup.")
    for name in ("subjects", "tags"):
        if found := _words_problem(name, getattr(record, name), rules, phrases):
            return found
    return None


def _words_problem(
    name: str, said: tuple[str, ...], rules: Rules, phrases: frozenset[tuple[str, ...]]
) -> Problem | None:
    for one in said:
        if not words(one) or not _printable(one) or len(one) > rules.max_word_chars:
            return Problem("not_text", f"One of the {name} is empty, too long, or no word.")
        if _CONTROL.search(one):
            return Problem("prompt_echo", f"One of the {name} holds the prompt's markup.")
    # In any language: some are copied from the item, and no repair could change them.
    if any(gram in phrases for gram in ngrams(words(" ".join(said)), rules.echo_words)):
        return Problem("prompt_echo", f"The {name} repeat {rules.echo_words} words in a row out of the prompt.")
    if len({s.casefold() for s in said}) < rules.min_distinct_share * len(said):
        return Problem("repetition", f"The {name} repeat themselves.")
    return None


def _printable(text: str) -> bool:
    return "\ufffd" not in text and all(c.isprintable() for c in text)
