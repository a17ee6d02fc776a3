import multiprocessing
import os
import signal
import time

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from models.ranking import content
from models.ranking.ablation import Arm
from ray_jobs.ranking import content_ablation
from ray_jobs.ranking.ablation_training import Cell, crosses_of, train_cell
from ray_jobs.ranking.content_ablation import Config
from ray_jobs.ranking.content_arms import permuted, read_contents, read_split, with_content, with_tokens
from ray_jobs.ranking.training import Network
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.training_task import TrainingOptions
from tests.training_sets import seed_caption_embeddings, seed_training_set

SHORT = TrainingOptions(epochs=1, patience=1, learning_rate=1e-2)


def config(tables, **changes):
    return Config(
        **(
            {
                "warehouse": tables.warehouse(),
                "artifacts": tables.artifacts(),
                "inputs": {"features/training_set": "ts"},
                "code": "1",
                "split_rules": ("global_time",),
                "contents": ("tokens", "tokens_random"),
                "item_ids": (True,),
                "seeds": (0, 1),
                "training": SHORT,
                "network": Network(width=8, hidden=16, dropout=0.1),
                "batch_size": 256,
                "resamples": 60,
            }
            | changes
        )
    )


@pytest.fixture
def seeded(tables):
    seed_training_set(tables, num_users=60, num_items=40, per_user=12, late_share=0.2)
    seed_caption_embeddings(tables, num_items=40)
    return tables


@pytest.fixture
def contents(seeded):
    return read_contents(seeded.warehouse(), config(seeded).split_rules, config(seeded).tokens)


def sets(items):
    return [row[row > 0].tolist() for row in items.tokens_IT]


def test_a_permutation_moves_whole_sets_and_means_nothing_twice(contents):
    real = with_content(contents, Arm("tokens", True), 0)
    first, second = (with_content(contents, Arm("tokens_permuted", True), seed) for seed in (0, 1))
    again = with_content(contents, Arm("tokens_permuted", False), 0)
    assert sorted(sets(first)) == sorted(sets(second)) == sorted(sets(real))
    assert sets(first) != sets(second) and sets(first) != sets(real)
    assert sets(again) == sets(first), "the same placebo with and without IDs"
    weights = [dict(zip(x.tokens_IT.flat, x.weights_IT.flat, strict=True)) for x in (real, first)]
    assert weights[0] == weights[1] and len(set(weights[0].values())) > 2, "weights move with them"
    rows = pl.DataFrame({"item_id": ["a", "b", "c"], "x": [1, 2, 3], "y": [10, 20, 30]})
    made = permuted(rows, 3)
    assert made["item_id"].to_list() == ["a", "b", "c"] and (made["y"] == 10 * made["x"]).all()


def test_random_tokens_are_as_many_and_others(contents):
    real, random, other = (
        with_content(contents, Arm(arm, True), seed)
        for arm, seed in (("tokens", 0), ("tokens_random", 0), ("tokens_random", 1))
    )
    assert [len(s) for s in sets(random)] == [len(s) for s in sets(real)]
    assert sets(random) != sets(real) and sets(random) != sets(other)
    assert all(len(set(s)) == len(s) for s in sets(random)), "distinct within an item"


def test_embeddings_are_permuted_too_and_both_kinds_come_together(contents):
    dense, moved = (with_content(contents, Arm(arm, True), 0).content_IE for arm in ("dense", "dense_permuted"))
    assert not np.array_equal(dense, moved) and not dense[0].any() and not moved[0].any()
    assert np.allclose(np.sort(dense, 0), np.sort(moved, 0))
    both, none = (with_content(contents, Arm(arm, True), 0) for arm in ("tokens_dense", "none"))
    assert both.tokens_IT.shape[1] and both.content_IE.shape[1]
    assert not none.tokens_IT.shape[1] and not none.content_IE.shape[1]


def test_titles_are_tokenized_alone_by_the_same_rules(contents):
    titles, captions = (with_content(contents, Arm(arm, True), 0) for arm in ("title", "tokens"))
    assert titles.tokens_IT.any() and set(titles.tokens_IT.ravel()) & set(captions.tokens_IT.ravel()) <= {0}


def test_no_vocabulary_knows_what_only_another_rules_training_period_saw(seeded):
    """Items of the test period of one rule are of the training period of the other."""
    warehouse = seeded.warehouse()
    late = pl.DataFrame(warehouse.read(ITEMS)).filter(pl.col("available_from").is_not_null())["item_id"].to_list()
    captions = pl.DataFrame(warehouse.read(ITEM_CAPTIONS)).with_columns(
        caption=pl.when(pl.col("item_id").is_in(late)).then(pl.lit("zeppelin")).otherwise("caption")
    )
    warehouse.write(ITEM_CAPTIONS, ITEM_CAPTIONS.conform(captions.to_arrow()), "late")

    def known(*rules):
        found = read_contents(warehouse, rules, config(seeded).tokens).sets["captions"]["tokens"].explode()
        return bool(found.str.contains("zeppelin").any())

    assert len(late) > 3 and known("leave_one_out")
    assert not known("global_time") and not known("leave_one_out", "global_time")


def test_rows_carry_the_tokens_of_the_arms_catalogue(seeded, contents):
    data = read_split(seeded.warehouse(), "global_time", None)
    items = with_content(contents, Arm("tokens_permuted", True), 0)
    made = with_tokens(data, items)
    ids = {item: row[row > 0] - 1 for item, row in zip(items.ids, items.tokens_IT[1:], strict=True)}
    for item, tokens in zip(made["item_id"].to_pylist(), made[content.TOKENS.column].to_pylist(), strict=True):
        assert tokens == ids[item].tolist()
    assert with_tokens(data, contents.items) is data, "an arm without tokens reads none"


def test_examples_are_split_by_the_rule_that_is_asked_for(seeded):
    warehouse = seeded.warehouse()
    with pytest.raises(ValueError, match="leave_one_out gives no examples of the split valid"):
        read_split(warehouse, "leave_one_out", None)
    last = pl.DataFrame(warehouse.read(SPLITS)).with_columns(
        leave_one_out=pl.when(pl.col("position") == pl.col("position").max().over("user_id"))
        .then(pl.lit("test"))
        .when(pl.col("position") == pl.col("position").max().over("user_id") - 1)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )
    warehouse.write(SPLITS, last.to_arrow(), "loo")
    data = read_split(warehouse, "leave_one_out", None)
    wanted = dict(last.select("example_id", "leave_one_out").iter_rows())
    assert data["split"].to_pylist() == [wanted[e] for e in data["example_id"].to_pylist()]
    other = read_split(warehouse, "global_time", None)
    assert data.drop_columns("split").equals(other.drop_columns("split")), "features depend on no split"


def test_crosses_belong_to_no_rule_and_to_the_placebo(seeded, contents):
    data = read_split(seeded.warehouse(), "global_time", None)
    recipe = config(seeded).recipe()
    real = crosses_of(Arm("tokens", True), 0, data, contents, recipe)
    split = pa.array(np.roll(data["split"].to_numpy(zero_copy_only=False), 7).tolist())
    moved = data.set_column(data.schema.get_field_index("split"), "split", split)
    assert np.array_equal(crosses_of(Arm("tokens", False), 1, moved, contents, recipe), real)
    assert not np.array_equal(crosses_of(Arm("tokens_permuted", True), 0, data, contents, recipe), real)
    assert real.any() and len(real) == data.num_rows


def test_a_training_is_the_same_whenever_it_runs(seeded, contents, monkeypatch):
    job = config(seeded)
    data = read_split(seeded.warehouse(), "global_time", None)
    cell = Cell("global_time", Arm("tokens", True), 0)
    ready = crosses_of(cell.arm, 0, data, contents, job.recipe())
    for at, crosses in (("a", ready), ("b", None)):
        train_cell(cell, data, contents, crosses, job.recipe(), job.artifacts, at)
    scores = []
    for at in ("a", "b"):
        with job.artifacts.local(at) as folder:
            scores.append(pl.read_parquet(folder / "scores.parquet"))
    assert scores[0].equals(scores[1]), "crosses made before are those that the training would make"
    assert set(scores[0].columns) == {"example_id", "user_id", "label", "score", "rank", "slices"}
    assert scores[0]["user_id"].dtype == pl.UInt32, "no name of a user is kept"


def test_the_whole_experiment_and_what_a_second_run_trains(seeded, ray_cluster):
    first = content_ablation.run(config(seeded))
    assert (first.num_trained, first.num_found) == (6, 0)
    key = [(x.split_rule, x.arm, x.item_ids, x.slice, x.metric, x.baseline) for x in first.lines]
    assert len(set(key)) == len(key)
    assert {x.arm for x in first.lines} == {"none", "tokens", "tokens_random"}
    lifts = [x for x in first.lines if x.verdict]
    assert lifts and all(x.arm == "tokens" and x.baseline == "none" and x.metric == "auc" for x in lifts)
    assert all(x.counts is False for x in lifts if "tokens_permuted" not in x.verdict), "one placebo was not run"
    assert {x.baseline for x in first.lines if x.arm == "tokens"} == {"", "none", "tokens_random"}
    for x in first.lines:
        if x.baseline:
            value = {(y.arm, y.slice, y.metric): y.value for y in first.lines if not y.baseline}
            assert x.value == pytest.approx(value[x.arm, x.slice, x.metric] - value[x.baseline, x.slice, x.metric])
    assert {(t.arm, t.seed) for t in first.trainings} == {
        (a, s) for a in ("none", "tokens", "tokens_random") for s in (0, 1)
    }
    again = content_ablation.run(config(seeded))
    assert (again.num_trained, again.num_found) == (0, 6) and again.lines == first.lines
    more = content_ablation.run(config(seeded, seeds=(0, 1, 2), contents=()))
    assert (more.num_trained, more.num_found) == (1, 2), "another seed costs what is new"
    changed = config(seeded, inputs={"features/training_set": "other"})
    assert not any(changed.artifacts.exists(changed.artifact(cell)) for cell in changed.cells())


def _run_and_die(job, after):
    """A run whose process is killed once some trainings are kept."""
    import threading

    import ray

    os.setsid()
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="error", log_to_driver=False)

    def watch():
        while sum(job.artifacts.exists(job.artifact(cell)) for cell in job.cells()) < after:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    content_ablation.run(job)


def test_a_killed_run_is_resumed_with_what_is_missing(seeded, ray_cluster):
    job = config(seeded, contents=("dense",))
    process = multiprocessing.get_context("spawn").Process(target=_run_and_die, args=(job, 1))
    process.start()
    process.join(180)
    assert process.exitcode == -signal.SIGKILL
    kept = sum(job.artifacts.exists(job.artifact(cell)) for cell in job.cells())
    result = content_ablation.run(job)
    assert 1 <= kept < 4 and (result.num_found, result.num_trained) == (kept, 4 - kept)


def test_what_all_arms_are_compared_with_is_always_run(seeded):
    assert config(seeded, contents=("dense", "none")).arms() == [Arm("none", True), Arm("dense", True)]
