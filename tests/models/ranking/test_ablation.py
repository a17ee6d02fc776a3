import numpy as np
import pytest

from models.ranking.ablation import (
    CONTENTS,
    DENSE_PERMUTED,
    PLACEBOS,
    PLACEBOS_OF,
    TOKENS_PERMUTED,
    TOKENS_RANDOM,
    Arm,
    all_arms,
    over_seeds,
    seed_draws,
    verdict,
)
from models.ranking.evaluation import ALL, AUC, LOG_LOSS, Estimate, Row, Rules, Scored, differences, estimate

RULES = Rules(resamples=300, metrics=(AUC,))


def row(value, low, high, baseline="none"):
    return Row("all", AUC, baseline, value, low, high, 1000, 100)


CLEAR, UNCLEAR, NULL = row(0.004, 0.001, 0.007), row(0.004, -0.001, 0.009), row(0.0, -0.002, 0.002)
TOKENS = Arm("tokens", True)


def judged(lift=CLEAR, placebos=None, arm=TOKENS, num_seeds=5):
    covered = {TOKENS_PERMUTED: NULL, TOKENS_RANDOM: NULL}
    return verdict(arm, lift, lift.value / 0.74, covered if placebos is None else placebos, num_seeds)


def test_a_lift_counts_when_its_interval_excludes_zero_and_its_placebos_cover_it():
    found = judged()
    assert found.counts and "counts, because tokens_permuted" in found.sentence and "+0.54% relative" in found.sentence


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lift": UNCLEAR}, "the interval covers zero"),
        ({"lift": row(-0.004, -0.007, -0.001)}, "worse than no content"),
        ({"placebos": {TOKENS_PERMUTED: NULL, TOKENS_RANDOM: CLEAR}}, "placebo excludes zero too (tokens_random"),
        ({"placebos": {TOKENS_PERMUTED: row(-0.01, -0.02, -0.005), TOKENS_RANDOM: NULL}}, "excludes zero too"),
        ({"placebos": {TOKENS_PERMUTED: NULL}}, "its placebo was not run (tokens_random)"),
        ({"num_seeds": 1}, "one seed says nothing"),
    ],
)
def test_a_lift_does_not_count_otherwise(changes, why):
    found = judged(**changes)
    assert not found.counts and why in found.sentence


def test_every_arm_with_content_has_placebos_and_they_are_compared_alike():
    arms = all_arms()
    assert len(arms) == len(set(arms)) == 2 * (len(CONTENTS) + len(PLACEBOS))
    for arm in arms:
        assert arm.baseline == Arm("none", arm.item_ids)
        assert all(p in arms and p.item_ids == arm.item_ids for p in arm.placebos)
        assert bool(arm.placebos) == (arm.content in CONTENTS and arm.content != "none")
    assert set(PLACEBOS_OF["tokens_dense"]) == {TOKENS_PERMUTED, TOKENS_RANDOM, DENSE_PERMUTED}


def scored(lift, seed, users=120, each=12, num_seeds=5):
    """Scores of two arms under some seeds. Users gain differently by an arm, and each training has its own luck."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), each)
    label = (rng.random(len(user)) < 0.5).astype(float)
    noise = rng.normal(size=len(user))
    made = {}
    for arm, extra in (("none", 0.0), ("tokens", lift)):
        gain, made[arm] = rng.normal(1.0, 0.3, users)[user], []
        for luck in rng.normal(0.0, 0.1, num_seeds):
            logit = (2 * label - 1) * (gain + extra + luck) + noise + 0.1 * rng.normal(size=len(user))
            made[arm].append(Scored(user, label, 1 / (1 + np.exp(-logit)), np.zeros(len(user), int)))
    return made


def difference(arms, rules=RULES):
    """The paired difference of the rules' one metric."""
    found = {name: over_seeds([estimate(x, {}, rules)[0] for x in each], 0) for name, each in arms.items()}
    (shown,) = differences(found["tokens"], found["none"], "none")
    return shown


def test_a_planted_lift_excludes_zero_and_none_covers_it():
    assert difference(scored(0.4, seed=3)).low > 0
    null = difference(scored(0.0, seed=3))
    assert null.low < 0 < null.high


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Without a lift the truth is zero, in every one of the draws of users, labels and trainings."""
    rules = Rules(resamples=120, metrics=(LOG_LOSS,))
    draws = [difference(scored(0.0, seed=s, users=50, each=5), rules) for s in range(100)]
    covered = np.mean([d.low <= 0 <= d.high for d in draws])
    # 95% nominal; 100 draws have a standard error of 2.2 points. What is the luck of a user in a training is counted
    # with both, so that intervals rather err on the wide side (Owen 2007).
    assert covered >= 0.88, covered


def test_seeds_widen_the_interval_and_alike_seeds_do_not():
    """Trainings that differ say less than trainings that agree, on the same users."""
    luck = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) * 0.01
    base = np.random.default_rng(0).normal(0.74, 0.001, 400)
    key = (ALL, AUC)

    def width(luck):
        found = over_seeds([{key: Estimate(0.74 + x, base + x, 10, 5)} for x in luck], 0)[key]
        return found.value, float(np.std(found.draws_R))

    value, wide = width(luck)
    _, narrow = width(0 * luck)
    assert value == pytest.approx(0.74) and narrow == pytest.approx(0.001, rel=0.1)
    # The standard error of a mean of five: with the deviation of a sample, not that of a population.
    assert wide == pytest.approx(np.std(luck, ddof=1) / 5**0.5, rel=0.1)


def test_arms_are_paired_by_seed_and_by_user():
    assert np.array_equal(seed_draws(5, 50, 0), seed_draws(5, 50, 0))
    assert (seed_draws(5, 50, 0).sum(1) == 5).all()
    arms = scored(0.0, seed=1)
    same = difference({"none": arms["none"], "tokens": arms["none"]})
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0), "what is common to both cancels"


def test_a_slice_that_a_seed_cannot_tell_is_left_out():
    key = (ALL, AUC)
    whole = {key: Estimate(0.7, np.zeros(5), 10, 5)}
    assert over_seeds([whole, {}], 0) == {}
    assert over_seeds([whole], 0)[key].value == 0.7
