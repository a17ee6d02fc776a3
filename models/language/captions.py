"""The form of a caption: the evidence that a model is shown, the messages around it, and the tags that come out."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from models.language.words import content_words

TITLE_CHARS, DESCRIPTION_CHARS, CATEGORY_CHARS, ATTRIBUTE_CHARS = 120, 400, 40, 40
MAX_CATEGORIES, MAX_ATTRIBUTES, MAX_TAGS = 8, 6, 12
OPEN, CLOSE = "<item>", "</item>"
# So many times the limit of a text are looked at: the rest of a very long one cannot be shown anyway.
READ_AHEAD = 16
_KEY = re.compile(r"[^0-9a-zA-Z_ -]")


class Item(NamedTuple):
    """What is known of an item.

    Attributes:
        title: Title.
        description: Longer text or None.
        categories: Categories, maybe none.
        attributes: Other columns of the source as a JSON object.
    """

    title: str
    description: str | None
    categories: Sequence[str]
    attributes: str


def clean(text: str, limit: int) -> str:
    """One line of printable text of at most ``limit`` characters.

    Without angle brackets it can neither close the fence nor hold a chat model's control token (``<|im_end|>``), which
    an endpoint would take for one.
    """
    text = unicodedata.normalize("NFKC", text[: READ_AHEAD * limit])
    if not text.isprintable() or "<" in text or ">" in text:
        text = "".join(" " if c in "<>" or not c.isprintable() else c for c in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]


def shown_categories(categories: Sequence[str]) -> list[str]:
    """The categories that the model is shown, in their order, without repeats."""
    return list(dict.fromkeys(c for c in (clean(c, CATEGORY_CHARS) for c in categories) if c))[:MAX_CATEGORIES]


def _shown_attributes(attributes: str) -> list[str]:
    known: Any = json.loads(attributes or "{}")
    lines = []
    for key in sorted(known) if isinstance(known, Mapping) else []:
        value = known[key]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text, name = clean(str(value), 10_000), clean(_KEY.sub(" ", str(key)), ATTRIBUTE_CHARS)
        # Long texts and addresses say nothing that a caption could use.
        if text and name and len(text) <= ATTRIBUTE_CHARS and "://" not in text:
            lines.append(f"{name}: {text}")
    return lines[:MAX_ATTRIBUTES]


def evidence(item: Item) -> str:
    """Returns what the model is shown of ``item``: fenced, cleaned and capped, in a fixed order."""
    lines = [f"title: {clean(item.title, TITLE_CHARS)}"]
    if description := clean(item.description or "", DESCRIPTION_CHARS):
        lines.append(f"description: {description}")
    if categories := shown_categories(item.categories):
        lines.append(f"categories: {', '.join(categories)}")
    return "\n".join([OPEN, *lines, *_shown_attributes(item.attributes), CLOSE])


def tags(caption: str, categories: Sequence[str]) -> list[str]:
    """Content words of the categories, then of the caption, without repeats."""
    words = [*content_words(", ".join(shown_categories(categories))), *content_words(caption)]
    return list(dict.fromkeys(words))[:MAX_TAGS]
