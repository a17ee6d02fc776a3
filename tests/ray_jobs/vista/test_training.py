"""VISTA on small tables: what it sees, that it learns, and that it survives odd data."""

import dataclasses
import datetime as dt

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from models.vista.causal import CausalVista
from models.vista.model import VistaConfig
from ray_jobs.checkpoints import read_model
from ray_jobs.histories.data import Inputs, bucket_of, read_events
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from ray_jobs.training_task import TrainingOptions
from ray_jobs.vista.summarising import load_summarizer
from ray_jobs.vista.training import Config, Network, VistaTask, run
from ray_jobs.warehouse import VersionMismatchError
from tests.factories import CREATED, START, seed_interactions


def seed_semantic_ids(tables, num_items):
    rows = [
        {
            "item_id": f"i{i}",
            "codes": [i % 4, i % 3],
            "collision": 0,
            "semantic_id": f"{i}",
            "cluster": i % 4,
            "codebook_version": "c",
            "event_timestamp": START,
            "created_timestamp": CREATED,
        }
        for i in range(num_items)
    ]
    tables.write(SEMANTIC_IDS, pa.Table.from_pylist(rows, SEMANTIC_IDS.schema), "semantic-1")


def config_of(tables, *, semantic=False, **changes):
    inputs = Inputs(
        raw_interactions=tables.version(RAW_INTERACTIONS),
        splits=tables.version(SPLITS),
        semantic_ids=tables.version(SEMANTIC_IDS) if semantic else None,
    )
    standard = {
        "network": Network(num_seeds=4, width=16),
        "block_examples": 4,
        "batch_blocks": 16,
        "training": TrainingOptions(epochs=2, patience=2, learning_rate=1e-2, seed=1),
    }
    return Config(warehouse=tables.warehouse(), artifacts=tables.artifacts(), inputs=inputs, **standard | changes)


@pytest.fixture
def seeded(tables):
    seed_interactions(tables, num_users=40, events_per_user=20)
    return tables


def test_training_twice_gives_one_model(seeded):
    config = config_of(seeded)
    fitted, again = run(config).fitted, run(config).fitted
    assert fitted.trained and not again.trained and fitted.metrics == again.metrics
    loaded = load_summarizer(seeded.artifacts(), config.name)
    assert not loaded.model.training and loaded.model.config.num_seeds == 4
    trained = read_model(seeded.artifacts(), config.name)
    assert VistaConfig(**trained.constructor) == loaded.model.config
    assert trained.preprocessing["block_examples"] == 4
    assert {"valid_auc_low", "test_auc", "test_auc_high"} <= fitted.final_metrics.keys()


def seed_camps(tables, num_users=150, num_events=20, num_items=20):
    """Users like the items of one of two camps: an item alone says nothing, only the history tells which camp."""
    rng = np.random.default_rng(0)
    events, examples = [], []
    for u in range(num_users):
        split = "train" if u < 0.8 * num_users else "valid" if u < 0.9 * num_users else "test"
        for position, i in enumerate(rng.permutation(num_items)[:num_events]):
            like = int(i % 2 == u % 2)
            when = START + dt.timedelta(hours=u, seconds=position)
            common = {
                "user_id": f"u{u}",
                "item_id": f"i{i}",
                "timestamp": when,
                "action": "rating",
                "value": 5.0 if like else 1.0,
                "created_timestamp": CREATED,
            }
            events.append(common | {"event_id": f"{u}-{position}", "sequence": len(events), "day": "2025-01-01"})
            examples.append(
                common
                | {
                    "example_id": f"{u}-{position}",
                    "position": position,
                    "label": like,
                    "sampled": False,
                    "leave_one_out": split,
                    "global_time": split,
                    "split": split,
                }
            )
    tables.write(RAW_INTERACTIONS, pa.Table.from_pylist(events, RAW_INTERACTIONS.schema), "camps")
    tables.write(SPLITS, pa.Table.from_pylist(examples, SPLITS.schema), "camps")


def test_it_reads_taste_from_histories_of_new_users_and_a_placebo_does_not(tables):
    seed_camps(tables)
    knobs = {
        "training": TrainingOptions(epochs=12, patience=12, learning_rate=3e-3),
        "network": Network(num_seeds=4, width=16, embedding_std=1.0),
    }
    fitted = run(config_of(tables, **knobs)).fitted
    assert fitted.final_metrics["test_auc_low"] > 0.85
    splits = pl.from_arrow(tables.read(SPLITS)).with_columns(pl.col("label").shuffle(seed=0))
    tables.write(SPLITS, splits.to_arrow().cast(SPLITS.schema), "placebo")
    placebo = run(config_of(tables, **knobs)).fitted
    assert placebo.final_metrics["test_auc_low"] < 0.5 < placebo.final_metrics["test_auc_high"]


def test_the_version_knows_inputs_and_parameters_but_not_places(seeded, tmp_path):
    config = config_of(seeded)
    elsewhere = config.model_copy(
        update={
            "warehouse": dataclasses.replace(config.warehouse, root=str(tmp_path / "x")),
            "workers": 2,
            "use_gpu": True,
        }
    )
    assert config.name == elsewhere.name
    other = [
        config.model_copy(update=change)
        for change in (
            {"history_events": 7},
            {"network": Network(width=8)},
            {"inputs": Inputs(raw_interactions="o", splits="s")},
        )
    ]
    assert len({config.name, *(c.name for c in other)}) == 4


def test_histories_hold_only_what_came_before(seeded):
    task = VistaTask(config_of(seeded))
    frame = read_events(seeded.warehouse(), seeded.version(RAW_INTERACTIONS))
    moments = frame["timestamp"].dt.epoch("us").to_numpy()
    owners = frame["user_id"].to_numpy()
    users = np.unique(owners)
    total = 0
    for blocks in task.blocks.values():
        for start, stop, first, end in zip(*blocks, strict=True):
            total += stop - start
            user, time = task.examples.users[start], task.examples.times[start:stop].min()
            assert (owners[first:end] == users[user]).all() and (moments[first:end] < time).all()
            assert end - first == sum((owners == users[user]) & (moments < time))
    assert total == seeded.warehouse().num_rows(SPLITS)


def test_items_first_seen_after_training_are_unknown(seeded):
    task = VistaTask(config_of(seeded, min_item_events=1))
    splits = pl.from_arrow(seeded.read(SPLITS))
    learned = set(splits.filter(pl.col("split") == "train")["item_id"])
    assert set(task.vocabulary.items) == learned


def test_batches_cover_the_epoch_on_all_ranks_alike(seeded):
    task = VistaTask(config_of(seeded))
    alone = list(task.train_batches(1, 0, 1))
    assert sum(int(b.real_BC.sum()) for b in alone) == task.num_examples(1)
    ranks = [list(task.train_batches(1, rank, 2)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    assert not torch.equal(alone[0].labels_BC, list(task.train_batches(2, 0, 1))[0].labels_BC)


def test_a_causal_vista_is_trained_by_its_name_and_found_again(seeded):
    config = config_of(seeded).model_copy(update={"family": "vista_causal"})
    assert config.name != config_of(seeded).name
    fitted = run(config).fitted
    loaded = load_summarizer(seeded.artifacts(), fitted.name)
    assert isinstance(loaded.model, CausalVista) and loaded.preprocessing["family"] == "vista_causal"
    assert "family" not in VistaTask(config_of(seeded)).preprocessing()


def test_semantic_ids_enter_and_another_codebook_is_refused(seeded):
    seed_semantic_ids(seeded, 40)
    config = config_of(seeded, semantic=True)
    task = VistaTask(config)
    assert task.vocabulary.level_sizes == [4, 3] and task.catalogue.codes.shape == (41, 2)
    assert task.network_config().num_codes == 8
    seeded.write(SEMANTIC_IDS, seeded.read(SEMANTIC_IDS).slice(0, 30), "semantic-2")
    with pytest.raises(VersionMismatchError, match="materialize clusters/semantic_ids again"):
        VistaTask(config)


@pytest.mark.parametrize(
    ("users", "items", "events", "implicit"), [(3, 5, 4, False), (1, 5, 2, False), (12, 9, 6, True)]
)
def test_small_and_implicit_data_train(tables, users, items, events, implicit):
    seed_interactions(tables, num_users=users, num_items=items, events_per_user=events, implicit=implicit)
    fitted = run(config_of(tables)).fitted
    assert fitted.trained and 0 <= fitted.metrics["auc"] <= 1


def test_no_training_example_is_one_sentence(seeded):
    splits = pl.from_arrow(seeded.read(SPLITS)).with_columns(split=pl.lit("test"))
    seeded.write(SPLITS, splits.to_arrow().cast(SPLITS.schema), "all-test")
    with pytest.raises(ValueError, match="No example is in the split `train`"):
        run(config_of(seeded))


def test_buckets_of_users_are_stable_and_even():
    ids = pl.Series([f"u{i}" for i in range(4000)] + ["ü", "", "a-very-long-identifier-of-a-user"])
    buckets = bucket_of(ids, 8)
    assert np.bincount(buckets).min() > 400
    assert buckets[:6].tolist() == bucket_of(ids.slice(0, 6), 8).tolist() == EXPECTED
    assert bucket_of(ids.slice(4000, 3), 8).tolist() == buckets[4000:].tolist()
    assert bucket_of(pl.Series([], dtype=pl.String), 8).tolist() == []


EXPECTED = [7, 4, 1, 6, 3, 0]
