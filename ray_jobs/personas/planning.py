"""Which users get a persona, and what the model is asked for each: tables in, plan out. Nothing is paid here."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.identity import version_of
from models.personas.exploration import ExplorationConfig, find_candidates, relatedness
from models.personas.interests import InterestConfig, eligible_users, find_interests
from models.personas.salient_terms import salient_terms
from models.personas.term_groups import find_term_interests
from ray_jobs.personas.prompts import Anchor, Interest, Request
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.clusters import CLUSTER_PROFILES, SEMANTIC_IDS
from ray_jobs.tables.interactions import ITEMS, SPLITS
from ray_jobs.warehouse import Warehouse

PLAN_SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "num_events": pl.Int64(),
        "last_event": pl.Datetime("us", "UTC"),
        "content_key": pl.String(),
        "request": pl.String(),
        "tokens": pl.Int64(),
    }
)


SPLIT_RULES = ["leave_one_out", "global_time"]
EVENTS_AT_ONCE = 250_000
HISTORY_SCHEMA = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "timestamp": pl.Datetime("us", "UTC"),
        "position": pl.Int32(),
        "value": pl.Float64(),
        **dict.fromkeys(SPLIT_RULES, pl.String()),
        "liked": pl.Boolean(),
        "held": pl.Boolean(),
        "times": pl.UInt32(),
        "first": pl.Int32(),
    }
)


class Found(NamedTuple):
    """What histories say, before any model is asked.

    Attributes:
        interests: As `find_interests` returns them.
        candidates: As `find_candidates` returns them.
        requests: By user, what the model is asked.
    """

    interests: pl.DataFrame
    candidates: pl.DataFrame
    requests: dict[str, Request]


class Plan(NamedTuple):
    """Users within the budget, the most active first.

    Attributes:
        users: Columns ``user_id``, ``num_events``, ``last_event``, ``content_key``, ``request`` (JSON), ``tokens``.
        interests: As `find_interests` returns them.
        candidates: As `find_candidates` returns them.
        num_users: Users with any event.
        num_eligible: Users with enough history.
        num_over_budget: Eligible users that the budget leaves out.
    """

    users: pl.DataFrame
    interests: pl.DataFrame
    candidates: pl.DataFrame
    num_users: int
    num_eligible: int
    num_over_budget: int


def _frame(warehouse: Warehouse, table: Any, columns: list[str], filters: Any = None) -> pl.DataFrame:
    frame = pl.from_arrow(warehouse.read(table, columns, filters))
    assert isinstance(frame, pl.DataFrame)
    return frame


def count_activity(warehouse: Warehouse, user_ids: list[str] | None = None) -> pl.DataFrame:
    """Events and likes of every user, or of some, counted part by part: ``user_id``, ``events``, ``likes``."""
    parts = []
    wanted = None if user_ids is None else pc.field("user_id").isin(pa.array(user_ids, pa.string()))
    for part in warehouse.batches(SPLITS, ["user_id", "label", "sampled"], wanted):
        frame = pl.DataFrame(part).filter(~pl.col("sampled"))
        likes = (pl.col("label") == 1).sum().alias("likes")
        parts.append(frame.group_by("user_id").agg(pl.len().alias("events"), likes))
        if len(parts) > 32:
            parts = [pl.concat(parts).group_by("user_id").sum()]
    if not parts:
        return pl.DataFrame(schema={"user_id": pl.String, "events": pl.UInt32, "likes": pl.UInt32})
    return pl.concat(parts).group_by("user_id").sum().sort("user_id")


def read_history(
    warehouse: Warehouse, user_ids: list[str], held_share: float = 0.0, seen_until: pl.DataFrame | None = None
) -> pl.DataFrame:
    """The events of some users, with the clusters of their items; events of items without a cluster have none.

    Whoever comes back to an item a thousand times has one row of it for each verdict, split and side of the cut: the
    newest, which counts (``times``) the others and knows the ``first`` place of them. So memory is that of the items
    that somebody met, not of a lifetime of events; where nobody meets an item twice, a row is an event.

    Args:
        warehouse: Where splits, semantic IDs, profiles and items are.
        user_ids: The users.
        held_share: The newest share of each user's events is marked ``held``. By place and not by time: clocks of
            imported histories put all of a user's events on one day.
        seen_until: In its stead the last place of each user (``user_id``, ``seen_until``) that is not ``held``.
    """
    events = newest_of_each(pl.DataFrame(schema=HISTORY_SCHEMA))
    for rows in _events(warehouse, user_ids, held_share, seen_until):
        events = newest_of_each(pl.concat([events, rows]))
    return _placed(warehouse, events)


def read_newest(warehouse: Warehouse, user_ids: list[str], window: int) -> pl.DataFrame:
    """The newest ``window`` events of some users, as `read_history` returns them, but each with a row of its own."""
    kept = [pl.DataFrame(schema=HISTORY_SCHEMA)]
    for rows in _events(warehouse, user_ids, 0.0):
        kept = [pl.concat([*kept, rows]).filter(_from_end() <= window)]
    return _placed(warehouse, kept[0])


def _from_end() -> pl.Expr:
    return pl.col("position").rank("ordinal", descending=True).over("user_id")


def _events(
    warehouse: Warehouse, user_ids: list[str], held_share: float, seen_until: pl.DataFrame | None = None
) -> Iterator[pl.DataFrame]:
    """Events of some users with the columns of `HISTORY_SCHEMA`, part by part."""
    wanted = pc.field("user_id").isin(pa.array(user_ids, pa.string())) & ~pc.field("sampled")
    columns = ["user_id", "item_id", "timestamp", "position", "value", "label", *SPLIT_RULES]
    if seen_until is None:
        counts = count_activity(warehouse, user_ids).select("user_id", "events")
        # 0-based place p is seen if p + 1 <= (1 - share) x events.
        ends = ((1 - held_share) * pl.col("events")).floor().cast(pl.Int64) - 1
        seen_until = counts.select("user_id", seen_until=ends)
    for part in warehouse.batches(SPLITS, columns, wanted, EVENTS_AT_ONCE):
        rows = pl.DataFrame(part).join(seen_until, on="user_id", how="left", maintain_order="left")
        rows = rows.with_columns(
            liked=pl.col("label") == 1,
            held=pl.col("position") > pl.col("seen_until"),
            times=pl.lit(1, pl.UInt32),
            first=pl.col("position"),
        )
        yield rows.select(list(HISTORY_SCHEMA))


def _placed(warehouse: Warehouse, events: pl.DataFrame) -> pl.DataFrame:
    """Events with the clusters and titles of their items."""
    items = (
        _frame(warehouse, SEMANTIC_IDS, ["item_id", "cluster"])
        .join(_frame(warehouse, CLUSTER_PROFILES, ["cluster", "label"]), on="cluster")
        .join(_frame(warehouse, ITEMS, ["item_id", "title"]), on="item_id")
    )
    return events.join(items, on="item_id", how="left", maintain_order="left")


def newest_of_each(events: pl.DataFrame) -> pl.DataFrame:
    """The newest of the events of a user that differ in place and time only, in the order in which they are."""
    alike = ["user_id", "item_id", "liked", "held", *SPLIT_RULES]
    counted = events.with_columns(pl.col("times").sum().over(alike), pl.col("first").min().over(alike))
    return counted.filter(pl.col("position") == pl.col("position").max().over(alike))


def earlier(history: pl.DataFrame) -> pl.DataFrame:
    """The history without the newest share of each user's events, which is ``held``."""
    return history.filter(~pl.col("held"))


def later(history: pl.DataFrame) -> pl.DataFrame:
    """The events that `earlier` leaves out."""
    return history.filter("held")


def _requests(interests: pl.DataFrame, candidates: pl.DataFrame) -> dict[str, Request]:
    anchors: dict[str, list[Anchor]] = {}
    grouped = candidates.group_by("user_id", "anchor_cluster", maintain_order=True).agg("cluster", "label")
    named = {
        (user, cluster): label for user, cluster, label in interests.select("user_id", "cluster", "label").iter_rows()
    }
    for user, anchor, clusters, labels in grouped.iter_rows():
        anchors.setdefault(user, []).append(
            Anchor(cluster=anchor, label=named[user, anchor], candidates=clusters, candidate_labels=labels)
        )
    liked: dict[str, list[Interest]] = {}
    for row in interests.iter_rows(named=True):
        liked.setdefault(row["user_id"], []).append(
            Interest(cluster=row["cluster"], label=row["label"], titles=row["evidence_titles"])
        )
    return {user: Request(interests=found, anchors=anchors.get(user, [])) for user, found in liked.items()}


def find_all(
    warehouse: Warehouse, history: pl.DataFrame, interests: InterestConfig, exploration: ExplorationConfig
) -> Found:
    """Interests, candidates and requests of every user of a history, which may be cut at a point in time.

    Args:
        warehouse: Where profiles, items and captions are.
        history: As `read_history` returns it, or a part of it.
        interests: Knobs of the interests, with the grouping.
        exploration: Knobs of the explorations.
    """
    placed = history.drop_nulls("cluster")
    if interests.grouping == "salient_terms":
        items = _frame(warehouse, ITEMS, ["item_id", "title", "description", "categories"])
        captions = _frame(warehouse, ITEM_CAPTIONS, ["item_id", "caption"])
        terms = salient_terms(items.join(captions, on="item_id", how="left"), interests.terms)
        found = find_term_interests(placed, terms, interests)
    else:
        found = find_interests(placed, interests)
    profiles = _frame(warehouse, CLUSTER_PROFILES, ["cluster", "label", "items", "centroid"])
    related = relatedness(profiles.sort("cluster"), exploration)
    candidates = find_candidates(found, placed.select("user_id", "cluster"), related, exploration)
    return Found(found, candidates, _requests(found, candidates))


def make_plan(
    warehouse: Warehouse,
    *,
    interests: InterestConfig,
    exploration: ExplorationConfig,
    token_budget: int,
    tokens_of: Callable[[Request], int],
    identity: dict[str, Any],
    user_ids: list[str] | None = None,
    held_share: float = 0.0,
    choose: Callable[[pl.DataFrame], pl.DataFrame] | None = None,
    most_users: int | None = None,
) -> Plan:
    """Plans the personas of the most active users that a token budget covers, or of others in another order.

    The budget is what the table costs when nothing is cached, so that the users in it do not depend on what was paid
    before.

    Args:
        warehouse: Where splits, semantic IDs, profiles and items are.
        interests: Knobs of the interests.
        exploration: Knobs of the explorations.
        token_budget: Tokens, estimated.
        tokens_of: About how many tokens a user's request costs.
        identity: Whatever else decides the text: prompts, model, parameters.
        user_ids: Users that are looked at; all by default.
        held_share: The newest share of each user's events is not looked at: what personas are judged by.
        choose: Takes the users with enough history (`eligible_users`) and gives those that count, in their order.
        most_users: Most users of the plan.
    """
    activity = count_activity(warehouse, user_ids)
    eligible = eligible_users(activity, interests)
    if choose is not None:
        eligible = choose(eligible)
    # No user costs less than this, so more users need not be read.
    least = tokens_of(Request(interests=[Interest(cluster=0, label="", titles=[])], anchors=[]))
    looked_at = eligible.head(token_budget // least)
    history = earlier(read_history(warehouse, looked_at["user_id"].to_list(), held_share))
    found, candidates, requests = find_all(warehouse, history, interests, exploration)
    last = dict(history.group_by("user_id").agg(pl.col("timestamp").max()).iter_rows())
    rows: list[dict[str, Any]] = []
    spent = num_considered = 0
    for user, events in looked_at.select("user_id", "events").iter_rows():
        request = requests.get(user)
        if request is None:
            num_considered += 1
            continue
        tokens = tokens_of(request)
        if spent + tokens > token_budget or len(rows) == most_users:
            break
        spent += tokens
        num_considered += 1
        rows.append(
            {
                "user_id": user,
                "num_events": events,
                "last_event": last[user],
                "tokens": tokens,
                "content_key": version_of(request=request.model_dump(), **identity),
                "request": json.dumps(request.model_dump(), sort_keys=True),
            }
        )
    users = pl.DataFrame(rows, schema=PLAN_SCHEMA)
    without_interest = num_considered - len(rows)
    kept = users.select("user_id")
    return Plan(
        users,
        found.join(kept, on="user_id", how="semi", maintain_order="left"),
        candidates.join(kept, on="user_id", how="semi", maintain_order="left"),
        activity.height,
        eligible.height - without_interest,
        eligible.height - num_considered,
    )
