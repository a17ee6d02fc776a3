"""Pointwise attention of HSTU (arXiv 2402.17152): SiLU in place of softmax, so that sums over keys may be cut anywhere.

Rows are cut into tiles, and so are keys: memory is linear in the events, and what is worked on stays in the cache.

Shapes: B users, N tokens, R rows of a tile, K keys of a tile, C candidates, H heads, E width of a head.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TIME_BUCKETS = 128
TIME_BASE = 0.301
"""Both as in the official code: a bucket's edges lie a factor e^0.301 apart."""
LONGEST = 2**31 - 1
"""Seconds, 68 years; what is farther apart counts as so far. int32 halves the traffic of differences."""


class Tile(NamedTuple):
    """A block of the matrix of rows x keys.

    Attributes:
        rows: First row and end.
        keys: First key and end.
        buckets: Time buckets, B x R x K, or B x 1 x 1 where all of a user's are the same; int32.
    """

    rows: tuple[int, int]
    keys: tuple[int, int]
    buckets: Tensor


def time_buckets(row_times: Tensor, key_times: Tensor) -> Tensor:
    """floor(log(max(seconds between, 1)) / 0.301), int32; times are int32 and broadcast."""
    return (row_times - key_times).abs().clamp(min=1).float().log_().div_(TIME_BASE).int().clamp_(max=TIME_BUCKETS - 1)


def relative_times(times_BN: Tensor, lengths_B: Tensor) -> Tensor:
    """Seconds before the newest event, int32, at most 0. The padding is at the newest event's time."""
    newest_B1 = times_BN.gather(1, (lengths_B - 1).clamp(min=0)[:, None])
    inside_BN = torch.arange(times_BN.shape[1], device=lengths_B.device) < lengths_B[:, None]
    return torch.where(inside_BN, times_BN - newest_B1, 0).clamp(min=-LONGEST).int()


class CausalTiles:
    """The tiles on and below the diagonal, with their time buckets; every layer goes through them anew.

    The buckets of a single tile are kept for all layers. Those of many are not: they would be as large as the matrix.

    Args:
        times_BN: As `relative_times` gives them; they do not fall.
        size: Most rows and most keys of a tile.
    """

    def __init__(self, times_BN: Tensor, size: int):
        self.times_BN, self.size = times_BN, size
        self._single = list(self._cut()) if times_BN.shape[1] <= size else None

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._single) if self._single is not None else self._cut()

    def _cut(self) -> Iterator[Tile]:
        for first in range(0, self.times_BN.shape[1], self.size):
            rows_BR = self.times_BN[:, first : first + self.size]
            for start in range(0, first + 1, self.size):
                keys_BK = self.times_BN[:, start : start + self.size]
                buckets = _buckets(rows_BR, keys_BK, diagonal=start == first)
                yield Tile((first, first + rows_BR.shape[1]), (start, start + keys_BK.shape[1]), buckets)


def _buckets(rows_BR: Tensor, keys_BK: Tensor, diagonal: bool) -> Tensor:
    # Far from the diagonal buckets are wide: most tiles lie within one, which two corners tell.
    if not diagonal:
        shortest_B = time_buckets(rows_BR[:, 0], keys_BK[:, -1])
        if torch.equal(shortest_B, time_buckets(rows_BR[:, -1], keys_BK[:, 0])):
            return shortest_B[:, None, None]
    return time_buckets(rows_BR[:, :, None], keys_BK[:, None, :])


class RelativeBias(nn.Module):
    """Bias by how many events and how much time lie between a row and a key; all heads share it.

    Args:
        max_distance: Distances with a bias of their own; farther ones share the last.
    """

    def __init__(self, max_distance: int):
        super().__init__()
        self.position = nn.Parameter(torch.randn(max_distance) * 0.02)
        self.time = nn.Parameter(torch.randn(TIME_BUCKETS) * 0.02)

    def tile(self, tile: Tile) -> Tensor:
        """Bias of a tile, B x R x K, or what broadcasts to it."""
        (first, end), (start, stop) = tile.rows, tile.keys
        time_BRK = self.of_time(tile.buckets)
        if first - stop + 1 >= len(self.position) - 1:
            return time_BRK + self.position[-1]
        # Rows of a Toeplitz matrix are windows of one vector: no gather of R x K places.
        distances = torch.arange(end - 1 - start, first - stop, -1, device=self.position.device)
        bands = self.of_distance(distances.clamp(min=0)).unfold(0, stop - start, 1).flip(0)
        return time_BRK + bands

    def of_distance(self, distances: Tensor) -> Tensor:
        """Bias of non-negative distances."""
        return self.position[distances.clamp(max=len(self.position) - 1)]

    def of_time(self, buckets: Tensor) -> Tensor:
        """Bias of time buckets. `index_select` is several times as fast as indexing, both ways."""
        return self.time.index_select(0, buckets.flatten()).view(buckets.shape)

    def newest(self, times_BN: Tensor, lengths_B: Tensor) -> Tensor:
        """Bias of a token that stands after the newest event, at the newest event's time, B x N."""
        places_N = torch.arange(times_BN.shape[1], device=lengths_B.device)
        distances_BN = (lengths_B[:, None] - places_N).clamp(min=0)
        return self.of_distance(distances_BN) + self.of_time(time_buckets(times_BN.new_zeros(()), times_BN))

    def own(self) -> Tensor:
        """Bias of a token towards itself."""
        return self.position[0] + self.time[0]


def causal_attention(q_BHNE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, bias: RelativeBias, tiles: CausalTiles) -> Tensor:
    """Mean over a row's own and earlier keys of SiLU(q k + bias) v, B x H x N x E.

    The official code divides by the padded length, so that padding shrinks what is read; a mean does not know it.

    Args:
        q_BHNE: Queries.
        k_BHNE: Keys.
        v_BHNE: Values.
        bias: Biases.
        tiles: The tiles of the rows and keys.
    """
    read: list[Tensor] = []
    wide = _wide(q_BHNE)
    for tile in tiles:
        (first, end), (start, stop) = tile.rows, tile.keys
        scores = q_BHNE[:, :, first:end] @ k_BHNE[:, :, start:stop].transpose(-1, -2)
        weights = F.silu(scores.add_(bias.tile(tile)[:, None]))
        part = (weights.tril() if first == start else weights) @ v_BHNE[:, :, start:stop]
        if start == 0:
            read.append(part.to(wide))
        else:
            read[-1] = read[-1] + part
    counts_N = torch.arange(1, q_BHNE.shape[2] + 1, device=q_BHNE.device, dtype=wide)
    return torch.cat(read, dim=2) / counts_N[:, None]


def sum_over_keys(q_BHCE: Tensor, k_BHNE: Tensor, v_BHNE: Tensor, bias_BN: Tensor | None, tile: int) -> Tensor:
    """Sum over keys of SiLU(q k + bias) v, B x H x C x E: rows that all see the same keys.

    Keys that nobody may see have a value of 0.

    Args:
        q_BHCE: Queries.
        k_BHNE: Keys.
        v_BHNE: Values.
        bias_BN: Bias of each key, the same for all rows.
        tile: Most keys at once.
    """
    read = torch.zeros_like(q_BHCE, dtype=_wide(q_BHCE))
    for start in range(0, k_BHNE.shape[2], tile):
        keys = slice(start, start + tile)
        scores = q_BHCE @ k_BHNE[:, :, keys].transpose(-1, -2)
        if bias_BN is not None:
            scores = scores.add_(bias_BN[:, None, None, keys])
        read = read + F.silu(scores) @ v_BHNE[:, :, keys]
    return read


def _wide(x: Tensor) -> torch.dtype:
    """Sums over many keys, and their number, do not fit in half precision."""
    return torch.promote_types(x.dtype, torch.float32)
