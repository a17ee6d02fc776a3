"""Batches that fit the data."""

import pytest

from ray_jobs.training_task import fitting_batch


@pytest.mark.parametrize(
    ("units", "size"),
    [(1_000_000, 2048), (65_536, 2048), (6_400, 200), (100, 64), (0, 64)],
)
def test_small_data_get_smaller_batches_and_large_data_get_all(units, size):
    assert fitting_batch(2048, units, smallest=64, steps=32) == size


def test_the_most_is_never_exceeded():
    assert fitting_batch(2, 1_000, smallest=4, steps=64) == 2
