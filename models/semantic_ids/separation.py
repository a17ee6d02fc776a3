"""Codes of their own for items that a quantiser gives the same codes.

After the uniform semantic mapping of LC-Rec (arXiv 2311.09049, section 3.1.2), which spreads such items over the codes
of the last level: whoever came first has the nearest code, the others take the nearest one that is free. The levels
above stay, and with them every cluster. What no near code is left for is told apart by the collision digit.

Shape letters: N items, L levels, M items asked about, T alternatives.
"""

from collections.abc import Callable

import numpy as np

# Of 256 codes of a level: near enough to say the same.
NUM_ALTERNATIVES = 8


def separate(
    codes_NL: np.ndarray, alternatives: Callable[[np.ndarray], np.ndarray], kept_N: np.ndarray | None = None
) -> np.ndarray:
    """Codes with as many of their own as the alternatives allow.

    Args:
        codes_NL: Codes as the quantiser gives them, in the order in which items came.
        alternatives: For row numbers of shape (M,) the last codes that they may have, nearest first, shape (M, T).
        kept_N: The last code that an item has had under the same codes above, -1 if it had none. It stays while it is
            one of the item's alternatives, so that no new or vanished item moves one that stays.

    Returns:
        Codes of shape (N, L), int32; only the last column differs.
    """
    # The only level of a codebook is the cluster, which nobody leaves.
    if not len(codes_NL) or codes_NL.shape[1] == 1:
        return codes_NL
    _, prefix_N = np.unique(codes_NL[:, :-1], axis=0, return_inverse=True)
    prefix_N, nearest_N = prefix_N.reshape(-1), codes_NL[:, -1]
    last_N, held_N = nearest_N.copy(), np.zeros(len(codes_NL), bool)
    if kept_N is not None:
        held_N = kept_N == nearest_N
        if len(moved_M := np.flatnonzero((kept_N >= 0) & ~held_N)):
            held_N[moved_M] = (alternatives(moved_M) == kept_N[moved_M, None]).any(1)
            last_N[moved_M] = np.where(held_N[moved_M], kept_N[moved_M], nearest_N[moved_M])
    taken = set(zip(prefix_N[held_N].tolist(), last_N[held_N].tolist(), strict=True))
    late = []
    for row in np.flatnonzero(~held_N).tolist():
        place = (prefix_N[row], last_N[row])
        if place in taken:
            late.append(row)
        taken.add(place)
    if late:
        for row, codes_T in zip(late, alternatives(np.array(late)).tolist(), strict=True):
            free = next((code for code in codes_T if (prefix_N[row], code) not in taken), None)
            if free is not None:
                last_N[row] = free
                taken.add((prefix_N[row], free))
    return np.column_stack([codes_NL[:, :-1], last_N]).astype(np.int32)
