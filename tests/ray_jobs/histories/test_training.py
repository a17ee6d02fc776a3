"""One training for all families and both objectives: what it sees, that it learns, how it is ranked."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from models.long_history.floors import fit_floor, floor_scores
from models.long_history.histories import history_batch
from ray_jobs.acceleration import Acceleration
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.histories.data import Inputs
from ray_jobs.histories.next_item_task import NextItemTask, rank_targets
from ray_jobs.histories.training import Config, build_task, load_history_model, train
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from ray_jobs.training_task import TrainingOptions
from ray_jobs.vista.training import Config as VistaTraining
from ray_jobs.vista.training import run as train_vista
from tests.factories import CREATED, START, seed_interactions

SHORT = TrainingOptions(epochs=1, patience=1, learning_rate=1e-2)


def config_of(tables, family="vista", objective="next_item", **changes):
    inputs = Inputs(raw_interactions=tables.version(RAW_INTERACTIONS), splits=tables.version(SPLITS), semantic_ids=None)
    standard = {"arguments": {"width": 8, "layers": 1}, "training": SHORT, "block_examples": 4, "history_events": 12}
    return Config(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        inputs=inputs,
        family=family,
        objective=objective,
        **standard | changes,
    )


@pytest.fixture
def seeded(tables):
    seed_interactions(tables, num_users=20, events_per_user=12)
    return tables


def seed_cycle(tables, num_users=40, num_items=12):
    """Every item has one successor: only the last item says what comes next. Nobody has an item twice."""
    rows = []
    for u in range(num_users):
        for position in range(8):
            rows.append(
                {
                    "user_id": f"u{u}",
                    "item_id": f"i{(u + position) % num_items}",
                    "timestamp": START + dt.timedelta(days=u, seconds=position),
                    "action": "view",
                    "value": None,
                    "created_timestamp": CREATED,
                    "event_id": f"{u}-{position}",
                    "sequence": len(rows),
                    "day": "2025-01-01",
                }
            )
    tables.write(RAW_INTERACTIONS, pa.Table.from_pylist(rows, RAW_INTERACTIONS.schema), "cycle")


@pytest.mark.parametrize("family", ["sasrec", "din"])
def test_it_learns_what_comes_next_and_a_placebo_does_not(tables, family):
    seed_interactions(tables, num_users=2)
    seed_cycle(tables)
    options = TrainingOptions(epochs=8, patience=8, learning_rate=3e-2)
    arguments = {"width": 16, "dropout": 0.0, "item_dropout": 0.0, "embedding_std": 0.5, "layers": 1}
    config = config_of(tables, family, training=options, arguments=arguments, block_examples=1)
    fitted = train(config)
    assert not any("test" in name for name in fitted.final_metrics), "the test split is not looked at in training"
    loaded, task = load_history_model(tables.artifacts(), family, config.name), build_task(config)
    assert isinstance(task, NextItemTask)
    with torch.inference_mode():
        ranks, placebo = (task.rank(loaded.model, "test", shuffled=s).ranks for s in (False, True))
    # Of the five items that a user has not had, one comes next.
    assert (ranks == 1).mean() > 0.6 > 0.4 > (placebo == 1).mean()
    markov, targets = fit_floor("markov_chain", task.events, task.num_items), task.targets("test")
    floor = rank_targets(task, lambda rows: floor_scores(markov, task.events, targets, rows), targets)
    assert (floor == 1).all()


@pytest.mark.parametrize("family", ["sasrec", "din"])
def test_ranks_are_those_of_a_loop_over_users_and_items(seeded, family):
    task = build_task(config_of(seeded, family, candidates_at_once=7))
    torch.manual_seed(0)
    network = task.build_model().network.eval()
    events = task.events
    with torch.inference_mode():
        found = task.rank(network, "valid")
        for user, rank in zip(found.users, found.ranks, strict=True):
            first, target = events.offsets[user], events.offsets[user + 1] - 2
            had = set(events.items[first:target].tolist())
            allowed = [i for i in range(1, task.num_items + 1) if i not in had]
            history = history_batch(events, task.catalogue, np.array([max(first, target - 12)]), np.array([target]))
            scores = network(history, task.catalogue.take(np.array([allowed]))).logits_BC[0].numpy()
            own = scores[allowed.index(events.items[target])]
            assert abs(int((scores >= own - 1e-6).sum()) - rank) <= 1


@pytest.mark.parametrize("family", ["sasrec", "vista"])
def test_training_sees_no_target_of_valid_or_test(seeded, family):
    task = build_task(config_of(seeded, family))
    stops = set((task.events.offsets[1:] - 2).tolist())
    items = task.events.items
    owner = np.repeat(np.arange(20), np.diff(task.events.offsets))
    seen = np.arange(len(items)) < (task.events.offsets[1:] - 2)[owner]
    assert stops and task.counts_I.sum() == seen.sum()
    learned = sum(
        len(b.targets_N) if hasattr(b, "targets_N") else int(b.real_BC.sum()) for b in task.train_batches(1, 0, 1)
    )
    assert learned == task.num_examples(1) == seen.sum() - 20
    ranks = [list(task.train_batches(1, rank, 2)) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])


@pytest.mark.ray
def test_vista_learns_in_shards_what_it_learns_in_replicas(seeded, tmp_path, ray_cluster):
    weights = {}
    for strategy in ("ddp", "fsdp"):
        arguments = {"width": 8, "layers": 1, "dropout": 0.0, "item_dropout": 0.0}
        config = config_of(seeded, "vista", "click", arguments=arguments, workers=2)
        store = ArtifactStore(str(tmp_path / strategy))
        config = config.model_copy(update={"artifacts": store, "acceleration": Acceleration(strategy=strategy)})
        assert train(config).trained
        weights[strategy] = read_model(store, config.name).weights
    torch.testing.assert_close(weights["fsdp"], weights["ddp"], atol=1e-5, rtol=1e-4)


def test_a_large_catalogue_is_sampled(seeded):
    for family, changes in (("sasrec", {"full_softmax": 3, "num_sampled": 5}), ("vista", {"num_negatives": 3})):
        fitted = train(config_of(seeded, family, **changes))
        assert np.isfinite(fitted.history[0]["cross_entropy"])


def test_clicks_have_other_users_histories_as_a_placebo(seeded):
    config = config_of(seeded, "din", "click")
    train(config)
    task, loaded = build_task(config), load_history_model(seeded.artifacts(), "din", config.name)
    with torch.inference_mode():
        real, placebo = (task.predict(loaded.model, "test", shuffled=s) for s in (False, True))
    assert sorted(real.users) == sorted(placebo.users)
    assert len(real.labels) == len(placebo.labels) and not np.allclose(np.sort(real.logits), np.sort(placebo.logits))
    blocks = task.shuffle(task.blocks["test"])
    for start, first, stop in zip(blocks.starts, blocks.history_starts, blocks.history_stops, strict=True):
        assert (task.events.times[first:stop] < task.examples.times[start]).all()


def test_vista_is_a_special_case(seeded):
    sizes = {"num_seeds": 4, "width": 8, "layers": 1}
    config = config_of(seeded, "vista", "click", arguments=sizes, min_item_events=2)
    special = VistaTraining(
        warehouse=config.warehouse,
        artifacts=config.artifacts,
        inputs=config.inputs,
        network=sizes,
        training=SHORT,
        history_events=12,
        block_examples=4,
    )
    ours, theirs = train(config), train_vista(special).fitted
    assert {k: v for k, v in ours.metrics.items() if k != "seconds"} == {
        k: v for k, v in theirs.metrics.items() if k != "seconds"
    }


def test_an_unknown_family_is_one_sentence(seeded):
    with pytest.raises(ValueError, match="There is no model 'bert' of long histories: give one of"):
        config_of(seeded, "bert")


def test_crosses_are_read_by_models_that_have_them_and_are_of_the_past(seeded):
    task = build_task(config_of(seeded, "mtgr", "click"))
    assert task.network_config().num_crosses == 4
    assert (
        build_task(config_of(seeded, "mtgr", "click", arguments={"num_crosses": 0})).network_config().num_crosses == 0
    )
    batch = next(iter(task.train_batches(1, 0, 1)))
    assert (
        batch.candidates.crosses.shape == (*batch.labels_BC.shape, 4) and torch.isfinite(batch.candidates.crosses).all()
    )
    assert train(config_of(seeded, "mtgr", "click")).trained
    assert next(iter(build_task(config_of(seeded, "din", "click")).train_batches(1, 0, 1))).candidates.crosses is None


def test_a_split_of_one_label_is_refused_in_a_sentence(seeded):
    splits = seeded.read(SPLITS)
    liked = pc.if_else(pc.equal(splits["split"], "test"), pa.scalar(1, pa.int8()), splits["label"])
    seeded.write(SPLITS, splits.set_column(splits.schema.get_field_index("label"), "label", liked), "all-liked")
    with pytest.raises(ValueError, match="examples of the split test do not have both labels"):
        build_task(config_of(seeded, "din", "click"))


def test_histories_of_two_events_have_no_next_item_and_say_so(tables):
    seed_interactions(tables, num_users=10, events_per_user=2)
    with pytest.raises(ValueError, match="No user has 3 events"):
        build_task(config_of(tables, "sasrec"))


def test_more_workers_than_histories_are_refused(seeded):
    task = build_task(config_of(seeded, "din", "click"))
    with pytest.raises(ValueError, match="2 histories are too few for 3 workers"):
        next(task.batches_of(np.array([4, 5]), 1, 0, 3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_seeds": 0}, "num_seeds\n  Input should be greater than 0"),
        ({"numseeds": 8}, "numseeds\n  Unexpected keyword argument"),
        ({"attention": "quasi-linear"}, "attention\n  Input should be 'quasi_linear' or 'softmax'"),
        ({"dropout": float("nan")}, "dropout\n  Input should be a finite number"),
        ({"heads": 3}, "The width 32 must be a multiple of the 3 heads"),
    ],
)
def test_arguments_that_no_model_has_are_refused_before_any_data_are_read(tables, arguments, said):
    with pytest.raises(ValueError, match=said):
        Config(
            warehouse=tables.warehouse(),
            artifacts=tables.artifacts(),
            inputs=Inputs(raw_interactions="1", splits="1", semantic_ids=None),
            family="vista",
            objective="click",
            arguments=arguments,
        )


def test_data_of_repeats_has_no_next_item_and_says_so(seeded):
    events = seeded.read(RAW_INTERACTIONS)
    same = pa.array(["i1"] * len(events))
    repeats = events.set_column(events.schema.get_field_index("item_id"), "item_id", same)
    seeded.write(RAW_INTERACTIONS, repeats, "repeats")
    with pytest.raises(ValueError, match="No user has a valid target that is new to them"):
        build_task(config_of(seeded, "sasrec"))
