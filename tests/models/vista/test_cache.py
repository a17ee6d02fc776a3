"""The cache's format: round trip, error bound, missing rows, refused sizes."""

import numpy as np
import pyarrow as pa
import pytest

from models.vista import cache
from models.vista.cache import dequantise, quantise, relative_error, to_arrow


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(7, 4, 16)).astype(np.float32)


def test_round_trip_is_within_half_a_step(tokens):
    stored = quantise(tokens)
    back = dequantise(*to_arrow(stored))
    assert stored.values_NKD.dtype == np.int8 and back.mask_N.all()
    assert (np.abs(back.tokens_NKD - tokens) <= stored.scales_NK[..., None] / 2 + 1e-6).all()
    assert relative_error(tokens, stored).max() < 0.02


def test_rows_without_a_summary_are_zeros(tokens):
    summaries, scales = (a.to_pylist() for a in to_arrow(quantise(tokens)))
    summaries[2] = scales[2] = None
    back = dequantise(summaries, scales)
    assert back.mask_N.tolist() == [True, True, False, True, True, True, True]
    assert not back.tokens_NKD[2].any()
    np.testing.assert_array_equal(back.tokens_NKD[3], dequantise(*to_arrow(quantise(tokens))).tokens_NKD[3])


def test_slices_and_chunks_read_alike(tokens):
    summaries, scales = to_arrow(quantise(tokens))
    whole = dequantise(summaries, scales).tokens_NKD
    np.testing.assert_array_equal(dequantise(summaries.slice(2, 3), scales.slice(2, 3)).tokens_NKD, whole[2:5])
    chunked = [pa.chunked_array([*a.slice(0, 3).chunks, *a.slice(3).chunks]) for a in (summaries, scales)]
    np.testing.assert_array_equal(dequantise(*chunked).tokens_NKD, whole)


def test_offsets_never_overflow(tokens, monkeypatch):
    stored = quantise(tokens)
    whole = dequantise(*to_arrow(stored)).tokens_NKD
    monkeypatch.setattr(cache, "MOST_BYTES", 3 * 4 * 16)
    parts = to_arrow(stored)
    assert [len(c) for c in parts[0].chunks] == [len(c) for c in parts[1].chunks] == [3, 3, 1]
    np.testing.assert_array_equal(dequantise(*parts).tokens_NKD, whole)


def test_nothing_but_missing_rows_needs_the_size():
    back = dequantise([None, None], [None, None], num_tokens=4, width=16)
    assert back.tokens_NKD.shape == (2, 4, 16) and not back.mask_N.any()
    assert dequantise([], []).tokens_NKD.shape == (0, 0, 0)


def test_zero_tokens_stay_zero():
    stored = quantise(np.zeros((1, 2, 3), np.float32))
    assert not dequantise(*to_arrow(stored)).tokens_NKD.any()
    assert not relative_error(np.zeros((1, 2, 3), np.float32), stored).any()


def test_another_size_is_refused(tokens):
    with pytest.raises(ValueError, match="not all of 8 tokens"):
        dequantise(*to_arrow(quantise(tokens)), num_tokens=8, width=8)
    with pytest.raises(ValueError, match="of another version"):
        dequantise([b"\x01" * 4, b"\x01" * 6], [[1.0, 1.0], [1.0, 1.0]])
