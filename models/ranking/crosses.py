"""Crosses of an item's caption tokens with the user's decayed token profile, as dense inputs of a ranker.

The profile of a moment is what the captions of the user's recent items say: of each token the decayed share of these
items that carry it, and of those the largest. It is made of the history before the event and of the catalogue's
tokens, so that a request can be scored with what it brings. The user's likes and dislikes make a profile each.

Shape letters: N examples, L recent items, T tokens an item, I catalogue (row 0: unknown), V vocabulary, P profile
tokens, E entries of profiles, C crosses.
"""

from typing import NamedTuple

import numpy as np

from models.ranking.examples import Examples

PROFILES = ("liked", "disliked")
MEASURES = ("overlap", "jaccard", "match")
NUM_CROSSES = len(PROFILES) * len(MEASURES)
ENTRIES_AT_ONCE = 2_000_000
DECAY = 0.95
PROFILE_TOKENS = 64


class Vocabulary(NamedTuple):
    """Tokens of the catalogue.

    Attributes:
        token_V: Tokens (ids plus 1), sorted.
        idf_V: Inverse document frequency of each.
    """

    token_V: np.ndarray
    idf_V: np.ndarray


class Profiles(NamedTuple):
    """Token profiles, by row and then by token.

    Attributes:
        row_E: Row that an entry belongs to.
        token_E: Its token, as a place in the vocabulary.
        share_E: Decayed share of the row's recent items that carry the token, above 0 and at most 1.
    """

    row_E: np.ndarray
    token_E: np.ndarray
    share_E: np.ndarray


def vocabulary_of(tokens_IT: np.ndarray, weights_IT: np.ndarray | None = None) -> Vocabulary:
    """The vocabulary of a catalogue.

    Args:
        tokens_IT: Tokens (ids plus 1) of each item; 0 is none.
        weights_IT: Their inverse document frequencies. None: those of this catalogue, smoothed.
    """
    present = tokens_IT > 0
    token_V, place, counts = np.unique(tokens_IT[present], return_inverse=True, return_counts=True)
    if weights_IT is None:
        num_items = int(present.any(1).sum())
        return Vocabulary(token_V, (np.log((1 + num_items) / (1 + counts)) + 1).astype(np.float32))
    sums = np.bincount(place, weights_IT[present], minlength=len(token_V))
    return Vocabulary(token_V, (sums / np.maximum(counts, 1)).astype(np.float32))


class TokenCrosses:
    """Makes crosses; see the module.

    Args:
        tokens_IT: Tokens (ids plus 1) of each item of the catalogue; 0 is none.
        vocabulary: Its vocabulary.
        decay: Weight of a recent item against the next newer one.
        size: P.
    """

    def __init__(self, tokens_IT: np.ndarray, vocabulary: Vocabulary, decay: float = DECAY, size: int = PROFILE_TOKENS):
        self.vocabulary, self.decay, self.size = vocabulary, decay, size
        self.rarest = float(vocabulary.idf_V.max(initial=1.0))
        self.places_IT = self.places(tokens_IT)

    def places(self, tokens: np.ndarray) -> np.ndarray:
        """Places of tokens in the vocabulary; -1 for none, V for a token that it does not have."""
        token_V = self.vocabulary.token_V
        found = np.searchsorted(token_V, tokens)
        known = np.append(token_V, -1)[found] == tokens
        return np.where(tokens == 0, -1, np.where(known, found, len(token_V)))

    def profiles(self, recent_NL: np.ndarray, weight_NL: np.ndarray) -> Profiles:
        """Token profiles of rows.

        Args:
            recent_NL: Catalogue indices of recent items, newest first.
            weight_NL: Weight of each; 0 leaves it out.
        """
        num_tokens = len(self.vocabulary.token_V)
        row_M, place_M = np.nonzero((weight_NL > 0) & (recent_NL > 0))
        weight_M = (weight_NL / np.maximum(weight_NL.sum(1, keepdims=True), 1e-12))[row_M, place_M]
        places_MT = self.places_IT[recent_NL[row_M, place_M]]
        entry, column = np.nonzero((places_MT >= 0) & (places_MT < num_tokens))
        key = row_M[entry].astype(np.int64) * num_tokens + places_MT[entry, column]
        order = np.argsort(key, kind="stable")
        key = key[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        share = np.add.reduceat(weight_M[entry][order], first) if len(first) else np.zeros(0)
        row, token = np.divmod(key[first], max(num_tokens, 1))
        kept = self._largest(row, token, share)
        return Profiles(row[kept], token[kept], share[kept])

    def _largest(self, row: np.ndarray, token: np.ndarray, share: np.ndarray) -> np.ndarray:
        """The entries with the P largest shares of each row; of equal ones the rarer tokens'."""
        sizes = np.bincount(row)
        if sizes.max(initial=0) <= self.size:
            return np.arange(len(row))
        # Rounded, because the order in which weights were summed must not decide.
        order = np.lexsort((token, -self.vocabulary.idf_V[token], -share.round(9), row))
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.sort(order[np.arange(len(row)) - starts < self.size])

    def __call__(self, x: Examples) -> np.ndarray:
        """Crosses (N, C): of each profile the overlap, the weighted Jaccard index and the strongest match.

        With the profile's share p and the inverse document frequency w of a token, and the item's tokens S:

        - overlap: log(1 + number of tokens of S in the profile)
        - Jaccard: sum over S of w p, over the sum of w max(p, 1 if in S else 0) (Ruzicka's form for weights)
        - match: the largest w p over S
        """
        made = np.zeros((x.num_rows, NUM_CROSSES), np.float32)
        num_recent, width = x.recent_NL.shape[1], max(self.places_IT.shape[1], 1)
        step = max(1, ENTRIES_AT_ONCE // max(num_recent * width, 1))
        for start in range(0, x.num_rows, step):
            made[start : start + step] = self._crosses(x.take(slice(start, start + step)))
        return made

    def _crosses(self, x: Examples) -> np.ndarray:
        # A request asks for many items with one history: what follows a row with the same one shares its profile.
        history = np.concatenate([x.recent_NL, x.liked_NL], 1)
        new = np.append(True, (history[1:] != history[:-1]).any(1))
        row_N, decay_L = np.cumsum(new) - 1, self.decay ** np.arange(x.recent_NL.shape[1])
        recent, liked = x.recent_NL[new], x.liked_NL[new]
        places_NT = self.places(x.tokens_NT)
        weights = [(liked > 0) * decay_L, (liked < 0) * decay_L]
        return np.concatenate([self._against(self.profiles(recent, w), row_N, places_NT) for w in weights], 1)

    def _against(self, profiles: Profiles, row_N: np.ndarray, places_NT: np.ndarray) -> np.ndarray:
        """Measures (N, 3) of items against the profiles of their rows."""
        num_tokens, idf = len(self.vocabulary.token_V), np.append(self.vocabulary.idf_V, [self.rarest, 0.0])
        key_E = np.append(profiles.row_E * num_tokens + profiles.token_E, -1)
        wanted_NT = row_N[:, None] * num_tokens + places_NT
        found_NT = np.searchsorted(key_E[:-1], wanted_NT)
        matched_NT = (key_E[found_NT] == wanted_NT) & (places_NT >= 0) & (places_NT < num_tokens)
        share_NT = np.where(matched_NT, np.append(profiles.share_E, 0.0)[found_NT], 0.0)
        weighted_NT = share_NT * idf[places_NT]
        shared_N, own_N = weighted_NT.sum(1), idf[places_NT].sum(1)
        mass = np.bincount(
            profiles.row_E, profiles.share_E * idf[profiles.token_E], minlength=int(row_N.max(initial=0)) + 1
        )
        union_N = own_N + mass[row_N] - shared_N
        return np.stack(
            [
                np.log1p(matched_NT.sum(1)),
                np.where(union_N > 0, shared_N / np.maximum(union_N, 1e-12), 0.0),
                weighted_NT.max(1, initial=0.0),
            ],
            1,
        )
