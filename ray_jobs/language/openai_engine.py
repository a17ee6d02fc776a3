"""The engine behind an OpenAI-compatible endpoint."""

import json
from collections.abc import Sequence
from typing import Any

from ray_jobs.language.endpoint import Endpoint, Request, chat, json_schema_format
from ray_jobs.language.engine import ChoiceError, Completion, LanguageEngineConfig, Message, Usage
from ray_jobs.language.replies import ANSWERED, Reply

CHOICE_TOKENS = 64
FREQUENCY_PENALTY = 0.3


class OpenAIEngine:
    """See `LanguageEngine`.

    Args:
        config: Endpoint, model and limits. The key is read from the environment variable that it names.
    """

    def __init__(self, config: LanguageEngineConfig):
        self.config = config
        self.endpoint = Endpoint(config)
        self.usage = Usage()

    def complete(
        self,
        shared: list[Message],
        users: list[str],
        max_new_tokens: int,
        stop: str | None = "\n",
        no_repeat_ngram: int = 0,
        schemas: Sequence[dict[str, Any]] = (),
    ) -> list[Completion]:
        """See `LanguageEngine.complete`."""
        limits: dict[str, Any] = {"max_tokens": max_new_tokens}
        if stop:
            limits["stop"] = [stop]
        if no_repeat_ngram:
            limits["frequency_penalty"] = FREQUENCY_PENALTY
        forms = [json_schema_format("answer", s) for s in schemas] or [{}] * len(users)
        return [
            Completion(reply.text.strip(), reply.prompt_tokens, reply.completion_tokens, _finish(reply))
            if reply.outcome == ANSWERED
            else Completion("", 0, 0, "error", reply.text)
            for reply in self._ask([Request(chat(shared, u), limits | f) for u, f in zip(users, forms, strict=True)])
        ]

    def choose(
        self, shared: list[Message], users: list[str], options: list[list[str]], neutral: str | None = None
    ) -> list[int]:
        """See `LanguageEngine.choose`.

        Asks under a schema, and once more in plain words where the answer is none of the options.
        """
        chosen: list[int | None] = [None] * len(users)
        reasons = {row: "The prompt has no options." for row, wanted in enumerate(options) if not wanted}
        rows = [row for row in range(len(users)) if row not in reasons]
        for plain in (False, True):
            asked = [
                Request(
                    chat(
                        shared if plain else _in_schema(shared),
                        users[r] + (_plain_request(options[r]) if plain else ""),
                    ),
                    {"max_tokens": CHOICE_TOKENS}
                    | ({} if plain else json_schema_format("choice", _schema(options[r]))),
                )
                for r in rows
            ]
            still_open = []
            # Not every endpoint knows schemas: whether it answers at all shows in plain words.
            for row, reply in zip(rows, self._ask(asked, whose_fault=plain), strict=True):
                answered = reply.outcome == ANSWERED
                found = _option(_unwrapped(reply.text), options[row]) if answered else -1
                if found >= 0:
                    chosen[row] = found
                    continue
                still_open.append(row)
                reasons[row] = (
                    f"The model answered '{reply.text.strip()[:60]}', none of its {len(options[row])} options."
                    if answered
                    else reply.text
                )
            rows = still_open
            if not rows:
                break
        if failed := {row: why for row, why in reasons.items() if chosen[row] is None}:
            raise ChoiceError(chosen, failed)
        return [c for c in chosen if c is not None]

    def _ask(self, requests: list[Request], whose_fault: bool = True) -> list[Reply]:
        replies = self.endpoint.ask_all(requests)
        if whose_fault:
            replies = self.endpoint.blame(requests, replies)
        self.usage = self.usage.plus(
            Usage(
                sum(reply.outcome == ANSWERED for reply in replies),
                sum(reply.prompt_tokens for reply in replies),
                sum(reply.completion_tokens for reply in replies),
            )
        )
        return replies


def _finish(reply: Reply) -> str:
    # A refusal is text, which validation knows.
    return "length" if reply.finish == "length" else "stop"


def _schema(options: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(dict.fromkeys(options))}},
        "required": ["choice"],
        "additionalProperties": False,
    }


def _in_schema(shared: Sequence[Message]) -> list[Message]:
    """The messages with the examples' answers in the form that the schema asks for."""
    return [
        m._replace(content=json.dumps({"choice": m.content.rpartition("|")[2].strip()})) if m.role == "assistant" else m
        for m in shared
    ]


def _plain_request(options: Sequence[str]) -> str:
    return f"\nAnswer with exactly one of these and nothing else: {'; '.join(options)}"


def _unwrapped(text: str) -> str:
    """The choice within JSON, or the text as it is."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(found.get("choice", "")) if isinstance(found, dict) else str(found)


def _option(text: str, options: Sequence[str]) -> int:
    """Index of the option that ``text`` names, however it is quoted; -1 if it is none."""
    said = text.strip().strip("\"'`.*").strip().casefold()
    return next((i for i, option in enumerate(options) if option.casefold() == said), -1)
