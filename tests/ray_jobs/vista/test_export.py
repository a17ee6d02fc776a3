"""The export: every user and moment, resumable by shard, one commit, faithful to the model."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from models.long_history.histories import history_batch
from models.vista.cache import dequantise
from ray_jobs.checkpoints import CONSTRUCTOR, model_name
from ray_jobs.histories.data import catalogue_of, encode_events, known_items, read_codes, read_events
from ray_jobs.histories.intake import sync
from ray_jobs.tables.interactions import RAW_INTERACTIONS
from ray_jobs.tables.vista import USER_SUMMARIES
from ray_jobs.vista import export as vista_export
from ray_jobs.vista.export import read_statistics
from ray_jobs.vista.summarising import load_summarizer
from ray_jobs.vista.summary_shards import CACHE_FORMAT, SHARD, Summarise, content_version, shard_name
from ray_jobs.vista.training import run
from tests.factories import seed_interactions
from tests.ray_jobs.vista.test_training import config_of


@pytest.fixture
def export(tables):
    seed_interactions(tables, num_users=20, events_per_user=11)
    name = run(config_of(tables)).fitted.name
    return vista_export.Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        version="v1",
        model=name,
        raw_interactions=tables.version(RAW_INTERACTIONS),
        shards=4,
        cpus_per_actor=0.5,
    )


def make(config, shard, base=None):
    """Makes one shard, as an actor does."""
    sync(config.warehouse, config.artifacts, config.raw_interactions)
    return Summarise(config, base)(pa.table({"shard": [shard]}))


def test_one_shard_holds_what_the_model_says(export):
    out = make(export, 1)
    with export.artifacts.local(shard_name(export, 1)) as local:
        rows = pa.parquet.read_table(local / SHARD)
    assert out["snapshots"][0].as_py() == rows.num_rows
    loaded = load_summarizer(export.artifacts, export.model)
    frame = read_events(export.warehouse, export.raw_interactions)
    users = frame["user_id"].unique().sort()
    codes = read_codes(export.warehouse, None)
    known = known_items(loaded.vocabulary, codes)
    events = encode_events(frame, users, loaded.vocabulary, known)
    stored = dequantise(rows["summary"], rows["scales"]).tokens_NKD
    for row, summary in zip(rows.to_pylist(), stored, strict=True):
        start = events.offsets[users.to_list().index(row["user_id"])]
        history = history_batch(
            events,
            catalogue_of(loaded.vocabulary, codes, known),
            np.array([start]),
            np.array([start + row["num_events"]]),
        )
        with torch.no_grad():
            exact = loaded.model.encode_history(history)[0].numpy()
        assert np.abs(exact - summary).max() <= np.abs(exact).max() / 127
        last = frame["timestamp"][int(start + row["num_events"] - 1)]
        assert (row["event_timestamp"] - last).total_seconds() == pytest.approx(1e-6)


@pytest.mark.ray
def test_a_killed_export_resumes_at_the_next_shard(export, ray_cluster):
    make(export, 0)
    make(export, 2)
    done = vista_export.run(export)
    assert (done.shards_kept, done.shards_run, done.committed) == (2, 2, True)
    rows = export.warehouse.read(USER_SUMMARIES, expect_version="v1")
    assert rows.num_rows == done.snapshots and done.users == 20 == sum(rows["is_latest"].to_pylist())
    assert set(rows["summary_version"].to_pylist()) == {done.content_version}
    assert done.content_version == content_version(export.artifacts, export.model)
    keys = set(zip(rows["user_id"].to_pylist(), rows["event_timestamp"].to_pylist(), strict=True))
    assert len(keys) == rows.num_rows
    assert export.artifacts.names("exports/v1/of-4") == []
    assert 0 < done.relative_error_mean <= done.relative_error_max < 0.02 and done.logit_error_max < 0.1
    assert read_statistics(export.artifacts, "v1") == done


def test_summaries_are_of_the_model_and_not_of_the_events(export, tables, monkeypatch):
    def versions(config):
        make(config, 1)
        with config.artifacts.local(shard_name(config, 1)) as local:
            rows = pa.parquet.read_table(local / SHARD)
        return rows.num_rows, set(rows["summary_version"].to_pylist())

    num_rows, before = versions(export)
    seed_interactions(tables, num_users=20, events_per_user=15, seed=3)
    more = export.model_copy(update={"version": "v2", "raw_interactions": tables.version(RAW_INTERACTIONS)})
    num_more, after = versions(more)
    assert num_more > num_rows and after == before == {content_version(export.artifacts, export.model)}

    other = run(config_of(tables, seed=1)).fitted.name
    assert content_version(export.artifacts, other) not in before
    # A model that was deleted and trained again under its name is another one, too.
    with export.artifacts.local(model_name(export.model)) as folder:
        (folder / CONSTRUCTOR).write_text((folder / CONSTRUCTOR).read_text() + " ")
        export.artifacts.put(folder, model_name(export.model))
    damaged = content_version(export.artifacts, export.model)
    monkeypatch.setitem(CACHE_FORMAT, "levels", 7)
    assert len({*before, damaged, content_version(export.artifacts, export.model)}) == 3


def test_readers_see_the_former_version_until_the_commit(export):
    former = export.warehouse.read(USER_SUMMARIES).num_rows if export.warehouse.exists(USER_SUMMARIES) else None
    make(export, 0)
    assert former is None and not export.warehouse.exists(USER_SUMMARIES)
