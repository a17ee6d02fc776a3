import dataclasses

import numpy as np
import pytest

from models.semantic_ids.quality import CollapseBounds, Quality, collapse_reasons, measure
from models.semantic_ids.residual_kmeans import ResidualKMeans, ResidualKMeansConfig, fit_residual_kmeans
from tests.assets.clusters.seeding import anisotropic

CONFIG = ResidualKMeansConfig(max_iterations=30)


@pytest.fixture(scope="module")
def vectors():
    return anisotropic()


@pytest.fixture(scope="module")
def fitted(vectors):
    return fit_residual_kmeans(vectors, CONFIG)


def quality(vectors, config=CONFIG):
    quantiser = fit_residual_kmeans(vectors, config)
    return measure(quantiser, vectors, quantiser.encode(vectors), config.planned_widths(len(vectors)))


@pytest.mark.parametrize("unit_residuals", [True, False])
@pytest.mark.parametrize("whitening", [0.0, 0.5, 1.0])
def test_every_level_takes_error_away(vectors, unit_residuals, whitening):
    config = dataclasses.replace(CONFIG, unit_residuals=unit_residuals, whitening=whitening, num_restarts=1)
    quantiser = fit_residual_kmeans(vectors, config)
    codes = quantiser.encode(vectors)
    z = quantiser.whitening.apply(vectors)
    errors = [((z - quantiser.whitening.apply(quantiser.decode(codes, levels=k))) ** 2).sum() for k in range(4)]
    assert all(after < before for before, after in zip(errors, errors[1:], strict=False)), errors


def test_codes_do_not_depend_on_what_else_is_encoded(vectors, fitted):
    codes = fitted.encode(vectors)
    assert codes.shape == (400, 3) and codes.dtype == np.int32
    assert (fitted.encode(vectors[::-1])[::-1] == codes).all()
    assert (np.concatenate([fitted.encode(row[None]) for row in vectors[:20]]) == codes[:20]).all()
    assert (codes < fitted.widths).all() and (codes >= 0).all()


def test_the_code_of_a_training_item_is_its_nearest_centroid(vectors, fitted):
    codes = fitted.encode(vectors)
    residual = fitted.whitening.apply(vectors)
    for level, (centroids, gain) in enumerate(zip(fitted.centroids, fitted.gains, strict=True)):
        unit = residual / np.linalg.norm(residual, axis=1, keepdims=True)
        distance = np.linalg.norm(unit[:, None] - centroids[None], axis=2)
        assert np.allclose(distance[np.arange(400), codes[:, level]], distance.min(1), atol=1e-7)
        residual = residual - gain * centroids[codes[:, level]]


def test_a_second_fit_is_bit_equal(vectors, fitted):
    again = fit_residual_kmeans(vectors, CONFIG)
    assert again.gains == fitted.gains
    assert all((a == b).all() for a, b in zip(again.centroids, fitted.centroids, strict=True))
    other = fit_residual_kmeans(vectors, dataclasses.replace(CONFIG, seed=1))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(other.centroids, fitted.centroids, strict=True))


def test_state_restores_the_quantiser(vectors, fitted):
    arrays, arguments = fitted.state()
    restored = ResidualKMeans.from_state(arrays, arguments)
    assert (restored.encode(vectors) == fitted.encode(vectors)).all()
    assert restored.spec("v").widths == fitted.widths


def test_whitened_directions_use_deep_codes_more_evenly_than_raw_residuals(vectors):
    ours = quality(vectors)
    raw = quality(vectors, dataclasses.replace(CONFIG, whitening=0.0, components=32, unit_residuals=False))
    assert ours.levels[-1].entropy_ratio > raw.levels[-1].entropy_ratio
    assert min(q.entropy_ratio for q in ours.levels) > min(q.entropy_ratio for q in raw.levels)


@pytest.mark.parametrize("num_items", [1, 2, 3, 5])
def test_a_tiny_catalogue_works(num_items):
    vectors = np.random.default_rng(0).normal(size=(num_items, 16)).astype(np.float32)
    found = quality(vectors)
    assert found.unique_rate == 1.0 and found.largest_group == 1
    assert collapse_reasons(found, CollapseBounds()) == []


def test_a_few_items_of_equal_text_are_no_collapse():
    vectors = np.eye(3, 16, dtype=np.float32)
    vectors[1] = vectors[0]
    found = quality(vectors)
    assert found.unique_rate < CollapseBounds().min_unique_rate
    assert collapse_reasons(found, CollapseBounds()) == [], "no larger than a group that is always allowed"


def test_constant_embeddings_are_a_collapse():
    found = quality(np.full((50, 16), 0.25, np.float32))
    reasons = collapse_reasons(found, CollapseBounds())
    assert found.unique_rate == pytest.approx(1 / 50) and found.largest_group == 50
    assert any("2.0% of the items" in r and "70%" in r for r in reasons)
    assert any("entropy" in r for r in reasons) and any("50 items share" in r for r in reasons)


def test_a_large_catalogue_is_fitted_on_samples(vectors):
    many = anisotropic(num_items=1500, seed=3)
    config = dataclasses.replace(CONFIG, max_fit_items=600, points_per_code=40, widths=(8, 16, 16))
    quantiser = fit_residual_kmeans(many, config)
    found = measure(quantiser, many, quantiser.encode(many), config.planned_widths(len(many)))
    assert found.items == 1500 and found.levels[0].used >= 6
    assert found.levels[-1].error < found.levels[0].error < 1


def test_quality_survives_json(vectors):
    import json

    found = quality(vectors)
    assert Quality.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


@pytest.mark.parametrize(
    ("vectors", "message"),
    [(np.zeros((0, 4), np.float32), "no embeddings"), (np.array([[1.0, np.nan]], np.float32), "not finite")],
)
def test_bad_input_is_told(vectors, message):
    with pytest.raises(ValueError, match=message):
        fit_residual_kmeans(vectors, CONFIG)


def test_vectors_of_another_encoder_are_refused(fitted):
    with pytest.raises(ValueError, match="rebuild_clusters"):
        fitted.encode(np.zeros((2, 7), np.float32))


def test_bad_knobs_are_told():
    with pytest.raises(ValueError, match="levels"):
        ResidualKMeansConfig(levels=2, widths=(4, 4, 4))
    with pytest.raises(ValueError, match="0 to 1"):
        ResidualKMeansConfig(whitening=2.0)
