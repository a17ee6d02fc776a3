"""Suites on tables in parts say what they say of the whole table."""

import pyarrow as pa
import pytest

from assets import quality_in_parts
from assets.expectations import Expect, schema_expectations, validate
from assets.quality_in_parts import validate_in_parts
from ray_jobs.warehouse import Column, Table

NUMBERS = Table(
    "test/numbers",
    "one number",
    (
        Column("key", pa.string(), "Key."),
        Column("kind", pa.string(), "Kind."),
        Column("low", pa.int64(), "Low."),
        Column("high", pa.int64(), "High.", nullable=True),
        Column("codes", pa.list_(pa.int32()), "Codes.", nullable=True),
    ),
    primary_key=("key",),
)
SUITE = [
    *schema_expectations(NUMBERS),
    Expect("TableRowCountToBeBetween", min_value=10, max_value=None),
    Expect("ColumnValuesToBeBetween", column="low", min_value=0, max_value=5),
    Expect("ColumnValuesToBeInSet", column="kind", value_set=["a", "b"]),
    Expect("ColumnValuesToMatchRegex", column="kind", regex="^[ab]$"),
    Expect("ColumnDistinctValuesToEqualSet", column="kind", value_set=["a", "b"]),
    Expect("ColumnUniqueValueCountToBeBetween", column="kind", min_value=1, max_value=2),
    Expect("ColumnMeanToBeBetween", column="low", min_value=1, max_value=3),
    Expect("ColumnSumToBeBetween", column="low", min_value=0, max_value=100),
    Expect("CompoundColumnsToBeUnique", column_list=["kind", "key"]),
    Expect(
        "ColumnPairValuesAToBeGreaterThanB",
        column_A="high",
        column_B="low",
        or_equal=True,
        ignore_row_if="either_value_is_missing",
    ),
]


def rows(**changed):
    made = {
        "key": [f"k{n:02d}" for n in range(40)],
        "kind": ["a", "b"] * 20,
        "low": [n % 5 for n in range(40)],
        "high": [5 if n % 3 else None for n in range(40)],
        "codes": [[n] for n in range(40)],
    }
    for name, (place, value) in changed.items():
        made[name][place] = value
    return pa.table(made, NUMBERS.schema)


def verdicts(found):
    return sorted((r["expectation"], r["column"], r["threshold"], r["ok"]) for r in found)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"key": (37, "k02")},  # Parts of seven rows never hold both.
        {"kind": (33, "c")},
        {"low": (8, 500)},
        {"high": (20, -1)},
    ],
)
def test_a_table_in_parts_is_judged_like_the_whole(tables, changed):
    data = rows(**changed)
    tables.write(NUMBERS, data, "v")
    whole = validate(data, SUITE)
    parts = validate_in_parts(tables.warehouse(), NUMBERS, SUITE, frozenset(), 7)
    assert verdicts(parts) == verdicts(whole)
    assert all(r["ok"] for r in whole) is not bool(changed)
    shown = [sorted((r["observed"], r["failing_sample"]) for r in found if not r["ok"]) for found in (whole, parts)]
    assert shown[0] == shown[1]


def test_what_is_held_at_once_does_not_grow_with_the_table(tables, monkeypatch):
    sizes = []
    real = quality_in_parts.judge
    monkeypatch.setattr(quality_in_parts, "judge", lambda data, suite: sizes.append(data.num_rows) or real(data, suite))
    for times in (1, 10):
        many = pa.concat_tables([rows()] * times)
        keys = pa.array([f"k{n}" for n in range(many.num_rows)])
        tables.write(NUMBERS, many.set_column(0, NUMBERS.schema.field(0), keys), f"v{times}")
        sizes.clear()
        found = validate_in_parts(tables.warehouse(), NUMBERS, SUITE[:10], frozenset({"key"}), 40)
        assert max(sizes) == 40 and sum(sizes) >= many.num_rows
        assert [r["ok"] for r in found].count(False) == 0


def test_values_of_persons_are_masked(tables):
    data = rows(key=(1, "k00"))
    tables.write(NUMBERS, data, "v")
    found = validate_in_parts(tables.warehouse(), NUMBERS, SUITE, frozenset({"key"}), 7)
    twice = [r for r in found if not r["ok"]]
    assert twice and all("k00" not in r["failing_sample"] for r in twice)
