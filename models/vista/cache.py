"""The formats of cached summary tokens: what their bytes mean, and how they are written and read.

The default is int8 with one scale a token. A format's name stands at the end of the content version that every row
carries, so that a reader knows how to read it and refuses any other.

Shapes: N summaries, K tokens, D width, G scales of a token.
"""

import dataclasses
import re
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

CACHE_CODE = "1"
"""How models are run to get summaries, and what their bytes mean. Bump when either changes."""
Precision = Literal["int8", "int4", "fp16", "fp32"]
BITS: dict[str, int] = {"int8": 8, "int4": 4, "fp16": 16, "fp32": 32}
LEVELS = {"int8": 127, "int4": 7}
FLOATS = {"fp16": np.dtype("<f2"), "fp32": np.dtype("<f4")}
LARGEST_FP16 = 65504.0
NAME = re.compile(r"^(int8|int4|fp16|fp32)(?:x(\d+))?$")
# What the 32-bit offsets of a binary array reach.
MOST_BYTES = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class CacheFormat:
    """What the bytes of a stored summary mean.

    Attributes:
        precision: ``int8`` and ``int4`` are rounded and carry scales; two int4 values share a byte, the first in the
            low half. ``fp16`` and ``fp32`` are floats; their scales are 1, but where fp16 would overflow.
        scales: Scales of a token: each stands for as many neighbouring values. Rounded formats only.
    """

    precision: Precision = "int8"
    scales: int = 1

    def __post_init__(self) -> None:
        """Refuses formats that do not exist."""
        if self.precision not in BITS or self.scales < 1 or (self.scales > 1 and self.precision in FLOATS):
            raise ValueError(
                f"There is no cache format {self.precision} with {self.scales} scales a token: use int8 or int4 with "
                "1 or more, fp16 or fp32 with 1."
            )

    @property
    def name(self) -> str:
        """Short name, e.g. ``int4x4``."""
        return self.precision if self.scales == 1 else f"{self.precision}x{self.scales}"

    def row_bytes(self, num_tokens: int, width: int) -> int:
        """Bytes of a summary's values, without its scales.

        Raises:
            ValueError: If the format cannot hold tokens of this width.
        """
        if width % self.scales or (width * BITS[self.precision]) % 8:
            raise ValueError(
                f"Tokens of width {width} do not fit into {self.name}: use a width that {self.scales} divides"
                + (", and an even one." if self.precision == "int4" else ".")
            )
        return num_tokens * width * BITS[self.precision] // 8

    def shape(self, num_bytes: int, num_scales: int) -> tuple[int, int]:
        """Tokens and width of a stored summary, by the sizes of its two columns."""
        num_tokens = num_scales // self.scales
        return num_tokens, num_bytes * 8 // BITS[self.precision] // max(num_tokens, 1)

    def versioned(self, version: str) -> str:
        """The content version of summaries in this format, by that of the default format."""
        return version if self == DEFAULT else f"{version}.{self.name}"

    @staticmethod
    def of_version(version: str) -> "CacheFormat":
        """The format of summaries by the content version that they carry.

        Raises:
            ValueError: If this reader does not know it.
        """
        name = version.partition(".")[2]
        found = NAME.match(name)
        if name and not found:
            raise ValueError(
                f"VISTA summaries of version {version} are stored in a format that this release does not know: "
                "materialize vista/user_summaries again."
            )
        precision: Any = found[1] if found else "int8"
        return CacheFormat(precision, int(found[2] or 1)) if found else DEFAULT


DEFAULT = CacheFormat()


class Quantised(NamedTuple):
    """Summaries as they are stored; a value times its scale is the value.

    Attributes:
        values_NKD: int8 for int8 and int4, float16 or float32 for the others.
        scales_NKG: float32.
    """

    values_NKD: np.ndarray
    scales_NKG: np.ndarray


class Dequantised(NamedTuple):
    """Summaries as they are used.

    Attributes:
        tokens_NKD: float32; zeros where there is no summary.
        mask_N: Whether there is one.
    """

    tokens_NKD: np.ndarray
    mask_N: np.ndarray


def quantise(tokens_NKD: np.ndarray, form: CacheFormat = DEFAULT) -> Quantised:
    """Rounds each token; integers are symmetric, with the largest magnitude of a scale's values as full scale."""
    num, tokens, width = tokens_NKD.shape
    form.row_bytes(tokens, width)
    parts_NKGS = tokens_NKD.reshape(num, tokens, form.scales, width // form.scales)
    largest_NKG = np.abs(parts_NKGS).max(axis=-1, initial=0.0).astype(np.float32)
    if form.precision in FLOATS:
        limit = LARGEST_FP16 if form.precision == "fp16" else np.inf
        scales_NKG = np.maximum(largest_NKG / np.float32(limit), np.float32(1))
        values = (parts_NKGS / scales_NKG[..., None]).astype(FLOATS[form.precision])
    else:
        levels = LEVELS[form.precision]
        scales_NKG = largest_NKG / np.float32(levels)
        divisor = np.where(scales_NKG > 0, scales_NKG, np.float32(1))[..., None]
        values = np.rint(parts_NKGS / divisor).clip(-levels, levels).astype(np.int8)
    return Quantised(values.reshape(tokens_NKD.shape), scales_NKG)


def restore(stored: Quantised) -> np.ndarray:
    """The tokens that are read back from these, float32."""
    shape, scales = stored.values_NKD.shape, stored.scales_NKG
    parts = stored.values_NKD.reshape(*scales.shape, shape[-1] // scales.shape[-1])
    return (parts.astype(np.float32) * scales[..., None]).reshape(shape)


def relative_error(tokens_NKD: np.ndarray, stored: Quantised) -> np.ndarray:
    """Length of each token's rounding error relative to the token's own length, N x K."""
    length = np.linalg.norm(tokens_NKD, axis=-1)
    return np.linalg.norm(tokens_NKD - restore(stored), axis=-1) / np.where(length > 0, length, 1.0)


def pack(values_NKD: np.ndarray, form: CacheFormat) -> np.ndarray:
    """Rows of bytes, N x bytes, uint8."""
    if form.precision == "int4":
        pairs = values_NKD.reshape(len(values_NKD), -1, 2).view(np.uint8) & 0xF
        return pairs[..., 0] | (pairs[..., 1] << 4)
    whole = np.ascontiguousarray(values_NKD)
    return whole.reshape(len(whole), -1).view(np.uint8)


def unpack(data: np.ndarray, num: int, num_tokens: int, width: int, form: CacheFormat) -> np.ndarray:
    """Values (N x K x D) out of the bytes of N rows, which follow each other."""
    if form.precision == "int4":
        # Shifted up and back, so that the sign comes with them.
        halves = np.stack([data << 4, data & 0xF0], axis=-1).view(np.int8) >> 4
        return halves.reshape(num, num_tokens, width)
    stored: Any = FLOATS.get(form.precision, np.dtype(np.int8))
    return data.view(stored).reshape(num, num_tokens, width)


def to_arrow(stored: Quantised, form: CacheFormat = DEFAULT) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The columns ``summary`` (binary) and ``scales`` (list of float32) of `vista/user_summaries`."""
    num, tokens, width = stored.values_NKD.shape
    rows = max(MOST_BYTES // max(form.row_bytes(tokens, width), 1), 1)
    parts = [_part(Quantised(*(a[at : at + rows] for a in stored)), form) for at in range(0, num, rows)]
    return (
        pa.chunked_array([summaries for summaries, _ in parts], pa.binary()),
        pa.chunked_array([scales for _, scales in parts], pa.list_(pa.float32())),
    )


def _part(stored: Quantised, form: CacheFormat) -> tuple[pa.Array, pa.Array]:
    num, tokens, width = stored.values_NKD.shape
    data = pa.py_buffer(pack(stored.values_NKD, form).tobytes())
    offsets = np.arange(num + 1, dtype=np.int64) * form.row_bytes(tokens, width)
    summaries = pa.Array.from_buffers(pa.binary(), num, [None, pa.py_buffer(offsets.astype(np.int32).tobytes()), data])
    scales = pa.ListArray.from_arrays(
        pa.array(np.arange(num + 1, dtype=np.int32) * (tokens * form.scales)),
        pa.array(np.ascontiguousarray(stored.scales_NKG, dtype=np.float32).ravel(), pa.float32()),
    )
    return summaries, scales


def dequantise(
    summaries: pa.Array | pa.ChunkedArray | list[bytes | None],
    scales: pa.Array | pa.ChunkedArray | list[list[float] | None],
    num_tokens: int | None = None,
    width: int | None = None,
    form: CacheFormat = DEFAULT,
) -> Dequantised:
    """Reads stored summaries back, all rows at once.

    Args:
        summaries: Column ``summary``; null where a row has no summary.
        scales: Column ``scales``.
        num_tokens: Tokens of a summary; taken from the data by default, needed if every row may be null.
        width: Width of a token; likewise.
        form: Their format, by `CacheFormat.of_version` of the version that they carry.

    Raises:
        ValueError: If rows are of different sizes, or not of the size that was asked for.
    """
    binary, lists = _flat(summaries, pa.binary()), _flat(scales, pa.list_(pa.float32()))
    mask_N = binary.is_valid().to_numpy(zero_copy_only=False) & lists.is_valid().to_numpy(zero_copy_only=False)
    present = pa.array(mask_N)
    binary, lists = binary.filter(present), lists.filter(present)
    rows = len(binary)
    scale_values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    starts = np.frombuffer(binary.buffers()[1], np.int32, rows + 1, binary.offset * 4) if rows else np.zeros(1)
    sizes, counts = np.diff(starts), np.diff(lists.offsets.to_numpy()) if rows else np.zeros(0, np.int64)
    if rows:
        k, d = form.shape(int(sizes[0]), int(counts[0]))
        num_tokens, width = num_tokens or k, width or d
        wrong = (counts != num_tokens * form.scales) | (sizes * 8 != num_tokens * width * BITS[form.precision])
        if wrong.any():
            raise ValueError(
                f"Stored summaries are not all of {num_tokens} tokens x {width} in {form.name}: they are of another "
                "version; materialize vista/user_summaries again."
            )
    tokens = np.zeros((len(mask_N), num_tokens or 0, width or 0), np.float32)
    if rows:
        assert num_tokens is not None and width is not None
        data = np.frombuffer(binary.buffers()[2], np.uint8, int(sizes.sum()), int(starts[0]))
        values = unpack(data, rows, num_tokens, width, form)
        tokens[mask_N] = restore(Quantised(values, scale_values.reshape(rows, num_tokens, form.scales)))
    return Dequantised(tokens, mask_N)


def _flat(column: pa.Array | pa.ChunkedArray | list, type_: pa.DataType) -> pa.Array:
    if isinstance(column, list):
        return pa.array(column, type_)
    return (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).cast(type_)
