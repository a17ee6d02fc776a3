"""Full ranking: the rank of a target among every item of the catalogue that could have been shown.

Shape letters: N targets, I catalogue, X excluded pairs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

SCORES_AT_ONCE = 8_000_000


class Exclusions(NamedTuple):
    """Items that may not be ranked for a target: those of the user's history before it.

    Attributes:
        indptr_N: Where each target's items start in ``item_X``; length N + 1.
        item_X: Places in the catalogue, from 0, each once a target.
    """

    indptr_N: np.ndarray
    item_X: np.ndarray


class Histories:
    """When each user first had an item, sorted once so that histories can be asked for part by part.

    Args:
        user_E: User of every event, as an integer.
        item_E: Its item's place in the catalogue.
        position_E: Its place in the user's history.
    """

    def __init__(self, user_E: np.ndarray, item_E: np.ndarray, position_E: np.ndarray):
        order = np.lexsort((position_E, item_E, user_E))
        user, item, position = user_E[order], item_E[order], position_E[order]
        first = np.ones(len(user), bool)
        first[1:] = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
        user, item, position = user[first], item[first], position[first]
        by_time = np.lexsort((position, user))
        self.user, self.item = user[by_time], item[by_time]
        # One sortable key a (user, position): positions are below `span`.
        self.span = int(position_E.max(initial=0)) + 2
        self.key = self.user.astype(np.int64) * self.span + position[by_time]

    def before(self, user_N: np.ndarray, position_N: np.ndarray) -> Exclusions:
        """Items of each target's user at earlier positions of the user's own history.

        Args:
            user_N: User of each target.
            position_N: The target's place in the history.
        """
        begin = np.searchsorted(self.user, user_N, side="left")
        end = np.searchsorted(self.key, user_N.astype(np.int64) * self.span + np.minimum(position_N, self.span - 1))
        lengths = np.maximum(end - begin, 0)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(indptr[-1]) - np.repeat(indptr[:-1], lengths) + np.repeat(begin, lengths)
        return Exclusions(indptr, self.item[places])


def full_ranks(
    scores: Callable[[np.ndarray], np.ndarray],
    target_N: np.ndarray,
    excluded: Exclusions,
    available: Callable[[np.ndarray], np.ndarray] | None,
    num_items: int,
) -> np.ndarray:
    """Rank from 1 of each target, in batches; 0 where the target itself may not be ranked.

    A tie counts against the target: a ranker that gives everything the same score ranks every target last.

    Args:
        scores: Gives the scores (rows, I) of a batch of targets.
        target_N: The targets' places in the catalogue; negative: not in it.
        excluded: Items that may not be ranked.
        available: Gives (rows, I), whether an item could be shown at the target's moment; None: all could.
        num_items: I.
    """
    ranks = np.zeros(len(target_N), np.int64)
    step = max(1, SCORES_AT_ONCE // max(num_items, 1))
    for start in range(0, len(target_N), step):
        rows = np.arange(start, min(start + step, len(target_N)))
        allowed = np.ones((len(rows), num_items), bool) if available is None else available(rows).copy()
        lengths = excluded.indptr_N[rows + 1] - excluded.indptr_N[rows]
        items = excluded.item_X[excluded.indptr_N[rows[0]] : excluded.indptr_N[rows[-1] + 1]]
        allowed[np.repeat(np.arange(len(rows)), lengths), items] = False
        target = target_N[rows]
        known = target >= 0
        place = np.where(known, target, 0)
        score = scores(rows)
        if np.isnan(score).any():
            raise ValueError("A model gave scores that are no numbers, which have no rank: train it at a lower rate.")
        own = score[np.arange(len(rows)), place]
        possible = known & allowed[np.arange(len(rows)), place]
        ranks[rows] = np.where(possible, ((score >= own[:, None]) & allowed).sum(1), 0)
    return ranks
