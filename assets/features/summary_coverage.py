"""How many users have no summary, or one that has not seen all of their events."""

from typing import Any

import polars as pl
import pyarrow.compute as pc

from ray_jobs.tables.features import USER_ACTIVITY
from ray_jobs.tables.vista import USER_SUMMARIES
from ray_jobs.vista.summary_rollout import held_version
from ray_jobs.warehouse import Warehouse


def summary_coverage(warehouse: Warehouse) -> dict[str, Any]:
    """Counts of users whose requests fall back, for the metadata of `features/online_store`.

    Returns:
        ``summaries_missing``: users with events and no summary; ``summaries_stale``: users whose summary missed
        events, and ``events_missed`` by them; ``summaries_held``: the version that is kept for the champion.
    """
    had = [pl.DataFrame(schema={"user_id": pl.String, "num_events": pl.Int64})]
    for part in warehouse.batches(USER_ACTIVITY, ["user_id", "num_events"]):
        frame: Any = pl.from_arrow(part)
        had = [pl.concat([*had, frame]).group_by("user_id").agg(pl.col("num_events").max())]
    seen = [pl.DataFrame(schema={"user_id": pl.String, "seen": pl.Int64})]
    for part in warehouse.batches(USER_SUMMARIES, ["user_id", "num_events"], pc.field("is_latest")):
        latest: Any = pl.from_arrow(part)
        seen.append(latest.rename({"num_events": "seen"}))
    joined = had[0].join(pl.concat(seen), on="user_id", how="left")
    missed = (joined["num_events"] - joined["seen"]).fill_null(0).clip(0)
    return {
        "summaries_missing": int(joined["seen"].null_count()),
        "summaries_stale": int((missed > 0).sum()),
        "events_missed": int(missed.sum()),
        "summaries_held": held_version(warehouse) or "none",
    }
