"""The asset `experiments/champion`."""

import datetime as dt
import json

import dagster as dg
import pyarrow as pa

from assets.experiments.decisions import PROMOTED, is_carried, standing_row
from assets.experiments.readable import content_of
from assets.experiments.records import started_by
from assets.failures import data_errors_are_final
from assets.policies import ON_CHANGE, RETRY_TRANSIENT
from assets.reporting import Report, definition_metadata
from assets.resources import Ledger, Tables, Tracking
from models.identity import version_of
from models.ranking.content import SUMMARY
from ray_jobs.tables.experiments import CHALLENGER, CHAMPION
from ray_jobs.vista.summary_rollout import release

CODE_VERSION = "1"
SHOWN_MOVES = 10


def champion_version(tables: Tables, ledger: Ledger) -> str:
    """Version of `experiments/champion`: the decision that stands and the last move of the alias."""
    moves = ledger.promotions()
    return version_of(
        decision=tables.warehouse().version(CHALLENGER),
        last=moves[-1].key if moves else None,
        code=CODE_VERSION,
    )


def history_markdown(ledger: Ledger) -> str:
    """The last moves of the alias `champion`, newest first."""
    lines = ["| when | kind | from | to | who | why |", "|---|---|---|---|---|---|"]
    for move in reversed(ledger.promotions()[-SHOWN_MOVES:]):
        lines.append(
            f"| {move.created:%Y-%m-%d %H:%M} | {move.kind}{' (forced)' if move.forced else ''} | "
            f"{move.before.label if move.before else ''} | {move.after.label} | {move.who} | "
            f"{move.reason[:200]} |"
        )
    return "\n".join(lines)


def write_champion(tables: Tables, ledger: Ledger, tracking: Tracking | None) -> pa.Table:
    """Writes the aliases as the registry has them, and lets go of content that was held for another champion.

    Without ``tracking`` there has never been a champion.
    """
    aliases = {}
    if tracking is not None:
        from assets.experiments.registry import ALIASES, Registry

        found = Registry(tracking).aliases()
        aliases = {alias: found[alias] for alias in ALIASES if alias in found}
    moves = ledger.promotions()
    now = dt.datetime.now(dt.UTC)
    rows = [
        {
            "alias": alias,
            "registry_version": p.registry_version,
            "candidate": p.candidate,
            "candidate_version": p.candidate_version,
            "since": moves[-1].created if moves else now,
            "reason": moves[-1].reason if moves else "",
            "created_timestamp": now,
        }
        for alias, p in aliases.items()
    ]
    data = pa.Table.from_pylist(rows, CHAMPION.schema)
    tables.write(CHAMPION, data, champion_version(tables, ledger))
    read = content_of(tables, ledger, moves[-1].after) if moves else {}
    release(tables.warehouse(), read.get(SUMMARY.version))
    return data


@dg.asset(
    key=["experiments", "champion"],
    group_name="experiments",
    kinds={"mlflow", "sqlalchemy"},
    deps=[["experiments", "challenger"]],
    code_version=CODE_VERSION,
    retry_policy=RETRY_TRANSIENT,
    automation_condition=ON_CHANGE,
    metadata=definition_metadata(CHAMPION),
    tags={"tier": "gold"},
)
@data_errors_are_final
def champion(
    context: dg.AssetExecutionContext, tables: Tables, ledger: Ledger, tracking: Tracking
) -> dg.MaterializeResult:
    """The model that serves: the aliases of the registered model `ranker`, moved only through the `gate`.

    One row an alias; none while no candidate beat the floor. Serving loads `models:/ranker@champion`. The
    ledger's append-only promotions tell how it got there. **If this is red**: MLflow or the ledger does not
    answer (nothing was changed), or somebody moved the alias by hand. To go back at once, launch the job
    `rollback_model`.
    """
    report = Report(CHAMPION)
    row = standing_row(tables) or {}
    key = f"promote:{tables.version(CHALLENGER)}"
    moves = ledger.promotions()
    due = row["decision"] == PROMOTED and is_carried(row) and all(move.key != key for move in moves)
    if not due and tables.is_current(CHAMPION, champion_version(tables, ledger)):
        return report.unchanged(
            tables,
            champion_version(tables, ledger),
            metadata={"promotions": 0, "history": dg.MetadataValue.md(history_markdown(ledger))},
        )
    if due:
        from assets.experiments.registry import Registry, find_candidate, promote

        record = find_candidate(ledger, row["challenger"], row["challenger_version"])
        context.log.info(f"Promoting {record.label}: {row['reason']}")
        due = promote(
            Registry(tracking),
            tables,
            ledger,
            record,
            key=key,
            who=started_by(context.run),
            reason=row["reason"],
            report={"decision_version": tables.version(CHALLENGER), "rules": json.loads(row["rules"])},
            dagster_run_id=context.run.run_id,
        )
    data = write_champion(tables, ledger, tracking if ledger.promotions() else None)
    return report.result(
        version=champion_version(tables, ledger),
        data=data,
        committed=True,
        metadata={
            "promotions": int(due),
            "decision": row["decision"],
            "history": dg.MetadataValue.md(history_markdown(ledger)),
        },
    )
