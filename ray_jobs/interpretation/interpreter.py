"""The interface of interpretation engines: an item's text and image go in, a typed record comes out."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import pydantic

from models.language.interpretation import Interpretation
from models.language.validation import Problem
from ray_jobs.language.engine import Call, LanguageEngineConfig

# Reason of a problem that no answer stands behind: it was not paid for, and may be asked again.
NEVER_ANSWERED = "never_answered"
TRANSIENT, DETERMINISTIC, INVALID = "transient", "deterministic", "invalid_output"


class InterpreterConfig(pydantic.BaseModel, frozen=True):
    """How a job has items interpreted. JSON-serialisable: it travels in job configs."""

    kind: Literal["evidence", "vision", "endpoint"] = pydantic.Field(
        description="`evidence`: packaged vision models say what an image shows, a language model in process writes; "
        "`vision`: a Hugging Face image-text-to-text checkpoint in process; "
        "`endpoint`: an OpenAI-compatible endpoint."
    )
    engine: LanguageEngineConfig = pydantic.Field(description="The language model, and how it is reached.")
    attention: Literal["sdpa", "eager", "flash_attention_2"] = pydantic.Field(
        default="sdpa", description="Attention of a vision checkpoint."
    )
    sees_images: bool = pydantic.Field(
        default=True,
        description="Whether images are looked at: as data URLs by an endpoint; without it, by nobody.",
    )

    @property
    def identity(self) -> dict[str, str]:
        """What of the interpreter decides the record: its kind, its models and their revisions."""
        from ray_jobs.interpretation.image_evidence import evidence_revision

        seen = evidence_revision() if self.kind == "evidence" and self.sees_images else str(self.sees_images)
        computed = {"attention": self.attention} if self.kind == "vision" else {}
        return self.engine.identity | {"interpreter": self.kind, "images": seen} | computed


class InterpretationParameters(pydantic.BaseModel, frozen=True):
    """How records are decoded; part of their version."""

    max_new_tokens: int = pydantic.Field(default=32, ge=4, description="Token limit of a caption; kind `evidence`.")
    max_json_tokens: int = pydantic.Field(
        default=512, ge=32, description="Token limit of a record as JSON; kinds `vision` and `endpoint`."
    )
    no_repeat_ngram: tuple[pydantic.NonNegativeInt, ...] = pydantic.Field(
        default=(3, 2, 1),
        min_length=1,
        max_length=3,
        description="One a try: a caption repeats no n-gram of this size; 0: any. Kinds that write JSON take a "
        "penalty on repeated tokens in every try but the first instead.",
    )

    @property
    def tries(self) -> int:
        """Attempts at one content: the first, and its repairs."""
        return len(self.no_repeat_ngram)


class Content(NamedTuple):
    """What is to be interpreted.

    Attributes:
        key: Its content key.
        text: The item's fenced text; see `models.language.captions.evidence`.
        categories: The item's categories.
        image: Its canonical image (RGB JPEG as the image store keeps it), or None.
    """

    key: str
    text: str
    categories: tuple[str, ...] = ()
    image: bytes | None = None


class Answer(NamedTuple):
    """What became of one content in one attempt.

    Attributes:
        record: The interpretation, or None.
        problem: Why there is none. `NEVER_ANSWERED`: the model could not be asked about this content at all.
        error_class: Class of the problem: `TRANSIENT`, `DETERMINISTIC` (never ask again) or `INVALID` (ask to repair).
        finish: ``stop``, ``length`` when it was cut at the token limit, ``error`` without an answer.
        prompt: What the model was shown for this content (without the shared messages and without the image).
        text: What it wrote.
        calls: Every request that it took, the failed ones first.
    """

    record: Interpretation | None
    problem: Problem | None
    error_class: str
    finish: str
    prompt: str
    text: str
    calls: tuple[Call, ...]


# Takes a row and its answer.
Told = Callable[[int, Answer], None]


class Interpreter(Protocol):
    """A loaded engine. Decoding is greedy: the same request gives the same answer."""

    def interpret(self, contents: Sequence[Content], attempt: int, told: Told | None = None) -> list[Answer]:
        """Interprets contents; one content's fault never fails another's.

        Args:
            contents: What is to be interpreted.
            attempt: 0, or the number of the repair: the prompt then says what a usable answer is in plainer words.
            told: Called with row and answer where one is final before the others are, so that what was paid for can
                be kept at once.

        Raises:
            EngineUnavailableError: If the model cannot be reached.
            EngineSetupError: If it cannot be used as it is configured.
        """

    def most_tokens(self, contents: Sequence[Content]) -> list[int]:
        """The most prompt and completion tokens that one attempt at each content can cost: what a budget reserves."""
