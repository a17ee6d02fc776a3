"""Floors: what a ranker must beat. Fitted on events of the training period, scored with the history as of a moment.

Each has two scores, like the models: ``like`` (a log-odds that a rated item is liked; calibrated later) and
``interest`` (a score for every item of the catalogue). Matrices have a row and a column 0 for unknown items.

Shape letters: N examples, I catalogue, L recent items.
"""

from typing import NamedTuple, Protocol

import numpy as np
from scipy import sparse

from models.ranking.examples import ITEM_RATE, Examples

SMOOTHING = 10.0
NEIGHBOURS = 100


class Events(NamedTuple):
    """Events of the training period, by user and then in the order of time.

    Attributes:
        user_E: Any integer that names the user.
        item_E: Catalogue index.
        label_E: 1 liked, 0 not.
        observed_E: Whether it happened; a sampled negative did not.
    """

    user_E: np.ndarray
    item_E: np.ndarray
    label_E: np.ndarray
    observed_E: np.ndarray


class Floor(Protocol):
    """A fitted floor; ``arrays`` are all it knows."""

    arrays: dict[str, np.ndarray]

    def like(self, x: Examples) -> np.ndarray:
        """Log-odds of a like, (N,)."""

    def interest(self, x: Examples) -> np.ndarray:
        """Scores of the whole catalogue, (N, I)."""


def log_odds(p: np.ndarray) -> np.ndarray:
    """Logit of probabilities, kept finite."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p / (1 - p))


def _popularity(events: Events, num_items: int) -> dict[str, np.ndarray]:
    """Likes an item, and its like rate smoothed towards that of all items (a Beta prior of ten examples)."""
    counts = np.bincount(events.item_E, minlength=num_items + 1)
    likes = np.bincount(events.item_E, events.label_E, minlength=num_items + 1)
    base = float(events.label_E.mean()) if len(events.label_E) else 0.5
    return {"likes": likes, "rate": (likes + SMOOTHING * base) / (counts + SMOOTHING)}


class Popularity:
    """The same for everybody: smoothed like rate as of the moment, and likes in the training period."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    @classmethod
    def fit(cls, events: Events, num_items: int) -> "Popularity":
        """Counts."""
        return cls(_popularity(events, num_items))

    def like(self, x: Examples) -> np.ndarray:
        """The item's like rate as of the moment, as standardised log-odds (calibration undoes the scale)."""
        return x.dense_NF[:, ITEM_RATE].astype(np.float64)

    def interest(self, x: Examples) -> np.ndarray:
        """See `Floor.interest`."""
        return np.broadcast_to(self.arrays["likes"][1:], (x.num_rows, len(self.arrays["likes"]) - 1))


def _csr(prefix: str, matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
    return {
        f"{prefix}.data": matrix.data,
        f"{prefix}.indices": matrix.indices.astype(np.int64),
        f"{prefix}.indptr": matrix.indptr.astype(np.int64),
    }


def _matrix(arrays: dict[str, np.ndarray], prefix: str, size: int) -> sparse.csr_matrix:
    return sparse.csr_matrix(
        (arrays[f"{prefix}.data"], arrays[f"{prefix}.indices"], arrays[f"{prefix}.indptr"]), (size, size)
    )


def _row_wise(x: Examples, values: np.ndarray, size: int) -> sparse.csr_matrix:
    """Recent items as a sparse matrix (N, I + 1) of ``values`` (N, L); unknown items are left out."""
    rows, places = np.nonzero((values != 0) & (x.recent_NL > 0))
    return sparse.csr_matrix(
        (values[rows, places].astype(np.float64), (rows, x.recent_NL[rows, places])), (x.num_rows, size)
    )


class ItemKNN:
    """Cosine neighbours of the user's recent likes (Sarwar et al. 2001); each item has a hundred."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.size = len(arrays["rate"])
        self.similar = _matrix(arrays, "similar", self.size)

    @classmethod
    def fit(cls, events: Events, num_items: int, neighbours: int = NEIGHBOURS) -> "ItemKNN":
        """Cosine between the item columns of the matrix of users and liked items."""
        liked = (events.label_E > 0) & events.observed_E
        users = np.unique(events.user_E, return_inverse=True)[1]
        ones = sparse.csr_matrix(
            (np.ones(liked.sum()), (users[liked], events.item_E[liked])), (users.max(initial=0) + 1, num_items + 1)
        )
        ones.data[:] = 1.0
        length = np.sqrt(np.maximum(np.asarray(ones.sum(0)).ravel(), 1.0))
        columns = (sparse.diags(1.0 / length) @ ones.T).tocsr()
        blocks = []
        for start in range(0, num_items + 1, 2048):
            block = (columns[start : start + 2048] @ columns.T).tocsr()
            blocks.append(_nearest(block, np.arange(start, start + block.shape[0]), neighbours))
        similar = sparse.vstack(blocks).tocsr()
        return cls(_popularity(events, num_items) | _csr("similar", similar))

    def like(self, x: Examples) -> np.ndarray:
        """Mean label of recent items, weighted by similarity to the item, backed off to its like rate."""
        similar_NL = np.asarray(self.similar[np.repeat(x.item_N, x.recent_NL.shape[1]), x.recent_NL.ravel()])
        similar_NL = similar_NL.reshape(x.recent_NL.shape) * (x.liked_NL != 0)
        rate_N = self.arrays["rate"][x.item_N]
        agreed = (similar_NL * (x.liked_NL > 0)).sum(1)
        return log_odds((agreed + rate_N) / (similar_NL.sum(1) + 1.0))

    def interest(self, x: Examples) -> np.ndarray:
        """Summed similarity to recent likes; popularity decides between items without any."""
        scores = (_row_wise(x, (x.liked_NL > 0).astype(np.float64), self.size) @ self.similar).toarray()
        likes = self.arrays["likes"]
        return scores[:, 1:] + 1e-6 * likes[1:] / max(likes.max(), 1)


def _nearest(block: sparse.csr_matrix, own: np.ndarray, neighbours: int) -> sparse.csr_matrix:
    """Keeps each row's largest entries, without the item itself."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    other = block.indices != own[rows]
    rows, columns, values = rows[other], block.indices[other], block.data[other]
    order = np.lexsort((columns, -values, rows))
    rows, columns, values = rows[order], columns[order], values[order]
    starts = np.searchsorted(rows, np.arange(block.shape[0]))
    kept = np.arange(len(rows)) - starts[rows] < neighbours if len(rows) else np.zeros(0, bool)
    return sparse.csr_matrix((values[kept], (rows[kept], columns[kept])), block.shape)


class MarkovChain:
    """From the last item to the next one: first-order transition counts, backed off to popularity."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays
        self.size = len(arrays["rate"])
        self.moves, self.liked = (_matrix(arrays, name, self.size) for name in ("moves", "liked"))

    @classmethod
    def fit(cls, events: Events, num_items: int) -> "MarkovChain":
        """Counts each user's consecutive pairs of items, and how often the second was liked."""
        happened = events.observed_E
        user, item, label = events.user_E[happened], events.item_E[happened], events.label_E[happened]
        follows = user[1:] == user[:-1]
        pair = item[:-1][follows], item[1:][follows]
        shape = (num_items + 1, num_items + 1)
        moves = sparse.csr_matrix((np.ones(len(pair[0])), pair), shape)
        liked = sparse.csr_matrix((label[1:][follows].astype(np.float64), pair), shape)
        return cls(_popularity(events, num_items) | _csr("moves", moves) | _csr("liked", liked))

    def like(self, x: Examples) -> np.ndarray:
        """Like rate of the item when it follows the last item, smoothed towards its like rate."""
        last = x.recent_NL[:, 0] if x.recent_NL.shape[1] else np.zeros(x.num_rows, np.int64)
        moves = np.asarray(self.moves[last, x.item_N]).ravel() * (last > 0)
        liked = np.asarray(self.liked[last, x.item_N]).ravel() * (last > 0)
        rate = self.arrays["rate"][x.item_N]
        return log_odds((liked + SMOOTHING * rate) / (moves + SMOOTHING))

    def interest(self, x: Examples) -> np.ndarray:
        """Probability that an item comes next and is liked."""
        last = x.recent_NL[:, 0] if x.recent_NL.shape[1] else np.zeros(x.num_rows, np.int64)
        likes = self.arrays["likes"]
        share = likes / max(likes.sum(), 1)
        counts = self.liked[last].multiply((last > 0)[:, None]).toarray()
        return ((counts + SMOOTHING * share) / (counts.sum(1, keepdims=True) + SMOOTHING))[:, 1:]


FLOORS: dict[str, type[Popularity] | type[ItemKNN] | type[MarkovChain]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "markov_chain": MarkovChain,
}
