import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.kmeans import nearest_first
from models.semantic_ids.residual_kmeans import ResidualKMeansConfig, fit_residual_kmeans
from models.semantic_ids.rqvae import RqVae, RqVaeNetwork
from models.semantic_ids.separation import separate
from models.semantic_ids.transform import fit_whitening
from tests.assets.clusters.seeding import anisotropic

WIDTH = 4
ROWS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, WIDTH - 1)), min_size=1, max_size=24)


def codes_of(rows):
    return np.array(rows, np.int32).reshape(-1, 2)


def ring(codes_NL, num):
    """Alternatives of a code: itself and the ones after it."""
    return lambda rows: (codes_NL[rows, -1:] + np.arange(num)) % WIDTH


def test_the_first_keeps_the_nearest_code_and_others_take_the_next_free_one():
    codes = codes_of([(0, 1), (0, 1), (0, 2), (1, 1), (0, 1)])
    found = separate(codes, ring(codes, 3))
    # The third item's own code is not given away to the second.
    assert found.tolist() == [[0, 1], [0, 3], [0, 2], [1, 1], [0, 1]]
    assert found.dtype == np.int32


@given(ROWS, st.integers(1, WIDTH))
def test_as_many_are_unique_as_alternatives_allow(rows, num):
    codes = codes_of(rows)
    found = separate(codes, ring(codes, num))
    assert (found[:, 0] == codes[:, 0]).all()
    assert ((found[:, 1] - codes[:, 1]) % WIDTH < num).all()
    taken = set(map(tuple, found.tolist()))
    assert set(map(tuple, codes.tolist())) <= taken, "whoever is alone at the nearest code keeps it"
    for row in np.flatnonzero((found[:, None] == found[None]).all(2).sum(1) > 1):
        assert all((found[row, 0], (codes[row, 1] + i) % WIDTH) in taken for i in range(num)), "nothing was free"


@given(ROWS, st.data())
def test_nobody_moves_when_items_come_and_go(rows, data):
    codes = codes_of(rows)
    before = separate(codes, ring(codes, WIDTH))
    stay = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    more = codes_of(data.draw(ROWS))
    now = np.concatenate([more, codes[stay]])
    kept = np.concatenate([np.full(len(more), -1), before[stay, 1]])
    found = separate(now, ring(now, WIDTH), kept)
    assert np.array_equal(found[len(more) :], before[stay])


def test_a_code_that_is_no_alternative_any_more_is_given_up():
    codes = codes_of([(0, 0), (0, 0)])
    assert separate(codes, ring(codes, 2), np.array([3, -1])).tolist() == [[0, 0], [0, 1]]


def test_with_one_level_nobody_leaves_the_cluster():
    codes = np.array([[1], [1], [2]], np.int32)
    assert np.array_equal(separate(codes, lambda rows: (codes[rows] + np.arange(3)) % WIDTH), codes)


def test_no_items():
    assert separate(np.zeros((0, 3), np.int32), lambda rows: rows).shape == (0, 3)


@pytest.fixture(scope="module")
def embeddings():
    return anisotropic(num_items=600)


@pytest.mark.parametrize("unit_residuals", [True, False])
def test_the_first_alternative_is_the_code_itself(embeddings, unit_residuals):
    quantiser = fit_residual_kmeans(embeddings, ResidualKMeansConfig(unit_residuals=unit_residuals))
    codes, near = quantiser.encode(embeddings), quantiser.last_codes(embeddings, 8)
    assert near.shape == (600, 8) and (near[:, 0] == codes[:, -1]).all()
    assert all(len(set(row)) == 8 for row in near.tolist())


def test_alternatives_of_an_rqvae(embeddings):
    import torch

    torch.manual_seed(0)
    arguments = {"inputs": 16, "widths": [8, 8], "hidden": [16], "latent": 4, "gradient": "rotation"}
    arguments |= {"commitment": 0.25, "revive_after": 3}
    quantiser = RqVae(RqVaeNetwork(**arguments), fit_whitening(embeddings, strength=0.5, components=16), 1.0, arguments)
    codes, near = quantiser.encode(embeddings), quantiser.last_codes(embeddings, 3)
    assert near.shape == (600, 3) and (near[:, 0] == codes[:, -1]).all()


def test_separated_codes_are_unique_and_cost_little(embeddings):
    quantiser = fit_residual_kmeans(embeddings, ResidualKMeansConfig())
    codes = quantiser.encode(embeddings)
    found = separate(codes, lambda rows: quantiser.last_codes(embeddings[rows], 8))

    def error(codes_NL):
        return ((embeddings - quantiser.decode(codes_NL)) ** 2).sum() / ((embeddings - embeddings.mean(0)) ** 2).sum()

    assert len(np.unique(codes, axis=0)) < 600
    assert len(np.unique(found, axis=0)) >= 0.99 * 600
    assert error(found) <= 1.02 * error(codes)


def test_nearest_first_is_sorted_by_distance():
    rng = np.random.default_rng(0)
    points, centroids = rng.normal(size=(30, 5)), rng.normal(size=(7, 5)).astype(np.float32)
    distance = ((points[:, None] - centroids[None]) ** 2).sum(2)
    assert np.array_equal(nearest_first(points, centroids, 3), np.argsort(distance, axis=1)[:, :3])
    assert nearest_first(points, centroids, 99).shape == (30, 7) and nearest_first(points[:0], centroids, 3).shape == (
        0,
        3,
    )
