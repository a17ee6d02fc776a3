import numpy as np
import pytest

from models.ranking.evaluation import (
    Row,
    Rules,
    Scored,
    differences,
    estimate,
    excludes_zero,
    figures,
    slices_of,
    verdict,
)

RULES = Rules(resamples=300)


def scored(skill, num_users=80, each=8, seed=0):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(num_users), each)
    label = rng.integers(0, 2, len(user))
    noise = np.random.default_rng([seed, int(skill * 100)]).random(len(user))
    p = np.clip(skill * label + (1 - skill) * noise, 0.01, 0.99)
    rank = np.where(label > 0, 1 + (30 * (1 - skill) * noise).astype(int), 0)
    return Scored(user, label, p, rank)


def test_every_metric_has_an_interval_around_it():
    rows = {r.metric: r for r in figures(estimate(scored(0.3), {}, RULES)[0])}
    assert set(rows) == {"auc", "logloss", "normalized_entropy", "ece", "hr_at_10", "ndcg_at_10"}
    assert all(r.low <= r.value <= r.high for m, r in rows.items() if m != "ece")
    x = scored(0.3)
    assert rows["auc"].num_examples == len(x.label_N) and rows["hr_at_10"].num_examples == x.label_N.sum()


def test_a_pair_is_resampled_together_so_that_its_difference_is_known_better():
    base = scored(0.3)
    better = base._replace(probability_N=np.clip(base.probability_N + 0.05 * (base.label_N - 0.5), 0.01, 0.99))
    ours, theirs = (estimate(x, {}, RULES)[0] for x in (better, base))
    paired = {r.metric: r for r in differences(ours, theirs, "base")}["auc"]
    alone = {r.metric: r for r in figures(ours)}["auc"]
    assert paired.value > 0 and excludes_zero(paired)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_the_same_scores_differ_by_nothing():
    x, _ = estimate(scored(0.3), {}, RULES)
    assert all(r.value == r.low == r.high == 0 for r in differences(x, x, "itself"))


def test_small_slices_are_left_out_and_said_so():
    x = scored(0.3)
    few = np.arange(len(x.user_N)) < 20
    found, left_out = estimate(x, {"few": few, "half": x.user_N % 2 == 0}, RULES)
    assert ("half", "auc") in found and ("few", "auc") not in found
    assert any(line.startswith("few/auc is left out: only 20 examples of 3 users") for line in left_out)


def test_one_class_has_no_auc_but_the_rest():
    x = scored(0.3)._replace(label_N=np.ones(640, int))
    found, left_out = estimate(x, {}, RULES)
    assert ("all", "auc") not in found and ("all", "logloss") in found
    assert left_out == [
        f"all/{m} is left out: only one class among 640 examples." for m in ("auc", "normalized_entropy")
    ]


def test_knowing_the_rate_of_a_slice_and_no_more_has_normalised_entropy_one():
    rng, x = np.random.default_rng(0), scored(0.3)
    rare = x.user_N < 40
    label = (rng.random(len(rare)) < np.where(rare, 0.1, 0.7)).astype(int)
    rates = np.where(rare, label[rare].mean(), label[~rare].mean())
    found, _ = estimate(x._replace(label_N=label, probability_N=rates), {"rare": rare, "common": ~rare}, RULES)
    for name in ("rare", "common"):
        value, draws_R, *_ = found[name, "normalized_entropy"]
        # The log loss of the rate of all is at least the entropy of the rate of those who were drawn.
        assert value == pytest.approx(1.0) and draws_R.min() >= 1 - 1e-6 and draws_R.max() < 1.1
    assert found["all", "normalized_entropy"].value < 0.9


def test_no_examples_at_all():
    nothing = Scored(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0, int))
    assert estimate(nothing, {}, RULES)[0] == {}


@pytest.mark.parametrize(
    ("value", "low", "high", "metric", "said"),
    [
        (0.01, 0.002, 0.02, "auc", "m is better than base"),
        (-0.01, -0.02, -0.002, "auc", "m is worse than base"),
        (-0.01, -0.02, -0.002, "logloss", "m is better than base"),
        (0.01, -0.002, 0.02, "auc", "no difference is shown"),
    ],
)
def test_verdicts_claim_nothing_that_the_interval_does_not(value, low, high, metric, said):
    assert said in verdict(Row("all", metric, "base", value, low, high, 10, 5), "m")


def test_slices():
    counts = np.array([0, 10, 5, 1, 0])
    found = slices_of(np.array([1, 2, 3, 4, 0]), np.array([0, 1, 2, 3, 4]), counts, np.array([1, 0, 0, 0, 0], bool))
    assert {k: np.flatnonzero(v).tolist() for k, v in found.items()} == {
        "new_items": [3, 4],
        "tail_items": [1, 2],
        "short_histories": [0, 1],
        "long_histories": [2, 3, 4],
        "new_users": [1, 2, 3, 4],
        "known_users": [0],
    }
