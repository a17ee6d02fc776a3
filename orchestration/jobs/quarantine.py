"""Jobs of the quarantine: `export_quarantine` writes refused rows to be mended, `replay_quarantine` takes them back."""

import dagster as dg
import pydantic

from assets.failures import data_errors_are_final
from assets.knobs import Knobs
from assets.resources import Ledger, Tables


class ExportConfig(Knobs):
    """Where the refused rows go."""

    folder: str = pydantic.Field(description="Folder or URL; `interactions.csv` is written there.")


@dg.op(description="Writes the open rows of the quarantine as CSV.")
@data_errors_are_final
def write_refused_rows(context: dg.OpExecutionContext, config: ExportConfig, tables: Tables) -> None:
    """See the description."""
    from assets.interactions.replay import export_quarantine

    num_rows = export_quarantine(tables, config.folder)
    context.log.info(
        f"{num_rows:,} refused rows stand in {config.folder}/interactions.csv: mend them, keep the column "
        "quarantine_id, and run replay_quarantine."
    )
    context.add_output_metadata({"rows": num_rows})


@dg.job(
    name="export_quarantine",
    tags={"intent": "mend"},
    description="Writes the refused events as CSV, with reason and position, so that they can be mended.",
)
def export_quarantine_job() -> None:
    """See the description."""
    write_refused_rows()


class ReplayConfig(Knobs):
    """Where the mended rows are."""

    mended: str = pydantic.Field(
        description="File, or folder with `interactions.csv`, as `export_quarantine` wrote it, mended."
    )


@dg.op(description="Validates mended rows again and puts the good ones into their days.")
@data_errors_are_final
def take_back_mended_rows(context: dg.OpExecutionContext, config: ReplayConfig, tables: Tables, ledger: Ledger) -> None:
    """See the description."""
    from assets.interactions.replay import replay

    done = replay(tables, config.mended, forgotten=ledger.forget_list())
    context.log.info(
        f"{done.replayed:,} rows replayed into {len(done.days)} days, {done.still_bad:,} still bad, "
        f"{done.already_replayed:,} were replayed before, {done.unknown:,} unknown."
    )
    for day in done.days:
        context.log_event(
            dg.AssetMaterialization(
                ["interactions", "raw_interactions"],
                partition=day,
                description="Mended rows were replayed into this day.",
            )
        )
    context.add_output_metadata(done._asdict() | {"days": ", ".join(done.days) or "none"})


@dg.job(
    name="replay_quarantine",
    tags={"intent": "mend"},
    description="Puts mended rows back into the events, for good: later ingestions keep them. Rows that are still bad "
    "stay open with their new reason. Run refresh_daily afterwards for what follows from them.",
)
def replay_quarantine_job() -> None:
    """See the description."""
    take_back_mended_rows()
