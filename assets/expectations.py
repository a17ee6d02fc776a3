"""Expectations as data, and Great Expectations as their judge.

A suite stands beside its stage and names expectations without importing Great Expectations, whose import takes
seconds. `judge` validates rows in an ephemeral context.
"""

import dataclasses
import json
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from models.forgetting import MASK
from ray_jobs.warehouse import Table

FAILING_SAMPLE = 5
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
