"""What an OpenAI-compatible endpoint answered, whatever it is that it sent."""

import datetime as dt
import email.utils
import json
import math
from typing import Any, NamedTuple

import httpx

from models.language.interpretation import storable
from ray_jobs.language.engine import Call

# Only where an endpoint does not count.
CHARS_PER_TOKEN = 4
# No request has so many; a count above it is not believed.
MOST_TOKENS = 1 << 26
# How a request ended.
ANSWERED, REFUSED, BROKE, UNREACHABLE = "answered", "refused", "broke", "unreachable"


class Reply(NamedTuple):
    """What became of a request.

    Attributes:
        outcome: ``answered``; ``refused``: the prompt is at fault; ``broke``: the endpoint failed on it in every
            attempt; ``unreachable``: there was no answer.
        text: The answer, or one sentence why there is none.
        finish: ``stop``, ``length``, or ``refusal`` where the model said it would not answer.
        calls: Every request that was made, the failed ones first.
    """

    outcome: str
    text: str
    finish: str
    calls: tuple[Call, ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, of all calls."""
        return sum(call.prompt_tokens for call in self.calls)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated in all calls."""
        return sum(call.completion_tokens for call in self.calls)


def read_answer(raw: bytes, messages: list[dict[str, Any]], seconds: float) -> tuple[Reply | None, Call]:
    """The answer of a chat completion, None if it is none; and the call, as the endpoint counted it."""
    try:
        body = json.loads(raw)
        usage = _usage(body)
    except (ValueError, RecursionError):
        return None, Call("garbage", seconds=seconds)
    billed = usage._replace(seconds=seconds)
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal") or ""
        finish = choice.get("finish_reason") or "stop"
    except (LookupError, TypeError, AttributeError):
        return None, billed._replace(outcome="garbage")
    if not isinstance(text, str) or not isinstance(refusal, str):
        return None, billed._replace(outcome="garbage")
    text, refusal = storable(text), storable(refusal)
    if not usage.prompt_tokens:
        said = sum(len(part) for message in messages for part in _texts(message))
        billed = billed._replace(
            prompt_tokens=said // CHARS_PER_TOKEN, completion_tokens=-(-len(text or refusal) // CHARS_PER_TOKEN)
        )
    if finish == "content_filter":
        return Reply(REFUSED, "The endpoint's content filter refused the prompt.", "", ()), billed._replace(
            outcome="content_filter"
        )
    if refusal and not text.strip():
        return Reply(ANSWERED, refusal, "refusal", ()), billed._replace(outcome="refusal")
    return Reply(ANSWERED, text, "length" if finish == "length" else "stop", ()), billed


def _usage(body: Any) -> Call:
    """A call with the tokens that the endpoint counted, as far as it did."""
    usage = body.get("usage") if isinstance(body, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    details = details if isinstance(details, dict) else {}
    return Call(
        "ok",
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _count(details.get("image_tokens")),
        _count(details.get("cached_tokens")),
    )


def _count(said: Any) -> int:
    """A number of tokens, whatever an endpoint puts there; sums of them fit into columns of 32 bits."""
    known = isinstance(said, int) or (isinstance(said, float) and math.isfinite(said))
    return min(max(int(said), 0), MOST_TOKENS) if known and not isinstance(said, bool) else 0


def _texts(message: dict[str, Any]) -> list[str]:
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that the endpoint asks to wait, from a number or a date."""
    said = headers.get("retry-after", "").strip()
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            when = email.utils.parsedate_to_datetime(said)
        except (ValueError, OverflowError):
            return None
        # A date without a zone is of Greenwich, as all dates of HTTP are.
        when = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
        seconds = (when - dt.datetime.now(dt.UTC)).total_seconds()
    return None if math.isnan(seconds) else max(seconds, 0.0)
