"""The client of an OpenAI-compatible endpoint (vLLM, xLLM, SGLang, llama.cpp): many requests in flight, one pool.

Whatever an endpoint answers becomes a `Reply`; every request that was made is a `Call`, the failed ones, too.
"""

import asyncio
import datetime as dt
import email.utils
import json
import math
import os
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx

from ray_jobs.language.engine import Call, EngineSetupError, EngineUnavailableError, LanguageEngineConfig, Message

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
# Whoever asks to wait longer is not going to serve this run.
LONGEST_WAIT = 300.0
# A reply that is no answer was computed, and is charged, all the same: it is not asked for again and again.
PAID_RETRIES = 1
# Only where an endpoint does not count.
CHARS_PER_TOKEN = 4
# The largest answer: what is not text of it, and each of its tokens, of which each takes six characters when escaped.
BODY_BYTES, TOKEN_BYTES = 1 << 17, 64
TRIVIAL = "Say yes."
# How a request ended.
ANSWERED, REFUSED, BROKE, UNREACHABLE = "answered", "refused", "broke", "unreachable"


class Request(NamedTuple):
    """One chat completion to ask for.

    Attributes:
        messages: Messages as the endpoint takes them.
        limits: What else is in the body; ``max_tokens`` must be.
    """

    messages: list[dict[str, Any]]
    limits: dict[str, Any]


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


class Endpoint:
    """A client with one pool of connections.

    Args:
        config: Endpoint, model and limits. The key is read from the environment variable that it names.

    Raises:
        EngineSetupError: If the config names no endpoint.
    """

    def __init__(self, config: LanguageEngineConfig):
        if not config.base_url.startswith(("http://", "https://")):
            raise EngineSetupError(f"'{config.base_url}' is no endpoint: set BELVEDERE_LLM_BASE_URL to http://host/v1.")
        self.config = config
        self.url = f"{config.base_url.rstrip('/')}/chat/completions"
        self.jitter = random.Random(0)
        # One event loop for all batches, as connections belong to the loop that opened them.
        self.runner = asyncio.Runner()
        self.client: httpx.AsyncClient | None = None

    def ask_all(self, requests: Sequence[Request]) -> list[Reply]:
        """Sends all requests, at most `max_in_flight` at a time.

        Raises:
            EngineSetupError: If the address, the key or the model's name is wrong.
        """
        return self.runner.run(self._ask_all(requests)) if requests else []

    def blame(self, requests: Sequence[Request], replies: list[Reply]) -> list[Reply]:
        """Finds out, where nothing was answered, if that is the prompts' fault, by asking something trivial.

        Returns:
            The replies, with what that cost.

        Raises:
            EngineUnavailableError: If the endpoint answers nothing at all.
            EngineSetupError: If it refuses whatever it is asked.
        """
        if not replies or any(reply.outcome == ANSWERED for reply in replies):
            return replies
        first = next((i for i, reply in enumerate(replies) if reply.outcome != UNREACHABLE), -1)
        if first < 0:
            raise EngineUnavailableError(f"{replies[0].text}: look if it serves, or lower BELVEDERE_LLM_MAX_IN_FLIGHT.")
        (found,) = self.ask_all([trivial_like(requests[first])])
        if found.outcome in (BROKE, UNREACHABLE):
            raise EngineUnavailableError(
                f"{found.text} It breaks on a trivial prompt, too: look at its log, or lower "
                "BELVEDERE_LLM_MAX_IN_FLIGHT."
            )
        if found.outcome == REFUSED:
            raise EngineSetupError(
                f"{found.text} It refuses a trivial prompt, too: mend BELVEDERE_LLM_BASE_URL, BELVEDERE_LLM_MODEL or "
                "the endpoint's settings."
            )
        return [
            reply._replace(calls=(*reply.calls, *found.calls)) if i == first else reply
            for i, reply in enumerate(replies)
        ]

    async def _ask_all(self, requests: Sequence[Request]) -> list[Reply]:
        if self.client is None:
            key = os.environ.get(self.config.api_key_variable, "")
            self.client = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=self.config.timeout_seconds,
                limits=httpx.Limits(
                    max_connections=self.config.max_in_flight, max_keepalive_connections=self.config.max_in_flight
                ),
            )
        batch = _Batch(self.client, asyncio.Semaphore(self.config.max_in_flight))
        replies = await asyncio.gather(*(self._ask(batch, request) for request in requests))
        if batch.setup_error is not None and not batch.answered:
            raise batch.setup_error
        return list(replies)

    async def _ask(self, batch: "_Batch", request: Request) -> Reply:
        async with batch.gate:
            if batch.setup_error is not None or batch.in_vain >= self.config.max_in_flight:
                # What was paid for in this batch is handed back, but nothing more is asked.
                why = str(batch.setup_error or f"The endpoint {self.url} did not answer the requests before this one.")
                return Reply(UNREACHABLE, why, "", ())
            calls: list[Call] = []
            try:
                reply = await self._try(batch.client, request, calls)
            except EngineSetupError as error:
                batch.setup_error = batch.setup_error or error
                return Reply(UNREACHABLE, str(error), "", tuple(calls))
            batch.in_vain = batch.in_vain + 1 if reply.outcome == UNREACHABLE else 0
            batch.answered = batch.answered or reply.outcome == ANSWERED
            return reply

    async def _try(self, client: httpx.AsyncClient, request: Request, calls: list[Call]) -> Reply:
        body = {"model": self.config.model, "messages": request.messages, "temperature": 0} | request.limits
        paid_retries = PAID_RETRIES
        for attempt in range(self.config.max_retries + 1):
            wait: float | None = None
            broke = False
            started = time.perf_counter()
            try:
                # The client's own limit is one of silence; a proxy that sends a blank now and then never breaks it.
                async with asyncio.timeout(self.config.timeout_seconds):
                    status, headers, raw = await self._post(client, body)
            except (TimeoutError, httpx.TimeoutException) as error:
                trouble = f"{type(error).__name__} after at most {self.config.timeout_seconds:g} s"
                calls.append(_failed("timeout", started))
            except httpx.RequestError as error:
                trouble = type(error).__name__
                calls.append(_failed(trouble, started))
            else:
                if status == 200:
                    answer, call = read_answer(raw, request.messages, time.perf_counter() - started)
                    calls.append(call)
                    if answer is not None:
                        return answer._replace(calls=tuple(calls))
                    trouble, broke = "an answer that is no chat completion", True
                    paid_retries -= 1
                elif status in RETRIED or status >= 500:
                    trouble, broke = f"status {status}", status == 500
                    wait = retry_after(headers)
                    calls.append(_failed(trouble, started))
                else:
                    calls.append(_failed(f"status {status}", started))
                    return Reply(REFUSED, self._refusal(status, raw), "", tuple(calls))
            if wait is not None and wait > LONGEST_WAIT:
                trouble += f", and asks to wait {wait:,.0f} s,"
                break
            if paid_retries < 0:
                break
            if attempt < self.config.max_retries:
                backoff = min(FIRST_DELAY * 2**attempt * self.jitter.uniform(0.5, 1.5), LONGEST_DELAY)
                await asyncio.sleep(backoff if wait is None else wait + backoff / 4)
        told = f"The endpoint {self.url} gave {trouble} in {attempt + 1} attempts"
        return Reply(BROKE, f"{told}.", "", tuple(calls)) if broke else Reply(UNREACHABLE, told, "", tuple(calls))

    async def _post(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and body of the response; of an endless body only the beginning."""
        most = BODY_BYTES + TOKEN_BYTES * int(body["max_tokens"])
        raw = bytearray()
        async with client.stream("POST", self.url, json=body) as response:
            async for piece in response.aiter_bytes():
                raw += piece
                if len(raw) > most:
                    # Cut like this it is no JSON any more.
                    del raw[most:]
                    break
            return response.status_code, response.headers, bytes(raw)

    def _refusal(self, status: int, raw: bytes) -> str:
        """What a client error says of this prompt, if it is about the prompt.

        Raises:
            EngineSetupError: If it is about the endpoint, the model's name or the key.
        """
        if status == 402:
            raise EngineSetupError(f"The endpoint {self.url} wants to be paid (status 402): top up its account.")
        if status in (401, 403):
            raise EngineSetupError(
                f"The endpoint {self.url} refused the key: set {self.config.api_key_variable} in the "
                "environment of the Ray workers."
            )
        if status in (404, 405):
            raise EngineSetupError(
                f"The endpoint {self.url} does not know model '{self.config.model}' (status "
                f"{status}): set BELVEDERE_LLM_BASE_URL and BELVEDERE_LLM_MODEL."
            )
        said = " ".join(raw[:4096].decode(errors="replace").split())[:160]
        return f"The endpoint refused the prompt with status {status}: {said}"


class _Batch:
    """What the requests of one batch know of each other."""

    def __init__(self, client: httpx.AsyncClient, gate: asyncio.Semaphore):
        self.client, self.gate = client, gate
        self.answered = False
        # Requests in a row that got no answer in any attempt.
        self.in_vain = 0
        self.setup_error: EngineSetupError | None = None


def chat(shared: Sequence[Message], user: Any) -> list[dict[str, Any]]:
    """Messages of a request; ``user`` is a text, or a list of parts."""
    return [*(m._asdict() for m in shared), {"role": "user", "content": user}]


def json_schema_format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The part of a request's body that asks for JSON under ``schema``."""
    return {"response_format": {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}}


def trivial_like(request: Request) -> Request:
    """The request with a trivial question in place of its last message's text."""
    return request._replace(messages=[*request.messages[:-1], {"role": "user", "content": TRIVIAL}])


def _failed(outcome: str, started: float) -> Call:
    return Call(outcome, seconds=time.perf_counter() - started)


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
    """A number of tokens, whatever an endpoint puts there; the ledger's columns are of 32 bits."""
    known = isinstance(said, int | float) and not isinstance(said, bool) and math.isfinite(said)
    return min(max(int(said), 0), 2**31 - 1) if known else 0


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
        except ValueError:
            return None
        # A date without a zone is of Greenwich, as all dates of HTTP are.
        when = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
        seconds = (when - dt.datetime.now(dt.UTC)).total_seconds()
    return None if math.isnan(seconds) else max(seconds, 0.0)
