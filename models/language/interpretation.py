"""The typed record of an interpretation: what a model says of an item, its JSON schema, and how text becomes one."""

import json
from typing import Any

import pydantic

from models.language.validation import Problem

CAPTION_CHARS, WORD_CHARS, TEXT_CHARS = 280, 40, 160
MAX_SUBJECTS, MAX_TAGS = 6, 12


def storable(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which JSON can escape but no file or table takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Vocabulary(pydantic.BaseModel, frozen=True):
    """What a prompt lets the model choose from: one word each."""

    styles: tuple[str, ...] = pydantic.Field(description="How the item is made or presented.")
    settings: tuple[str, ...] = pydantic.Field(description="Where or when it takes place or is used.")
    moods: tuple[str, ...] = pydantic.Field(description="How it feels.")


class Interpretation(pydantic.BaseModel, frozen=True):
    """What a model says of an item."""

    caption: str = pydantic.Field(description="One sentence.")
    subjects: tuple[str, ...] = pydantic.Field(description="What it shows or is about, most important first.")
    style: str = pydantic.Field(description="One of the prompt's styles.")
    setting: str = pydantic.Field(description="One of the prompt's settings.")
    mood: str = pydantic.Field(description="One of the prompt's moods.")
    text_in_image: str = pydantic.Field(description="Text that can be read in the image; empty if none.")
    tags: tuple[str, ...] = pydantic.Field(description="Content words, most telling first.")

    @pydantic.field_validator("*")
    @classmethod
    def _storable(cls, said: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return storable(said) if isinstance(said, str) else tuple(storable(one) for one in said)


def json_schema(vocabulary: Vocabulary) -> dict[str, Any]:
    """JSON schema of an `Interpretation` under ``vocabulary``: what decoding is held to.

    Lengths are bounded, so that whatever is decoded under the schema ends.
    """

    def texts(most: int) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string", "maxLength": WORD_CHARS}, "maxItems": most}

    return {
        "type": "object",
        "properties": {
            "caption": {"type": "string", "maxLength": CAPTION_CHARS},
            "subjects": texts(MAX_SUBJECTS),
            "style": {"type": "string", "enum": list(vocabulary.styles)},
            "setting": {"type": "string", "enum": list(vocabulary.settings)},
            "mood": {"type": "string", "enum": list(vocabulary.moods)},
            "text_in_image": {"type": "string", "maxLength": TEXT_CHARS},
            "tags": texts(MAX_TAGS),
        },
        "required": ["caption", "subjects", "style", "setting", "mood", "text_in_image", "tags"],
        "additionalProperties": False,
    }


def parse(text: str, vocabulary: Vocabulary) -> Interpretation | Problem:
    """Takes an answer apart.

    Args:
        text: JSON under `json_schema`, maybe within a Markdown fence.
        vocabulary: What the choices must be one of.

    Returns:
        The record, or why it is none.
    """
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        # A grammar lets raw control characters into strings; validation tells them apart.
        found = Interpretation.model_validate(json.loads(bare, strict=False))
    except (ValueError, RecursionError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, pydantic.ValidationError) else str(error)
        return Problem("schema", f"The answer is not the JSON that was asked for: {first}.")
    for name, allowed in (
        ("style", vocabulary.styles),
        ("setting", vocabulary.settings),
        ("mood", vocabulary.moods),
    ):
        if getattr(found, name) not in allowed:
            return Problem(
                "schema", f"The answer's {name} '{getattr(found, name)[:WORD_CHARS]}' is none of the prompt's."
            )
    # Not every endpoint keeps to the schema, and a grammar counts broken characters in another way.
    for name, most, chars in (
        ("caption", 1, CAPTION_CHARS),
        ("text_in_image", 1, TEXT_CHARS),
        ("subjects", MAX_SUBJECTS, WORD_CHARS),
        ("tags", MAX_TAGS, WORD_CHARS),
    ):
        said = getattr(found, name)
        texts = [said] if isinstance(said, str) else said
        if len(texts) > most or any(len(text) > chars for text in texts):
            return Problem("schema", f"The answer's {name} is longer than was asked for.")
    return found
