"""Whom an examination asks: users of the held-out part, drawn by their place and not by how active they are."""

import functools
from typing import Any

import polars as pl

from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig
from ray_jobs.personas.examined import Held
from ray_jobs.personas.lessons import HELD, part_of, place_of
from ray_jobs.personas.planning import Plan, earlier, later, make_plan, read_history
from ray_jobs.personas.prompts import Request
from ray_jobs.personas.student import most_student_tokens
from ray_jobs.personas.writers import tokens_of
from ray_jobs.warehouse import Warehouse

STUDENT_ARMS = 3
"""Writers of an examination that take one call: the student, held and not held, and the base before it was taught."""


def examination_tokens(request: Request, max_new_tokens: int) -> int:
    """About how many tokens all writers of an examination cost for a user, each answer as long as it may be."""
    return tokens_of("teacher", request, max_new_tokens) + STUDENT_ARMS * most_student_tokens(request)


def draw_held(eligible: pl.DataFrame, seed: int, dev_share: float, held_share: float) -> pl.DataFrame:
    """Of the users with enough history those who are held out, by their place.

    So a larger examination keeps the users of a smaller one, and they are as active as users are.

    Args:
        eligible: Column ``user_id``.
        seed: Seed of the parts.
        dev_share: Share of the users who stop the training.
        held_share: Share of the users who are held out.
    """
    users = eligible["user_id"].to_list()
    held = [part_of(user, seed, dev_share, held_share) == HELD for user in users]
    places = pl.Series("place", [place_of(user, seed) for user in users], pl.Float64)
    return (
        eligible.with_columns(places).filter(pl.Series(held, dtype=pl.Boolean)).sort("place", "user_id").drop("place")
    )


def plan_examination(
    warehouse: Warehouse,
    *,
    interests: InterestConfig,
    exploration: ExplorationConfig,
    held_events: float,
    seed: int,
    dev_share: float,
    held_share: float,
    examined_users: int,
    token_budget: int,
    max_new_tokens: int,
) -> Plan:
    """Plans what the writers are asked about held-out users, whether or not lessons would be written for them.

    Args:
        warehouse: Where splits, semantic IDs, profiles and items are.
        interests: Knobs of the interests.
        exploration: Knobs of the explorations.
        held_events: The newest share of each history, which no writer sees.
        seed: Seed of the parts.
        dev_share: Share of the users who stop the training.
        held_share: Share of the users who are held out.
        examined_users: Most users.
        token_budget: Tokens that all writers together may cost.
        max_new_tokens: Token limit of a sentence of the teacher.

    Raises:
        ValueError: If nobody is held out.
    """
    plan = make_plan(
        warehouse,
        interests=interests,
        exploration=exploration,
        token_budget=token_budget,
        tokens_of=functools.partial(examination_tokens, max_new_tokens=max_new_tokens),
        identity={},
        held_share=held_events,
        choose=functools.partial(draw_held, seed=seed, dev_share=dev_share, held_share=held_share),
        most_users=examined_users,
    )
    if not plan.users.height:
        raise ValueError(
            f"No user is held out for the verdict: of {plan.num_users:,} users {plan.num_eligible:,} with enough "
            f"history fall to the held-out part, and {token_budget:,} tokens are there for them; raise held_share or "
            "examination_budget."
        )
    return plan


def held_users(warehouse: Warehouse, plan: Plan, held_events: float) -> list[Held]:
    """Each user of an examination's plan with what is asked, and what was known and liked later."""
    history = read_history(warehouse, plan.users["user_id"].to_list(), held_events)
    known = earlier(history).drop_nulls("cluster")
    liked = later(history).filter("liked").drop_nulls("cluster")
    clusters = {
        name: dict(rows.group_by("user_id").agg(pl.col("cluster").unique().sort()).iter_rows())
        for name, rows in (("known", known), ("later", liked))
    }
    told: dict[str, dict[Any, list[dict[str, Any]]]] = {
        name: {user: rows.to_dicts() for (user,), rows in frame.group_by("user_id", maintain_order=True)}
        for name, frame in (("interests", plan.interests), ("candidates", plan.candidates))
    }
    seen = dict(earlier(history).group_by("user_id").agg(pl.col("position").max()).iter_rows())
    return [
        Held(
            user,
            request,
            shares={i["cluster"]: i["share"] for i in told["interests"][user]},
            known=clusters["known"].get(user, []),
            later=clusters["later"].get(user, []),
            interests=told["interests"][user],
            candidates=told["candidates"].get(user, []),
            seen_until=seen[user],
        )
        for user, request in plan.users.select("user_id", "request").iter_rows()
    ]
