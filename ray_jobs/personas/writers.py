"""What every writer of personas has in common: requests in, usable sentences and chosen topics out."""

from typing import Literal, NamedTuple, Protocol

import pydantic

from models.language.sentences import Problem
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.language.engine import LanguageEngine, LanguageEngineConfig, load_engine
from ray_jobs.personas.prompts import Interest, Request, estimated_tokens, prompts_digest

WriterKind = Literal["teacher", "student"]


class Written(NamedTuple):
    """What became of one request.

    Attributes:
        sentences: Interests with their usable sentences, the strongest first; titles are those that are cited.
        explored: Pairs of anchor and chosen cluster.
        attempts: Calls for sentences that it took.
        problem: The last thing that was wrong, or that nothing was there to describe.
        followed: Whether the answers had the form that was asked for: both tasks, exact counts, readable.
    """

    sentences: list[tuple[Interest, str]]
    explored: list[tuple[int, int]]
    attempts: int
    problem: Problem
    followed: bool


class Writer(Protocol):
    """A loaded writer. Greedy, as its engine is: the same request gives the same persona."""

    engine: LanguageEngine

    def write(self, requests: list[Request]) -> list[Written]:
        """Writes personas, one a request, in this order."""


class StudentConfig(pydantic.BaseModel, frozen=True):
    """Which fine-tuned student writes."""

    version: str = pydantic.Field(description="Version of its training; part of every content key.")
    prompt: str = pydantic.Field(description="Digest of the prompt that it was taught with.")
    base: str = pydantic.Field(description="Revision of the weights that its adapter belongs to.")
    artifacts: ArtifactStore | None = pydantic.Field(None, description="Where the adapter is; in-process only.")
    artifact: str = pydantic.Field("", description="The adapter's artifact; in-process only.")
    served_as: str = pydantic.Field("", description="Name under which an endpoint serves it; endpoint only.")


def writer_identity(student: StudentConfig | None) -> dict[str, str]:
    """What of the writer, beside its engine, decides the text."""
    if student is None:
        return {"prompts": prompts_digest()}
    from ray_jobs.personas.student import ANSWER_SCHEMA, student_digest

    return {"prompts": student_digest(), "student": student.version, "schema": ANSWER_SCHEMA}


def tokens_of(writer: WriterKind, request: Request, max_new_tokens: int) -> int:
    """About how many tokens a user costs: what the budget is cut by."""
    if writer == "teacher":
        return estimated_tokens(request, max_new_tokens)
    from ray_jobs.personas.student import student_tokens

    return student_tokens(request)


def load_writer(
    engine: LanguageEngineConfig,
    student: StudentConfig | None,
    max_new_tokens: int,
    loaded: LanguageEngine | None = None,
) -> Writer:
    """Loads a writer.

    Args:
        engine: The language model; the student's base.
        student: The student; None for the teacher.
        max_new_tokens: Token limit of a sentence of the teacher.
        loaded: An engine that is loaded already, adapter included.

    Raises:
        EngineSetupError: If the student does not belong to this model or prompt.
    """
    if student is None:
        from ray_jobs.personas.teacher import TeacherWriter

        return TeacherWriter(loaded or load_engine(engine), max_new_tokens)
    from ray_jobs.personas.student import StudentWriter, load_student

    return StudentWriter(loaded or load_student(engine, student))
