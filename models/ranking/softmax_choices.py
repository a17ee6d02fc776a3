"""Which items a softmax over the catalogue holds: all of a small one, targets and samples of a large one."""

from typing import NamedTuple

import numpy as np


class Choices(NamedTuple):
    """Items of a softmax.

    Attributes:
        items: Rows of the catalogue, sorted, each once.
        correction: Log of each item's chance to be among them; 0 in the full softmax. To be taken off its logit.
    """

    items: np.ndarray
    correction: np.ndarray


def softmax_choices(
    targets: np.ndarray,
    seen: np.ndarray,
    counts: np.ndarray,
    full: int,
    num_sampled: int,
    rng: np.random.Generator,
) -> Choices:
    """Items of the softmax of one batch.

    Small catalogues: all items of the training period. Large ones: the batch's own targets and uniform samples
    (mixed as in Yang et al. 2020, so that items that are rarely targets are seen as negatives too), each once
    and corrected by the log of its chance to be among them (Bengio and Senecal 2008).

    Args:
        targets: Rows of the batch's targets.
        seen: Rows of all items of the training period, sorted.
        counts: How often each row of the catalogue is a target in an epoch.
        full: Largest number of items that are all held.
        num_sampled: Uniform samples beyond it.
        rng: Draws them.
    """
    if len(seen) <= full:
        return Choices(seen, np.zeros(len(seen)))
    drawn = seen[rng.integers(0, len(seen), num_sampled)]
    chosen = np.unique(np.concatenate([targets, drawn]))
    share = counts[chosen] / max(counts.sum(), 1)
    expected = len(targets) * share + num_sampled / len(seen)
    # Not the log of the expected count: however often an item was drawn, the softmax holds it once.
    return Choices(chosen, np.log(-np.expm1(-expected)))
