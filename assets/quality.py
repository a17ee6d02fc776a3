"""Great Expectations suites as Dagster asset checks.

A suite is data: it stands beside its stage and names expectations without importing Great Expectations, whose
import takes seconds. One adapter validates a table in an ephemeral context and turns the result into checks.
"""

import dataclasses
import json
from typing import Any, cast

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from assets.resources import Tables
from models.forgetting import MASK
from models.identity import version_of
from ray_jobs.warehouse import Table

SCHEMA, VOLUME, SEMANTIC = "schema", "volume", "semantic"
FAILING_SAMPLE = 5
ROWS_AT_ONCE = 200_000
NOT_NULL, COLUMNS = "ColumnValuesToNotBeNull", "TableColumnsToMatchOrderedList"


@dataclasses.dataclass(frozen=True)
class Expect:
    """One expectation: ``Expect("ColumnValuesToBeBetween", column="value", min_value=0)``.

    Attributes:
        name: Class name in `great_expectations.expectations`, without the leading ``Expect``.
        arguments: Its keyword arguments.
    """

    name: str
    arguments: dict[str, Any]

    def __init__(self, name: str, **arguments: Any):
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "arguments", arguments)


def schema_expectations(table: Table) -> list[Expect]:
    """The columns in order, no nulls where the contract forbids them, and a unique primary key."""
    wanted = [Expect(COLUMNS, column_list=[c.name for c in table.columns])]
    wanted += [Expect(NOT_NULL, column=c.name) for c in table.columns if not c.nullable]
    if len(table.primary_key) == 1:
        wanted.append(Expect("ColumnValuesToBeUnique", column=table.primary_key[0]))
    elif table.primary_key:
        wanted.append(Expect("CompoundColumnsToBeUnique", column_list=list(table.primary_key)))
    return wanted


def _to_pandas(data: pa.Table, expectations: list[Expect]) -> Any:
    """A data frame that GX can count and compare; nested values become JSON text.

    Of nested columns that no expectation looks into only the nulls are kept: the text of a hundred thousand lists
    takes longer than everything else.
    """
    looked_into = {
        name
        for e in expectations
        if e.name not in (NOT_NULL, COLUMNS)
        for value in e.arguments.values()
        for name in (value if isinstance(value, list) else [value])
        if isinstance(name, str)
    }
    columns = {}
    for name in data.column_names:
        column = data[name]
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            if name in looked_into:
                column = pa.array(
                    [None if v is None else json.dumps(v, default=str) for v in column.to_pylist()], pa.string()
                )
            else:
                column = pc.if_else(pc.is_null(column), pa.scalar(None, pa.string()), str(column.type))
        columns[name] = column
    return pa.table(columns).to_pandas()


def judge(data: pa.Table, expectations: list[Expect]) -> list[dict[str, Any]]:
    """What Great Expectations says of ``data``: one result an expectation."""
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    batch = (
        context.data_sources.add_pandas("table")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
        .get_batch({"dataframe": _to_pandas(data, expectations)})
    )
    suite = gx.ExpectationSuite(
        name="suite", expectations=[getattr(gx.expectations, f"Expect{e.name}")(**e.arguments) for e in expectations]
    )
    results = batch.validate(suite, result_format="SUMMARY").to_json_dict()["results"]
    return cast(list[dict[str, Any]], results)


def record(result: dict[str, Any], personal: frozenset[str]) -> dict[str, Any]:
    """What a check tells of a result of `judge`: what, column, threshold, observed, ok, sample.

    Args:
        result: The result.
        personal: Columns that identify a person: their values are not shown, as metadata of checks is kept for ever.
    """
    arguments = {k: v for k, v in result["expectation_config"]["kwargs"].items() if k != "batch_id"}
    found = result["result"]
    named = {v for k, v in arguments.items() if k.startswith("column") and isinstance(v, str)}
    sample = found.get("partial_unexpected_list", [])[:FAILING_SAMPLE]
    if personal & (named | set(arguments.get("column_list", ()))):
        sample = [MASK] * len(sample)
    observed = found.get("observed_value")
    if observed is None and "unexpected_count" in found:
        observed = f"{found['unexpected_count']} unexpected of {found.get('element_count')}"
    raised = [
        e.get("exception_message")
        for e in (result.get("exception_info") or {}).values()
        if isinstance(e, dict) and e.get("raised_exception")
    ]
    return {
        "expectation": result["expectation_config"]["type"],
        "column": str(arguments.pop("column", "")),
        "threshold": json.dumps(arguments, default=str)[:200],
        "observed": str(raised[0] if raised else observed)[:200],
        "ok": bool(result["success"]),
        "failing_sample": json.dumps(sample, default=str, ensure_ascii=False)[:300],
    }


def validate(
    data: pa.Table, expectations: list[Expect], personal: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Validates ``data`` and returns one `record` an expectation."""
    return [record(result, personal) for result in judge(data, expectations)]


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
                from assets.quality_in_parts import validate_in_parts

                records = validate_in_parts(tables.warehouse(), table, expectations, personal, ROWS_AT_ONCE)
            else:
                data = tables.read(table) if data is None else data
                records = validate(data, expectations, personal)
            yield check_result(name, table, records, version, suite, severity)

    return checks
