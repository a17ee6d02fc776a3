"""What every materialization shows, also the one that found nothing to do."""

import dagster as dg
import psutil
import pyarrow as pa
import pytest

from assets.reporting import Report
from assets.resources import Tables
from ray_jobs.warehouse import Column, Table

PEOPLE = Table(
    "stage/people",
    "one person",
    (
        Column("id", pa.string(), "Person.", pii=True),
        Column("age", pa.int64(), "Years.", nullable=True),
    ),
    primary_key=("id",),
)
ROWS = pa.Table.from_pylist([{"id": f"p{i}", "age": None if i % 4 else i} for i in range(20)], PEOPLE.schema)


@pytest.fixture
def shown(tables, instance):
    """Materializes the table as version ``version`` and returns the metadata."""

    def materialize(version: str, *, at_hand: bool = True, **metadata):
        @dg.asset(key=["stage", "people"])
        def people(tables: Tables) -> dg.MaterializeResult:
            report = Report(PEOPLE)
            if tables.is_current(PEOPLE, version):
                return report.unchanged(tables, version, {"llm_calls": 0})
            tables.write(PEOPLE, ROWS, version)
            rows = {"data": ROWS} if at_hand else {"num_rows": ROWS.num_rows}
            return report.result(version=version, committed=True, metadata=metadata, **rows)

        result = dg.materialize([people], resources={"tables": tables}, instance=instance)
        (event,) = result.get_asset_materialization_events()
        return {k: v.value for k, v in event.step_materialization_data.materialization.metadata.items()}

    return materialize


@pytest.mark.parametrize("at_hand", [True, False])
def test_rows_cost_sample_and_plot_are_shown(shown, at_hand):
    said = shown("a", at_hand=at_hand)
    assert said["dagster/row_count"] == 20 and said["table_commits"] == 1 and said["version"] == "a"
    assert said["seconds"] >= 0 and said["peak_rss_mib"] > 0
    assert said["sample"].count("\n") == 6 and "p0" not in said["sample"], "personal data is masked"
    assert "data:image/png" in said["profile"] and "20 rows" in said["profile"]


def test_an_asset_with_a_plot_of_its_own_gets_no_other(shown):
    said = shown("a", curve=dg.MetadataValue.md("![curve](data:image/png;base64,AAAA)"))
    assert "profile" not in said and "sample" in said


def test_a_materialization_that_found_nothing_to_do_shows_what_its_maker_showed(shown):
    curve = dg.MetadataValue.md("![curve](data:image/png;base64,AAAA)")
    made = shown("a", curve=curve, mlflow_run=dg.MetadataValue.url("http://mlflow/1"), llm_calls=7)
    for _ in range(2):
        again = shown("a")
        assert again["unchanged"] and again["table_commits"] == 0 and again["llm_calls"] == 0
        for name in ("curve", "mlflow_run", "sample"):
            assert again[name] == made[name]


def test_what_an_other_version_showed_is_not_shown_again(shown, tables):
    shown("a", curve=dg.MetadataValue.md("![curve](data:image/png;base64,AAAA)"))
    tables.write(PEOPLE, ROWS, "b")
    again = shown("b")
    assert again["unchanged"] and "curve" not in again and "data:image/png" in again["profile"]


def test_a_step_begins_without_what_those_before_it_have_freed():
    held = [bytearray(50_000) for _ in range(4000)]
    last = held[-1]  # above it glibc gives back by itself
    del held
    before = psutil.Process().memory_info().rss
    Report(PEOPLE)
    assert before - psutil.Process().memory_info().rss > 150 << 20 and len(last) == 50_000
