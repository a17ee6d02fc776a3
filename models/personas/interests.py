"""Existing interests: the clusters of what a user liked, with the items that show it.

An interest is a cluster of the user's own liked items, so each claim is grounded in named items by construction.
Negative feedback is left out and tiny clusters are dropped, as in Google's persona system (arXiv 2606.12198,
section 2.2): what rests on one sporadic event is the failure that its users named.
"""

import dataclasses
from typing import Literal

import polars as pl

from models.personas.salient_terms import TermConfig

EVIDENCE = "evidence_item_ids"


@dataclasses.dataclass(frozen=True)
class InterestConfig:
    """Knobs of the interests.

    Attributes:
        min_events: Least number of events of a user with enough history.
        min_likes: Least number of liked items of such a user.
        half_life: Likes after which a like weighs half. Counted in likes, not in time: clocks of imported histories
            put hundreds of events into one minute.
        min_items: Least number of liked items of an interest.
        max_interests: Interests that are kept, the strongest first.
        num_evidence: Items that are named for an interest.
        grouping: What an interest is: a cluster of the semantic IDs, or a group of the user's own by salient terms.
        terms: Knobs of the salient terms.
    """

    min_events: int = 10
    min_likes: int = 5
    half_life: float = 50.0
    min_items: int = 2
    max_interests: int = 4
    num_evidence: int = 3
    grouping: Literal["semantic_ids", "salient_terms"] = "semantic_ids"
    terms: TermConfig = TermConfig()


def eligible_users(activity: pl.DataFrame, config: InterestConfig) -> pl.DataFrame:
    """Users with enough history, the most active first; ties by user id.

    Args:
        activity: Columns ``user_id``, ``events``, ``likes``.
        config: Knobs.
    """
    enough = (pl.col("events") >= config.min_events) & (pl.col("likes") >= config.min_likes)
    return activity.filter(enough).sort(["events", "user_id"], descending=[True, False])


def weigh_likes(history: pl.DataFrame, config: InterestConfig) -> pl.DataFrame:
    """The liked items of each user in the order of time, with their recency-weighted part: ``share``."""
    likes = (
        history.filter("liked")
        .sort("user_id", "position")
        .unique(["user_id", "item_id"], keep="last", maintain_order=True)
    )
    age = pl.len().over("user_id") - 1 - pl.int_range(pl.len()).over("user_id")
    likes = likes.with_columns((0.5 ** (age / config.half_life)).alias("weight"))
    return likes.with_columns((pl.col("weight") / pl.col("weight").sum().over("user_id")).alias("share"))


def cite(likes: pl.DataFrame, by: list[str], config: InterestConfig) -> pl.DataFrame:
    """Sums up groups of likes: ``num_items``, ``share`` and the items that show it best.

    Args:
        likes: As `weigh_likes` returns them.
        by: Columns that make a group.
        config: Knobs.
    """
    order = [*by, "value", "position"]
    telling = likes.sort(order, descending=[*[False] * len(by), True, True], nulls_last=True)
    return telling.group_by(by, maintain_order=True).agg(
        pl.len().alias("num_items"),
        pl.col("share").sum(),
        pl.col("item_id").head(config.num_evidence).alias(EVIDENCE),
        pl.col("title").head(config.num_evidence).alias("evidence_titles"),
    )


def find_interests(history: pl.DataFrame, config: InterestConfig) -> pl.DataFrame:
    """The interests of every user, by clusters of the semantic IDs.

    Args:
        history: One row an event: ``user_id``, ``item_id``, ``position`` (place in the user's history), ``liked``
            (bool), ``value`` (nullable), ``cluster``, ``label``, ``title``.
        config: Knobs.

    Returns:
        Columns ``user_id``, ``cluster``, ``label``, ``share`` (recency-weighted part of the user's likes),
        ``evidence_item_ids``, ``evidence_titles``; by user, the strongest interest first.
    """
    found = cite(weigh_likes(history, config), ["user_id", "cluster", "label"], config)
    return (
        found.filter(pl.col("num_items") >= config.min_items)
        .sort(["user_id", "share", "cluster"], descending=[False, True, False])
        .group_by("user_id", maintain_order=True)
        .head(config.max_interests)
        .select("user_id", "cluster", "label", "share", EVIDENCE, "evidence_titles")
    )
