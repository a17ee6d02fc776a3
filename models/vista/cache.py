"""The cache format of summary tokens: int8 values with one scale a token.

Shapes: N summaries, K tokens, D width.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

LEVELS = 127
# What the 32-bit offsets of a binary array reach.
MOST_BYTES = 2**31 - 1


class Quantised(NamedTuple):
    """Summaries as they are stored.

    Attributes:
        values_NKD: int8.
        scales_NK: float32; a value is its int8 times its token's scale.
    """

    values_NKD: np.ndarray
    scales_NK: np.ndarray


class Dequantised(NamedTuple):
    """Summaries as they are used.

    Attributes:
        tokens_NKD: float32; zeros where there is no summary.
        mask_N: Whether there is one.
    """

    tokens_NKD: np.ndarray
    mask_N: np.ndarray


def quantise(tokens_NKD: np.ndarray) -> Quantised:
    """Rounds each token to int8, symmetric, with its largest magnitude as full scale."""
    scales_NK = np.abs(tokens_NKD).max(axis=-1, initial=0.0).astype(np.float32) / LEVELS
    divisor = np.where(scales_NK > 0, scales_NK, 1.0)[..., None]
    return Quantised(np.rint(tokens_NKD / divisor).clip(-LEVELS, LEVELS).astype(np.int8), scales_NK)


def relative_error(tokens_NKD: np.ndarray, stored: Quantised) -> np.ndarray:
    """Length of each token's rounding error relative to the token's own length, N x K."""
    restored = stored.values_NKD * stored.scales_NK[..., None]
    length = np.linalg.norm(tokens_NKD, axis=-1)
    return np.linalg.norm(tokens_NKD - restored, axis=-1) / np.where(length > 0, length, 1.0)


def to_arrow(stored: Quantised) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The columns ``summary`` (binary) and ``scales`` (list of float32) of `vista/user_summaries`."""
    num, tokens, width = stored.values_NKD.shape
    rows = max(MOST_BYTES // max(tokens * width, 1), 1)
    parts = [_part(Quantised(*(a[at : at + rows] for a in stored))) for at in range(0, num, rows)]
    return (
        pa.chunked_array([summaries for summaries, _ in parts], pa.binary()),
        pa.chunked_array([scales for _, scales in parts], pa.list_(pa.float32())),
    )


def _part(stored: Quantised) -> tuple[pa.Array, pa.Array]:
    num, tokens, width = stored.values_NKD.shape
    data = pa.py_buffer(np.ascontiguousarray(stored.values_NKD).tobytes())
    offsets = pa.py_buffer((np.arange(num + 1, dtype=np.int64) * tokens * width).astype(np.int32).tobytes())
    summaries = pa.Array.from_buffers(pa.binary(), num, [None, offsets, data])
    scales = pa.ListArray.from_arrays(
        pa.array(np.arange(num + 1, dtype=np.int32) * tokens),
        pa.array(np.ascontiguousarray(stored.scales_NK, dtype=np.float32).ravel(), pa.float32()),
    )
    return summaries, scales


def dequantise(
    summaries: pa.Array | pa.ChunkedArray | list[bytes | None],
    scales: pa.Array | pa.ChunkedArray | list[list[float] | None],
    num_tokens: int | None = None,
    width: int | None = None,
) -> Dequantised:
    """Reads stored summaries back, all rows at once.

    Args:
        summaries: Column ``summary``; null where a row has no summary.
        scales: Column ``scales``.
        num_tokens: Tokens of a summary; taken from the data by default, needed if every row may be null.
        width: Width of a token; likewise.

    Raises:
        ValueError: If rows are of different sizes, or not of the size that was asked for.
    """
    binary, lists = _flat(summaries, pa.binary()), _flat(scales, pa.list_(pa.float32()))
    mask_N = binary.is_valid().to_numpy(zero_copy_only=False) & lists.is_valid().to_numpy(zero_copy_only=False)
    present = pa.array(mask_N)
    binary, lists = binary.filter(present), lists.filter(present)
    rows = len(binary)
    scale_values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    sizes = np.diff(np.frombuffer(binary.buffers()[1], np.int32, rows + 1, binary.offset * 4)) if rows else np.zeros(0)
    counts = np.diff(lists.offsets.to_numpy()) if rows else np.zeros(0, np.int64)
    if rows:
        k, d = int(counts[0]), int(sizes[0]) // max(int(counts[0]), 1)
        num_tokens, width = num_tokens or k, width or d
        if (counts != num_tokens).any() or (sizes != num_tokens * width).any():
            raise ValueError(
                f"Stored summaries are not all of {num_tokens} tokens x {width}: they are of another "
                "version; materialize vista/user_summaries again."
            )
    tokens = np.zeros((len(mask_N), num_tokens or 0, width or 0), np.float32)
    if rows:
        assert num_tokens is not None and width is not None
        first = int(np.frombuffer(binary.buffers()[1], np.int32, 1, binary.offset * 4)[0])
        values = np.frombuffer(binary.buffers()[2], np.int8, int(sizes.sum()), first)
        tokens[mask_N] = values.reshape(rows, num_tokens, width) * scale_values.reshape(rows, num_tokens, 1)
    return Dequantised(tokens, mask_N)


def _flat(column: pa.Array | pa.ChunkedArray | list, type_: pa.DataType) -> pa.Array:
    if isinstance(column, list):
        return pa.array(column, type_)
    return (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).cast(type_)
