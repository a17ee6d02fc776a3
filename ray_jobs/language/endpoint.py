"""The client of an OpenAI-compatible endpoint (vLLM, xLLM, SGLang, llama.cpp): many requests in flight, one pool.

Whatever an endpoint answers becomes a `Reply`; every request that was made is a `Call`, the failed ones, too.
"""

import asyncio
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import httpx

from ray_jobs.language.engine import Call, EngineSetupError, EngineUnavailableError, LanguageEngineConfig, Message
from ray_jobs.language.replies import ANSWERED, BROKE, REFUSED, UNREACHABLE, Reply, read_answer, retry_after

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
# Whoever asks to wait longer is not going to serve this run.
LONGEST_WAIT = 300.0
# A reply that is no answer was computed, and is charged, all the same: it is not asked for again and again.
PAID_RETRIES = 1
# The largest answer: what is not text of it, and each of its tokens, of which each takes six characters when escaped.
BODY_BYTES, TOKEN_BYTES = 1 << 17, 64
TRIVIAL = "Say yes."
# Servers that check requests quote what they refuse: from here on it is an item's text, or its image.
QUOTED = re.compile(r"(?:<|\\u003c)item|data:image", re.IGNORECASE)

Failure = TypeVar("Failure", EngineSetupError, EngineUnavailableError)
# Takes a row and its reply.
Told = Callable[[int, Reply], None]


class Request(NamedTuple):
    """One chat completion to ask for.

    Attributes:
        messages: Messages as the endpoint takes them.
        limits: What else is in the body; ``max_tokens`` must be.
    """

    messages: list[dict[str, Any]]
    limits: dict[str, Any]


class Endpoint:
    """A client with one pool of connections.

    Args:
        config: Endpoint, model and limits. The key is read from the environment variable that it names.

    Raises:
        EngineSetupError: If the config names no endpoint, or the key is none.
    """

    def __init__(self, config: LanguageEngineConfig):
        # An address or a key that was read from a file ends with a line break.
        base = config.base_url.strip()
        try:
            address = urllib.parse.urlsplit(base)
            # The client has rules of its own, beside the standard's.
            usable = address.scheme in ("http", "https") and address.port != 0 and httpx.URL(base).host
        except (ValueError, httpx.InvalidURL):
            usable = False
        if not usable:
            shown = base.split("@")[-1]
            raise EngineSetupError(f"'{shown}' is no endpoint: set BELVEDERE_LLM_BASE_URL to http://host/v1.")
        self.key = os.environ.get(config.api_key_variable, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            raise EngineSetupError(
                f"The key in {config.api_key_variable} is no key, as it has characters beyond ASCII."
            )
        self.config = config
        self.url = f"{base.rstrip('/')}/chat/completions"
        # As sentences name it, which end in logs and tables: a user and a password may stand in it.
        self.place = str(httpx.URL(self.url).copy_with(username=None, password=None))
        self.jitter = random.Random(0)
        # One event loop for all batches, as connections belong to the loop that opened them.
        self.runner = asyncio.Runner()
        self.client: httpx.AsyncClient | None = None

    def ask_all(self, requests: Sequence[Request], told: Told | None = None, tries: int = 0) -> list[Reply]:
        """Sends all requests, at most `max_in_flight` at a time.

        Args:
            requests: What to ask.
            told: Called with row and reply as soon as a request is answered.
            tries: Attempts at each; 0: as many as the config allows.

        Raises:
            EngineSetupError: If the address, the key or the model's name is wrong.
        """
        return self.runner.run(self._ask_all(requests, told, tries)) if requests else []

    def ask_also(
        self, requests: Sequence[Request], rows: Sequence[int], replies: list[Reply], tries: int = 0
    ) -> list[Reply]:
        """Sends more requests about a batch that was asked before, and counts them there, even if they fail.

        Args:
            requests: What to ask.
            rows: Row of the batch that each is about; a row may come more than once.
            replies: The batch's replies, whose calls grow.
            tries: As in `ask_all`.

        Returns:
            A reply a request.

        Raises:
            EngineSetupError: As `ask_all`.
        """
        try:
            found = self.ask_all(requests, tries=tries)
        except EngineSetupError as error:
            _count_with(replies, rows, error.calls)
            raise counted(error, replies) from None
        _count_with(replies, rows, [reply.calls for reply in found])
        return found

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
        # An endpoint that is down was waited for long enough.
        (found,) = self.ask_also([trivial_like(requests[max(first, 0)])], [max(first, 0)], replies, int(first < 0))
        if first < 0 and found.outcome == UNREACHABLE:
            why = f"{replies[0].text}: look if it serves, or lower BELVEDERE_LLM_MAX_IN_FLIGHT."
            raise counted(EngineUnavailableError(why), replies)
        if found.outcome in (BROKE, UNREACHABLE):
            why = f"{found.text} It breaks on a trivial prompt, too: look at its log, or lower "
            raise counted(EngineUnavailableError(f"{why}BELVEDERE_LLM_MAX_IN_FLIGHT."), replies)
        if found.outcome == REFUSED:
            why = f"{found.text} It refuses a trivial prompt, too: mend BELVEDERE_LLM_BASE_URL, BELVEDERE_LLM_MODEL or "
            raise counted(EngineSetupError(f"{why}the endpoint's settings."), replies)
        return replies

    async def _ask_all(self, requests: Sequence[Request], told: Told | None, tries: int) -> list[Reply]:
        if self.client is None:
            self.client = httpx.AsyncClient(
                headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
                timeout=self.config.timeout_seconds,
                limits=httpx.Limits(
                    max_connections=self.config.max_in_flight, max_keepalive_connections=self.config.max_in_flight
                ),
            )
        batch = _Batch(self.client, asyncio.Semaphore(self.config.max_in_flight), tries or self.config.max_retries + 1)

        async def ask(row: int, request: Request) -> Reply:
            reply = await self._ask(batch, request)
            if told is not None and reply.outcome == ANSWERED:
                told(row, reply)
            return reply

        replies = await asyncio.gather(*(ask(row, request) for row, request in enumerate(requests)))
        if batch.setup_error is not None and not batch.answered:
            raise counted(batch.setup_error, replies)
        return list(replies)

    async def _ask(self, batch: "_Batch", request: Request) -> Reply:
        async with batch.gate:
            if batch.setup_error is not None or batch.in_vain >= self.config.max_in_flight:
                # What was paid for in this batch is handed back, but nothing more is asked.
                why = str(batch.setup_error or f"The endpoint {self.place} did not answer the ones before this.")
                return Reply(UNREACHABLE, why, "", ())
            calls: list[Call] = []
            try:
                reply = await self._try(batch, request, calls)
            except EngineSetupError as error:
                batch.setup_error = batch.setup_error or error
                return Reply(UNREACHABLE, str(error), "", tuple(calls))
            batch.in_vain = batch.in_vain + 1 if reply.outcome == UNREACHABLE else 0
            batch.answered = batch.answered or reply.outcome == ANSWERED
            return reply

    async def _try(self, batch: "_Batch", request: Request, calls: list[Call]) -> Reply:
        body = {"model": self.config.model, "messages": request.messages, "temperature": 0} | request.limits
        paid_retries = PAID_RETRIES
        for attempt in range(batch.tries):
            wait: float | None = None
            broke = False
            started = time.perf_counter()
            try:
                # The client's own limit is one of silence; a proxy that sends a blank now and then never breaks it.
                async with asyncio.timeout(self.config.timeout_seconds):
                    status, headers, raw = await self._post(batch.client, body)
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
            if attempt + 1 < batch.tries:
                backoff = min(FIRST_DELAY * 2**attempt * self.jitter.uniform(0.5, 1.5), LONGEST_DELAY)
                await asyncio.sleep(backoff if wait is None else wait + backoff / 4)
        told = f"The endpoint {self.place} gave {trouble} in {attempt + 1} attempts"
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
            raise EngineSetupError(f"The endpoint {self.place} wants to be paid (status 402): top up its account.")
        if status in (401, 403):
            raise EngineSetupError(
                f"The endpoint {self.place} refused the key: set {self.config.api_key_variable} in the "
                "environment of the Ray workers."
            )
        if status in (404, 405):
            raise EngineSetupError(
                f"The endpoint {self.place} does not know model '{self.config.model}' (status "
                f"{status}): set BELVEDERE_LLM_BASE_URL and BELVEDERE_LLM_MODEL."
            )
        said = QUOTED.split(" ".join(raw[:4096].decode(errors="replace").split()), 1)[0][:160]
        return f"The endpoint refused the prompt with status {status}: {said}"


class _Batch:
    """What the requests of one batch know of each other."""

    def __init__(self, client: httpx.AsyncClient, gate: asyncio.Semaphore, tries: int):
        self.client, self.gate, self.tries = client, gate, tries
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


def counted(error: Failure, replies: Sequence[Reply]) -> Failure:
    """The error, with the calls of all replies."""
    error.calls = tuple(reply.calls for reply in replies)
    return error


def _count_with(replies: list[Reply], rows: Sequence[int], calls: Sequence[tuple[Call, ...]]) -> None:
    for row, made in zip(rows, calls, strict=True):
        replies[row] = replies[row]._replace(calls=(*replies[row].calls, *made))


def _failed(outcome: str, started: float) -> Call:
    return Call(outcome, seconds=time.perf_counter() - started)
