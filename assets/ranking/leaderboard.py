"""The asset `ranking/leaderboard`."""

import datetime as dt
from typing import Any

import dagster as dg
import pyarrow as pa
import pydantic

from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.ranking.registration import EXPERIMENT
from assets.ranking.specs import CANDIDATES
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, Tracking
from assets.run_contents import log_figures, with_interval
from models.identity import version_of
from ray_jobs.tables.ranking import LEADERBOARD, RANKERS, predictions

CODE_VERSION = "2"
NAMES = tuple(spec.name for spec in CANDIDATES)
BASELINES = ("dlrm", "popularity")
SHOWN = ("auc", "logloss", "normalized_entropy", "ece", "hr_at_10", "ndcg_at_10")
VERDICT = "**Verdict.**"


class LeaderboardConfig(Knobs):
    """How candidates are compared."""

    resamples: int = pydantic.Field(1000, ge=1, description="Bootstrap resamples of users.")


@dg.asset(
    key=["ranking", "leaderboard"],
    group_name="ranking",
    kinds={"ray", "mlflow"},
    deps=[["ranking", name] for name in NAMES],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(LEADERBOARD),
    tags={"tier": "gold"},
)
@data_errors_are_final
def leaderboard(
    context: dg.AssetExecutionContext, config: LeaderboardConfig, tables: Tables, ray_jobs: RayJobs, tracking: Tracking
) -> dg.MaterializeResult:
    """Every metric of every candidate, and its paired difference to `dlrm` and to `popularity`.

    Grain: a candidate, a slice, a metric and a baseline (empty for the metric itself), with a 95% interval over
    users. Read by analysts and by `experiments/candidates`. The verdicts go into the notes of the MLflow runs.
    **If this is red**: two candidates scored different examples; materialize the whole group `ranking` in one run.
    """
    report = Report(LEADERBOARD)
    by_name = {r["candidate"]: r for r in tables.read(RANKERS).to_pylist()}
    rows = [by_name[name] for name in NAMES]
    version = version_of(
        candidates={n: tables.version(predictions(n)) for n in NAMES},
        code=CODE_VERSION,
        baselines=list(BASELINES),
        config=config.model_dump(),
    )
    compared = {"compare_in_mlflow": dg.MetadataValue.url(comparison_url(tracking, rows)), "num_candidates": len(rows)}
    if tables.is_current(LEADERBOARD, version):
        return report.unchanged(tables, version, metadata=compared | summary(tables.read(LEADERBOARD).to_pylist()))
    from ray_jobs.ranking.comparison import Config

    result = ray_jobs.run(
        context,
        "ranking.comparison",
        Config(warehouse=tables.warehouse(), candidates=NAMES, baselines=BASELINES, resamples=config.resamples),
    )
    created, versions = dt.datetime.now(dt.UTC), {r["candidate"]: r["ranker_version"] for r in rows}
    lines = [
        line.model_dump() | {"ranker_version": versions[line.candidate], "created_timestamp": created}
        for line in result.lines
    ]
    data = pa.Table.from_pylist(lines, LEADERBOARD.schema)
    tell_runs(tracking, rows, lines)
    written = tables.write(LEADERBOARD, data, version)
    return report.result(
        version=version,
        data=data,
        committed=written.committed,
        metadata=compared
        | summary(lines)
        | {"left_out": dg.MetadataValue.md("\n".join(f"- {x}" for x in result.left_out) or "nothing")},
    )


def comparison_url(tracking: Tracking, rows: list[dict[str, Any]]) -> str:
    """Address of the MLflow page that compares the candidates' runs."""
    if not rows:
        return ""
    base = tracking.run_url(rows[0]["experiment_id"], rows[0]["run_id"]).split("/#/")[0]
    runs = ",".join(f'"{r["run_id"]}"' for r in rows)
    return f'{base}/#/compare-runs?runs=[{runs}]&experiments=["{rows[0]["experiment_id"]}"]'


def verdicts(lines: list[dict[str, Any]], candidate: str) -> list[str]:
    """What the paired differences of a candidate say, in sentences."""
    from models.ranking.evaluation import Row, verdict

    return [
        verdict(Row(**{k: line[k] for k in Row._fields}), candidate)
        for line in lines
        if line["candidate"] == candidate
        and line["baseline"]
        and line["slice"] == "all"
        and line["metric"] in ("auc", "ndcg_at_10")
    ]


def leaderboard_markdown(lines: list[dict[str, Any]]) -> str:
    """Candidates with their metrics and intervals on the whole test split."""
    cells = {
        (line["candidate"], line["metric"]): f"{line['value']:.4f} [{line['low']:.4f}, {line['high']:.4f}]"
        for line in lines
        if line["slice"] == "all" and not line["baseline"]
    }
    names = [n for n in NAMES if any(c == n for c, _ in cells)]
    rows = [f"| {n} | " + " | ".join(cells.get((n, m), "") for m in SHOWN) + " |" for n in names]
    return "\n".join([f"| candidate | {' | '.join(SHOWN)} |", "|---" * (len(SHOWN) + 1) + "|", *rows])


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The table, the verdicts and a plot with error bars."""
    from assets.figures import inline
    from assets.ranking import plots

    said = [sentence for name in NAMES for sentence in verdicts(lines, name)]
    made: dict[str, Any] = {
        "leaderboard": dg.MetadataValue.md(leaderboard_markdown(lines)),
        "verdicts": dg.MetadataValue.md("\n".join(f"- {s}" for s in said) or "none"),
    }
    for metric in ("auc", "ndcg_at_10"):
        shown = [
            (x["candidate"], x["value"], x["low"], x["high"])
            for x in lines
            if x["slice"] == "all" and not x["baseline"] and x["metric"] == metric
        ]
        if shown:
            drawn = plots.bars(shown, metric, f"{metric}, test, 95% intervals")
            made[f"{metric}_plot"] = inline(drawn, metric)
    return made


def tell_runs(tracking: Tracking, rows: list[dict[str, Any]], lines: list[dict[str, Any]]) -> None:
    """Writes the verdict into each run's note and the differences among its metrics."""
    mlflow = tracking.connect(EXPERIMENT)
    client = mlflow.MlflowClient()
    for row in rows:
        run = client.get_run(row["run_id"])
        note = run.data.tags.get("mlflow.note.content", "").split(VERDICT)[0]
        said = verdicts(lines, row["candidate"])
        client.set_tag(row["run_id"], "mlflow.note.content", note + VERDICT + "".join(f"\n- {s}" for s in said))
        mine = [x for x in lines if x["candidate"] == row["candidate"] and x["baseline"] and x["slice"] == "all"]
        log_figures(mlflow, run, [f for x in mine for f in with_interval(f"delta/{x['baseline']}/{x['metric']}", x)])
