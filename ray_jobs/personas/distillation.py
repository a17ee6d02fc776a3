"""Job: a student of the personas' teacher. Lessons that passed the gates, fine-tuning, examination on other users.

What is finished is kept: lessons by content, the training by epoch, examinations by arm; a killed job resumes there.
"""

import functools
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pydantic

from models.identity import version_of
from models.language.adapters import LoraSettings, save_adapter
from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig
from models.personas.release import Bounds, Gate, Verdict, differences, fidelity, gates, verdict
from models.ranking.bootstrap import Interval
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.language.engine import EngineSetupError, LanguageEngineConfig
from ray_jobs.personas.evaluation import examine, outcomes
from ray_jobs.personas.examined import Held, parameters_of
from ray_jobs.personas.held import held_users, plan_examination
from ray_jobs.personas.lessons import DEV, HELD, TRAIN, Lesson, part_of, put_lessons, read_lessons, teach
from ray_jobs.personas.planning import make_plan
from ray_jobs.personas.student import ANSWER_SCHEMA, student_digest
from ray_jobs.personas.student_training import TaskConfig, build_task
from ray_jobs.personas.writers import StudentConfig, tokens_of, writer_identity
from ray_jobs.training import Fitted, fit
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

LESSONS_VERSION, TRAINING_VERSION, EXAMINATION_VERSION = "1", "2", "2"
"""Bump what changes: lessons are paid for, trainings take long, and neither is repeated for the sake of the others."""
STUDENT_FILE = "student.json"


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    artifacts: ArtifactStore = pydantic.Field(description="Where lessons, checkpoints and the adapter go.")
    inputs: dict[str, str] = pydantic.Field(description="Versions of the tables it reads.")
    engine: LanguageEngineConfig = pydantic.Field(description="The teacher's model, and the student's base.")
    interests: InterestConfig = pydantic.Field(InterestConfig(), description="Knobs of the interests.")
    exploration: ExplorationConfig = pydantic.Field(ExplorationConfig(), description="Knobs of the explorations.")
    token_budget: int = pydantic.Field(300_000, ge=0, description="Tokens that the teacher's lessons may cost.")
    max_new_tokens: int = pydantic.Field(40, ge=8, description="Token limit of a sentence of the teacher.")
    held_events: float = pydantic.Field(0.2, gt=0, lt=1, description="Newest share of a history that judges personas.")
    dev_share: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of the users whose loss stops the training.")
    held_share: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of the users that only the verdict sees.")
    examined_users: int = pydantic.Field(60, ge=1, description="Most held-out users that the verdict rests on.")
    examination_budget: int = pydantic.Field(
        250_000, ge=1, description="Tokens that all writers together may cost for them, beside `token_budget`."
    )
    lora: LoraSettings = pydantic.Field(LoraSettings(), description="Size and place of the adapter.")
    training: TrainingOptions = pydantic.Field(
        TrainingOptions(epochs=3, patience=1, learning_rate=5e-4, warmup_steps=4, epoch_decay=0.7, weight_decay=0.0),
        description="How it is trained.",
    )
    batch_size: int = pydantic.Field(8, ge=1, description="Lessons in a step.")
    max_tokens: int = pydantic.Field(512, ge=16, description="Longer lessons are left out.")
    recompute: bool = pydantic.Field(False, description="Whether the backward pass computes activations anew.")
    bounds: Bounds = pydantic.Field(Bounds(), description="What is asked of a student that is released.")
    workers: int = pydantic.Field(0, ge=0, description="Ray Train workers; 0 trains in the job's own process.")
    use_gpu: bool = pydantic.Field(False, description="Whether workers and actors get a GPU each.")
    acceleration: Acceleration = pydantic.Field(Acceleration(), description="How training steps are computed.")
    cpus: float = pydantic.Field(1.0, gt=0, description="CPUs of a worker or actor.")
    users_per_batch: int = pydantic.Field(16, ge=1, description="Users that the teacher answers together.")
    num_actors: int = pydantic.Field(1, ge=1, description="Loaded teachers.")

    @property
    def version(self) -> str:
        """Version of the figures: inputs, models, prompts, parameters and code, not where it runs nor what is asked."""
        where = {"warehouse", "artifacts", "engine", "workers", "use_gpu", "acceleration", "cpus"}
        said = self.model_dump(mode="json", exclude=where | {"users_per_batch", "num_actors", "bounds", "recompute"})
        code = [LESSONS_VERSION, TRAINING_VERSION, EXAMINATION_VERSION, ANSWER_SCHEMA]
        return version_of(code=code, identity=self._identity, prompt=student_digest(), **said)

    @property
    def teacher_prompts(self) -> str:
        """Digest of the teacher's prompts."""
        return writer_identity(None)["prompts"]

    @property
    def _identity(self) -> dict[str, Any]:
        return {"engine": self.engine.identity, "max_new_tokens": self.max_new_tokens} | writer_identity(None)

    def lesson_identity(self) -> dict[str, Any]:
        """What decides a lesson beside its request."""
        return self._identity | {"code": LESSONS_VERSION, "student": student_digest()}

    def training_name(self, lessons: str) -> str:
        """Version of a training: by what is learned and how, so that equal lessons are learned once.

        Args:
            lessons: Their artifact, which is named by content.
        """
        return "student-" + version_of(
            code=TRAINING_VERSION,
            engine=self.engine.identity,
            prompt=student_digest(),
            lessons=lessons,
            lora=self.lora,
            batch_size=self.batch_size,
            max_tokens=self.max_tokens,
            training=self.training.model_dump(mode="json"),
        )

    def examination_name(self, training: str, held: Sequence[Held]) -> str:
        """Version of an examination: what was trained, who is asked what, and by which teacher.

        Args:
            training: Name of the training.
            held: The users: those who are forgotten make room for others.
        """
        asked = [(user.user_id, user.request, user.seen_until) for user in held]
        knobs = parameters_of(self.interests, self.exploration)
        code = [EXAMINATION_VERSION, ANSWER_SCHEMA]
        return f"{training}-{version_of(code=code, teacher=self._identity, asked=asked, knobs=knobs)}"


class ArmResult(pydantic.BaseModel, frozen=True):
    """One writer's figures on the held-out users."""

    writer: str
    metrics: dict[str, float]
    differences: dict[str, Interval] = pydantic.Field(description="To the teacher, paired by user, with intervals.")
    calls_per_user: float
    tokens_per_user: float
    seconds_per_user: float


class Result(pydantic.BaseModel, frozen=True):
    """What the job did."""

    fitted: Fitted
    arms: list[ArmResult]
    examination: str = pydantic.Field(description="Name of the examination that the figures are of.")
    gates: list[Gate] = pydantic.Field(description="Conditions of a release, and what became of each.")
    student: StudentConfig
    lessons: str = pydantic.Field(description="Artifact of the lessons.")
    num_lessons: dict[str, int]
    users: dict[str, int] = pydantic.Field(description="Users who teach, who stop the training, and who are examined.")
    held_out: int = pydantic.Field(description="Held-out users with enough history, less those drawn without interest.")
    sentences_asked: int
    sentences_passed: int
    llm_calls: int = pydantic.Field(description="Of the teacher, for lessons that were not kept yet.")
    prompt_tokens: int
    completion_tokens: int

    @property
    def verdict(self) -> Verdict:
        """What the gates say together."""
        return verdict(self.gates)

    @property
    def failed(self) -> list[str]:
        """Why the student is not released, a sentence a gate; empty if it is."""
        return [gate.said for gate in self.gates if gate.state != "passed"]


def run(config: Config) -> Result:
    """Teaches, trains and examines.

    Raises:
        EngineSetupError: If the model is behind an endpoint, where it cannot be trained.
        ValueError: If nobody is held out, or no lesson is left.
    """
    if config.engine.kind != "transformers":
        raise EngineSetupError(
            "An endpoint's model cannot be fine-tuned from here: give its checkpoint folder (BELVEDERE_LLM_MODEL) and "
            "no BELVEDERE_LLM_BASE_URL for this job, then serve the adapter there."
        )
    # First: what has nobody to be judged by need not be taught.
    examination = plan_examination(
        config.warehouse,
        interests=config.interests,
        exploration=config.exploration,
        held_events=config.held_events,
        seed=config.training.seed,
        dev_share=config.dev_share,
        held_share=config.held_share,
        examined_users=config.examined_users,
        token_budget=config.examination_budget,
        max_new_tokens=config.max_new_tokens,
    )
    learning = learning_users(config)
    gpus = 1.0 if config.use_gpu else 0.0
    spent = teach(
        config.warehouse,
        config.engine,
        config.max_new_tokens,
        learning,
        users_per_batch=config.users_per_batch,
        num_actors=config.num_actors,
        cpus=config.cpus,
        gpus=gpus,
    )
    known = read_lessons(config.warehouse, learning["content_key"].to_list())
    taught = learning.select("content_key", "part").join(known, on="content_key", maintain_order="left")
    lessons = {
        part: [Lesson(*row) for row in rows.select("question", "answer").iter_rows()]
        for part in (TRAIN, DEV)
        for rows in [taught.filter((pl.col("part") == part) & (pl.col("answer") != ""))]
    }
    artifact = put_lessons(config.artifacts, lessons)
    task = TaskConfig(
        engine=config.engine,
        artifacts=config.artifacts,
        lessons=artifact,
        lora=config.lora,
        training=config.training,
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
        recompute=config.recompute,
    )
    fitted = fit(
        build_task,
        task,
        name=config.training_name(artifact),
        artifacts=config.artifacts,
        options=config.training,
        workers=config.workers,
        use_gpu=config.use_gpu,
        acceleration=config.acceleration,
        cpus_per_worker=config.cpus,
    )
    student = keep_student(config, fitted)
    held = held_users(config.warehouse, examination, config.held_events)
    name = config.examination_name(fitted.name, held)
    arms, found = _examine(config, name, held, student, gpus)
    return Result(
        fitted=fitted,
        arms=arms,
        examination=name,
        gates=found,
        student=student,
        lessons=artifact,
        num_lessons={part: len(rows) for part, rows in lessons.items()},
        users={part: int((learning["part"] == part).sum()) for part in (TRAIN, DEV)} | {HELD: len(held)},
        held_out=examination.num_eligible,
        sentences_asked=int(known["sentences_asked"].sum()),
        sentences_passed=int(known["sentences_passed"].sum()),
        llm_calls=spent.calls,
        prompt_tokens=spent.prompt_tokens,
        completion_tokens=spent.completion_tokens,
    )


def keep_student(config: Config, fitted: Fitted) -> StudentConfig:
    """Writes the adapter as PEFT and vLLM read it, with what it belongs to beside it."""
    student = StudentConfig(
        version=fitted.name,
        prompt=student_digest(),
        base=config.engine.revision,
        artifacts=config.artifacts,
        artifact=f"persona_students/{fitted.name}",
    )
    if not config.artifacts.exists(student.artifact):
        trained = read_model(config.artifacts, fitted.name)
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(trained.weights, config.lora, Path(folder))
            said = student.model_dump(include={"version", "prompt", "base"}) | trained.constructor
            (Path(folder) / STUDENT_FILE).write_text(json.dumps(said, sort_keys=True), encoding="utf-8")
            config.artifacts.put(Path(folder), student.artifact)
    return student


def learning_users(config: Config) -> pl.DataFrame:
    """The most active users whose lessons the budget covers, with their ``part``: `TRAIN` or `DEV`.

    The budget is cut before the held-out users are left out: whom it reaches does not depend on the shares.
    """
    plan = make_plan(
        config.warehouse,
        interests=config.interests,
        exploration=config.exploration,
        token_budget=config.token_budget,
        tokens_of=functools.partial(tokens_of, "teacher", max_new_tokens=config.max_new_tokens),
        identity=config.lesson_identity(),
        held_share=config.held_events,
    )
    parts = [part_of(u, config.training.seed, config.dev_share, config.held_share) for u in plan.users["user_id"]]
    return plan.users.with_columns(pl.Series("part", parts, pl.String)).filter(pl.col("part") != HELD)


def _examine(
    config: Config, name: str, held: list[Held], student: StudentConfig, gpus: float
) -> tuple[list[ArmResult], list[Gate]]:
    examined = examine(
        held,
        config.engine,
        student,
        config.max_new_tokens,
        warehouse=config.warehouse,
        artifacts=config.artifacts,
        name=name,
        parameters=parameters_of(config.interests, config.exploration),
        cpus=config.cpus,
        gpus=gpus,
    )
    told = {arm: outcomes(found, held) for arm, found in examined.items()}
    teacher = told["teacher"]
    arms = [
        ArmResult(
            writer=arm,
            metrics=fidelity(told[arm], teacher),
            differences=differences(told[arm], teacher, config.bounds),
            calls_per_user=found.calls / len(held),
            tokens_per_user=found.tokens / len(held),
            seconds_per_user=found.seconds / len(held),
        )
        for arm, found in examined.items()
    ]
    return arms, gates(told["student"], teacher, config.bounds)


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
