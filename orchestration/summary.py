"""What a run says at its end: each asset with rows, seconds and checks, the candidates' table, what to open."""

from typing import Any

import dagster as dg
from rich.console import Console
from rich.table import Table as RichTable

from orchestration.causes import sentence_of
from orchestration.refresh import ROUTINE
from orchestration.settings import Settings


def _number(metadata: dict[str, dg.MetadataValue], name: str) -> float:
    value = metadata[name].value if name in metadata else 0
    return float(value) if isinstance(value, int | float) else 0.0


def _passed(evaluations: list[dg.AssetCheckEvaluation]) -> str:
    """How many checks passed, of how many; yellow where one warns, red where one is an error."""
    failed = [e for e in evaluations if not e.passed]
    told = f"{len(evaluations) - len(failed)}/{len(evaluations)}"
    if not failed:
        return told
    color = "red" if any(e.severity == dg.AssetCheckSeverity.ERROR for e in failed) else "yellow"
    return f"[{color}]{told}[/{color}]"


def first_cause(result: dg.ExecuteInProcessResult) -> tuple[str, str] | None:
    """Step and sentence of the first failure, or None."""
    for event in result.all_events:
        if event.is_step_failure:
            return str(event.step_key), sentence_of(event)
    return None


def print_summary(
    console: Console,
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    settings: Settings,
    result: dg.ExecuteInProcessResult,
    seconds: float,
) -> int:
    """Prints the summary and returns the exit code."""
    checks: dict[dg.AssetKey, list[dg.AssetCheckEvaluation]] = {}
    for evaluation in result.get_asset_check_evaluations():
        checks.setdefault(evaluation.asset_key, []).append(evaluation)
    lines = RichTable("asset", "rows", "seconds", "checks", "state", box=None, header_style="bold")
    totals = {"llm_calls": 0.0, "training_runs": 0.0, "table_commits": 0.0}
    made: dict[dg.AssetKey, dict[str, dg.MetadataValue]] = {}
    for event in result.get_asset_materialization_events():
        materialization = event.step_materialization_data.materialization
        made[materialization.asset_key] = dict(materialization.metadata)
    graph = defs.resolve_asset_graph()
    routine = ROUTINE.resolve(graph)
    for key in graph.toposorted_asset_keys:
        metadata = made.get(key)
        if metadata is None and key not in routine:
            continue
        told = _passed(checks.get(key, []))
        if metadata is None:
            lines.add_row(key.to_user_string(), "", "", told, "[red]not made[/red]")
            continue
        for name in totals:
            totals[name] += _number(metadata, name)
        unchanged = "unchanged" in metadata and metadata["unchanged"].value
        rows = int(_number(metadata, "dagster/row_count"))
        lines.add_row(
            key.to_user_string(),
            f"{rows:,}",
            f"{_number(metadata, 'seconds'):.1f}",
            told,
            "unchanged" if unchanged else "made",
        )
    console.print(lines)
    console.print(
        f"{int(totals['llm_calls']):,} LLM calls, {int(totals['training_runs'])} trainings, "
        f"{int(totals['table_commits'])} table commits in {seconds:.0f} s."
    )
    cause = first_cause(result)
    if not result.success:
        step, sentence = cause or ("", "a blocking check failed; see the checks above")
        console.print(f"[red]Failed at {step.replace('__', '/')}: {sentence}[/red]")
        stage = step.split("__")[0]
        console.print(f"Runbook: docs/how-to/runbooks/{stage}.md. `make run` again resumes; nothing good is redone.")
        return 1
    for line in leaderboard_lines(made):
        console.print(line, markup=False)
    console.print(
        "Open: `make ui`, then http://127.0.0.1:3000 for the lineage (Dagster) and "
        f"{settings.mlflow_runs} for the candidates (MLflow)."
    )
    return 0


def leaderboard_lines(made: dict[dg.AssetKey, dict[str, Any]]) -> list[str]:
    """The candidates' table, as the asset `ranking/leaderboard` shows it."""
    metadata = made.get(dg.AssetKey(["ranking", "leaderboard"]), {})
    return str(metadata["leaderboard"].value).splitlines() if "leaderboard" in metadata else []
