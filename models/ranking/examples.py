"""What every ranker reads: feature rows as arrays, and the preprocessing that makes them.

Shape letters: N examples, F dense features, L recent items, T tokens an item, I catalogue, K summary tokens,
W their width, C crosses.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.ranking.content import SUMMARY, TOKENS, require_content
from models.vista.cache import CacheFormat, Quantised, restore, unpack

UNKNOWN = 0
COUNTS = ("item_num_events", "item_num_likes", "user_num_events", "user_num_likes")
MEANS = ("item_mean_value", "user_mean_value")
RATES = (("item_num_likes", "item_num_events"), ("user_num_likes", "user_num_events"))
DENSE = (*COUNTS, *MEANS)
ITEM_RATE = len(DENSE)
RATE_SMOOTHING = 5.0


class Examples(NamedTuple):
    """Feature rows as arrays. Index 0 of users, items and tokens means unknown or none.

    Attributes:
        user_N: Index into the users of the training period.
        item_N: Index into the catalogue, from 1.
        dense_NF: Standardised numbers and, after them, one missing indicator for each source column.
        recent_NL: The user's last items before the moment, newest first.
        liked_NL: 1 liked, -1 not liked, 0 no item.
        tokens_NT: Caption tokens of the item, plus 1.
        summary_NKW: VISTA summary tokens as they are stored (int8 for int8 and int4, else floats).
        scales_NK: Their scales; all 0 where the user has no summary.
        crosses_NC: Crosses of tokens, once somebody made them (`models.ranking.crosses`); C = 0 before.
    """

    user_N: np.ndarray
    item_N: np.ndarray
    dense_NF: np.ndarray
    recent_NL: np.ndarray
    liked_NL: np.ndarray
    tokens_NT: np.ndarray
    summary_NKW: np.ndarray
    scales_NK: np.ndarray
    crosses_NC: np.ndarray

    def take(self, rows: np.ndarray | slice) -> "Examples":
        """The given rows."""
        return Examples(*(a[rows] for a in self))

    @property
    def num_rows(self) -> int:
        """Number of examples."""
        return len(self.user_N)


def index_of(values: Any, vocabulary: pa.Array) -> np.ndarray:
    """Index from 1 of each value in ``vocabulary``; 0 where it is not there."""
    found = pc.index_in(values, value_set=vocabulary)
    return np.asarray(pc.fill_null(pc.add(found.cast(pa.int64()), 1), UNKNOWN).to_numpy(zero_copy_only=False), np.int64)


def padded(column: pa.ChunkedArray, width: int, dtype: Any) -> np.ndarray:
    """Lists as one matrix: the first ``width`` entries of each, 0 where there is none."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = lists.chunk(0) if lists.num_chunks else pa.array([], lists.type)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)
    flat = np.asarray(pc.list_flatten(lists).to_numpy(zero_copy_only=False))
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    made = np.zeros((len(lengths), width), dtype)
    kept = places < width
    made[rows[kept], places[kept]] = flat[kept]
    return made


def _numbers(data: pa.Table, name: str) -> np.ndarray:
    return np.asarray(data[name].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _has(data: pa.Table, name: str) -> bool:
    return name in data.column_names and not pa.types.is_null(data[name].type)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How feature rows become `Examples`. Fitted on the training period, kept beside the weights as JSON.

    Attributes:
        users: Users of the training period, most active first.
        items: The catalogue.
        base_rate: Share of liked examples in the training period.
        dense_mean: Mean of each dense number, before standardisation.
        dense_scale: Standard deviation of each.
        num_recent: L.
        num_tokens: T; 0 reads no caption tokens.
        summary_shape: K and W; zeros read no summaries.
        content_versions: Version of the content that it was fitted on, by the column that carries it.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    base_rate: float
    dense_mean: tuple[float, ...]
    dense_scale: tuple[float, ...]
    num_recent: int
    num_tokens: int = 0
    summary_shape: tuple[int, int] = (0, 0)
    content_versions: dict[str, str] = dataclasses.field(default_factory=dict)

    @staticmethod
    def fit(
        train: pa.Table,
        items: list[str],
        *,
        num_recent: int,
        num_tokens: int = 0,
        summary_shape: tuple[int, int] = (0, 0),
        content_versions: dict[str, str] | None = None,
        max_users: int = 1_000_000,
    ) -> "Preprocessing":
        """Fits on the rows of the training period.

        Args:
            train: Rows of the contract `features/training_set` of the split `train`.
            items: Ids of the catalogue.
            num_recent: Recent items to read.
            num_tokens: Caption tokens an item to read.
            summary_shape: Tokens and width of the summaries.
            content_versions: Version of tokens and summaries, by the column that carries it.
            max_users: Users with an embedding of their own; less active ones share the unknown user's.
        """
        counted = pc.value_counts(train["user_id"].combine_chunks())
        counts = counted.field("counts").to_numpy(zero_copy_only=False)
        names = counted.field("values").to_pylist()
        order = sorted(range(len(names)), key=lambda i: (-counts[i], names[i]))[:max_users]
        base_rate = float(np.clip(_numbers(train, "label").mean(), 1e-3, 1 - 1e-3))
        blank = Preprocessing((), tuple(items), base_rate, (), (), num_recent)
        dense = blank.raw_dense(train)
        mean, scale = np.nanmean(_or_zero(dense), 0), np.nanstd(_or_zero(dense), 0)
        return Preprocessing(
            users=tuple(names[i] for i in order),
            items=tuple(items),
            base_rate=base_rate,
            dense_mean=tuple(float(v) for v in mean),
            dense_scale=tuple(float(v) if v > 1e-6 else 1.0 for v in scale),
            num_recent=num_recent,
            num_tokens=num_tokens,
            summary_shape=summary_shape,
            content_versions=content_versions or {},
        )

    @staticmethod
    def from_json(kept: dict[str, Any]) -> "Preprocessing":
        """Rebuilds what ``dataclasses.asdict`` gave, after a trip through JSON."""
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
        return Preprocessing(**arguments)

    @property
    def num_dense(self) -> int:
        """F: standardised numbers and missing indicators."""
        return len(self.dense_mean) + len(DENSE)

    def raw_dense(self, data: pa.Table) -> np.ndarray:
        """Numbers before standardisation, NaN where missing: log1p counts, means, smoothed like rates."""
        columns = [np.log1p(np.maximum(_numbers(data, n), 0)) for n in COUNTS]
        columns += [_numbers(data, n) for n in MEANS]
        for likes, events in RATES:
            k, n = np.nan_to_num(_numbers(data, likes)), np.nan_to_num(_numbers(data, events))
            rate = (k + RATE_SMOOTHING * self.base_rate) / (n + RATE_SMOOTHING)
            columns.append(np.log(rate / (1 - np.minimum(rate, 1 - 1e-6))))
        return np.stack(columns, 1)

    def transform(self, data: pa.Table) -> Examples:
        """Turns feature rows into arrays. Unseen users, items and tokens are allowed.

        Raises:
            ContentVersionError: If tokens or summaries are of another version than those it was fitted on.
        """
        for content, reads in ((TOKENS, self.num_tokens), (SUMMARY, self.summary_shape[0])):
            if reads:
                require_content(data, content, self.content_versions)
        num = data.num_rows
        raw = self.raw_dense(data)
        standard = (raw - np.array(self.dense_mean)) / np.array(self.dense_scale)
        missing = np.isnan(np.stack([_numbers(data, n) for n in DENSE], 1))
        dense = np.concatenate([np.nan_to_num(np.clip(standard, -8, 8)), missing], 1).astype(np.float32)
        recent = self._recent(data)
        labels = padded(data["user_recent_labels"], self.num_recent, np.int8)
        tokens = np.zeros((num, 0), np.int32)
        if self.num_tokens and _has(data, "item_token_ids"):
            tokens = token_matrix(data["item_token_ids"], self.num_tokens)
        elif self.num_tokens:
            tokens = np.zeros((num, self.num_tokens), np.int32)
        summary, scales = self._summaries(data)
        return Examples(
            index_of(data["user_id"], pa.array(self.users, pa.string())),
            index_of(data["item_id"], pa.array(self.items, pa.string())),
            dense,
            recent,
            np.where(_filled(data, self.num_recent), np.where(labels > 0, 1, -1), 0).astype(np.int8),
            tokens,
            summary,
            scales,
            np.zeros((num, 0), np.float32),
        )

    def _recent(self, data: pa.Table) -> np.ndarray:
        lists = data["user_recent_item_ids"].combine_chunks()
        if isinstance(lists, pa.ChunkedArray):
            lists = pa.concat_arrays(lists.chunks) if lists.num_chunks else pa.array([], lists.type)
        ids = index_of(pc.list_flatten(lists), pa.array(self.items, pa.string()))
        lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return padded(
            pa.chunked_array([pa.LargeListArray.from_arrays(offsets, pa.array(ids))]), self.num_recent, np.int64
        )

    def _summaries(self, data: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        num, (k, w) = data.num_rows, self.summary_shape
        form = CacheFormat.of_version(self.content_versions.get(SUMMARY.version, ""))
        scales = np.zeros((num, k), np.float32)
        if not k or not _has(data, "user_summary"):
            return np.zeros((num, k, w), np.int8), scales
        column = data["user_summary"]
        sizes = np.asarray(pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False))
        wrong = (sizes != 0) & (sizes != form.row_bytes(k, w))
        if wrong.any():
            raise ValueError(
                f"A user summary has {sizes[wrong][0]} bytes, not {k} tokens x {w} values in {form.name}: "
                "materialize vista/user_summaries and features/training_set again."
            )
        rows = np.flatnonzero(sizes)
        whole = np.frombuffer(b"".join(v for v in column.to_pylist() if v), np.uint8)
        values = unpack(whole, len(rows), k, w, form)
        found = padded(data["user_summary_scales"], k * form.scales, np.float32)[rows].reshape(-1, k, form.scales)
        if form.scales > 1:
            # Networks read one scale a token: several go into the values. A token of zeros is a token, too.
            values, found = restore(Quantised(values, found)), np.ones((len(rows), k, 1), np.float32)
        summary = np.zeros((num, k, w), values.dtype)
        summary[rows], scales[rows] = values, found[..., 0]
        return summary, scales


def token_matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """Token ids plus 1 as one matrix; 0 where there is none."""
    places = padded(column, width, np.int64)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False), np.int64)
    return np.where(np.arange(width)[None] < lengths[:, None], places + 1, 0)


def _filled(data: pa.Table, width: int) -> np.ndarray:
    lengths = pc.fill_null(pc.list_value_length(data["user_recent_item_ids"]), 0).to_numpy(zero_copy_only=False)
    return np.arange(width)[None] < np.asarray(lengths)[:, None]


def _or_zero(dense: np.ndarray) -> np.ndarray:
    """Columns without any number become 0, so that their mean is one."""
    return np.where(np.isnan(dense).all(0, keepdims=True), 0.0, dense)
