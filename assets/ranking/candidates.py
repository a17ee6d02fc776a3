"""The assets `ranking/<candidate>`: one factory, one asset a spec."""

import datetime as dt
import json
from typing import Any

import dagster as dg
import pyarrow as pa

from assets.failures import data_errors_are_final
from assets.policies import GPU_POOL, ON_CHANGE, RETRY_TRANSIENT
from assets.ranking.registration import Registration, register
from assets.ranking.specs import CANDIDATES, CODE_VERSION, CandidateSpec, RankerConfig, ranker_version
from assets.reporting import Report, definition_metadata
from assets.resources import RayJobs, Tables, Tracking
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.ranking import RANKERS, predictions

HEADLINE = ("auc", "logloss", "normalized_entropy", "ece", "hr_at_10", "ndcg_at_10")


def ranker_row(tables: Tables, candidate: str) -> dict[str, Any] | None:
    """The candidate's row in `ranking/rankers`, if it has one."""
    if not tables.warehouse().exists(RANKERS):
        return None
    rows = tables.read(RANKERS, filters=[("candidate", "=", candidate)]).to_pylist()
    return rows[0] if rows else None


def registered_metadata(tracking: Tracking, row: dict[str, Any]) -> dict[str, Any]:
    """What an asset says of its candidate: links, versions and the headline metrics with their intervals."""
    metrics = json.loads(row["metrics"])
    said = {
        f"test_{m}{end}": metrics[f"test/{m}{end}"]
        for m in HEADLINE
        for end in ("", "_low", "_high")
        if f"test/{m}{end}" in metrics
    }
    return {
        "mlflow_run": dg.MetadataValue.url(tracking.run_url(row["experiment_id"], row["run_id"])),
        "mlflow_run_id": row["run_id"],
        "registered_model": row["model_name"],
        "model_version": row["model_version"],
        "feature_service": row["feature_service"],
        **said,
    }


def _description(spec: CandidateSpec) -> str:
    role = "A floor: a model that does not beat it is not worth serving." if spec.is_floor else "May be served."
    return (
        f"Predictions of the candidate `{spec.name}`: {spec.what}. {role}\n\n{spec.hypothesis}\n\n"
        "Grain: one example of the splits `valid` and `test`, with its calibrated probability of a like and its "
        f"rank among the whole catalogue. One MLflow run and one version of `{spec.model_name}` a version. Read by "
        "`ranking/leaderboard` and the promotion gate. **If this is red**: the error names the table that is "
        "missing or empty; materialize it and this asset again. A finished training is found again, an interrupted "
        "one resumes."
    )


def ranker(spec: CandidateSpec) -> dg.AssetsDefinition:
    """The asset of a candidate."""
    table = predictions(spec.name)

    def candidate(
        context: dg.AssetExecutionContext, config: RankerConfig, tables: Tables, ray_jobs: RayJobs, tracking: Tracking
    ) -> dg.MaterializeResult:
        report = Report(table)
        version = ranker_version(spec, tables, config)
        row = ranker_row(tables, spec.name)
        if row is not None and row["ranker_version"] == version and tables.is_current(table, version):
            return report.unchanged(
                tables, version, metadata=registered_metadata(tracking, row) | {"training_runs": 0, "model_versions": 0}
            )
        job = training_config(spec, tables, ray_jobs, config, version)
        result = ray_jobs.run(context, "ranking.training", job)
        registration, new = register(context, tracking, tables, spec, job, result)
        row = standing_row(spec, version, registration, result)
        tables.write(
            RANKERS,
            pa.Table.from_pylist([row], RANKERS.schema),
            f"{spec.name}-{version}",
            replace_where=f"candidate = '{spec.name}'",
        )
        return report.result(
            version=version,
            data=tables.read(table),
            committed=result.committed,
            metadata=registered_metadata(tracking, row)
            | training_metadata(result)
            | {"training_runs": int(result.trained), "model_versions": int(new)},
        )

    # The name that errors carry.
    candidate.__name__ = spec.name
    return dg.asset(
        key=["ranking", spec.name],
        group_name="ranking",
        description=_description(spec),
        code_version=CODE_VERSION,
        kinds={"ray", "mlflow", "python" if spec.is_floor else "pytorch"},
        deps=[t.name.split("/") for t in spec.tables],
        retry_policy=RETRY_TRANSIENT,
        automation_condition=ON_CHANGE,
        pool=None if spec.is_floor else GPU_POOL,
        metadata=definition_metadata(table),
        tags={"tier": "gold", "pii": "true"},
    )(data_errors_are_final(candidate))


def training_config(spec: CandidateSpec, tables: Tables, ray_jobs: RayJobs, config: RankerConfig, version: str) -> Any:
    """The job's config."""
    from ray_jobs.newest import Newest
    from ray_jobs.ranking import training as ranker_training
    from ray_jobs.training_task import TrainingOptions

    options = TrainingOptions(
        epochs=config.epochs,
        patience=config.patience,
        seed=config.seed,
        weight_decay=1e-2,
        learning_rate=config.learning_rate,
    )
    return ranker_training.Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        candidate=spec.name,
        version=version,
        kind=spec.kind,
        inputs=spec.inputs,
        training_set=tables.version(TRAINING_SET),
        num_recent=config.num_recent,
        newest=Newest(trained=config.newest_trained, scored=config.newest_scored),
        network=ranker_training.Network(width=config.width),
        training=options,
        batch_size=config.batch_size,
        resamples=config.resamples,
        **ray_jobs.placement(),
    )


def standing_row(spec: CandidateSpec, version: str, registration: Registration, result: Any) -> dict[str, Any]:
    """The candidate's row of `ranking/rankers`."""
    return {
        "candidate": spec.name,
        "ranker_version": version,
        "artifact": result.artifact,
        "feature_service": spec.feature_service,
        **registration._asdict(),
        "metrics": json.dumps(result.metrics, sort_keys=True),
        "created_timestamp": dt.datetime.now(dt.UTC),
    }


def training_metadata(result: Any) -> dict[str, Any]:
    """Numbers and plots of a candidate that was just made."""
    from assets.figures import inline
    from assets.ranking import plots

    by_slice = [(f.slice, f.value, f.low, f.high) for f in result.figures if f.metric == "auc"]
    said: dict[str, Any] = {
        "train_seconds": result.seconds,
        "num_parameters": result.num_parameters,
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "left_out": dg.MetadataValue.md("\n".join(f"- {x}" for x in result.left_out) or "nothing"),
        "auc_by_slice": inline(plots.bars(by_slice, "AUC", "AUC by slice, test"), "AUC by slice"),
    }
    if result.history:
        said["training_curve"] = inline(plots.history(result.history, result.best_epoch), "training")
    return said


popularity, item_knn, markov_chain, dlrm, dlrm_captions, dlrm_vista = (ranker(spec) for spec in CANDIDATES)
