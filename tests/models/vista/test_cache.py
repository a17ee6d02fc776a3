"""The cache's formats: round trip, error bounds, missing rows, refused sizes."""

import numpy as np
import pyarrow as pa
import pytest

from models.vista import cache
from models.vista.cache import CacheFormat, dequantise, quantise, relative_error, restore, to_arrow


@pytest.fixture
def tokens():
    return np.random.default_rng(0).normal(size=(7, 4, 16)).astype(np.float32)


def test_round_trip_is_within_half_a_step(tokens):
    stored = quantise(tokens)
    back = dequantise(*to_arrow(stored))
    assert stored.values_NKD.dtype == np.int8 and back.mask_N.all()
    assert (np.abs(back.tokens_NKD - tokens) <= stored.scales_NKG / 2 + 1e-6).all()
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


FORMATS = [CacheFormat(), CacheFormat("int8", 4), CacheFormat("int4"), CacheFormat("int4", 4), CacheFormat("fp16")]


@pytest.mark.parametrize("form", [*FORMATS, CacheFormat("fp32")], ids=lambda f: f.name)
def test_every_format_gives_back_what_it_stored(tokens, form):
    tokens[1, 2] = 0
    stored = quantise(tokens, form)
    columns = to_arrow(stored, form)
    back = dequantise(*columns, form=form)
    np.testing.assert_array_equal(back.tokens_NKD, restore(stored))
    assert not back.tokens_NKD[1, 2].any() and back.tokens_NKD.shape == tokens.shape
    sizes = len(columns[0][0].as_py()), len(columns[1][0].as_py())
    assert form.shape(*sizes) == (4, 16) and sizes == (form.row_bytes(4, 16), 4 * form.scales)
    np.testing.assert_array_equal(
        dequantise(*(c.slice(3, 2) for c in columns), form=form).tokens_NKD, restore(stored)[3:5]
    )


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_no_rows_come_back_as_no_rows(form):
    assert restore(quantise(np.zeros((0, 4, 16), np.float32), form)).shape == (0, 4, 16)


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
def test_the_error_of_a_value_is_at_most_half_a_step(tokens, form):
    stored = quantise(tokens, form)
    wrong = np.abs(restore(stored) - tokens)
    if form.precision == "fp16":  # eleven significant bits; below 2^-14 a fixed step
        assert (wrong <= np.maximum(np.abs(tokens) * 2.0**-11, 2.0**-25)).all()
    else:
        steps = np.repeat(stored.scales_NKG, 16 // form.scales, axis=-1)
        assert (wrong <= steps / 2 * (1 + 1e-5)).all()


def test_finer_formats_are_closer(tokens):
    errors = [
        relative_error(tokens, quantise(tokens, f)).mean()
        for f in (CacheFormat("int4"), *FORMATS[3:], CacheFormat("fp32"))
    ]
    errors.insert(2, relative_error(tokens, quantise(tokens)).mean())
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0


def test_fp16_does_not_overflow():
    tokens = np.float32([[[1e6, -3e5]]])
    np.testing.assert_allclose(restore(quantise(tokens, CacheFormat("fp16"))), tokens, rtol=1e-3)


def test_the_default_is_the_format_of_before(tokens):
    """Bytes and versions of int8 caches are those of caches that were written before there were other formats."""
    summaries, scales = to_arrow(quantise(tokens))
    largest = np.abs(tokens).max(-1)
    np.testing.assert_allclose(scales[0].as_py(), largest[0] / 127, rtol=1e-6)
    values = np.frombuffer(summaries[0].as_py(), np.int8).reshape(4, 16)
    np.testing.assert_array_equal(values, np.rint(tokens[0] / np.float32(scales[0].as_py())[:, None]))
    assert CacheFormat().versioned("ab12") == "ab12"


def test_a_content_version_names_its_format():
    for form in FORMATS:
        assert CacheFormat.of_version(form.versioned("ab12")) == form
    with pytest.raises(ValueError, match="a format that this release does not know"):
        CacheFormat.of_version("ab12.int2")
    with pytest.raises(ValueError, match="no cache format fp16 with 2 scales"):
        CacheFormat("fp16", 2)
    with pytest.raises(ValueError, match="use a width that 3 divides"):
        quantise(np.ones((1, 1, 16)), CacheFormat("int8", 3))
    with pytest.raises(ValueError, match="an even one"):
        quantise(np.ones((1, 2, 3)), CacheFormat("int4"))
