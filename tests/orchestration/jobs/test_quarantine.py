"""The two jobs as on-call launches them."""

import polars as pl

from orchestration.jobs.quarantine import export_quarantine_job, replay_quarantine_job
from tests.assets.interactions.sources import contract, events_of, ingest, ledger_of, refused_of


def launch(job, tables, instance, op: str, **config):
    return job.execute_in_process(
        run_config={"ops": {op: {"config": config}}},
        resources={"tables": tables, "ledger": ledger_of(tables)},
        instance=instance,
        raise_on_error=False,
    )


def test_refused_rows_go_out_and_come_back_mended(tables, instance, tmp_path):
    ingest(tables, contract(tmp_path / "d", "u,a,2026-01-05,rating,4\nv,b,never,rating,2\n"))
    out = str(tmp_path / "out")
    exported = launch(export_quarantine_job, tables, instance, "write_refused_rows", folder=out)
    assert exported.success
    rows = pl.read_csv(tmp_path / "out" / "interactions.csv", infer_schema=False)
    rows.with_columns(pl.lit("2026-01-07").alias("timestamp")).write_csv(tmp_path / "out" / "interactions.csv")
    done = launch(replay_quarantine_job, tables, instance, "take_back_mended_rows", mended=out)
    (day,) = done.asset_materializations_for_node("take_back_mended_rows")
    assert done.success and day.partition == "2026-01-07"
    assert events_of(tables)["day"].to_list() == ["2026-01-05", "2026-01-07"]
    assert refused_of(tables)["status"].to_list() == ["replayed"]


def test_what_a_user_can_get_wrong_is_one_sentence(tables, instance, tmp_path):
    ingest(tables, contract(tmp_path / "d", "v,b,never,rating,2\n"))
    for job, op, config, said in (
        (export_quarantine_job, "write_refused_rows", {"folder": str(tmp_path / "d")}, "There is an interactions.csv"),
        (replay_quarantine_job, "take_back_mended_rows", {"mended": str(tmp_path / "no")}, "There are no mended rows"),
    ):
        failed = launch(job, tables, instance, op, **config)
        assert not failed.success
        assert said in failed.failure_data_for_node(op).user_failure_data.description
