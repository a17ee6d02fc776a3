"""The student: one call a user for both tasks, its answer held to a JSON schema."""

import functools
from typing import Any, NamedTuple

from models.language.labels import plain, topic
from models.language.sentences import Problem, find_problem
from models.personas.answers import Answer, answer_schema, parse_answer
from ray_jobs.language.engine import (
    Completion,
    EngineSetupError,
    LanguageEngine,
    LanguageEngineConfig,
    Message,
    load_engine,
)
from ray_jobs.personas.prompts import NEVER_ANSWERED, Interest, Request, count_tokens
from ray_jobs.personas.writers import StudentConfig, Written
from ray_jobs.prompts import load_prompt, prompt_digest

PROMPT = "persona_student"
MAX_ANSWER_TOKENS = 256
ANSWER_SCHEMA = "2"
"""Bump when answers are held to another schema, or judged by other gates."""
# Of a fine-tuned answer: a sentence with its numbers, and a topic.
TOKENS_PER_CLAIM, TOKENS_PER_TOPIC = 40, 14


class Question(NamedTuple):
    """A request as the student sees it.

    Attributes:
        user: The user message.
        interests: The interest of each numbered item, from 1.
        titles: Its title.
        items: Of each interest that is asked for the numbers of its items.
        topics: Topics that may be chosen next to each anchor.
    """

    user: str
    interests: tuple[Interest, ...]
    titles: tuple[str, ...]
    items: tuple[tuple[int, ...], ...]
    topics: tuple[tuple[str, ...], ...]

    @property
    def num_claims(self) -> int:
        """Sentences that are asked for."""
        return len(self.items)

    @property
    def schema(self) -> dict[str, Any]:
        """What holds the answer."""
        return answer_schema(self.items, self.topics)

    def parse(self, text: str) -> Answer | Problem:
        """The answer, or what is wrong with its form."""
        return parse_answer(text, len(self.titles), self.num_claims, self.topics)


def student_digest() -> str:
    """Digest of the prompt: any changed character changes it."""
    return prompt_digest(PROMPT)


@functools.cache
def student_messages() -> tuple[Message, ...]:
    """The instruction."""
    said: dict[str, Any] = load_prompt(PROMPT)["student"]
    return (Message("system", said["system"]),)


def ask_student(request: Request) -> Question:
    """Both tasks of a user in one message: items by topic, numbered through, and what may be new next to them."""
    lines, interests, titles, items = ["<person>"], [], [], []
    for interest in request.interests:
        numbered = []
        for title in interest.titles:
            titles.append(title)
            interests.append(interest)
            numbered.append(f"{len(titles)} {plain(title)}")
        items.append(tuple(range(len(titles) - len(numbered) + 1, len(titles) + 1)))
        lines.append(f"{topic(interest.label)}: {'; '.join(numbered)}")
    topics = []
    for anchor in request.anchors:
        topics.append(tuple(plain(label) for label in anchor.candidate_labels))
        lines.append(f"new, next to {topic(anchor.label)}: {'; '.join(topics[-1])}")
    return Question("\n".join([*lines, "</person>"]), tuple(interests), tuple(titles), tuple(items), tuple(topics))


def judge(answer: Answer, question: Question) -> tuple[list[tuple[Interest, str]], list[Problem]]:
    """The claims that hold, with the titles that they cite, and what is wrong with the others.

    A claim cites items of one interest, no other claim's, and passes the gates of the teacher's sentences.
    """
    usable: dict[int, tuple[Interest, str]] = {}
    problems = []
    for claim in answer.claims:
        cited = {question.interests[i - 1].cluster for i in claim.items}
        interest = question.interests[claim.items[0] - 1]
        if len(cited) > 1:
            problems.append(Problem("mixed_evidence", "A sentence cites items of several interests."))
        elif interest.cluster in usable:
            problems.append(Problem("same_interest", "Two sentences are about one interest."))
        else:
            shown = Interest(
                cluster=interest.cluster, label=interest.label, titles=[question.titles[i - 1] for i in claim.items]
            )
            told = [message.content for message in student_messages()]
            wrong = find_problem(claim.text, terms=[shown.label, *shown.titles], prompt=told)
            if wrong is None:
                usable[interest.cluster] = (shown, claim.text)
            else:
                problems.append(wrong)
    ordered = dict.fromkeys(i.cluster for i in question.interests)
    return [usable[c] for c in ordered if c in usable], problems


class StudentWriter:
    """See `ray_jobs.personas.writers.Writer`.

    Args:
        engine: A loaded engine, adapter included.
        held: Whether decoding is held to the schema.
    """

    def __init__(self, engine: LanguageEngine, held: bool = True):
        self.engine, self.held = engine, held

    def write(self, requests: list[Request]) -> list[Written]:
        """See `Writer.write`."""
        questions = [ask_student(request) for request in requests]
        completions = self.engine.complete(
            list(student_messages()),
            [q.user for q in questions],
            MAX_ANSWER_TOKENS,
            stop=None if self.held else "\n",
            schemas=[q.schema for q in questions] if self.held else (),
        )
        return [_written(*row) for row in zip(requests, questions, completions, strict=True)]


def _written(request: Request, question: Question, completion: Completion) -> Written:
    if completion.finish == "error":
        return Written([], [], 1, Problem(NEVER_ANSWERED, completion.error), False)
    if completion.finish == "length":
        return Written([], [], 1, Problem("truncated", "The answer was cut at the token limit."), False)
    answer = question.parse(completion.text)
    if isinstance(answer, Problem):
        return Written([], [], 1, answer, False)
    sentences, problems = judge(answer, question)
    explored: dict[int, int] = {}
    for anchor, chosen in zip(request.anchors, answer.topics, strict=True):
        explored.setdefault(anchor.candidates[chosen], anchor.cluster)
    nothing = Problem("no_interest", "There was nothing to describe.")
    return Written(sentences, [(a, c) for c, a in explored.items()], 1, (problems or [nothing])[-1], True)


def student_tokens(request: Request) -> int:
    """About how many tokens a user costs the student: prompt and answer."""
    said = sum(count_tokens(m.content) for m in student_messages()) + count_tokens(ask_student(request).user)
    return int(said + len(request.interests) * TOKENS_PER_CLAIM + len(request.anchors) * TOKENS_PER_TOPIC)


def most_student_tokens(request: Request) -> int:
    """About how many tokens a user costs at most: an answer that nothing ends."""
    said = sum(count_tokens(m.content) for m in student_messages()) + count_tokens(ask_student(request).user)
    return int(said + MAX_ANSWER_TOKENS)


def load_student(engine: LanguageEngineConfig, student: StudentConfig) -> LanguageEngine:
    """Loads the base with the student's adapter merged in, or the endpoint that serves both.

    Raises:
        EngineSetupError: If the student was taught with another prompt, or belongs to another model.
    """
    if student.prompt != student_digest():
        raise EngineSetupError(
            f"The student {student.version} was taught with another prompt than {PROMPT}.toml is now: "
            "run distil_personas."
        )
    if engine.kind == "openai":
        if not student.served_as:
            raise EngineSetupError(
                "The endpoint's name of the student is not known: serve the adapter there and set "
                "BELVEDERE_LLM_STUDENT_MODEL."
            )
        return load_engine(engine.model_copy(update={"model": student.served_as, "adapter_version": student.version}))
    if student.base != engine.revision:
        raise EngineSetupError(
            f"The student {student.version} belongs to revision {student.base} of the model, not to {engine.revision}: "
            "run distil_personas, or choose the model that it was trained from."
        )
    if student.artifacts is None:
        raise EngineSetupError("It is not said where the student's adapter is: give `artifacts` with its config.")
    with student.artifacts.local(student.artifact) as folder:
        return load_engine(engine.model_copy(update={"adapter": str(folder), "adapter_version": student.version}))
