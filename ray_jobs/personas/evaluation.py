"""Teacher and student on the same held-out users: what each wrote, and what it cost."""

import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pydantic

from models.personas.release import Outcome
from ray_jobs.actors import map_blocks
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.language.engine import LanguageEngineConfig, load_engine
from ray_jobs.personas.examined import KEPT_OF, Held, Said, is_kept, keep
from ray_jobs.personas.prompts import Request
from ray_jobs.personas.student import StudentWriter, load_student
from ray_jobs.personas.writers import StudentConfig, Writer, Written, load_writer
from ray_jobs.progress import Progress
from ray_jobs.warehouse import Warehouse

Arm = Literal["teacher", "untaught", "student", "student_free"]
ARMS: tuple[Arm, ...] = ("teacher", "untaught", "student", "student_free")
# The gates' own first: a base that was not taught writes to the token limit, and takes longer than all others.
TURNS: tuple[Arm, ...] = ("teacher", "student", "student_free", "untaught")
EXAMINATION = "examination.json"


class Examination(pydantic.BaseModel, frozen=True):
    """What one writer wrote for the held-out users.

    Attributes:
        rows: For each user whether the form was kept, the clusters described, and the pairs explored.
        calls: Calls to the model.
        tokens: Tokens of prompts and answers.
        seconds: Wall time, without loading.
    """

    rows: list[tuple[bool, list[int], list[tuple[int, int]]]]
    calls: int
    tokens: int
    seconds: float


class Examiner:
    """Batch actor: has arms write for the held-out users, and takes the time. A model is loaded where it changes.

    Args:
        engine: The language model.
        student: The student.
        max_new_tokens: Token limit of a sentence of the teacher.
        threads: CPU threads of an in-process model.
    """

    def __init__(self, engine: LanguageEngineConfig, student: StudentConfig, max_new_tokens: int, threads: int):
        if engine.kind == "transformers":
            import torch

            torch.set_num_threads(threads)
        self.config, self.student, self.max_new_tokens = engine, student, max_new_tokens
        self.taught: bool | None = None
        self.engine: Any = None

    def _writer(self, arm: Arm) -> Writer:
        """The writer of an arm: the student is asked before (`untaught`) and after it was taught."""
        taught = arm.startswith("student")
        if self.taught is not taught:
            self.taught = taught
            self.engine = load_student(self.config, self.student) if taught else load_engine(self.config)
        if arm == "teacher":
            return load_writer(self.config, None, self.max_new_tokens, self.engine)
        return StudentWriter(self.engine, held=arm != "student_free")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Examines a batch (``arm``, one for all; ``request``); one row: `Examination` and texts as JSON."""
        arm: Arm = batch["arm"][0].as_py()
        requests = [Request.model_validate_json(request) for request in batch["request"].to_pylist()]
        writer = self._writer(arm)
        before, started = writer.engine.usage, time.perf_counter()
        personas = writer.write(requests)
        seconds = time.perf_counter() - started
        spent = writer.engine.usage.minus(before)
        found = Examination(
            rows=[_row(request, written) for request, written in zip(requests, personas, strict=True)],
            calls=spent.calls,
            tokens=spent.prompt_tokens + spent.completion_tokens,
            seconds=seconds,
        )
        texts = [[Said(i.cluster, sentence, i.titles) for i, sentence in written.sentences] for written in personas]
        return pa.table({"arm": [arm], "examination": [found.model_dump_json()], "texts": [json.dumps(texts)]})


def _row(request: Request, written: Written) -> tuple[bool, list[int], list[tuple[int, int]]]:
    allowed = {(a.cluster, c) for a in request.anchors for c in a.candidates}
    return written.followed, [i.cluster for i, _ in written.sentences], sorted(allowed & set(written.explored))


def examine(
    held: Sequence[Held],
    engine: LanguageEngineConfig,
    student: StudentConfig,
    max_new_tokens: int,
    *,
    warehouse: Warehouse,
    artifacts: ArtifactStore,
    name: str,
    parameters: dict[str, Any],
    cpus: float,
    gpus: float,
) -> dict[Arm, Examination]:
    """Examines every arm, one after the other in one actor; what is kept under ``name`` is not repeated.

    Figures are kept as artifacts, the texts of teacher and student in their table.
    """

    def kept(arm: Arm) -> str:
        return f"persona_examinations/{name}-{arm}"

    missing = [
        arm
        for arm in TURNS
        if not artifacts.exists(kept(arm)) or (arm in KEPT_OF and not is_kept(warehouse, arm, name))
    ]
    if missing:
        blocks = [pa.table({"arm": [arm] * len(held), "request": [user.request for user in held]}) for arm in missing]
        arguments = (engine, student, max_new_tokens, max(int(cpus), 1))
        progress = Progress("examination", len(held) * len(missing), "personas")
        for row in map_blocks(blocks, Examiner, arguments, actors=1, cpus=cpus, gpus=gpus).iter_rows():
            found = Examination.model_validate_json(row["examination"])
            if row["arm"] in KEPT_OF:
                texts = [[Said(*said) for said in user] for user in json.loads(row["texts"])]
                keep(warehouse, row["arm"], name, student.version, parameters, held, texts, found.rows)
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / EXAMINATION).write_text(row["examination"], encoding="utf-8")
                artifacts.put(Path(folder), kept(row["arm"]))
            progress.add(len(held))
    examined = {}
    for arm in ARMS:
        with artifacts.local(kept(arm)) as local:
            text = (local / EXAMINATION).read_text(encoding="utf-8")
        examined[arm] = Examination.model_validate_json(text)
    return examined


def outcomes(examined: Examination, held: Sequence[Held]) -> list[Outcome]:
    """The examination beside what is known of each held-out user.

    Args:
        examined: One arm's.
        held: In the same order.
    """
    found = []
    for (followed, described, explored), user in zip(examined.rows, held, strict=True):
        request = json.loads(user.request)
        found.append(
            Outcome(
                followed,
                len(request["interests"]),
                frozenset(described),
                len(request["anchors"]),
                frozenset(explored),
                user.shares,
                frozenset(user.later),
                frozenset(user.known),
            )
        )
    return found
