"""Parts of the job that need no tables; the job itself runs in tests/assets/personas."""

import json

import numpy as np
import polars as pl
import pytest

from ray_jobs.embedding_store import Embedded
from ray_jobs.personas.measures import Texts, _instructions
from ray_jobs.personas.panels import Panel, World
from ray_jobs.personas.planning import PLAN_SCHEMA, Plan


def plan_of(**asked):
    rows = [
        {
            "user_id": user,
            "num_events": 9,
            "last_event": None,
            "tokens": 1,
            "content_key": user,
            "request": json.dumps({"interests": [{}] * interests, "anchors": [{}] * anchors}),
        }
        for user, (interests, anchors) in asked.items()
    ]
    return Plan(pl.DataFrame(rows, schema=PLAN_SCHEMA), pl.DataFrame(), pl.DataFrame(), 4, 4, 0)


def test_a_persona_is_whole_or_a_failure_and_a_dead_letter_is_one():
    plan = plan_of(whole=(2, 1), short=(2, 0), unexplored=(1, 1), dead=(3, 0))
    users = pl.DataFrame({"user_id": ["dead", "short", "unexplored", "whole"]}).with_row_index("user")
    said, explored = [1, 2, 3, 3], [3]
    nothing = np.zeros((4, 1))
    panel = Panel(
        users,
        pl.DataFrame({"user": said}),
        pl.DataFrame({"user": explored}),
        None,
        users.clear(),
        users.clear(),
        nothing,
        nothing,
        nothing,
    )
    asked, done = _instructions(plan, panel)
    assert asked.tolist() == [3, 2, 1, 2]
    assert done.tolist() == [False, False, False, True]


def test_items_of_another_encoder_are_refused(monkeypatch):
    monkeypatch.setattr(
        "ray_jobs.personas.measures.embed",
        lambda warehouse, encoder, texts, stage: Embedded(np.ones((len(texts), 8), np.float32), len(texts), 0),
    )
    config = type("Config", (), {"warehouse": None, "encoder": None})
    world = World(pl.DataFrame(), np.zeros((3, 4)), pl.DataFrame(), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="materialize clusters/item_embeddings again"):
        Texts.encoded(config, world, ["a", "b", "a"])
    same = Texts.encoded(config, world._replace(item_ND=np.zeros((3, 8))), ["a", "b", "a"])
    assert same(["b", "a", "a"]).shape == (3, 8) and list(same.place) == ["a", "b"]
