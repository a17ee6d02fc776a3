"""What a student learns from: the teacher's personas that passed the gates, as questions with their answers."""

import datetime as dt
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.identity import version_of
from models.personas.answers import Answer, Claim, write_answer
from ray_jobs.actors import map_blocks
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.language.engine import LanguageEngineConfig, Usage
from ray_jobs.personas.prompts import Request
from ray_jobs.personas.student import ask_student
from ray_jobs.personas.writers import Written, load_writer
from ray_jobs.progress import Progress
from ray_jobs.tables.personas import PERSONA_LESSONS
from ray_jobs.warehouse import Warehouse

TRAIN, DEV, HELD = "train", "dev", "held"
LESSON_FILES = "persona_lessons"
APPEND_ONLY = "append-only"


class Lesson(NamedTuple):
    """A question and the answer that is right."""

    question: str
    answer: str


def place_of(user_id: str, seed: int) -> float:
    """A seeded hash of the user, in [0, 1)."""
    digest = hashlib.sha256(f"{seed}:{user_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def part_of(user_id: str, seed: int, dev_share: float, held_share: float) -> str:
    """The part that a user belongs to, by the user's place alone: no user is in two, and none ever moves."""
    place = place_of(user_id, seed)
    return HELD if place < held_share else DEV if place < held_share + dev_share else TRAIN


def lesson_of(request: Request, written: Written) -> Lesson | None:
    """The lesson in a teacher's persona: both tasks, as far as its sentences passed; None if that is not both."""
    described = {i.cluster: sentence for i, sentence in written.sentences}
    if not described or len(written.explored) != len(request.anchors):
        return None
    told = request.model_copy(update={"interests": [i for i in request.interests if i.cluster in described]})
    question = ask_student(told)
    claims = [
        Claim(
            tuple(n for n, of in enumerate(question.interests, start=1) if of.cluster == i.cluster),
            described[i.cluster],
        )
        for i in told.interests
    ]
    chosen = dict(written.explored)
    topics = tuple(anchor.candidates.index(chosen[anchor.cluster]) for anchor in request.anchors)
    return Lesson(question.user, write_answer(Answer(tuple(claims), topics), question.topics))


class Teacher:
    """Batch actor: writes personas as the teacher does and keeps the lessons in them.

    Args:
        warehouse: Where lessons are kept.
        engine: The teacher's model.
        max_new_tokens: Token limit of a sentence.
        threads: CPU threads of an in-process model.
    """

    def __init__(self, warehouse: Warehouse, engine: LanguageEngineConfig, max_new_tokens: int, threads: int):
        if engine.kind == "transformers":
            import torch

            torch.set_num_threads(threads)
        self.warehouse, self.writer = warehouse, load_writer(engine, None, max_new_tokens)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Teaches a batch (``content_key``, ``user_id``, ``request``); what it cost, in one row."""
        before = self.writer.engine.usage
        known = set(read_lessons(self.warehouse, batch["content_key"].to_pylist())["content_key"])
        wanted = [row for row in batch.to_pylist() if row["content_key"] not in known]
        requests = [Request.model_validate_json(row["request"]) for row in wanted]
        personas = self.writer.write(requests) if requests else []
        rows = []
        for row, request, written in zip(wanted, requests, personas, strict=True):
            lesson = lesson_of(request, written) or Lesson("", "")
            rows.append(
                {
                    "content_key": row["content_key"],
                    "user_id": row["user_id"],
                    **lesson._asdict(),
                    "sentences_asked": len(request.interests),
                    "sentences_passed": len(written.sentences),
                    "created_timestamp": dt.datetime.now(dt.UTC),
                }
            )
        self.warehouse.append(PERSONA_LESSONS, pa.Table.from_pylist(rows, PERSONA_LESSONS.schema))
        spent = self.writer.engine.usage.minus(before)
        return pa.table({"users": [batch.num_rows]} | {name: [count] for name, count in spent._asdict().items()})


def read_lessons(warehouse: Warehouse, keys: list[str]) -> pl.DataFrame:
    """The lessons of ``keys``, as far as they were taught."""
    if not warehouse.exists(PERSONA_LESSONS):
        return pl.DataFrame(PERSONA_LESSONS.schema.empty_table())
    wanted = pc.field("content_key").isin(pa.array(keys, pa.string()))
    found = pl.DataFrame(warehouse.read(PERSONA_LESSONS, filters=wanted))
    return found.unique("content_key", keep="first", maintain_order=True)


def teach(
    warehouse: Warehouse,
    engine: LanguageEngineConfig,
    max_new_tokens: int,
    users: pl.DataFrame,
    *,
    users_per_batch: int,
    num_actors: int,
    cpus: float,
    gpus: float,
) -> Usage:
    """Has the teacher answer what it has not yet; returns what it cost.

    Args:
        warehouse: Where lessons are kept.
        engine: The teacher's model.
        max_new_tokens: Token limit of a sentence.
        users: Columns ``content_key``, ``user_id``, ``request``.
        users_per_batch: Users that are answered together.
        num_actors: Loaded teachers.
        cpus: CPUs of an actor.
        gpus: GPUs of an actor.
    """
    wanted = users.select("content_key", "user_id", "request").unique("content_key", maintain_order=True)
    known = read_lessons(warehouse, wanted["content_key"].to_list()).select("content_key")
    missing = wanted.join(known, on="content_key", how="anti", maintain_order="left")
    spent = Usage()
    if not missing.height:
        return spent
    if not warehouse.exists(PERSONA_LESSONS):
        warehouse.write(PERSONA_LESSONS, PERSONA_LESSONS.schema.empty_table(), version=APPEND_ONLY)
    blocks = [missing.slice(i, users_per_batch).to_arrow() for i in range(0, missing.height, users_per_batch)]
    arguments = (warehouse, engine, max_new_tokens, max(int(cpus), 1))
    progress = Progress("lessons", missing.height, "users")
    for row in map_blocks(blocks, Teacher, arguments, actors=num_actors, cpus=cpus, gpus=gpus).iter_rows():
        batch = Usage(*(int(row[name]) for name in Usage._fields))
        spent = spent.plus(batch)
        progress.add(int(row["users"]), tokens=batch.completion_tokens)
    warehouse.compact(PERSONA_LESSONS)
    return spent


def put_lessons(artifacts: ArtifactStore, lessons: dict[str, list[Lesson]]) -> str:
    """Keeps the lessons of a training as an artifact, named by their content. No user is named in them."""
    name = f"{LESSON_FILES}/{version_of(lessons={part: list(map(list, rows)) for part, rows in lessons.items()})}"
    if not artifacts.exists(name):
        with tempfile.TemporaryDirectory() as folder:
            for part, rows in lessons.items():
                lines = [json.dumps(row._asdict(), ensure_ascii=False) for row in rows]
                (Path(folder) / f"{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            artifacts.put(Path(folder), name)
    return name


def get_lessons(artifacts: ArtifactStore, name: str, part: str) -> list[Lesson]:
    """Lessons that `put_lessons` kept."""
    with artifacts.local(name) as folder:
        text = (folder / f"{part}.jsonl").read_text(encoding="utf-8")
        # Not `splitlines`, which also cuts at separators that a title may hold.
        lines: list[Any] = [json.loads(line) for line in text.split("\n") if line]
    return [Lesson(**line) for line in lines]
