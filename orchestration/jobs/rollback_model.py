"""The job `rollback_model`: the model that served before serves again."""

import dagster as dg
import pydantic

from assets.knobs import Knobs
from assets.resources import Ledger, Tables, Tracking


class RollbackConfig(Knobs):
    """Where to go back to, and why."""

    reason: str = pydantic.Field(
        "the champion misbehaves in production",
        min_length=5,
        description="Why, in one sentence; stands in the promotion record.",
    )
    to_version: str = pydantic.Field(
        "previous", description="`previous`, or the number of a version of the registered model `ranker`."
    )


def record_champion(context: dg.OpExecutionContext, tables: Tables, ledger: Ledger, tracking: Tracking) -> None:
    """Brings the table and the asset `experiments/champion` in line with what a job did."""
    from assets.experiments.champion import champion_version, history_markdown, write_champion

    rows = write_champion(tables, ledger, tracking)
    context.log_event(
        dg.AssetMaterialization(
            asset_key=["experiments", "champion"],
            description=f"Moved by the job {context.job_name}.",
            metadata={
                "dagster/row_count": rows.num_rows,
                "version": champion_version(tables, ledger),
                "history": dg.MetadataValue.md(history_markdown(ledger)),
            },
            tags={"dagster/data_version": champion_version(tables, ledger)},
        )
    )


@dg.op(description="Moves the alias champion back and appends a rollback to the promotion record.")
def move_champion_back(
    context: dg.OpExecutionContext, config: RollbackConfig, tables: Tables, ledger: Ledger, tracking: Tracking
) -> None:
    """See the description."""
    from assets.experiments.records import started_by
    from assets.experiments.registry import Registry, roll_back

    record = roll_back(
        Registry(tracking),
        ledger,
        tables,
        to_version=config.to_version,
        reason=config.reason,
        who=started_by(context.run),
        dagster_run_id=context.run.run_id,
    )
    context.log.info(
        f"{record.after.label} (version {record.after.registry_version}) serves again instead of "
        f"{record.before.label if record.before else 'nothing'}: {record.reason}"
    )
    context.add_output_metadata(
        {
            "champion": record.after.label,
            "champion_registry_version": record.after.registry_version,
            "before": record.before.label if record.before else "",
            "reason": record.reason,
        }
    )
    record_champion(context, tables, ledger, tracking)


@dg.job(
    description="Lets the model that served before serve again: moves the MLflow alias champion of "
    "`ranker` back to previous "
    "(or to the version that you name) and records it. The model that is taken back is not promoted again.",
    config=dg.RunConfig(ops={"move_champion_back": RollbackConfig()}),  # type: ignore[call-arg]
    tags={"intent": "mend", "dagster/max_runtime": "900"},
)
def rollback_model() -> None:
    """See the description."""
    move_champion_back()
