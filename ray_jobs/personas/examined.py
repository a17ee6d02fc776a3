"""Texts of the newest examination of teacher and student: kept for the measures, and put into matrices.

In a table and not beside the figures, so that `forget_user` finds them.
"""

import dataclasses
import datetime as dt
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig
from ray_jobs.personas.panels import TRAIN, Panel, World, interests_of, later_likes, make_panel
from ray_jobs.personas.planning import earlier, read_history
from ray_jobs.tables.personas import PERSONA_EXAMINED, PERSONA_STUDENTS
from ray_jobs.warehouse import Warehouse

KEPT_OF = ("teacher", "student")
"""Writers whose texts are kept: who writes, and who would."""
HELD_EVENTS = "held_events"
"""As a split: the newest share of each history, which no persona of an examination saw."""
TEST = "test"


class Said(NamedTuple):
    """One sentence of a persona: the interest, the sentence, and the titles that it rests on."""

    cluster: int
    claim: str
    titles: list[str]


class Held(NamedTuple):
    """A held-out user as an examination sees it.

    Attributes:
        user_id: User.
        request: What is asked of a writer, as JSON.
        shares: Of each interest's cluster the share of the user's likes.
        known: Clusters that the history had touched.
        later: Clusters that the user liked later.
        interests: As `find_interests` returns them, of this user.
        candidates: As `find_candidates` returns them, of this user.
        seen_until: Position of the last event that the persona may see.
    """

    user_id: str
    request: str
    shares: dict[int, float]
    known: list[int]
    later: list[int]
    interests: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    seen_until: int


class Examined(NamedTuple):
    """The personas of one writer for held-out users.

    Attributes:
        writer: `teacher` or `student`.
        panel: The personas, and the histories that they saw.
        claims: Sentences in the order of the panel's interests.
        asked_U: Interests that were asked for.
        followed_U: Whether everything that was asked for is there.
        later: Later likes, as `later_likes` returns them.
        exploration: Knobs of the explorations.
    """

    writer: str
    panel: Panel
    claims: list[str]
    asked_U: np.ndarray
    followed_U: np.ndarray
    later: pl.DataFrame
    exploration: ExplorationConfig


def is_kept(warehouse: Warehouse, writer: str, examination: str) -> bool:
    """Whether the texts of a writer's examination are in the table."""
    if not warehouse.exists(PERSONA_EXAMINED):
        return False
    mine = (pc.field("writer") == writer) & (pc.field("examination") == examination)
    return warehouse.read(PERSONA_EXAMINED, ["writer"], mine).num_rows > 0


def keep(
    warehouse: Warehouse,
    writer: str,
    examination: str,
    student_version: str,
    parameters: dict[str, Any],
    held: Sequence[Held],
    said: Sequence[Sequence[Said]],
    rows: Sequence[tuple[bool, list[int], list[tuple[int, int]]]],
) -> None:
    """Replaces the texts of a writer.

    Args:
        warehouse: Where the table is.
        writer: `teacher` or `student`.
        examination: Its name.
        student_version: The training that was examined.
        parameters: Knobs of interests and explorations.
        held: The users.
        said: Sentences of each.
        rows: What else the examination says of each; see `persona_evaluation.Examination`.
    """
    made = []
    for user, sentences, (_, _, explored) in zip(held, said, rows, strict=True):
        asked = json.loads(user.request)
        by_cluster = {i["cluster"]: i for i in user.interests}
        chosen = set(explored)
        made.append(
            {
                "writer": writer,
                "user_id": user.user_id,
                "examination": examination,
                "student_version": student_version,
                "interests": [_cited(by_cluster[s.cluster], s.titles) for s in sentences],
                "claims": [s.claim for s in sentences],
                "explorations": [c for c in user.candidates if (c["anchor_cluster"], c["cluster"]) in chosen],
                "interests_asked": len(asked["interests"]),
                "explorations_asked": len(asked["anchors"]),
                "seen_until": user.seen_until,
                "parameters": json.dumps(parameters, sort_keys=True),
                "created_timestamp": dt.datetime.now(dt.UTC),
            }
        )
    data = pa.Table.from_pylist(made, PERSONA_EXAMINED.schema)
    warehouse.write(PERSONA_EXAMINED, data, f"{examination}-{writer}", f"writer = '{writer}'")


def _cited(interest: dict[str, Any], titles: Sequence[str]) -> dict[str, Any]:
    """An interest with no more evidence than a sentence cites."""
    pairs = zip(interest["evidence_item_ids"], interest["evidence_titles"], strict=True)
    shown = [(item, title) for item, title in pairs if title in titles]
    return {k: interest[k] for k in ("cluster", "label", "share")} | {
        "evidence_item_ids": [item for item, _ in shown],
        "evidence_titles": [title for _, title in shown],
    }


def read_examined(warehouse: Warehouse, world: World) -> list[Examined]:
    """The personas of the student that the table of students judges, and its teacher's; none where none are kept."""
    if not warehouse.exists(PERSONA_EXAMINED) or not warehouse.exists(PERSONA_STUDENTS):
        return []
    judged = set(warehouse.read(PERSONA_STUDENTS, ["student_version"])["student_version"].to_pylist())
    mine = pc.field("student_version").isin(pa.array(sorted(judged), pa.string()))
    kept = pl.DataFrame(warehouse.read(PERSONA_EXAMINED, filters=mine)).sort("user_id")
    # Teacher first, as everywhere.
    return [_panel(warehouse, world, w, rows) for w in KEPT_OF if (rows := kept.filter(pl.col("writer") == w)).height]


def _panel(warehouse: Warehouse, world: World, writer: str, rows: pl.DataFrame) -> Examined:
    said = json.loads(rows["parameters"][0])
    config, exploration = interests_of(said["interests"]), ExplorationConfig(**said["exploration"])
    users = rows["user_id"].to_list()
    history = read_history(warehouse, users, seen_until=rows.select("user_id", "seen_until"))
    history = history.with_columns(
        pl.when(pl.col("held")).then(pl.lit(TEST)).otherwise(pl.lit(TRAIN)).alias(HELD_EVENTS)
    )
    interests = rows.select("user_id", pl.col("interests").alias("interest"), pl.col("claims").alias("claim"))
    interests = interests.explode("interest", "claim").drop_nulls("interest").unnest("interest")
    explored = rows.select("user_id", "explorations").explode("explorations").drop_nulls().unnest("explorations")
    explored = explored.select("user_id", "anchor_cluster", "cluster")
    panel = make_panel(world, users, earlier(history), interests, explored, config)
    asked_U, anchors_U = (rows[name].to_numpy() for name in ("interests_asked", "explorations_asked"))
    said_U, explored_U = (np.bincount(f["user"].to_numpy(), minlength=len(users)) for f in panel[1:3])
    return Examined(
        writer,
        panel,
        panel.interests["claim"].to_list(),
        asked_U,
        (said_U == asked_U) & (explored_U == anchors_U),
        later_likes(world, panel, history, HELD_EVENTS, TEST),
        exploration,
    )


def parameters_of(interests: InterestConfig, exploration: ExplorationConfig) -> dict[str, Any]:
    """Knobs as they are kept."""
    return {"interests": dataclasses.asdict(interests), "exploration": dataclasses.asdict(exploration)}
