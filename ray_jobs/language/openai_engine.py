"""The engine behind an OpenAI-compatible endpoint (vLLM, xLLM, SGLang, llama.cpp): many requests in flight."""

import asyncio
import datetime as dt
import email.utils
import json
import math
import os
import random
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

import httpx

from ray_jobs.language.engine import (
    ChoiceError,
    Completion,
    EngineSetupError,
    EngineUnavailableError,
    LanguageEngineConfig,
    Message,
    Neutral,
    Usage,
)

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
# Whoever asks to wait longer is not going to serve this run.
LONGEST_WAIT = 300.0
CHOICE_TOKENS = 64
FREQUENCY_PENALTY = 0.3
# Only where an endpoint does not count.
CHARS_PER_TOKEN = 4
TRIVIAL = {"role": "user", "content": "Say yes."}
T = TypeVar("T")


class _Answer(NamedTuple):
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


class _Refused(Exception):
    """This prompt is not answered, however often it is asked."""


class _Failed(_Refused):
    """The endpoint broke on this prompt in every attempt."""


class OpenAIEngine:
    """See `LanguageEngine`.

    Args:
        config: Endpoint, model and limits. The key is read from the environment variable that it names.
    """

    def __init__(self, config: LanguageEngineConfig):
        if not config.base_url.startswith(("http://", "https://")):
            raise EngineSetupError(f"'{config.base_url}' is no endpoint: set BELVEDERE_LLM_BASE_URL to http://host/v1.")
        self.config = config
        self.usage = Usage()
        self.url = f"{config.base_url.rstrip('/')}/chat/completions"
        self.jitter = random.Random(0)

    def complete(
        self,
        shared: list[Message],
        users: list[str],
        max_new_tokens: int,
        stop: str | None = "\n",
        no_repeat_ngram: int = 0,
        options: Sequence[str] = (),
        neutral: Neutral | None = None,
    ) -> list[Completion]:
        """See `LanguageEngine.complete`."""
        limits: dict[str, Any] = {"max_tokens": max_new_tokens + (16 if options else 0)}
        if stop:
            limits["stop"] = [stop]
        if no_repeat_ngram:
            limits["frequency_penalty"] = FREQUENCY_PENALTY
        answers = self._ask_all([_messages(shared, user) for user in users], [limits] * len(users))
        done = []
        for answer in answers:
            if isinstance(answer, _Refused):
                done.append(Completion("", 0, 0, "error", str(answer)))
                continue
            text = answer.text.strip()
            choice = -1
            if options and "|" in text:
                said, _, last = text.rpartition("|")
                choice = _option(last, options)
                text = said.strip()
            done.append(Completion(text, answer.prompt_tokens, answer.completion_tokens, answer.finish, choice=choice))
        open_rows = [row for row, d in enumerate(done) if options and d.choice < 0 and d.finish == "stop" and d.text]
        if open_rows:
            asked = self._choices(shared, [users[r] for r in open_rows], [list(options)] * len(open_rows))[0]
            for row, found in zip(open_rows, asked, strict=True):
                done[row] = done[row]._replace(choice=-1 if found is None else found)
        return done

    def choose(
        self, shared: list[Message], users: list[str], options: list[list[str]], neutral: str | None = None
    ) -> list[int]:
        """See `LanguageEngine.choose`."""
        chosen, reasons = self._choices(shared, users, options)
        if reasons:
            raise ChoiceError(chosen, reasons)
        return [c for c in chosen if c is not None]

    def _choices(
        self, shared: list[Message], users: list[str], options: list[list[str]]
    ) -> tuple[list[int | None], dict[int, str]]:
        """Asks under a schema, and once more in plain words where the answer is none of the options."""
        chosen: list[int | None] = [None] * len(users)
        reasons = {row: "The prompt has no options." for row, wanted in enumerate(options) if not wanted}
        rows = [row for row in range(len(users)) if row not in reasons]
        for plain in (False, True):
            asked = [
                _messages(
                    shared if plain else _in_schema(shared), users[r] + (_plain_request(options[r]) if plain else "")
                )
                for r in rows
            ]
            limits = [{"max_tokens": CHOICE_TOKENS} | ({} if plain else _schema(options[r])) for r in rows]
            still_open = []
            # Not every endpoint knows schemas: whether it answers at all shows in plain words.
            for row, answer in zip(rows, self._ask_all(asked, limits, whose_fault=plain), strict=True):
                found = -1 if isinstance(answer, _Refused) else _option(_unwrapped(answer.text), options[row])
                if found >= 0:
                    chosen[row] = found
                    continue
                still_open.append(row)
                reasons[row] = (
                    str(answer)
                    if isinstance(answer, _Refused)
                    else (f"The model answered '{answer.text.strip()[:60]}', none of its {len(options[row])} options.")
                )
            rows = still_open
            if not rows:
                break
        return chosen, {row: why for row, why in reasons.items() if chosen[row] is None}

    def _ask_all(
        self, prompts: list[list[dict[str, str]]], limits: list[dict[str, Any]], whose_fault: bool = True
    ) -> list[_Answer | _Refused]:
        """Sends all requests, at most `max_in_flight` at a time.

        Args:
            prompts: Messages of each request.
            limits: What else is in each request's body.
            whose_fault: Where none is answered, ask something trivial to see if that is the prompts' fault.

        Raises:
            EngineUnavailableError: If the endpoint cannot be reached, or answers nothing at all.
            EngineSetupError: If it refuses whatever it is asked.
        """
        if not prompts:
            return []
        key = os.environ.get(self.config.api_key_variable, "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        pool = httpx.Limits(
            max_connections=self.config.max_in_flight, max_keepalive_connections=self.config.max_in_flight
        )

        async def ask_all() -> list[_Answer | _Refused]:
            gate = asyncio.Semaphore(self.config.max_in_flight)
            async with httpx.AsyncClient(headers=headers, timeout=self.config.timeout_seconds, limits=pool) as client:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._ask(client, gate, prompt, limit))
                        for prompt, limit in zip(prompts, limits, strict=True)
                    ]
                return [task.result() for task in tasks]

        answers = _run(ask_all())
        counted = [a for a in answers if isinstance(a, _Answer)]
        self.usage = self.usage.plus(
            Usage(len(counted), sum(a.prompt_tokens for a in counted), sum(a.completion_tokens for a in counted))
        )
        if whose_fault and not counted:
            (found,) = self._ask_all([[*prompts[0][:-1], TRIVIAL]], limits[:1], whose_fault=False)
            if isinstance(found, _Failed):
                raise EngineUnavailableError(
                    f"{found} It breaks on a trivial prompt, too: look at its log, or lower "
                    "BELVEDERE_LLM_MAX_IN_FLIGHT."
                )
            if isinstance(found, _Refused):
                raise EngineSetupError(
                    f"{found} It refuses a trivial prompt, too: mend BELVEDERE_LLM_BASE_URL, BELVEDERE_LLM_MODEL or "
                    "the endpoint's settings."
                )
        return answers

    async def _ask(
        self, client: httpx.AsyncClient, gate: asyncio.Semaphore, messages: list[dict[str, str]], limits: dict[str, Any]
    ) -> _Answer | _Refused:
        body = {"model": self.config.model, "messages": messages, "temperature": 0} | limits
        async with gate:
            for attempt in range(self.config.max_retries + 1):
                wait: float | None = None
                broke = False
                try:
                    # The client's own limit is one of silence; a proxy that sends a blank now and then never breaks it.
                    async with asyncio.timeout(self.config.timeout_seconds):
                        response = await client.post(self.url, json=body)
                except (TimeoutError, httpx.RequestError) as error:
                    trouble = f"{type(error).__name__} after at most {self.config.timeout_seconds:g} s"
                else:
                    if response.status_code == 200:
                        answer = _parse(response, messages)
                        if answer is not None:
                            return answer
                        trouble, broke = "an answer that is no chat completion", True
                    elif response.status_code in RETRIED or response.status_code >= 500:
                        trouble, broke = f"status {response.status_code}", response.status_code == 500
                        wait = _retry_after(response)
                    else:
                        return self._refuse(response)
                if wait is not None and wait > LONGEST_WAIT:
                    trouble += f", and asks to wait {wait:,.0f} s,"
                    break
                if attempt < self.config.max_retries:
                    backoff = min(FIRST_DELAY * 2**attempt * self.jitter.uniform(0.5, 1.5), LONGEST_DELAY)
                    await asyncio.sleep(backoff if wait is None else wait + backoff / 4)
        told = f"The endpoint {self.url} gave {trouble} in {attempt + 1} attempts"
        if broke:
            return _Failed(f"{told}.")
        raise EngineUnavailableError(f"{told}: look if it serves, or lower BELVEDERE_LLM_MAX_IN_FLIGHT.")

    def _refuse(self, response: httpx.Response) -> _Refused:
        """What a client error says of this prompt, if it is about the prompt.

        Raises:
            EngineSetupError: If it is about the endpoint, the model's name or the key.
        """
        if response.status_code == 402:
            raise EngineSetupError(f"The endpoint {self.url} wants to be paid (status 402): top up its account.")
        if response.status_code in (401, 403):
            raise EngineSetupError(
                f"The endpoint {self.url} refused the key: set {self.config.api_key_variable} in the "
                "environment of the Ray workers."
            )
        if response.status_code in (404, 405):
            raise EngineSetupError(
                f"The endpoint {self.url} does not know model '{self.config.model}' (status "
                f"{response.status_code}): set BELVEDERE_LLM_BASE_URL and BELVEDERE_LLM_MODEL."
            )
        return _Refused(
            f"The endpoint refused the prompt with status {response.status_code}: "
            f"{' '.join(response.text.split())[:160]}"
        )


def _messages(shared: Sequence[Message], user: str) -> list[dict[str, str]]:
    return [m._asdict() for m in (*shared, Message("user", user))]


def _schema(options: Sequence[str]) -> dict[str, Any]:
    choice = {
        "type": "object",
        "properties": {"choice": {"type": "string", "enum": list(dict.fromkeys(options))}},
        "required": ["choice"],
        "additionalProperties": False,
    }
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": choice}}
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
    except ValueError:
        return text
    return str(found.get("choice", "")) if isinstance(found, dict) else str(found)


def _option(text: str, options: Sequence[str]) -> int:
    """Index of the option that ``text`` names, however it is quoted; -1 if it is none."""
    said = text.strip().strip("\"'`.*").strip().casefold()
    return next((i for i, option in enumerate(options) if option.casefold() == said), -1)


def _parse(response: httpx.Response, messages: list[dict[str, str]]) -> _Answer | _Refused | None:
    """The answer of a chat completion; None if it is none."""
    try:
        body = response.json()
        choice = body["choices"][0]
        message = choice["message"]
        text = message.get("content") or message.get("refusal") or ""
        finish = choice.get("finish_reason") or "stop"
        usage = body.get("usage") or {}
        prompt_tokens = int(usage.get("prompt_tokens") or sum(len(m["content"]) for m in messages) // CHARS_PER_TOKEN)
        completion_tokens = int(usage.get("completion_tokens") or -(-len(text) // CHARS_PER_TOKEN))
        if not isinstance(text, str):
            return None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if finish == "content_filter":
        return _Refused("The endpoint's content filter refused the prompt.")
    return _Answer(text, "length" if finish == "length" else "stop", prompt_tokens, completion_tokens)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait, from a number or a date."""
    said = response.headers.get("retry-after", "").strip()
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


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Runs ``work`` to its end; the first error of its tasks is the error."""
    try:
        return asyncio.run(work)
    except ExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None
