"""Students in MLflow's registry: one run and one version a judgement, the alias `champion` on what was released."""

import base64
import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.model_aliases import serve
from assets.personas.student_charts import fidelity_plot
from assets.resources import LanguageModel, Tables, Tracking
from assets.run_inputs import log_dataset, partition_tag
from assets.source_revision import source_revision
from ray_jobs.tables.interactions import SPLITS

if TYPE_CHECKING:
    from ray_jobs.personas.writers import StudentConfig

EXPERIMENT = "personas"
REGISTERED = "persona_student"
CHAMPION, PREVIOUS = "champion", "previous"
FOLDER = "adapter"
WRITERS = ("teacher", "student")


def released_student(
    writer: str, language_model: LanguageModel, tables: Tables, tracking: Tracking
) -> "StudentConfig | None":
    """The student that writes personas, or None where the teacher does.

    Args:
        writer: `teacher`, `student`, or empty for the platform's choice.
        language_model: The language model.
        tables: Where adapters are.
        tracking: MLflow.

    Raises:
        ValueError: If the writer is unknown, or no student is released.
    """
    writer = writer or language_model.persona_writer
    if writer not in WRITERS:
        raise ValueError(f"The writer of personas is {writer!r}: give teacher or student.")
    if writer == "teacher":
        return None
    from ray_jobs.personas.writers import StudentConfig

    client = tracking.connect(EXPERIMENT).MlflowClient()
    found = client.search_registered_models(f"name = '{REGISTERED}'")
    number = found[0].aliases.get(CHAMPION) if found else None
    tags = client.get_model_version(REGISTERED, number).tags if number else {}
    if tags.get("verdict") != "released":
        raise ValueError(
            f"The student is to write personas, but {REGISTERED} has no released version with the alias {CHAMPION}: "
            "run the job distil_personas until its gates pass, or set BELVEDERE_PERSONA_WRITER=teacher."
        )
    return StudentConfig(
        version=tags["student_version"],
        prompt=tags["student_prompt"],
        base=tags["base_revision"],
        artifacts=tables.artifacts(),
        artifact=tags["artifact"],
        served_as=language_model.student_model,
    )


def register(
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    done: Any,
    *,
    params: dict[str, Any],
    inputs: dict[str, str],
    teacher: dict[str, str],
) -> str:
    """Logs a judged training and registers its adapter, each unless MLflow has it; a released one serves.

    Args:
        context: The step's context.
        tracking: MLflow.
        tables: Where the adapter is.
        done: `ray_jobs.personas.distillation.Result`.
        params: Parameters of the run.
        inputs: Versions of the tables.
        teacher: Model, revision and prompts of the teacher.

    Returns:
        Address of the run.
    """
    mlflow = tracking.connect(EXPERIMENT)
    client = mlflow.MlflowClient()
    verdict = done.verdict
    judged = {"student_version": done.student.version, "examination": done.examination, "verdict": verdict}
    wanted = " and ".join([f"name = '{REGISTERED}'", *(f"tags.{name} = '{value}'" for name, value in judged.items())])
    known = client.search_model_versions(wanted)
    if not known:
        tags = {f"version.{name}": version for name, version in inputs.items()}
        tags |= {f"teacher.{name}": value for name, value in teacher.items()}
        tags |= judged | {
            "student_prompt": done.student.prompt,
            "base_revision": done.student.base,
            "artifact": done.student.artifact,
            "lessons": done.lessons,
            "failed_gates": " ".join(done.failed) or "none",
        }
        _log(mlflow, context, tracking, tables, done, params, tags)
        known = client.search_model_versions(wanted)
    if not done.failed:
        _serve(client, str(known[0].version), done.student.version)
    run = client.get_run(known[0].run_id)
    return tracking.run_url(run.info.experiment_id, run.info.run_id)


def _serve(client: Any, number: str, student: str) -> None:
    """Points `champion` to a released version; a student that is only judged anew replaces no other."""
    standing = client.get_registered_model(REGISTERED).aliases.get(CHAMPION)
    if standing and client.get_model_version(REGISTERED, standing).tags.get("student_version") == student:
        client.set_registered_model_alias(REGISTERED, CHAMPION, number)
    else:
        serve(client, REGISTERED, CHAMPION, PREVIOUS, number)


def _log(
    mlflow: Any,
    context: dg.AssetExecutionContext,
    tracking: Tracking,
    tables: Tables,
    done: Any,
    params: dict[str, Any],
    tags: dict[str, str],
) -> None:
    fitted = done.fitted
    told = "released" if not done.failed else f"{done.verdict}. {tags['failed_gates']}"
    with tracking.run(
        context,
        EXPERIMENT,
        f"student {source_revision()} {fitted.name[-8:]}",
        params=params,
        tags=tags | partition_tag(context) | {"status": "candidate"},
        note=(
            "**Hypothesis**: one call to a fine-tuned student says of a user what the teacher says in several.\n\n"
            f"**Verdict** on {done.users['held']} users that no training saw: {told}."
        ),
    ) as run:
        for record in fitted.history:
            mlflow.log_metrics(
                {"train/loss": record["loss"], "dev/loss": record["loss_dev"], "cost/epoch_seconds": record["seconds"]},
                step=int(record["epoch"]),
            )
        mlflow.log_metrics(
            {f"{a.writer}/{name}": value for a in done.arms for name, value in costs_and_metrics(a).items()}
        )
        mlflow.log_metrics({f"lessons/{part}": count for part, count in done.num_lessons.items()})
        mlflow.log_metrics({f"users/{part}": count for part, count in done.users.items()})
        log_dataset(mlflow, tables, SPLITS, ("personas",))
        with tempfile.TemporaryDirectory() as folder:
            picture = (fidelity_plot(done.arms).md_str or "").split("base64,")[1].rstrip(")")
            (Path(folder) / "fidelity.png").write_bytes(base64.b64decode(picture))
            (Path(folder) / "history.json").write_text(json.dumps(fitted.history, indent=1), encoding="utf-8")
            mlflow.log_artifacts(folder)
        with tables.artifacts().local(done.student.artifact) as local:
            mlflow.log_artifacts(str(local), FOLDER)
        client = mlflow.MlflowClient()
        if not client.search_registered_models(f"name = '{REGISTERED}'"):
            client.create_registered_model(
                REGISTERED, description=f"Students that write personas in one call; `{CHAMPION}` passed the gates."
            )
        client.create_model_version(
            REGISTERED,
            f"{run.info.artifact_uri}/{FOLDER}",
            run.info.run_id,
            tags=tags,
            description="A PEFT adapter: merge it into its base, or serve it as a LoRA module of vLLM.",
        )


def costs_and_metrics(arm: Any) -> dict[str, float]:
    """All figures of a writer (`ray_jobs.personas.distillation.ArmResult`)."""
    costs = ("calls_per_user", "tokens_per_user", "seconds_per_user")
    compared = {
        f"{name}_difference{end}": value
        for name, found in arm.differences.items()
        for end, value in zip(("", "_low", "_high"), found, strict=True)
        # Of nobody there is no difference.
        if math.isfinite(value)
    }
    return arm.metrics | compared | {name: getattr(arm, name) for name in costs}
