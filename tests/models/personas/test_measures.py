import numpy as np
import pytest

from models.personas.claims import ground, reciprocal_ranks, redundancy
from models.personas.measures import OWN, Topics, averaged, controls, later_hits, lines_of, other_rows, pick, rated
from models.personas.topics import catalogue_of, exploration_validity, population
from models.ranking.bootstrap import user_weights

WEIGHTS = user_weights(40, 200, 0).astype(float)


def units(size, dimension=16, seed=0):
    made = np.random.default_rng(seed).normal(size=(size, dimension))
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_differences_are_paired_and_what_nobody_has_is_left_out():
    rng = np.random.default_rng(0)
    level = rng.random(40)
    found = [
        rated("m", OWN, level + 0.1, np.ones(40), WEIGHTS),
        rated("m", "popular", level, np.ones(40), WEIGHTS),
        rated("empty", OWN, np.zeros(40), np.zeros(40), WEIGHTS),
    ]
    lines = {(x.measure, x.arm, x.baseline): x for x in lines_of(found)}
    assert set(lines) == {("m", OWN, ""), ("m", "popular", ""), ("m", OWN, "popular")}
    own, between = lines["m", OWN, ""], lines["m", OWN, "popular"]
    assert own.high - own.low > 0.1, "users differ"
    assert (between.low, between.high) == pytest.approx((0.1, 0.1)), "but each is better by the same"


def test_others_are_never_oneself():
    user = np.array([0, 0, 1, 4, 4, 4])
    drawn = other_rows(user, 200, np.random.default_rng(0))
    assert (user[drawn] != user).all() and set(drawn[:, 0]) == {2, 3, 4, 5}
    with pytest.raises(ValueError, match="nobody else"):
        other_rows(np.array([3, 3]), 1, np.random.default_rng(0))


def test_controls_have_as_many_clusters_as_the_persona():
    rng = np.random.default_rng(0)
    share = rng.random((20, 30)) * (rng.random((20, 30)) < 0.4)
    known = pick(np.where(share > 0, share, -np.inf), np.full(20, 3))
    explored = pick(np.where(share > 0, -np.inf, rng.random((20, 30))), np.full(20, 2))
    made = controls(Topics(known, explored), share, share.sum(0), 3, rng)
    assert set(made) == {"popular", "raw_clusters", "other_user"}
    for drawn in made.values():
        for topics in drawn:
            assert (topics.known_UC.sum(1) == 3).all() and (topics.explored_UC.sum(1) == 2).all()
    for arm in ("popular", "raw_clusters"):
        assert not (made[arm][0].explored_UC & (share > 0)).any(), "what a control explores is new to the user"
    assert (made["raw_clusters"][0].known_UC == known).all()
    donor = made["other_user"][0].source_U
    assert (donor != np.arange(20)).all() and (made["other_user"][0].known_UC == known[donor]).all()


def test_interests_answer_for_seen_clusters_and_explorations_for_new_ones():
    topics = Topics(np.array([[1, 0, 0, 0], [1, 0, 0, 0]], bool), np.array([[0, 0, 1, 0], [0, 0, 1, 0]], bool))
    touched = np.array([[1, 1, 0, 0], [1, 1, 0, 0]], bool)
    later = np.array([[3, 1, 0, 2], [0, 0, 4, 0]])
    hits = {
        name: tuple(x.astype(float).tolist() for x in parts)
        for name, parts in later_hits(topics, later, touched).items()
    }
    assert hits["next_cluster_hit"] == ([1, 1], [1, 1])
    assert hits["next_cluster_hit_seen"] == ([1, 0], [1, 0])
    assert hits["next_cluster_hit_unseen"] == ([0, 1], [1, 1])
    assert hits["next_likes_share_seen"] == ([3, 0], [4, 0])
    assert hits["next_likes_share_unseen"] == ([0, 4], [2, 4])
    above, below = averaged([(np.array([1.0]), np.array([1])), (np.array([0.0]), np.array([1]))])
    assert above.tolist() == [0.5] and below.tolist() == [1]


def test_grounding_tells_true_claims_from_made_up_ones_at_the_stated_rate():
    rng = np.random.default_rng(0)
    items, user = units(600), np.repeat(np.arange(100), 3)
    cited = items[rng.integers(0, 600, (300, 2))]
    true = cited[:, 0] + 0.3 * units(300, seed=1)
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    said = {"false_accept_rate": 0.05, "draws": 10}
    found = ground(true, cited, user, rng=np.random.default_rng(1), **said)
    assert found.one_M.mean() > 0.95 > 0.2 > found.two_M.mean()
    assert found.shuffled_M.mean() == pytest.approx(0.05, abs=0.015)
    made_up = ground(units(300, seed=2), cited, user, rng=np.random.default_rng(1), **said)
    assert made_up.one_M.mean() == pytest.approx(0.05, abs=0.04)
    cited[::2] = np.nan
    assert not ground(true, cited, user, rng=np.random.default_rng(1), **said).one_M[::2].any(), "nothing is cited"


def test_saying_the_same_twice_is_redundant():
    a, b = np.eye(4)[0], np.eye(4)[1]
    parts = redundancy(np.array([a, a, b, a, b, b]), np.array([0, 0, 0, 1, 1, 2]), 0.8)
    above, below = parts["distinct_claim_ratio"]
    assert above.tolist() == [2, 2, 1] and below.tolist() == [3, 2, 1]
    above, below = parts["pairwise_cosine"]
    assert above.tolist() == pytest.approx([1 / 3, 0, 0]) and below.tolist() == [True, True, False]


def test_owners_are_found_by_their_personas_and_not_by_others():
    history = units(80) + 2.0
    own, other = reciprocal_ranks(history + 0.05 * units(80, seed=3), history, 20, np.random.default_rng(0))
    assert own.mean() > 0.95
    chance = np.mean(1 / np.arange(1, 22))
    assert other.mean() == pytest.approx(chance, abs=0.1)
    generic, _ = reciprocal_ranks(np.ones((80, 16)), history, 20, np.random.default_rng(0))
    assert generic.mean() == pytest.approx(1 / 11, abs=1e-6), "ties are in the middle"


def test_an_exploration_counts_only_if_all_three_hold():
    angles = np.radians([0, 30, 35, 90])
    centroids = np.stack([np.cos(angles), np.sin(angles)], 1)
    items, cluster = np.repeat(centroids, [3, 3, 1, 3], axis=0), np.repeat(np.arange(4), [3, 3, 1, 3])
    catalogue = catalogue_of(centroids, items, cluster, (0.4, 0.9), 2)
    touched = np.array([[True, False, False, False], [True, True, False, False]])
    user, anchor, explored = np.array([0, 0, 0, 1]), np.zeros(4, int), np.array([1, 2, 3, 1])
    parts = exploration_validity(user, anchor, explored, touched, catalogue)
    assert parts["exploration_novel"][0].tolist() == [3, 0]
    assert parts["exploration_related"][0].tolist() == [2, 1], "90 degrees are too far"
    assert parts["exploration_groundable"][0].tolist() == [2, 1], "cluster 2 has one item"
    assert parts["exploration_valid"][0].tolist() == [1, 0] and parts["exploration_valid"][1].tolist() == [3, 1]
    soft = parts["exploration_novelty_soft"][0]
    assert soft[0] == pytest.approx(sum(1 - np.cos(angles[1:]))) and soft[1] == pytest.approx(0)


def test_the_spread_of_topics():
    even = {r.measure: r for r in population("t", OWN, np.tile(np.eye(4), (10, 1)), WEIGHTS)}
    assert even["t_entropy"].value == pytest.approx(1) and even["t_gini"].value == pytest.approx(0)
    assert even["t_catalogue_coverage"].value == 1 and even["t_entropy"].num_users == 40
    one = np.zeros((40, 4))
    one[:, 2] = 1
    same = {r.measure: r for r in population("t", OWN, one, WEIGHTS)}
    assert same["t_entropy"].value == 0 and same["t_gini"].value == pytest.approx(0.75)
    assert same["t_catalogue_coverage"].value == 0.25 and same["t_top10_share"].value == 1
    for r in (*even.values(), *same.values()):
        assert r.resampled_R.min() - 1e-9 <= r.value <= r.resampled_R.max() + 1e-9
    assert population("t", OWN, np.zeros((40, 4)), WEIGHTS) == []
