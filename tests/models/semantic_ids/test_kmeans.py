import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids.kmeans import assign_within, fit_kmeans, nearest
from models.semantic_ids.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans
from tests.assets.clusters.seeding import anisotropic


def error(points, centroids):
    return ((points - centroids[nearest(points, centroids)]) ** 2).sum()


@pytest.fixture(scope="module")
def points():
    return anisotropic(num_items=600)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_a_fixed_point_of_lloyd_and_about_as_good_as_scikit_learn(points, seed):
    from sklearn.cluster import KMeans

    ours = fit_kmeans(points, 32, seed=seed, num_restarts=3)
    peer = KMeans(32, n_init=3, random_state=seed).fit(points)
    assert error(points, ours) <= 1.02 * peer.inertia_
    code = nearest(points, ours)
    means = np.stack([points[code == k].mean(0) for k in range(len(ours))])
    assert error(points, ours) <= 1.001 * ((points - means[code]) ** 2).sum() + 1e-6


def test_separated_groups_are_found(points):
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(10, 8)) * 50
    found = fit_kmeans((centers[rng.integers(0, 10, 500)] + rng.normal(size=(500, 8))).astype(np.float32), 10, seed=0)
    assert len(found) == 10 and (np.linalg.norm(found[:, None] - centers[None], axis=2).min(0) < 2).all()


def test_points_far_from_each_other_in_all_directions_do_not_end_in_one_code():
    rng = np.random.default_rng(0)
    shell = rng.normal(size=(800, 128))
    shell[:8] = 0
    shell /= np.maximum(np.linalg.norm(shell, axis=1, keepdims=True), 1)
    sizes = np.bincount(nearest(shell, fit_kmeans(shell, 32, seed=0)))
    assert sizes.max() < 200


def test_the_seed_decides(points):
    assert (fit_kmeans(points, 16, seed=3) == fit_kmeans(points, 16, seed=3)).all()
    assert not np.array_equal(fit_kmeans(points, 16, seed=3), fit_kmeans(points, 16, seed=4))


def test_no_more_codes_than_different_points():
    few = np.repeat(np.eye(3, 8, dtype=np.float32), 20, axis=0)
    assert len(fit_kmeans(few, 10, seed=0)) == 3
    assert len(fit_kmeans(np.ones((5, 4), np.float32), 4, seed=0)) == 1


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 3), st.integers(0, 1000))
def test_deferred_acceptance_is_stable_and_within_capacity(num_points, width, spare, seed):
    score = np.random.default_rng(seed).normal(size=(num_points, width)).astype(np.float32)
    capacity = -(-num_points // width) + spare
    code = assign_within(score, capacity)
    size = np.bincount(code, minlength=width)
    assert size.max() <= capacity
    for point in range(num_points):
        for other in np.flatnonzero(score[point] > score[point, code[point]]):
            assert size[other] == capacity and score[code == other, other].min() >= score[point, other]


def test_no_room_is_told():
    with pytest.raises(ValueError, match="raise `balance`"):
        assign_within(np.zeros((5, 2), np.float32), 2)


def test_balance_evens_out_the_codes(points):
    sizes = [
        np.bincount(fit_residual_kmeans(points, ResidualKMeansConfig(balance=b)).encode(points)[:, 0]) for b in (0, 1)
    ]
    assert sizes[1].std() < sizes[0].std() and sizes[1].max() < sizes[0].max()
    with pytest.raises(ValueError, match="balance is 0"):
        ResidualKMeansConfig(balance=0.5)
