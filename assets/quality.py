"""Suites of expectations as Dagster asset checks, in memory or, of large tables, in parts."""

import dataclasses
from typing import Any

import dagster as dg
import pyarrow as pa
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from assets.expectations import Expect, schema_expectations, validate
from assets.quality_in_parts import validate_in_parts
from assets.resources import Tables
from models.identity import version_of
from ray_jobs.warehouse import Table

SCHEMA, VOLUME, SEMANTIC = "schema", "volume", "semantic"
ROWS_AT_ONCE = 200_000


def check_result(
    name: str, table: Table, records: list[dict[str, Any]], version: str, suite: str, severity: dg.AssetCheckSeverity
) -> dg.AssetCheckResult:
    """One Dagster check out of the records of `validate`."""
    failed = [r for r in records if not r["ok"]]
    first = failed[0] if failed else None
    schema = dg.TableSchema([dg.TableColumn(k, "bool" if k == "ok" else "string") for k in records[0]])
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=dg.AssetKey(table.name.split("/")),
        passed=not failed,
        severity=severity,
        description=None
        if first is None
        else (
            f"{table.name}: {first['expectation']} on {first['column'] or 'the table'} saw {first['observed']} "
            f"(threshold {first['threshold']}, e.g. {first['failing_sample']})."
        ),
        metadata={
            "evaluated": len(records),
            "failed": len(failed),
            "version": version,
            "suite": suite,
            "results": dg.MetadataValue.table([dg.TableRecord(r) for r in records], schema),
        },
    )


def standing_evaluation(context: dg.AssetCheckExecutionContext, key: dg.AssetCheckKey, version: str, suite: str) -> Any:
    """The last evaluation of a check, if it passed on this very version with this very suite."""
    # The newest record is the one of this run, which is only planned yet.
    ended = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
    latest = context.instance.event_log_storage.get_asset_check_execution_history(key, limit=1, status=ended)
    event = latest[0].event.dagster_event if latest and latest[0].event else None
    evaluation = event.asset_check_evaluation_data if event else None
    if evaluation is None or not evaluation.passed:
        return None
    said = evaluation.metadata
    if "version" not in said or said["version"].value != version or said["suite"].value != suite:
        return None
    return evaluation


def table_checks(
    table: Table,
    *,
    semantic: list[Expect],
    min_rows: int = 1,
    max_rows: int | None = None,
    blocking: bool = True,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetChecksDefinition:
    """Three checks (schema, volume, semantic) of the asset that owns ``table``, validated in one step.

    A check that passed on the same version of the table with the same suite stands and is not evaluated again.

    Args:
        table: The table; its asset key is its name.
        semantic: What its values must mean.
        min_rows: Least number of rows.
        max_rows: Largest number of rows; no limit by default.
        blocking: Whether a failure stops what is downstream.
        severity: Severity of a failure.
    """
    suites = {
        SCHEMA: schema_expectations(table),
        VOLUME: [Expect("TableRowCountToBeBetween", min_value=min_rows, max_value=max_rows)],
        SEMANTIC: semantic,
    }
    described = {
        SCHEMA: "Columns, nulls and primary key are as the table's contract says.",
        VOLUME: "The number of rows is within its bounds.",
        SEMANTIC: "Values mean what consumers take them to mean.",
    }
    key = dg.AssetKey(table.name.split("/"))

    @dg.multi_asset_check(
        name=table.name.replace("/", "__") + "__checks",
        specs=[dg.AssetCheckSpec(name, asset=key, blocking=blocking, description=described[name]) for name in suites],
    )
    def checks(context: dg.AssetCheckExecutionContext, tables: Tables):
        version = tables.version(table)
        data: pa.Table | None = None
        for name, expectations in suites.items():
            suite = version_of(suite=[dataclasses.asdict(e) for e in expectations])
            standing = standing_evaluation(context, dg.AssetCheckKey(key, name), version, suite)
            if standing is not None:
                yield dg.AssetCheckResult(
                    check_name=name, asset_key=key, passed=True, severity=severity, metadata=dict(standing.metadata)
                )
                continue
            personal = frozenset(c.name for c in table.columns if c.pii)
            if tables.warehouse().num_rows(table) > ROWS_AT_ONCE:
                records = validate_in_parts(tables.warehouse(), table, expectations, personal, ROWS_AT_ONCE)
            else:
                data = tables.read(table) if data is None else data
                records = validate(data, expectations, personal)
            yield check_result(name, table, records, version, suite, severity)

    return checks
