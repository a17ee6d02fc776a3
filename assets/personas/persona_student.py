"""The student of the personas' teacher: inputs are splits, items and clusters; on demand, and nothing is switched."""

import datetime as dt
from typing import Any

import dagster as dg
import pyarrow as pa
import pydantic

from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.personas.student_charts import fidelity_plot, fidelity_table, loss_curve
from assets.personas.students import costs_and_metrics, register
from assets.policies import FRESH_YEARLY, LLM_POOL, ON_DEMAND_TAG, RETRY_TRANSIENT, on_demand
from assets.reporting import Report, definition_metadata
from assets.resources import LanguageModel, RayJobs, Tables, Tracking
from models.identity import version_of
from ray_jobs.tables.clusters import CLUSTER_PROFILES, SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.tables.personas import PERSONA_STUDENTS

CODE_VERSION = "3"
INPUTS = (SPLITS, ITEMS, SEMANTIC_IDS, CLUSTER_PROFILES)


class DistillationConfig(Knobs):
    """Knobs of lessons, training and gates."""

    token_budget: int = pydantic.Field(300_000, ge=1, description="Tokens that the teacher's lessons may cost.")
    max_interests: int = pydantic.Field(3, ge=1, description="Interests of a persona.")
    num_explorations: int = pydantic.Field(2, ge=0, description="Novel topics of a persona.")
    min_events: int = pydantic.Field(10, ge=1, description="Least number of events of a user with enough history.")
    min_likes: int = pydantic.Field(5, ge=1, description="Least number of liked items of such a user.")
    held_events: float = pydantic.Field(0.2, gt=0, lt=1, description="Newest share of a history that judges personas.")
    dev_share: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of the users whose loss stops the training.")
    held_share: float = pydantic.Field(0.1, gt=0, lt=1, description="Share of the users that only the verdict sees.")
    examined_users: int = pydantic.Field(60, ge=1, description="Most held-out users that the verdict rests on.")
    examination_budget: int = pydantic.Field(
        250_000, ge=1, description="Tokens that all writers together may cost for them, beside `token_budget`."
    )
    rank: int = pydantic.Field(16, ge=1, description="Rank of the adapter.")
    alpha: int = pydantic.Field(32, ge=1, description="The adapter's update is scaled by alpha / rank.")
    epochs: int = pydantic.Field(3, ge=1, description="Most epochs.")
    patience: int = pydantic.Field(1, ge=1, description="Epochs without a lower loss on dev before it stops.")
    learning_rate: float = pydantic.Field(5e-4, gt=0, description="Learning rate.")
    batch_size: int = pydantic.Field(8, ge=1, description="Lessons in a step.")
    max_tokens: int = pydantic.Field(512, ge=16, description="Longer lessons are left out.")
    amp: str = pydantic.Field("off", description="`off` or `bf16`.")
    recompute: bool = pydantic.Field(False, description="Half the memory, half as long again: no activation is kept.")
    seed: int = pydantic.Field(0, description="Seed of the parts, the adapter and the order.")
    min_ifr: float = pydantic.Field(0.95, ge=0, le=1, description="Gate: least instruction following rate.")
    grounding_margin: float = pydantic.Field(0.05, ge=0, description="Gate: grounding below the teacher's by at most.")
    recall_margin: float = pydantic.Field(0.02, ge=0, description="Gate: next-cluster recall below by at most.")
    min_users: int = pydantic.Field(10, ge=1, description="Gate: least held-out users.")


@dg.asset(
    key=["personas", "persona_student"],
    group_name="personas",
    kinds={"ray", "llm", "mlflow"},
    deps=[table.name.split("/") for table in INPUTS],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=on_demand("distil_personas"),
    freshness_policy=FRESH_YEARLY,
    pool=LLM_POOL,
    metadata=definition_metadata(PERSONA_STUDENTS),
    tags={"tier": "gold", "cost-class": "llm"} | ON_DEMAND_TAG,
)
@data_errors_are_final
def persona_student(
    context: dg.AssetExecutionContext,
    config: DistillationConfig,
    tables: Tables,
    ray_jobs: RayJobs,
    language_model: LanguageModel,
    tracking: Tracking,
) -> dg.MaterializeResult:
    """The fine-tuned student beside its teacher, on users that no training saw: fidelity, cost and the gates' verdict.

    One row a writer. On demand, by the job `distil_personas`: no refresh makes it. A student that passes gets the alias
    `champion` of `persona_student` in MLflow; `personas/user_personas` uses it where BELVEDERE_PERSONA_WRITER says so.
    If this is red: the sentence names the cause; run the job again, lessons and whole epochs are kept. A yellow
    `release_gates` is a result and no fault: the teacher goes on writing.
    """
    report = Report(PERSONA_STUDENTS)
    job = job_config(config, tables, ray_jobs, language_model)
    version = version_of(student=job.version, bounds=job.bounds, code=CODE_VERSION)
    if tables.is_current(PERSONA_STUDENTS, version):
        rows = tables.read(PERSONA_STUDENTS).to_pylist()
        return report.unchanged(
            tables, version, {"training_runs": 0, "llm_calls": 0, "side_by_side": fidelity_table(rows)}
        )
    done = ray_jobs.run(context, "personas.distillation", job)
    teacher = job.engine.identity | {"prompts": job.teacher_prompts}
    url = register(context, tracking, tables, done, params=config.model_dump(), inputs=job.inputs, teacher=teacher)
    data = rows_of(done)
    written = tables.write(PERSONA_STUDENTS, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata=said_of(done)
        | {"side_by_side": fidelity_table(data.to_pylist()), "mlflow_run": dg.MetadataValue.url(url)}
        | {"usd": job.engine.usd(done.prompt_tokens, done.completion_tokens)},
    )


def job_config(config: DistillationConfig, tables: Tables, ray_jobs: RayJobs, language_model: LanguageModel) -> Any:
    """The job's config."""
    from models.language.adapters import LoraSettings
    from models.personas.exploration import ExplorationConfig
    from models.personas.interests import InterestConfig
    from models.personas.release import Bounds
    from ray_jobs.personas import distillation as persona_distillation
    from ray_jobs.training_task import TrainingOptions

    asked = config.model_dump()
    job = persona_distillation.Config
    standard = job.model_fields["training"].default.model_dump()
    own = ("token_budget", "held_events", "dev_share", "held_share", "examined_users", "examination_budget")
    return job(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        inputs={table.name: tables.version(table) for table in INPUTS},
        engine=language_model.engine(),
        interests=InterestConfig(**{k: asked[k] for k in ("min_events", "min_likes", "max_interests")}),
        exploration=ExplorationConfig(num_anchors=config.num_explorations),
        lora=LoraSettings(rank=config.rank, alpha=config.alpha),
        training=TrainingOptions(**standard | {k: v for k, v in asked.items() if k in TrainingOptions.model_fields}),
        bounds=Bounds(**{k: asked[k] for k in ("min_ifr", "grounding_margin", "recall_margin", "min_users")}),
        **ray_jobs.placement(),
        **{name: asked[name] for name in (*own, "batch_size", "max_tokens", "recompute")},
    )


def rows_of(done: Any) -> pa.Table:
    """One row a writer."""
    common = {
        "student_version": done.student.version,
        "released": not done.failed,
        "verdict": done.verdict,
        "gates": "\n".join(f"{gate.name} {gate.state}: {gate.said}" for gate in done.gates),
        "artifact": done.student.artifact,
        "created_timestamp": dt.datetime.now(dt.UTC),
    }
    rows = [{"writer": arm.writer} | costs_and_metrics(arm) | common for arm in done.arms]
    return pa.Table.from_pylist(
        [row | {name: int(row[name]) for name in ("users", "users_with_later_likes")} for row in rows],
        PERSONA_STUDENTS.schema,
    )


def said_of(done: Any) -> dict[str, Any]:
    """Verdict, cost and curves, as metadata."""
    fitted = done.fitted
    return {
        "released": not done.failed,
        "verdict": done.verdict,
        "gates": dg.MetadataValue.md("\n".join(f"- {g.name} {g.state}: {g.said}" for g in done.gates)),
        "failed_gates": dg.MetadataValue.md("\n".join(f"- {gate}" for gate in done.failed) or "none"),
        "training_runs": int(fitted.trained),
        "epochs": fitted.epochs,
        "epochs_run": fitted.epochs_run,
        "best_epoch": fitted.best_epoch,
        "resumed_from_epoch": fitted.resumed_from_epoch,
        "train_seconds": fitted.seconds,
        "llm_calls": done.llm_calls,
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "lessons": done.lessons,
        **{f"lessons_{part}": count for part, count in done.num_lessons.items()},
        **{f"users_{part}": count for part, count in done.users.items()},
        "users_held_out": done.held_out,
        "examination_tokens": round(sum(arm.tokens_per_user for arm in done.arms) * done.users["held"]),
        "sentences_passed": f"{done.sentences_passed:,} of {done.sentences_asked:,}",
        "student_version": done.student.version,
        "training_curve": loss_curve(fitted.history, fitted.best_epoch),
        "fidelity": fidelity_plot(done.arms),
    }
