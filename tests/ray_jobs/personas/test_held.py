"""Whom an examination asks: held-out users, however active, within a number and a budget of their own."""

import dagster as dg
import polars as pl
import pytest

from assets.clusters.cluster_profiles import cluster_profiles
from models.personas.exploration import ExplorationConfig
from models.personas.interests import InterestConfig
from orchestration.resources.tables import LocalTables
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.language.engine import LanguageEngineConfig
from ray_jobs.personas.distillation import Config, learning_users
from ray_jobs.personas.held import draw_held, examination_tokens, held_users, plan_examination
from ray_jobs.personas.lessons import DEV, HELD, TRAIN, part_of
from ray_jobs.personas.prompts import Request
from tests.assets.clusters.seeding import seed_captions
from tests.assets.personas.test_personas import seed_clusters
from tests.factories import seed_interactions

SEED, DEV_SHARE, HELD_SHARE, LIMIT = 3, 0.2, 0.3, 40
INTERESTS = InterestConfig(min_events=3, min_likes=2)


def seed(folder, users: int) -> LocalTables:
    tables = LocalTables(warehouse_root=str(folder / "w"), artifact_root=str(folder / "a"))
    seed_interactions(tables, num_users=users, num_items=60, events_per_user=14)
    seed_captions(tables)
    seed_clusters(tables)
    assert dg.materialize([cluster_profiles], resources={"tables": tables}).success
    return tables


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return seed(tmp_path_factory.mktemp("many"), 40)


@pytest.fixture
def config(tables):
    return Config(
        warehouse=tables.warehouse(),
        artifacts=ArtifactStore("unused"),
        inputs={"splits": "1"},
        engine=LanguageEngineConfig(kind="transformers", model="m", revision="r"),
        interests=INTERESTS,
        dev_share=DEV_SHARE,
        held_share=HELD_SHARE,
    )


def plan(tables, examined_users=60, token_budget=10**6, held_share=HELD_SHARE):
    return plan_examination(
        tables.warehouse(),
        interests=INTERESTS,
        exploration=ExplorationConfig(),
        held_events=0.2,
        seed=SEED,
        dev_share=DEV_SHARE,
        held_share=held_share,
        examined_users=examined_users,
        token_budget=token_budget,
        max_new_tokens=LIMIT,
    )


def test_held_out_users_are_drawn_however_active_they_are():
    # The most active first, as `eligible_users` has them.
    eligible = pl.DataFrame({"user_id": [f"u{u}" for u in range(3000)], "events": range(3000, 0, -1)})
    drawn = draw_held(eligible, SEED, DEV_SHARE, HELD_SHARE)
    assert {part_of(u, SEED, DEV_SHARE, HELD_SHARE) for u in drawn["user_id"]} == {HELD}
    assert drawn.height == pytest.approx(900, abs=100) and drawn["user_id"].is_unique().all()
    assert drawn["events"].head(300).mean() == pytest.approx(1500, abs=150), "the first are no more active"
    less = draw_held(eligible.sample(fraction=0.5, seed=1), SEED, DEV_SHARE, HELD_SHARE)["user_id"]
    assert less.to_list() == [u for u in drawn["user_id"] if u in set(less)], "the order is that of the users alone"
    assert draw_held(eligible.clear(), SEED, DEV_SHARE, HELD_SHARE).height == 0


def test_number_and_budget_bound_an_examination(tables):
    every = plan(tables)
    users = every.users["user_id"].to_list()
    assert len(users) == every.num_eligible > 5, "more are asked for than there are"
    assert plan(tables, examined_users=4).users["user_id"].to_list() == users[:4], "a larger one keeps a smaller one's"
    costs = [examination_tokens(Request.model_validate_json(r), LIMIT) for r in every.users["request"]]
    assert costs == every.users["tokens"].to_list() and min(costs) > 3 * 256, "answers as long as they may be"
    assert plan(tables, token_budget=sum(costs[:3]) + 1).users["user_id"].to_list() == users[:3]
    held = held_users(tables.warehouse(), every, 0.2)
    assert [h.user_id for h in held] == users and {h.seen_until for h in held} == {10}
    assert all(set(h.shares) <= set(h.known) and not {c["cluster"] for c in h.candidates} & set(h.known) for h in held)


def test_without_held_out_users_nothing_is_paid(tables, tmp_path):
    for knobs in ({"token_budget": 10}, {"held_share": 1e-9}):
        with pytest.raises(ValueError, match="No user is held out for the verdict: of 40 users .* raise held_share or"):
            plan(tables, **knobs)
    few = seed(tmp_path, 5)
    assert plan(few, held_share=0.9).users.height <= 5
    with pytest.raises(ValueError, match="No user is held out for the verdict: of 5 users 0 with enough history"):
        plan(few, held_share=0.01)


def test_more_examined_users_repeat_neither_lessons_nor_training(config):
    more = config.model_copy(update={"examined_users": 90, "examination_budget": 10**6, "inputs": {"splits": "2"}})
    assert learning_users(more).equals(learning_users(config))
    assert set(learning_users(config)["part"]) == {TRAIN, DEV}
    assert more.version != config.version
    assert more.training_name("lessons/1") == config.training_name("lessons/1") != config.training_name("lessons/2")
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 9})})
    assert longer.training_name("lessons/1") != config.training_name("lessons/1")


def test_an_examination_is_named_by_whom_it_asks_what(tables, config):
    held = held_users(tables.warehouse(), plan(tables), 0.2)
    name = config.examination_name("t", held)
    assert name == config.examination_name("t", held) != config.examination_name("t", held[:-1])
    assert name != config.model_copy(update={"max_new_tokens": 50}).examination_name("t", held)
    assert name != config.examination_name("t", [held[0]._replace(user_id="another"), *held[1:]])
