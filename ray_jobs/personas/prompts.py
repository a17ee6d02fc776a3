"""Personas as prompts: what of a user the model sees, in which words, and how its answers become one text.

The model gets one small task at a time: a sentence for one interest, a choice of one topic. Asked for a whole persona
at once, SmolLM2-135M invents titles; with one interest a call it does not, and what it names is checked.
"""

import functools
from typing import Any

import pydantic

from models.language.labels import plain, topic
from models.language.sentences import Problem, find_problem
from ray_jobs.language.engine import Completion, Message
from ray_jobs.prompts import load_prompt, prompt_digest

TEXT, EXPLORATION = "persona_text", "persona_exploration"
# Reason of a dead letter that no answer stands behind.
NEVER_ANSWERED = "prompt_refused"
TITLES_IN_TEXT = 2
# English; what is not ASCII a tokenizer of English splits into bytes.
CHARACTERS_PER_TOKEN = 3.4
# So many sentences more than interests: SmolLM2 is asked a second time for one in nine.
REPAIRED_SHARE = 0.125


class Interest(pydantic.BaseModel, frozen=True):
    """An interest as the prompt needs it."""

    cluster: int
    label: str
    titles: list[str]


class Anchor(pydantic.BaseModel, frozen=True):
    """An interest next to which something new is looked for, and what may be chosen."""

    cluster: int
    label: str
    candidates: list[int]
    candidate_labels: list[str]


class Request(pydantic.BaseModel, frozen=True):
    """Everything of one user that decides the persona."""

    interests: list[Interest]
    anchors: list[Anchor]


def prompts_digest() -> str:
    """Digest of both prompts: any changed character changes it."""
    return f"{prompt_digest(TEXT)}-{prompt_digest(EXPLORATION)}"


@functools.cache
def interest_messages(repair: bool = False) -> tuple[Message, ...]:
    """Instruction and examples for the sentence about an interest; with ``repair`` for the second try."""
    said: dict[str, Any] = load_prompt(TEXT)["text"]
    messages = [Message("system", said["repair_system"] if repair else said["system"])]
    for example in said["examples"]:
        shown = Interest(cluster=0, label=example["topic"], titles=example["titles"])
        messages += [Message("user", ask_interest(shown, repair=repair)), Message("assistant", example["answer"])]
    return tuple(messages)


@functools.cache
def choice_messages() -> tuple[Message, ...]:
    """Instruction and examples for the choice of a new topic."""
    said: dict[str, Any] = load_prompt(EXPLORATION)["choice"]
    messages = [Message("system", said["system"])]
    for example in said["examples"]:
        messages += [Message("user", example["person"].strip()), Message("assistant", example["answer"])]
    return tuple(messages)


def neutral_person() -> str:
    """The user message without a user, by which choices are calibrated."""
    return str(load_prompt(EXPLORATION)["choice"]["neutral"]).strip()


def ask_interest(interest: Interest, *, repair: bool = False) -> str:
    """The user message that asks for a sentence about an interest.

    The second try leaves the titles out: foreign or long ones are what leads a small model astray.
    """
    titles = "" if repair else f"\ntitles: {'; '.join(map(plain, interest.titles))}"
    return f"<interest>\ntopic: {topic(interest.label)}{titles}\n</interest>"


def ask_choice(request: Request, anchor: Anchor, options: list[str]) -> str:
    """The user message that asks for one of ``options`` next to an interest."""
    liked = ", ".join(topic(i.label) for i in request.interests)
    return (
        f"<person>\nlikes {liked}\nwants something close to {topic(anchor.label)}\n"
        f"topics: {'; '.join(map(plain, options))}\n</person>"
    )


def problem_of(completion: Completion, interest: Interest) -> Problem | None:
    """Why an answer is not usable as the sentence about an interest, or None."""
    if completion.finish == "error":
        return Problem(NEVER_ANSWERED, completion.error)
    told = [m.content for repair in (False, True) for m in interest_messages(repair) if m.role != "user"]
    return find_problem(
        completion.text, terms=[interest.label, *interest.titles], prompt=told, truncated=completion.finish == "length"
    )


def compose(sentences: list[tuple[Interest, str]], explored: list[str]) -> str:
    """The persona: a sentence for each interest with titles from the history, then what is new.

    Args:
        sentences: Interests with the model's sentences, the strongest first.
        explored: Labels that the model chose.
    """
    parts = []
    for interest, sentence in sentences:
        # A catalogue may have one title twice.
        named = [plain(t) for t in dict.fromkeys(interest.titles) if t.lower() not in sentence.lower()][:TITLES_IN_TEXT]
        body = sentence.rstrip(" .!?")
        parts.append(f"{body}, for example {' and '.join(named)}." if named else f"{body}.")
    if explored:
        parts.append(f"New and close to that: {'; '.join(topic(label) for label in explored)}.")
    return " ".join(parts)


def estimated_tokens(request: Request, max_new_tokens: int) -> int:
    """About how many tokens a user costs, shared messages and second tries included: what the budget is cut by."""
    text = sum(count_tokens(m.content) for m in interest_messages())
    choice = sum(count_tokens(m.content) for m in choice_messages())
    sentences = sum(text + count_tokens(ask_interest(i)) + max_new_tokens for i in request.interests)
    choices = sum(choice + count_tokens(ask_choice(request, a, a.candidate_labels)) for a in request.anchors)
    return int((1 + REPAIRED_SHARE) * sentences + choices)


def count_tokens(text: str) -> float:
    """About how many tokens a text has."""
    plain_bytes = len(text.encode("ascii", "ignore"))
    return plain_bytes / CHARACTERS_PER_TOKEN + len(text.encode()) - plain_bytes
