"""The stage's assets and checks together, on real tables."""

import datetime as dt
import json
from pathlib import Path

import dagster as dg
import jsonschema
import polars as pl
import pytest

from assets.interactions import checks
from assets.interactions.contract_schema import data_contract_schema
from assets.interactions.items import items
from assets.interactions.quarantine import quarantine
from assets.interactions.raw_interactions import raw_interactions
from assets.interactions.readers.base import open_reader
from assets.interactions.splits import splits
from assets.interactions.survey import survey
from assets.interactions.users import users
from orchestration.resources.dataset import ConfiguredDataset
from orchestration.settings import Settings
from ray_jobs.tables.interactions import INGESTIONS, ITEMS, RAW_INTERACTIONS, SPLITS
from tests.assets.interactions.sources import accounts_of, contract, events_of, ingest, ledger_of

ROOT = Path(__file__).parents[3]
ML_100K = ROOT / ".belvedere" / "datasets" / "ml-100k"  # where `make run` puts it
ASSETS = [items, users, raw_interactions, quarantine, splits]
CHECKS = [
    checks.items_checks,
    checks.users_checks,
    checks.raw_interactions_checks,
    checks.quarantine_checks,
    checks.splits_checks,
    checks.totals_add_up,
    checks.refused_share,
    checks.splits_do_not_leak,
]


def run(
    tables,
    instance,
    source: str,
    split: str = "global_time",
    with_checks: bool = True,
    days=None,
    raise_on_error: bool = True,
    config: dict | None = None,
):
    span = survey(open_reader(source)) if days is None else {"first_day": days[0], "last_day": days[1]}
    return dg.materialize(
        [*ASSETS, *(CHECKS if with_checks else [])],
        instance=instance,
        raise_on_error=raise_on_error,
        resources={
            "tables": tables,
            "ledger": ledger_of(tables),
            "dataset": ConfiguredDataset(source=source, split=split),
        },
        run_config={"ops": {"interactions__splits": {"config": config}}} if config else None,
        tags={
            "dagster/asset_partition_range_start": span["first_day"],
            "dagster/asset_partition_range_end": span["last_day"],
        },
    )


def metadata_of(result, asset) -> dict:
    return {k: v.value for k, v in result.asset_materializations_for_node(asset.node_def.name)[0].metadata.items()}


def check_of(result, name: str):
    return next(e for e in result.get_asset_check_evaluations() if e.check_name == name)


@pytest.mark.parametrize("implicit", ["false", "true"])
def test_synthetic_data_goes_through_with_every_check_and_then_stands(tables, instance, tmp_path, implicit):
    source = f"synthetic:{tmp_path}/s?users=40&items=30&events=700&days=5&seed=5&images=false&implicit={implicit}"
    first = run(tables, instance, source)
    assert first.success and all(e.passed for e in first.get_asset_check_evaluations())
    assert len(list(first.get_asset_check_evaluations())) == 18
    said = metadata_of(first, splits)
    assert (said["sampled_negatives"] > 0) == (implicit == "true") and said["split"] == "global_time"
    rows = pl.from_arrow(tables.read(SPLITS))
    assert said["dagster/row_count"] == len(rows) and rows["example_id"].is_unique().all()
    again = run(tables, instance, source)
    assert again.success and [metadata_of(again, a)["table_commits"] for a in ASSETS] == [0] * 5


def test_each_partition_knows_its_rows_and_only_one_carries_the_plot(tables, instance, tmp_path):
    source = contract(tmp_path / "d", "u,a,2026-01-05,rating,4\nv,b,2026-01-05,rating,2\nu,c,2026-01-07,rating,5\n")
    result = run(tables, instance, source, with_checks=False)
    events = result.asset_materializations_for_node(raw_interactions.node_def.name)
    counts = {e.partition: e.metadata["dagster/partition_row_count"].value for e in events}
    assert counts == {"2026-01-05": 2, "2026-01-06": 0, "2026-01-07": 1}
    assert [e.partition for e in events if "events_by_day" in e.metadata] == ["2026-01-07"]


def test_a_missing_column_fails_in_one_sentence_and_is_not_retried(tables, instance, tmp_path):
    source = contract(tmp_path / "d", "u,a\n", header="user_id,item_id")
    result = run(tables, instance, source, days=("2026-01-01", "2026-01-02"), raise_on_error=False, with_checks=False)
    assert not result.success
    failure = result.failure_data_for_node(raw_interactions.node_def.name)
    assert failure.user_failure_data.description.startswith("The file interactions.csv has no column timestamp")
    assert [e for e in result.all_events if e.is_step_up_for_retry] == []


def test_broken_totals_block_what_is_downstream(tables, instance, tmp_path):
    source = contract(tmp_path / "d", "u,a,2026-01-05,rating,4\nv,b,2026-01-06,rating,2\n")
    run(tables, instance, source, with_checks=False)
    accounts = accounts_of(tables).with_columns(pl.col("rows_kept") - 1)
    tables.write(INGESTIONS, accounts.to_arrow(), "tampered")
    result = dg.materialize(
        [raw_interactions_stub(), splits, checks.totals_add_up],
        instance=instance,
        raise_on_error=False,
        resources={"tables": tables, "dataset": ConfiguredDataset(source=source)},
    )
    verdict = check_of(result, "totals_add_up")
    assert not verdict.passed and "does not add up in" in verdict.description
    assert not result.asset_materializations_for_node(splits.node_def.name)


def raw_interactions_stub():
    """The asset of the events without its work, so that what a test wrote is what the check sees."""

    @dg.asset(key=["interactions", "raw_interactions"])
    def touched() -> None: ...

    return touched


def test_refused_rows_warn_and_a_retyped_column_blocks(tables, instance, tmp_path):
    good = "".join(f"u{i},a,2026-01-05T00:00:{i:02d},rating,{i % 5 + 1}\n" for i in range(20))
    result = run(tables, instance, contract(tmp_path / "d", good + "u,a,never,rating,1\n"))
    verdict = check_of(result, "refused_share")
    assert result.success and not verdict.passed and verdict.severity == dg.AssetCheckSeverity.WARN
    assert "most for unparsable_time" in verdict.description
    assert metadata_of(result, quarantine)["open_unparsable_time"] == 1
    assert "•••" in metadata_of(result, quarantine)["sample"] and "never" not in metadata_of(result, quarantine)[
        "sample"
    ].replace("`never`", "")
    retyped = (
        "".join(f"u{i},a,2026-01-05,rating,much\n" for i in range(20))
        + "v,b,2026-01-05,rating,1\nw,b,2026-01-06,rating,5\n"
    )
    blocked = run(tables, instance, contract(tmp_path / "d", retyped), raise_on_error=False)
    assert check_of(blocked, "refused_share").severity == dg.AssetCheckSeverity.ERROR


def test_refused_rows_of_other_days_do_not_block_a_run_over_one_day(tables, instance, tmp_path):
    good = "".join(f"u{i},a,2026-01-05,rating,{i % 5 + 1}\n" for i in range(300))
    bad = "u,a,2026-01-05,rating,much\n"
    source = contract(tmp_path / "d", good + bad + "u,a,2026-01-06,rating,1\n")
    run(tables, instance, source)
    verdict = check_of(run(tables, instance, source, days=("2026-01-06", "2026-01-06")), "refused_share")
    assert verdict.passed and verdict.metadata["observed"].value == pytest.approx(1 / 302)


def test_the_split_is_a_setting_and_a_config(tables, instance, tmp_path, monkeypatch):
    source = f"synthetic:{tmp_path}/s?users=20&items=20&events=300&images=false"
    ingest(tables, source, "2024-01-01", "2024-04-01")

    def split(raise_on_error=True, **config):
        return dg.materialize(
            [splits],
            instance=instance,
            raise_on_error=raise_on_error,
            resources={"tables": tables, "dataset": ConfiguredDataset(source=source, split="leave_one_out")},
            run_config={"ops": {"interactions__splits": {"config": config}}},
        )

    assert metadata_of(split(), splits)["split"] == "leave_one_out"
    rows = pl.from_arrow(tables.read(SPLITS))
    assert rows["split"].equals(rows["leave_one_out"].alias("split"))
    assert metadata_of(split(split="global_time"), splits)["split"] == "global_time"
    result = split(raise_on_error=False, positive_value=99.0)
    assert not result.success
    assert "lower positive_value" in result.failure_data_for_node(splits.node_def.name).user_failure_data.description
    monkeypatch.setenv("BELVEDERE_SPLIT", "leave_one_out")
    assert Settings().split == "leave_one_out"


def test_an_unknown_reader_is_a_failure_with_the_fix(tables, instance):
    result = run(
        tables,
        instance,
        "shop:/data",
        days=("2026-01-01", "2026-01-01"),
        raise_on_error=False,
        with_checks=False,
    )
    failure = result.failure_data_for_node(items.node_def.name)
    assert "names no known layout" in failure.user_failure_data.description


@pytest.mark.skipif(not ML_100K.exists(), reason="MovieLens-100K is not on this machine")
def test_the_real_movielens_by_its_days(tables, tmp_path):
    from assets.interactions.intake import catalogue_version, ingest_catalogue, ingest_events

    reader = open_reader(f"recbole:{ML_100K}")
    now = dt.datetime.now(dt.UTC)
    span = survey(reader)
    assert (span["first_day"], span["last_day"], span["rows"]) == ("1997-09-20", "1998-04-22", 100_000)
    _, rows = ingest_catalogue(tables, reader, ITEMS, now)
    tables.write(ITEMS, rows, catalogue_version(rows))
    done = ingest_events(tables, reader, first=span["first_day"], last=span["last_day"], now=now)
    assert done.counts["rows_kept"] == 100_000 and len(done.days.changed) == 213
    assert events_of(tables)["event_id"].is_unique().all() and tables.warehouse().num_rows(RAW_INTERACTIONS) == 100_000


def test_the_json_schema_is_the_code_s_and_fits_a_row():
    published = json.loads((ROOT / "docs/reference/data-contract.schema.json").read_text())
    assert published == data_contract_schema()
    row = {
        "user_id": "u",
        "item_id": "a",
        "timestamp": "2026-01-31T12:00:00Z",
        "action": "rating",
        "value": 4.5,
    }
    whole = {"interactions": [row], "items": [{"item_id": "a", "title": "A", "price": 3}]}
    jsonschema.validate(whole, published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"interactions": [{"user_id": "u"}], "items": []}, published)
