"""Suites on tables that do not fit into memory: rows are judged in parts, the rest on what is left of it.

Great Expectations stays the judge. An expectation of single rows holds if it holds in every part. One of a whole
column is put to something small of which it says the same: distinct values to the distinct values, a mean to the
mean, uniqueness to the rows whose keys may be there twice.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from assets.expectations import Expect, judge, record
from ray_jobs.warehouse import Table, Warehouse

ROWS, MEAN, SUM = "TableRowCountToBeBetween", "ColumnMeanToBeBetween", "ColumnSumToBeBetween"
UNIQUE = ("ColumnValuesToBeUnique", "CompoundColumnsToBeUnique")
DISTINCT = (
    "ColumnUniqueValueCountToBeBetween",
    "ColumnDistinctValuesToContainSet",
    "ColumnDistinctValuesToEqualSet",
)


def validate_in_parts(
    warehouse: Warehouse, table: Table, expectations: list[Expect], personal: frozenset[str], rows_at_once: int
) -> list[dict[str, Any]]:
    """As `assets.expectations.validate` of the whole table, with some of its rows in memory at once.

    Args:
        warehouse: Where the table is.
        table: The table.
        expectations: What is expected of it.
        personal: Columns that identify a person.
        rows_at_once: Rows that are judged together.
    """
    by_row = [e for e in expectations if e.name not in (ROWS, MEAN, SUM, *UNIQUE, *DISTINCT)]
    rest = _Rest([e for e in expectations if e not in by_row])
    names = [c.name for c in table.columns if any(c.name in _columns(e) for e in expectations)]
    merged: dict[str, dict[str, Any]] = {}
    for part in warehouse.batches(table, names, num_rows=rows_at_once) if names else ():
        rest.add(part)
        for found in judge(part, by_row) if by_row else ():
            merged[_asked(found)] = _merged(merged[_asked(found)], found) if _asked(found) in merged else found
    rest.num_rows = warehouse.num_rows(table)
    left = [rest.judge(e, warehouse, table, rows_at_once) for e in rest.expectations]
    return [record(result, personal) for result in (*merged.values(), *left)]


def _asked(result: dict[str, Any]) -> str:
    """What a result answers: Great Expectations gives results in an order of its own."""
    asked = result["expectation_config"]
    return json.dumps([asked["type"], {k: v for k, v in asked["kwargs"].items() if k != "batch_id"}], sort_keys=True)


def _columns(expectation: Expect) -> list[str]:
    """Columns that an expectation looks at."""
    found = []
    for key, value in expectation.arguments.items():
        if key.startswith("column"):
            found += value if isinstance(value, list) else [value]
    return found


def _merged(before: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """One result of two parts; the sample is that of the first part that has one."""
    a, b = before["result"], found["result"]
    counts = {n: a[n] + b[n] for n in ("unexpected_count", "element_count") if n in a and n in b}
    worse = before if not before["success"] else found
    sample = worse["result"].get("partial_unexpected_list", [])
    return worse | {"result": worse["result"] | counts | {"partial_unexpected_list": sample}}


class _Rest:
    """What is left of a table for expectations that no single row can meet or fail."""

    def __init__(self, expectations: list[Expect]):
        self.expectations, self.num_rows = expectations, 0
        self._values: dict[str, pa.Array] = {}
        self._totals: dict[str, tuple[float, int]] = {}
        self._hashes: dict[tuple[str, ...], list[np.ndarray]] = {}

    def add(self, part: pa.Table) -> None:
        """Takes in one part of the table."""
        for name in {_columns(e)[0] for e in self.expectations if e.name in DISTINCT}:
            values = pc.unique(part[name])
            known = self._values.get(name)
            self._values[name] = values if known is None else pc.unique(pa.concat_arrays([known, values]))
        for name in {_columns(e)[0] for e in self.expectations if e.name in (MEAN, SUM)}:
            total, count = self._totals.get(name, (0, 0))
            filled = part.num_rows - part[name].null_count
            self._totals[name] = total + (pc.sum(part[name]).as_py() or 0), count + filled
        for key in {tuple(_columns(e)) for e in self.expectations if e.name in UNIQUE}:
            self._hashes.setdefault(key, []).append(_hashes(part, key))

    def judge(self, e: Expect, warehouse: Warehouse, table: Table, rows_at_once: int) -> dict[str, Any]:
        """The result of an expectation, once all parts were added."""
        if e.name in UNIQUE:
            found = judge(self._twice(tuple(_columns(e)), warehouse, table, rows_at_once), [e])[0]
            return found | {"result": found["result"] | {"element_count": self.num_rows}}
        if e.name in DISTINCT:
            (name,) = _columns(e)
            return judge(pa.table({name: self._values[name]}), [e])[0]
        if e.name == ROWS:
            # Great Expectations has to count rows itself; the sum of one number is the same test.
            arguments = {k: v for k, v in e.arguments.items() if v is not None}
            found = judge(pa.table({"rows": [self.num_rows]}), [Expect(SUM, column="rows", **arguments)])[0]
            config = {"type": "expect_table_row_count_to_be_between", "kwargs": arguments}
            return found | {"expectation_config": config}
        (name,) = _columns(e)
        total, count = self._totals[name]
        return judge(pa.table({name: [total / max(count, 1) if e.name == MEAN else total]}), [e])[0]

    def _twice(self, key: tuple[str, ...], warehouse: Warehouse, table: Table, rows_at_once: int) -> pa.Table:
        """Rows whose key's hash is not theirs alone; not all of them if they are many, and some repeat anyway."""
        ordered = np.sort(np.concatenate(self._hashes.get(key, [np.empty(0, np.uint64)])))
        twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        empty = table.schema.empty_table().select(list(key))
        if not len(twice):
            return empty
        kept, num_rows = [empty], 0
        for part in _parts(warehouse, table, key, twice[: max(rows_at_once // 2, 1)], rows_at_once):
            kept.append(part.cast(empty.schema))
            num_rows += part.num_rows
            if num_rows >= rows_at_once:
                break
        return pa.concat_tables(kept)


def _hashes(part: pa.Table, key: tuple[str, ...]) -> np.ndarray:
    """64-bit hashes of keys: eight bytes a row are all that is kept of them."""
    return pl.DataFrame(part.select(list(key))).hash_rows(seed=0).to_numpy()


def _parts(
    warehouse: Warehouse, table: Table, key: tuple[str, ...], wanted: np.ndarray, rows_at_once: int
) -> Iterator[pa.Table]:
    for part in warehouse.batches(table, list(key), num_rows=rows_at_once):
        yield part.filter(pa.array(np.isin(_hashes(part, key), wanted)))
