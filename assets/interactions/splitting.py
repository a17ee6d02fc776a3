"""Labels and splits of events. Pure functions of frames; bounded by the events of one bucket of users."""

import dataclasses
import datetime as dt
from typing import NamedTuple

import numpy as np
import polars as pl

from assets.interactions.digests import uniforms

TRAIN, VALID, TEST = "train", "valid", "test"
POSITIVE_SHARE_OF_MAXIMUM = 0.8
MIN_EVENTS_TO_LEAVE_ONE_OUT = 3
POPULARITY_POWER = 0.75
ATTEMPTS = 16


@dataclasses.dataclass(frozen=True)
class Cuts:
    """The two times that cut the global split: before the first is train, from the second on is test."""

    valid_from: dt.datetime | None
    test_from: dt.datetime | None


class Pool(NamedTuple):
    """Items in the order in which they became available, to draw negatives from.

    Attributes:
        item_ids: Items.
        available: Microseconds since the epoch from when an item can be drawn, ascending.
        cumulative: Running sum of the items' weights.
    """

    item_ids: np.ndarray
    available: np.ndarray
    cumulative: np.ndarray


def thresholds(maxima: dict[str, float | None], positive_value: float | None) -> dict[str, float]:
    """Least value of a positive, for each action that has values.

    Args:
        maxima: Largest value of each action; None where it has none.
        positive_value: The same for all actions; None takes 80 % of each action's largest value.
    """
    return {
        action: positive_value if positive_value is not None else POSITIVE_SHARE_OF_MAXIMUM * top if top > 0 else top
        for action, top in maxima.items()
        if top is not None
    }


def labelled(events: pl.DataFrame, least: dict[str, float]) -> pl.DataFrame:
    """Adds ``label``: 1 where the value reaches its action's threshold, and where an event has no value."""
    if not least:
        return events.with_columns(pl.lit(1, dtype=pl.Int8).alias("label"))
    threshold = pl.col("action").replace_strict(
        list(least), list(least.values()), default=None, return_dtype=pl.Float64
    )
    return events.with_columns(
        pl.when(pl.col("value").is_null()).then(1).otherwise(pl.col("value") >= threshold).cast(pl.Int8).alias("label")
    )


def cut_at(times: list[dt.datetime | None], lowest: dt.datetime, second: dt.datetime | None) -> Cuts:
    """Makes the two cuts usable on tiny or simultaneous data: train is never empty, and the cuts ascend.

    Args:
        times: The times at the two fractions.
        lowest: First time of the data.
        second: Second distinct time; None if all events happened at once.
    """
    valid_from, test_from = times
    if valid_from is not None and valid_from <= lowest:
        valid_from = second
    if valid_from is None or (test_from is not None and test_from < valid_from):
        test_from = valid_from
    return Cuts(valid_from, test_from)


def placed(events: pl.DataFrame, cuts: Cuts, split: str) -> pl.DataFrame:
    """Adds ``position`` and the splits to whole histories, ordered by the tie rule."""
    rows = events.sort("user_id", "timestamp", "sequence").with_columns(
        pl.int_range(pl.len(), dtype=pl.Int32).over("user_id").alias("position"),
        pl.len().over("user_id").alias("_events"),
    )
    from_end = pl.col("_events") - 1 - pl.col("position")
    enough = pl.col("_events") >= MIN_EVENTS_TO_LEAVE_ONE_OUT
    left_out = (
        pl.when(enough & (from_end == 0))
        .then(pl.lit(TEST))
        .when(enough & (from_end == 1))
        .then(pl.lit(VALID))
        .otherwise(pl.lit(TRAIN))
    )
    time = pl.col("timestamp")
    by_time = pl.lit(TRAIN)
    if cuts.valid_from is not None:
        by_time = pl.when(time >= cuts.valid_from).then(pl.lit(VALID)).otherwise(by_time)
    if cuts.test_from is not None:
        by_time = pl.when(time >= cuts.test_from).then(pl.lit(TEST)).otherwise(by_time)
    rows = rows.with_columns(left_out.alias("leave_one_out"), by_time.alias("global_time"))
    return rows.with_columns(pl.col(split).alias("split")).drop("_events")


def pool_of(items: pl.DataFrame) -> Pool:
    """The pool of ``item_id``, ``num_events``, ``available``; weight is popularity to the power 0.75."""
    rows = items.sort("available", "item_id")
    return Pool(
        rows["item_id"].to_numpy(),
        rows["available"].dt.timestamp("us").to_numpy(),
        np.cumsum(rows["num_events"].to_numpy().astype(float) ** POPULARITY_POWER),
    )


def negatives(events: pl.DataFrame, pool: Pool, seed: int) -> pl.DataFrame:
    """Draws one item for each event that its user never met and that was there at the time.

    A draw is a pure function of event and seed, so it depends neither on other events nor on how they are
    batched.

    Args:
        events: `placed` events of whole histories.
        pool: What to draw from.
        seed: Seed.

    Returns:
        One row an event, ``example_id`` ``<event_id>:n0``, in the event's place and split; events whose user
        has met everything that was there have none.
    """
    user = events["user_id"].rank("dense").to_numpy().astype(np.int64)
    index = pl.Series("item", np.arange(len(pool.item_ids)), dtype=pl.Int64)
    code = events["item_id"].replace_strict(pl.Series(pool.item_ids), index, return_dtype=pl.Int64).to_numpy()
    met = np.unique(user * len(pool.item_ids) + code)
    there = np.searchsorted(pool.available, events["timestamp"].dt.timestamp("us").to_numpy(), side="right")
    drawn = np.full(len(events), -1, dtype=np.int64)
    for attempt in range(ATTEMPTS):
        open_rows = np.flatnonzero((drawn < 0) & (there > 0))
        if not len(open_rows):
            break
        share = uniforms(events["event_id"].gather(open_rows), f"{seed}|{attempt}|").to_numpy()
        found = np.searchsorted(pool.cumulative, share * pool.cumulative[there[open_rows] - 1], side="right")
        found = np.minimum(found, there[open_rows] - 1)
        fresh = ~np.isin(user[open_rows] * len(pool.item_ids) + found, met)
        drawn[open_rows[fresh]] = found[fresh]
    # So few that chance did not find them: small catalogues, and users who met nearly all of it.
    rest = np.flatnonzero((drawn < 0) & (there > 0))
    shares = uniforms(events["event_id"].gather(rest), f"{seed}|last|").to_numpy()
    weights = np.diff(pool.cumulative, prepend=0.0)
    left: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for row, share in zip(rest, shares, strict=True):
        place = (int(user[row]), int(there[row]))
        if place not in left:
            low = np.searchsorted(met, [place[0] * len(pool.item_ids), (place[0] + 1) * len(pool.item_ids)])
            free = np.setdiff1d(np.arange(place[1]), met[low[0] : low[1]] % len(pool.item_ids))
            left[place] = free, np.cumsum(weights[free])
        free, running = left[place]
        if len(free):
            drawn[row] = free[min(int(np.searchsorted(running, share * running[-1], side="right")), len(free) - 1)]
    rows = np.flatnonzero(drawn >= 0)
    return events[rows].with_columns(
        pl.format("{}:n0", pl.col("event_id")).alias("example_id"),
        pl.Series("item_id", pool.item_ids[drawn[rows]], dtype=pl.String),
        pl.lit("sampled").alias("action"),
        pl.lit(None, dtype=pl.Float64).alias("value"),
        pl.lit(0, dtype=pl.Int8).alias("label"),
        pl.lit(True).alias("sampled"),
    )
