import dataclasses
import datetime as dt

import numpy as np
import polars as pl
import pytest

from models.ranking.evaluation import Rules, differences, estimate
from models.ranking.softmax_choices import softmax_choices
from ray_jobs.ranking import comparison as ranker_comparison
from ray_jobs.ranking import evaluation as ranker_evaluation
from ray_jobs.ranking import training as ranker_training
from ray_jobs.ranking.data import of_split, read_examples
from ray_jobs.ranking.evaluation import scored_of, slice_masks
from ray_jobs.ranking.files import read_ranker
from ray_jobs.tables.features import TRAINING_SET
from ray_jobs.tables.interactions import ITEMS
from ray_jobs.tables.ranking import predictions
from ray_jobs.training_task import TrainingOptions
from tests.training_sets import seed_training_set

FAST = TrainingOptions(epochs=8, patience=8, learning_rate=1e-2, weight_decay=1e-2)
RULES = Rules(resamples=300)


def config(tables, candidate="dlrm", inputs=(), version="v1", **changes):
    kind = candidate if candidate in ("popularity", "item_knn", "markov_chain") else "dlrm"
    return ranker_training.Config(
        **(
            {
                "warehouse": tables.warehouse(),
                "artifacts": tables.artifacts(),
                "candidate": candidate,
                "version": version,
                "kind": kind,
                "inputs": inputs,
                "training": FAST,
                "batch_size": 256,
                "resamples": 100,
                "network": ranker_training.Network(width=16, hidden=32, dropout=0.2, unknown_user=0.8),
            }
            | changes
        )
    )


class Recording:
    """A scorer that keeps what it was asked."""

    def __init__(self, scorer, asked):
        self.scorer, self.asked = scorer, asked

    def like(self, x):
        self.asked.append(x)
        return self.scorer.like(x)


def predicted(tables, candidate):
    return tables.read(predictions(candidate))


@pytest.fixture(scope="module")
def tasted(tmp_path_factory):
    """A training set whose tastes can be learned, with `popularity` and `dlrm` on it."""
    from orchestration.resources.tables import LocalTables

    folder = tmp_path_factory.mktemp("tasted")
    made = LocalTables(warehouse_root=str(folder / "warehouse"), artifact_root=str(folder / "artifacts"))
    seed_training_set(made, num_users=300, num_items=60, per_user=16)
    results = {
        name: ranker_training.run(config(made, name)) for name in ("popularity", "item_knn", "markov_chain", "dlrm")
    }
    return made, results


def test_a_learned_ranker_beats_popularity_on_tastes(tasted):
    tables, results = tasted
    ours, theirs = (
        estimate(scored_of(of_split(predicted(tables, n), "test")), {}, RULES)[0] for n in ("dlrm", "popularity")
    )
    rows = {r.metric: r for r in differences(ours, theirs, "popularity")}
    assert rows["auc"].low > 0.02, rows["auc"]
    assert rows["ndcg_at_10"].low > 0, rows["ndcg_at_10"]
    assert results["dlrm"].metrics["test/ece"] < 0.1


def test_every_example_of_valid_and_test_is_scored_once(tasted):
    tables, results = tasted
    wanted = read_examples(tables.warehouse(), ())
    wanted = set(wanted["example_id"].to_pylist()) - set(of_split(wanted, "train")["example_id"].to_pylist())
    for name, result in results.items():
        frame = pl.DataFrame(predicted(tables, name))
        assert set(frame["example_id"]) == wanted and frame.height == len(wanted) == result.rows
        assert frame["score"].is_between(0, 1).all()
        assert frame.filter(pl.col("label") == 0)["rank"].is_null().all()
        assert frame.filter(pl.col("label") == 1)["rank"].is_between(1, 60).all()


def test_ranks_leave_out_what_the_user_already_had(tasted):
    tables, _ = tasted
    frame = pl.DataFrame(predicted(tables, "popularity")).with_columns(
        position=pl.col("example_id").str.slice(6).cast(pl.Int64)
    )
    # The last of sixteen events is ranked among at most 60 - 15 items.
    assert frame.filter(pl.col("position") == 15)["rank"].max() <= 45
    # Popularity orders items the same for everybody: the rank is the place among items without those of the
    # history.
    train = pl.DataFrame(of_split(tables.read(TRAINING_SET), "train"))
    likes = {i: int(n) for i, n in train.group_by("item_id").agg(pl.col("label").cast(pl.Int64).sum()).iter_rows()}
    every = pl.DataFrame(tables.read(TRAINING_SET)).sort("user_id", "position")
    for row in frame.filter(pl.col("rank").is_not_null()).head(40).iter_rows(named=True):
        had = set(
            every.filter((pl.col("user_id") == row["user_id"]) & (pl.col("position") < row["position"]))["item_id"]
        )
        better = [
            i for i in (f"i{k}" for k in range(60)) if i not in had and likes.get(i, 0) >= likes.get(row["item_id"], 0)
        ]
        assert row["rank"] == len(better)


def test_a_finished_candidate_is_found_and_not_trained_again(tasted):
    tables, results = tasted
    again = ranker_training.run(config(tables))
    assert not again.trained and not again.committed and results["dlrm"].trained
    assert again.history == results["dlrm"].history
    same = {k for k in again.metrics if not k.startswith("latency")}
    assert {k: again.metrics[k] for k in same} == {k: results["dlrm"].metrics[k] for k in same}


def test_the_kept_ranker_scores_like_the_evaluation(tasted):
    tables, results = tasted
    for name in ("popularity", "dlrm"):
        with tables.artifacts().local(results[name].artifact) as folder:
            ranker = read_ranker(folder)
            assert not list(folder.glob("*.pt")) and not list(folder.glob("*.pkl"))
        data = of_split(read_examples(tables.warehouse(), ()), "test")
        frame = pl.DataFrame({"example_id": data["example_id"].to_pylist(), "again": ranker.score(data)})
        both = frame.join(pl.DataFrame(predicted(tables, name)), on="example_id")
        assert np.allclose(both["again"], both["score"], atol=1e-6)
        stranger = data.slice(0, 1).set_column(data.schema.get_field_index("user_id"), "user_id", [["nobody"]])
        stranger = stranger.set_column(data.schema.get_field_index("item_id"), "item_id", [["nothing"]])
        assert np.isfinite(ranker.score(stranger)).all()


def test_figures_have_intervals_slices_and_notes(tasted):
    _, results = tasted
    m = results["dlrm"].metrics
    for name in ("auc", "logloss", "normalized_entropy", "ece", "hr_at_10", "ndcg_at_10"):
        assert m[f"test/{name}_low"] <= m[f"test/{name}_high"]
    assert m["slice/short_histories/num_examples"] + m["slice/long_histories/num_examples"] == m["test/num_examples"]
    assert any("new_items" in line for line in results["dlrm"].left_out), "no item is new here, and that is said"
    assert results["dlrm"].split_rows["train"] == 240 * 16


def test_comparison_pairs_candidates(tasted):
    tables, results = tasted
    found = ranker_comparison.run(
        ranker_comparison.Config(warehouse=tables.warehouse(), candidates=tuple(results), resamples=100)
    )
    own = {(x.candidate, x.metric): x.value for x in found.lines if not x.baseline and x.slice == "all"}
    assert own["dlrm", "auc"] == pytest.approx(results["dlrm"].metrics["test/auc"])
    delta = {(x.candidate, x.baseline): x for x in found.lines if x.metric == "auc" and x.slice == "all" and x.baseline}
    assert delta["dlrm", "popularity"].value == pytest.approx(own["dlrm", "auc"] - own["popularity", "auc"])
    assert ("dlrm", "dlrm") not in delta
    assert delta["popularity", "dlrm"].value == -delta["dlrm", "popularity"].value


def test_captions_help_with_new_items_and_a_placebo_does_not(tables, tmp_path):
    from orchestration.resources.tables import LocalTables

    gains = {}
    for name, permuted in (("captions", False), ("placebo", True)):
        home = LocalTables(warehouse_root=str(tmp_path / name), artifact_root=str(tmp_path / f"{name}-artifacts"))
        seed_training_set(home, num_users=400, num_items=80, late_share=0.4, permute_tokens=permuted)
        for candidate, inputs in (("dlrm", ()), ("dlrm_captions", ("tokens",))):
            ranker_training.run(config(home, candidate, inputs))
        tests = {c: of_split(predicted(home, c), "test") for c in ("dlrm", "dlrm_captions")}
        masks = slice_masks(tests["dlrm"])
        ours, theirs = (estimate(scored_of(tests[c]), masks, RULES)[0] for c in ("dlrm_captions", "dlrm"))
        gains[name] = {(r.slice, r.metric): r for r in differences(ours, theirs, "dlrm")}["new_items", "auc"]
    assert gains["captions"].low > 0.05, gains
    assert gains["placebo"].low <= 0, gains


def test_vista_summaries_reach_the_ranker(tables):
    seed_training_set(tables, num_users=150)
    result = ranker_training.run(config(tables, "dlrm_vista", ("summary",)))
    with tables.artifacts().local(result.artifact) as folder:
        ranker = read_ranker(folder)
    data = of_split(read_examples(tables.warehouse(), ("summary",)), "test")
    x = ranker.preprocessing.transform(data)
    assert ranker.preprocessing.summary_shape == (2, 8) and x.summary_NKW.any()
    assert not np.allclose(ranker.scorer.like(x), ranker.scorer.like(x._replace(scales_NK=np.zeros_like(x.scales_NK))))


def test_large_catalogues_sample_their_softmax(tables):
    seed_training_set(tables, num_users=150)
    result = ranker_training.run(config(tables, full_softmax=10, num_sampled=16))
    assert result.history[-1]["interest_loss"] < result.history[0]["interest_loss"]
    assert result.metrics["test/hr_at_10"] > 0


def test_a_sampled_softmax_stands_for_the_whole_catalogue(tables):
    seed_training_set(tables, num_users=300, num_items=60)
    task = ranker_training.build_task(config(tables, full_softmax=10, num_sampled=16))
    # Few items get most of the likes, as in any real catalogue.
    targets = task.train.item_N[task.positive_N]
    task.likes_I = np.bincount(np.minimum(targets, 1 + targets % 9), minlength=len(task.likes_I))
    rng, sums = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = rng.choice(len(task.likes_I), 64, p=task.likes_I / task.likes_I.sum())
        chosen = softmax_choices(drawn, task.seen_S, task.likes_I, full=10, num_sampled=16, rng=rng)
        sums.append(np.exp(-chosen.correction).sum())
    assert np.mean(sums) == pytest.approx(len(task.seen_S), rel=0.02)


def test_an_item_that_was_chosen_was_there_whatever_the_catalogue_says(tables):
    seed_training_set(tables, num_users=60)
    ranker_training.run(config(tables, "popularity"))
    before = pl.DataFrame(predicted(tables, "popularity")).sort("example_id")
    items = pl.DataFrame(tables.read(ITEMS))
    imported = items.with_columns(available_from=pl.lit(dt.datetime(2030, 1, 1, tzinfo=dt.UTC)))
    tables.write(ITEMS, ITEMS.conform(imported.to_arrow()), "imported")
    ranker_training.run(config(tables, "popularity", version="v2"))
    after = pl.DataFrame(predicted(tables, "popularity")).sort("example_id")
    assert before["rank"].count() > 0 and after["rank"].is_null().equals(before["rank"].is_null())
    # Items of which no event had been seen yet are the ones that could not be shown.
    assert (after["rank"] <= before["rank"]).all()


def test_parts_do_not_change_predictions(tasted, monkeypatch):
    tables, results = tasted
    with tables.artifacts().local(results["dlrm"].artifact) as folder:
        ranker = read_ranker(folder)
    data, items = ranker_training.read_data(config(tables))
    whole = ranker_evaluation.predicted(ranker, data, items, "v")
    monkeypatch.setattr(ranker_evaluation, "EXAMPLES_AT_ONCE", 7)
    parts = ranker_evaluation.predicted(ranker, data, items, "v")
    assert parts.drop(["score", "created_timestamp"]).equals(whole.drop(["score", "created_timestamp"]))
    assert np.allclose(parts["score"], whole["score"], atol=1e-6)


def test_users_without_an_embedding_of_their_own_are_known_nevertheless(tables):
    seed_training_set(tables, num_users=40)
    data = pl.DataFrame(tables.read(TRAINING_SET))
    # Every user's last example is a test example, so that all of them are known.
    last = pl.col("position") == pl.col("position").max().over("user_id")
    split = (
        pl.when(last)
        .then(pl.lit("test"))
        .when(pl.col("position") == 0)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )
    tables.write(TRAINING_SET, TRAINING_SET.conform(data.with_columns(split=split).to_arrow()), "loo")
    ranker_training.run(config(tables, "popularity", max_users=3))
    slices = pl.DataFrame(of_split(predicted(tables, "popularity"), "test"))["slices"]
    assert slices.list.contains("known_users").all() and not slices.list.contains("new_users").any()


def test_a_request_is_of_one_user(tasted):
    tables, results = tasted
    with tables.artifacts().local(results["dlrm"].artifact) as folder:
        ranker = read_ranker(folder)
    asked = []
    ranker_evaluation.request_latency(
        dataclasses.replace(ranker, scorer=Recording(ranker.scorer, asked)), read_examples(tables.warehouse(), ())
    )
    assert {len(np.unique(x.user_N)) for x in asked} == {1} and all(
        (x.recent_NL == x.recent_NL[0]).all() for x in asked
    )
    assert len(np.unique(asked[0].item_N)) > 20


@pytest.mark.parametrize("candidate", ["popularity", "item_knn", "markov_chain", "dlrm"])
def test_three_users_and_five_items_are_enough_not_to_crash(tables, candidate):
    seed_training_set(tables, num_users=10, num_items=5, per_user=4)
    result = ranker_training.run(config(tables, candidate))
    assert result.rows == 8 and "test/logloss" in result.metrics and result.left_out


def test_a_missing_split_and_missing_summaries_are_said_in_one_sentence(tables):
    seed_training_set(tables, num_users=20)
    data = tables.read(TRAINING_SET)
    import pyarrow.compute as pc

    without = data.set_column(data.schema.get_field_index("user_summary"), "user_summary", [[None] * data.num_rows])
    tables.write(TRAINING_SET, TRAINING_SET.conform(without), "no-summaries")
    with pytest.raises(ValueError, match="No example of the training period has a VISTA summary"):
        ranker_training.run(config(tables, "dlrm_vista", ("summary",)))
    tables.write(TRAINING_SET, TRAINING_SET.conform(data.filter(pc.not_equal(data["split"], "test"))), "no-test")
    with pytest.raises(ValueError, match="The split test has no examples"):
        ranker_training.run(config(tables, "popularity", version="v2"))
