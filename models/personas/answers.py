"""The student's one answer: claims with the numbers of the items that show them, and new topics."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from models.language.sentences import Problem

MAX_CHARACTERS = 160
ITEMS, TEXT = "items", "text"


class Claim(NamedTuple):
    """A sentence about one interest.

    Attributes:
        items: Numbers of the items that it cites, from 1.
        text: The sentence.
    """

    items: tuple[int, ...]
    text: str


class Answer(NamedTuple):
    """Both tasks of one user.

    Attributes:
        claims: One an interest, the strongest first.
        topics: For each anchor the place of the chosen topic among its topics.
    """

    claims: tuple[Claim, ...]
    topics: tuple[int, ...]


def answer_schema(items: Sequence[Sequence[int]], topics: Sequence[Sequence[str]]) -> dict[str, Any]:
    """JSON schema of an answer. Each claim and choice has a key of its own, so that their counts are held, too.

    A claim may cite the items of its own interest only, as the prompt lists them: the teacher sees no others.

    Args:
        items: Numbers of the items of each interest that is asked for, in the order of the prompt.
        topics: Topics that may be chosen next to each anchor.
    """
    said: dict[str, Any] = {_likes(n): _claim(numbers) for n, numbers in enumerate(items)}
    said |= {_new(n): {"type": "string", "enum": list(dict.fromkeys(wanted))} for n, wanted in enumerate(topics)}
    return {"type": "object", "properties": said, "required": list(said), "additionalProperties": False}


def write_answer(answer: Answer, topics: Sequence[Sequence[str]]) -> str:
    """The answer as the student is taught to write it: under the schema, on one line."""
    said: dict[str, Any] = {
        _likes(n): {ITEMS: list(claim.items), TEXT: claim.text} for n, claim in enumerate(answer.claims)
    }
    said |= {_new(n): topics[n][chosen] for n, chosen in enumerate(answer.topics)}
    return json.dumps(said, ensure_ascii=False)


def parse_answer(text: str, num_items: int, num_claims: int, topics: Sequence[Sequence[str]]) -> Answer | Problem:
    """Reads an answer strictly, whether or not decoding held it to the schema.

    Args:
        text: What the student wrote.
        num_items: Items of the prompt.
        num_claims: Interests that are asked for.
        topics: As of `answer_schema`.

    Returns:
        The answer, or the first way in which it is not what was asked for.
    """
    try:
        # Grammars of decoders let control characters through, which a strict parser refuses.
        said = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return Problem("not_json", "The answer is not JSON.")
    wanted = [*map(_likes, range(num_claims)), *map(_new, range(len(topics)))]
    if not isinstance(said, dict) or sorted(said) != sorted(wanted):
        return Problem("wrong_counts", f"The answer has not exactly the parts {', '.join(wanted)}.")
    claims = []
    for key in wanted[:num_claims]:
        part = said[key]
        if not isinstance(part, dict) or set(part) != {ITEMS, TEXT} or not isinstance(part[TEXT], str):
            return Problem("wrong_form", f"The part {key} is not a list of items and a text.")
        items = part[ITEMS]
        if not isinstance(items, list) or not all(type(i) is int for i in items) or not items:
            return Problem("no_evidence", f"The part {key} cites no items.")
        if not all(1 <= i <= num_items for i in items):
            return Problem("unknown_item", f"The part {key} cites an item that is not in the prompt.")
        claims.append(Claim(tuple(dict.fromkeys(items)), " ".join(part[TEXT].split())))
    chosen = []
    for key, options in zip(wanted[num_claims:], topics, strict=True):
        if said[key] not in options:
            return Problem("unknown_topic", f"The part {key} is none of the topics that it may be.")
        chosen.append(list(options).index(said[key]))
    return Answer(tuple(claims), tuple(chosen))


def _claim(numbers: Sequence[int]) -> dict[str, Any]:
    cited = {"type": "integer", "enum": list(numbers)}
    return {
        "type": "object",
        "properties": {
            ITEMS: {"type": "array", "items": cited, "minItems": 1, "maxItems": len(numbers)},
            TEXT: {"type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS},
        },
        "required": [ITEMS, TEXT],
        "additionalProperties": False,
    }


def _likes(n: int) -> str:
    return f"likes_{n + 1}"


def _new(n: int) -> str:
    return f"new_{n + 1}"
