"""Job: how good personas are, beside controls: grounded, telling, their user's own, and right about what comes later.

What looks at later events never reads the table of personas, which saw every event, as serving should. It plans anew
from the training part of each history; no model is asked for that: interests and candidates come from clusters, and of
the candidates the model's choice is taken where it chose for the same content before, else the most similar one.
"""

import dataclasses
import functools
import json
import sys
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pydantic

from models.personas.claims import Grounding
from models.personas.interests import eligible_users
from models.personas.measures import OWN, Line, lines_of, rated
from ray_jobs.embedding_store import as_matrix, embed
from ray_jobs.entrypoint import serve_pipes
from ray_jobs.personas.claims import split_claims
from ray_jobs.personas.examined import HELD_EVENTS, TEST, Examined, read_examined
from ray_jobs.personas.panel_measures import (
    Knobs,
    claims_grounding,
    measure_later,
    measure_past,
    measure_refresh,
    weights,
)
from ray_jobs.personas.panels import (
    TRAIN,
    Panel,
    Parameters,
    World,
    before,
    choose,
    later_likes,
    make_panel,
    read_parameters,
    read_world,
)
from ray_jobs.personas.planning import SPLIT_RULES, Plan, count_activity, find_all, make_plan, read_history
from ray_jobs.personas.writers import tokens_of
from ray_jobs.tables.personas import USER_PERSONAS
from ray_jobs.text_encoding import TextEncoderConfig
from ray_jobs.warehouse import Warehouse

GROUPINGS: tuple[Literal["semantic_ids", "salient_terms"], ...] = ("semantic_ids", "salient_terms")
PERIODS = ("valid", "test")
WRITTEN = "written"
SHOWN = 5


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the job."""

    warehouse: Warehouse = pydantic.Field(description="Where the tables are.")
    encoder: TextEncoderConfig = pydantic.Field(description="The text encoder.")
    max_users: int = pydantic.Field(2000, ge=2, description="Users whose planned personas are measured, at random.")
    knobs: Knobs = pydantic.Field(Knobs(), description="What the measures are cut by.")


class Measured(pydantic.BaseModel, frozen=True):
    """One line of the table."""

    personas: str
    split_rule: str
    period: str
    measure: str
    arm: str
    baseline: str
    value: float
    low: float
    high: float
    num_users: int


class Shown(pydantic.BaseModel, frozen=True):
    """A persona as it is read, without its user's name."""

    why: str
    persona: str
    interests: list[dict[str, Any]]
    explorations: list[str]


class Result(pydantic.BaseModel, frozen=True):
    """What was measured."""

    lines: list[Measured]
    shown: list[Shown]
    left_out: list[str]
    thresholds: dict[str, float]
    choices_from_store: int
    choices_planned: int


class Texts:
    """Vectors of texts, by text.

    Args:
        texts: Distinct texts.
        vector_TD: Their unit vectors.
    """

    def __init__(self, texts: list[str], vector_TD: np.ndarray):
        self.place = {text: place for place, text in enumerate(texts)}
        self.vector_TD = vector_TD

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Vectors of some of them, (len(texts), D)."""
        return self.vector_TD[[self.place[t] for t in texts]].reshape(len(texts), -1)

    @classmethod
    def encoded(cls, config: Config, world: World, texts: list[str]) -> "Texts":
        """Encodes texts, in the space of the items.

        Raises:
            ValueError: If the items were embedded by another encoder.
        """
        distinct = list(dict.fromkeys(texts))
        vector_TD = embed(config.warehouse, config.encoder, distinct, stage="claims").vectors
        if distinct and vector_TD.shape[1] != world.item_ND.shape[1]:
            raise ValueError(
                f"Items have vectors of {world.item_ND.shape[1]} values, claims of {vector_TD.shape[1]}: materialize "
                "clusters/item_embeddings again with the encoder in use."
            )
        return cls(distinct, vector_TD)


class _Planned(NamedTuple):
    personas: str
    rule: str
    panel: Panel


def _labels(panel: Panel) -> list[str]:
    return panel.interests["label"].to_list()


def _lines(found: list[Line], personas: str, rule: str = "", period: str = "") -> list[Measured]:
    return [Measured(personas=personas, split_rule=rule, period=period, **line._asdict()) for line in found]


def plan_all(
    config: Config, world: World, parameters: Parameters
) -> tuple[list[_Planned], pl.DataFrame, tuple[int, int]]:
    """Personas of both groupings: of whole histories, and of the training part of each split.

    Returns:
        The panels, the histories, and how many users' explorations were taken from the store, of how many.
    """
    eligible = eligible_users(count_activity(config.warehouse), parameters.interests).sort("user_id")
    chosen = eligible.sample(min(config.max_users, eligible.height), seed=config.knobs.seed)["user_id"].sort().to_list()
    history = read_history(config.warehouse, chosen)
    panels, stored, planned = [], 0, 0
    for rule in ("", *SPLIT_RULES):
        past = before(history, rule, parameters.interests) if rule else history
        for grouping in GROUPINGS:
            interests = dataclasses.replace(parameters.interests, grouping=grouping)
            found = find_all(config.warehouse, past, interests, parameters.exploration)
            explorations, known = choose(config.warehouse, found, parameters.identity)
            stored, planned = stored + known, planned + len(found.requests)
            panel = make_panel(world, chosen, past, found.interests, explorations, interests)
            panels.append(_Planned(grouping, rule, panel))
    return panels, history, (stored, planned)


def read_written(config: Config, world: World, parameters: Parameters) -> tuple[Plan, pl.DataFrame, Panel]:
    """The personas of the table with the plan that they were written by; users without a usable text are in it."""
    plan = make_plan(
        config.warehouse,
        interests=parameters.interests,
        exploration=parameters.exploration,
        token_budget=parameters.token_budget,
        tokens_of=functools.partial(tokens_of, parameters.writer, max_new_tokens=parameters.max_new_tokens),
        identity=parameters.identity,
    )
    users = sorted(plan.users["user_id"].to_list())
    rows = pl.DataFrame(config.warehouse.read(USER_PERSONAS)).sort("user_id")
    interests = rows.select("user_id", "interests").explode("interests").drop_nulls("interests").unnest("interests")
    explored = rows.select("user_id", "explorations").explode("explorations").drop_nulls().unnest("explorations")
    explored = explored.select("user_id", "anchor_cluster", "cluster")
    history = read_history(config.warehouse, users)
    return plan, rows, make_panel(world, users, history, interests, explored, parameters.interests)


def _instructions(plan: Plan, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """By user: interests that were asked for, and whether everything that was asked for is there."""
    size = panel.users.height
    asked = {u: json.loads(r) for u, r in plan.users.select("user_id", "request").iter_rows()}
    users = panel.users["user_id"].to_list()
    interests_U = np.array([len(asked[u]["interests"]) for u in users])
    anchors_U = np.array([len(asked[u]["anchors"]) for u in users])
    said_U = np.bincount(panel.interests["user"].to_numpy(), minlength=size)
    explored_U = np.bincount(panel.explorations["user"].to_numpy(), minlength=size)
    return interests_U, (said_U == interests_U) & (explored_U == anchors_U)


def show(panel: Panel, rows: pl.DataFrame, grounding: Grounding, seed: int) -> list[Shown]:
    """Some personas at random and those that are grounded worst, with their evidence."""
    scored = panel.interests.with_columns(
        pl.Series("score", grounding.score_M), pl.Series("grounded", grounding.one_M)
    ).join(panel.users, on="user")
    worst = scored.group_by("user_id").agg(pl.col("score").mean()).sort("score", "user_id")
    written = rows["user_id"].sort()
    drawn = written.sample(min(SHOWN, len(written)), seed=seed).to_list()
    made = []
    for why, users in (("at random", drawn), ("worst grounded", worst["user_id"].head(SHOWN).to_list())):
        for user in users:
            (row,) = rows.filter(pl.col("user_id") == user).to_dicts()
            mine = scored.filter(pl.col("user_id") == user)
            fields = mine.select("label", "share", "evidence_titles", "score", "grounded").to_dicts()
            explored = [e["label"] for e in row["explorations"]]
            made.append(Shown(why=why, persona=row["persona"], interests=fields, explorations=explored))
    return made


def measure_examined(
    world: World, examined: Examined, vector_of: Texts, labels: list[str], knobs: Knobs
) -> tuple[list[Measured], float]:
    """All measures of what a student, or its teacher, said of held-out users; and the threshold of grounding."""
    panel, claim_MD = examined.panel, vector_of(examined.claims)
    grounding = claims_grounding(world, panel, claim_MD, knobs)
    size = panel.users.height
    past = [rated("instruction_following_rate", OWN, examined.followed_U, np.ones(size), weights(panel, knobs))]
    past += measure_past(
        world, panel, claim_MD, examined.exploration, knobs, grounding=grounding, planned_U=examined.asked_U
    )
    # As of planned personas: restriction is by the labels, which stand in every persona of these interests.
    later = measure_later(world, panel, examined.later, vector_of(labels), vector_of(_labels(panel)), knobs)
    lines = _lines(lines_of(past), examined.writer, HELD_EVENTS)
    return lines + _lines(lines_of(later), examined.writer, HELD_EVENTS, TEST), grounding.threshold


def run(config: Config) -> Result:
    """Measures the personas of the table, those that both groupings plan, and those of an examined student.

    Writes nothing but embeddings.
    """
    world, parameters = read_world(config.warehouse), read_parameters(config.warehouse)
    knobs, labels = config.knobs, world.clusters["label"].to_list()
    plan, rows, written = read_written(config, world, parameters)
    panels, history, (stored, planned) = plan_all(config, world, parameters)
    titles = written.interests.group_by("user", maintain_order=True).agg("evidence_titles")
    texts = dict(rows.join(written.users, on="user_id").select("user", "persona").iter_rows())
    sentences = [c for user, shown in titles.iter_rows() for c in split_claims(texts[user], shown)]
    examined = read_examined(config.warehouse, world)
    told = [*sentences, *(text for p in panels for text in _labels(p.panel))]
    told += [text for e in examined for text in (*e.claims, *_labels(e.panel))]
    vector_of = Texts.encoded(config, world, [*labels, *told] if told else [])
    lines, left_out, thresholds, shown = [], [], {}, []

    interests_U, done_U = _instructions(plan, written)
    followed = rated("instruction_following_rate", OWN, done_U, np.ones(len(done_U)), weights(written, knobs))
    lines += _lines(lines_of([followed]), WRITTEN)
    if written.interests["user"].n_unique() < 2:
        left_out.append("written: fewer than two users have a persona, so there is no other user to compare with.")
    else:
        claim_MD = vector_of(sentences)
        grounding = claims_grounding(world, written, claim_MD, knobs)
        thresholds[WRITTEN] = grounding.threshold
        persona_UD = np.zeros((written.users.height, claim_MD.shape[1]))
        mine = rows.join(written.users, on="user_id", maintain_order="left")
        persona_UD[mine["user"].to_numpy()] = as_matrix(mine.select("embedding").to_arrow()["embedding"])
        found = measure_past(
            world,
            written,
            claim_MD,
            parameters.exploration,
            knobs,
            grounding=grounding,
            persona_UD=persona_UD,
            planned_U=interests_U,
        )
        lines += _lines(lines_of(found), WRITTEN)
        shown = show(written, rows, grounding, knobs.seed)

    for one in examined:
        if one.panel.interests["user"].n_unique() < 2:
            left_out.append(f"{one.writer}: it has usable sentences of fewer than two held-out users.")
            continue
        found_lines, thresholds[one.writer] = measure_examined(world, one, vector_of, labels, knobs)
        lines += found_lines

    whole = {p.personas: p.panel for p in panels if not p.rule}
    for personas, rule, panel in panels:
        if panel.interests["user"].n_unique() < 2:
            left_out.append(f"{personas} {rule}: fewer than two users have enough history.")
            continue
        claim_MD = vector_of(_labels(panel))
        if not rule:
            grounding = claims_grounding(world, panel, claim_MD, knobs)
            thresholds[personas] = grounding.threshold
            found = measure_past(world, panel, claim_MD, parameters.exploration, knobs, grounding=grounding)
            lines += _lines(lines_of(found), personas)
            continue
        came = history.filter(pl.col(rule) != TRAIN).select("user_id").unique().join(panel.users, on="user_id")
        changed_U = np.zeros(panel.users.height, bool)
        changed_U[came["user"].to_numpy()] = True
        changed_U &= panel.topics.known_UC.any(1)
        lines += _lines(lines_of(measure_refresh(panel, whole[personas], changed_U, knobs)), personas, rule)
        for period in PERIODS:
            later = later_likes(world, panel, history, rule, period)
            found = measure_later(world, panel, later, vector_of(labels), claim_MD, knobs)
            lines += _lines(lines_of(found), personas, rule, period)
    return Result(
        lines=lines,
        shown=shown,
        left_out=left_out,
        thresholds=thresholds,
        choices_from_store=stored,
        choices_planned=planned,
    )


if __name__ == "__main__":
    serve_pipes(sys.modules[__name__])
