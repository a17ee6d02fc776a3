"""Whether captions tell items apart: each caption seeks its own item among others of the same category.

Shape letters: N items, S items that are shown as candidates, C candidates of one item, D embedding.
"""

from typing import NamedTuple

import numpy as np
import polars as pl

AT = 10
RESAMPLES, SEED, LEVEL = 2_000, 17, 0.95


class Trial(NamedTuple):
    """One sampled item and what it must be told from.

    Attributes:
        item: Row of the item.
        category: Category that all candidates share; empty for items without one.
        candidates: Rows of the candidates; the item itself is the first.
    """

    item: int
    category: str
    candidates: list[int]


def trials(categories: pl.Series, *, sampled_items: int, candidates: int, seed: int) -> list[Trial]:
    """Draws items, and for each of them others that share a category with it.

    The category is the item's smallest that has enough candidates, else its largest. The candidates of one category are
    drawn once, so that few texts are encoded. An item that is alone in its category is left out.

    Args:
        categories: Categories of each item, in the order of the items' ids.
        sampled_items: Most items.
        candidates: Most candidates, the item itself included.
        seed: Seed.
    """
    rng = np.random.default_rng(seed)
    pairs = pl.DataFrame({"category": categories}).with_row_index("row").explode("category", empty_as_null=True)
    groups = pairs.with_columns(pl.col("category").fill_null("")).unique().sort("category", "row")
    members: dict[str, list[int]] = dict(groups.group_by("category", maintain_order=True).agg("row").iter_rows())
    of_item: dict[int, list[str]] = dict(
        groups.sort("row", "category").group_by("row", maintain_order=True).agg("category").iter_rows()
    )
    pools: dict[str, list[int]] = {}
    made: list[Trial] = []
    for item in rng.permutation(len(categories)).tolist():
        if len(made) == sampled_items:
            break
        by_size = sorted(of_item[item], key=lambda c: len(members[c]))
        category = next((c for c in by_size if len(members[c]) >= candidates), by_size[-1])
        if len(members[category]) < 2:
            continue
        if category not in pools:
            pools[category] = rng.permutation(members[category])[:candidates].tolist()
        others = [row for row in pools[category] if row != item][: candidates - 1]
        made.append(Trial(item, category, [item, *others]))
    return made


def rank_of_first(score: np.ndarray) -> float:
    """Place of the first of some scores, from 1, highest first; the middle of a tie."""
    return float(1 + (score[1:] > score[0]).sum() + (score[1:] == score[0]).sum() / 2)


def retrieval(
    tried: list[Trial],
    caption_ND: np.ndarray,
    evidence_SD: np.ndarray,
    shown_S: np.ndarray,
    *,
    controls: int,
    seed: int,
) -> list[tuple[float, list[float]]]:
    """For each trial the place of the item by its own caption, and its places by captions of other candidates.

    Args:
        tried: Trials.
        caption_ND: Unit vectors of the items' captions.
        evidence_SD: Unit vectors of what else is known of the candidates.
        shown_S: Rows of all candidates, ascending.
        controls: Most captions of others.
        seed: Seed of their choice.
    """
    rng = np.random.default_rng(seed)
    found = []
    for trial in tried:
        target_CD = evidence_SD[np.searchsorted(shown_S, trial.candidates)]
        # Where captions say nothing of their items, the item's own and that of any other candidate rank it alike.
        others = rng.permutation(trial.candidates[1:])[:controls]
        control = [rank_of_first(target_CD @ caption_ND[other]) for other in others]
        found.append((rank_of_first(target_CD @ caption_ND[trial.item]), control))
    return found


class Discrimination(NamedTuple):
    """How well captions find their items.

    Attributes:
        recall_at_1: Share of the items that are found first.
        recall_at_10: Share of the items that are among the first ten.
        mrr: Mean reciprocal rank.
        lift: Mean reciprocal rank less that of the control.
        lift_low: Lower end of the 95 % bootstrap interval of the lift, over items.
        lift_high: Its upper end.
    """

    recall_at_1: float
    recall_at_10: float
    mrr: float
    lift: float
    lift_low: float
    lift_high: float


def _measures(ranks: list[np.ndarray]) -> np.ndarray:
    """Recall at 1, recall at 10 and mean reciprocal rank of each item, over its ranks, (items, 3)."""
    return np.array([[np.mean(r <= 1), np.mean(r <= AT), np.mean(1 / r)] for r in ranks])


def discrimination(places: pl.DataFrame) -> tuple[Discrimination, dict[str, tuple[float, float, float]]]:
    """Sums up the places of items.

    Args:
        places: candidates, rank, control_ranks of at least two items; see `ray_jobs.tables.captions.CAPTION_RETRIEVAL`.

    Returns:
        What captions reach; and recall at 1, recall at 10 and mean reciprocal rank of the captions, of the control
        (captions of other candidates) and of chance.
    """
    from scipy import stats

    own = _measures([np.array([rank]) for rank in places["rank"]])
    control = _measures([ranks.to_numpy() for ranks in places["control_ranks"]])
    chance = _measures([np.arange(1, size + 1) for size in places["candidates"]])
    lift = own[:, 2] - control[:, 2]
    low = high = float(lift.mean())
    # Without any spread there is nothing to resample.
    if np.ptp(lift) > 0:
        drawn = stats.bootstrap(
            (lift,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(SEED),
        )
        low, high = map(float, drawn.confidence_interval)
    recall_1, recall_10, mrr = own.mean(0).tolist()
    found = Discrimination(recall_1, recall_10, mrr, float(lift.mean()), low, high)
    rows = {"own caption": own, "other caption": control, "chance": chance}
    return found, {name: tuple(values.mean(0).tolist()) for name, values in rows.items()}
