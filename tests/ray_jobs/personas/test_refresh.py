"""Workers that refresh personas: what they ask the model for, what they serve, and what becomes of the rest."""

import datetime as dt
import json
import re
import time

import polars as pl
import pyarrow as pa
import pytest
import sqlalchemy as sa

from models.personas.safety import SafetyConfig
from orchestration.resources.ledger import ledger_twin
from ray_jobs.databases import shared_engine
from ray_jobs.language.engine import EngineUnavailableError
from ray_jobs.personas.queue import Wanted
from ray_jobs.personas.refresh import Config, Counts, PersonaRefresher, Result
from ray_jobs.personas.sql_queue import PERSONA_REFRESH
from ray_jobs.personas.student import student_digest
from ray_jobs.personas.writers import StudentConfig
from ray_jobs.tables.captions import ITEM_CAPTIONS
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.personas import PERSONA_DEAD_LETTERS, PERSONA_STORE, PERSONA_VERDICTS, REFRESHED_PERSONAS
from tests.factories import CREATED
from tests.ray_jobs.language.fault_server import FaultServer
from tests.ray_jobs.refreshes import Model, files_in, refresh_config, seed_tables

USERS = [f"u{n}" for n in range(6)]
LATER = dt.timedelta(hours=2)


class Stage:
    """Tables, a queue with six users, a model behind an endpoint, and workers."""

    def __init__(self, tables, queue, model, url, folder):
        self.tables, self.queue, self.model, self.url, self.store = tables, queue, model, url, files_in(folder)
        self.folder = folder
        seed_tables(tables)

    def ask(self, users=USERS, clusters="asked", now=None):
        return self.queue.enqueue([Wanted(u, "stale", clusters, "v1") for u in users], now)

    def worker(self, **more):
        return PersonaRefresher(refresh_config(self.tables, self.queue, self.url, self.store, **more))

    def drain(self, **more):
        return self.worker(**more).drain()

    def rows(self):
        with shared_engine(self.queue.url).begin() as connection:
            return {r.user_id: r for r in connection.execute(sa.select(PERSONA_REFRESH))}

    def served(self):
        return self.store.open().read(USERS)

    def read(self, table):
        return self.tables.read(table).to_pylist()


@pytest.fixture
def stage(tables, tmp_path):
    queue = ledger_twin(f"sqlite:///{tmp_path}/ledger.db").persona_queue()
    model = Model()
    with FaultServer(model) as server:
        made = Stage(tables, queue, model, server.url, tmp_path / "online")
        made.ask()
        yield made
    shared_engine(queue.url).dispose()


def test_only_users_whose_clusters_changed_are_written_anew(stage):
    first = stage.drain()
    assert (first.leased, first.refreshed, first.unchanged) == (6, 6, 0) and first.llm_calls > 0
    assert len(stage.model.sentences) == len(set(stage.model.sentences)) and first.prompt_tokens > 0
    served = stage.served()
    for row in stage.read(REFRESHED_PERSONAS):
        persona = served[row["user_id"]]
        assert persona.persona == row["persona"] and persona.interests == row["interests"]
        assert persona.interests[0]["evidence_titles"][0] in persona.persona and persona.clusters == row["clusters"]
    assert {r.state for r in stage.rows().values()} == {"done"}

    stage.ask(clusters="the reader saw others")
    worker = stage.worker()
    second = worker.drain()
    assert (second.unchanged, second.refreshed, second.llm_calls) == (6, 0, 0) and worker.writer is None
    assert all(stage.served()[u].written > served[u].written for u in USERS), "confirmed"

    splits = pl.DataFrame(stage.tables.read(SPLITS))
    liked = pl.when(pl.col("user_id") == "u0").then(1 - pl.col("label")).otherwise(pl.col("label"))
    stage.tables.write(SPLITS, splits.with_columns(liked.alias("label")).to_arrow().cast(SPLITS.schema), "other")
    stage.ask(clusters="again others")
    third = stage.drain()
    assert (third.unchanged, third.refreshed) == (5, 1) and third.llm_calls > 0
    assert stage.served()["u0"].clusters != served["u0"].clusters


def test_groups_of_salient_terms_are_settled_by_one_refresh(stage):
    given = {"caption": "a quiet film", "event_timestamp": CREATED, "created_timestamp": CREATED}
    blank = {
        c.name: "x" if c.type == pa.string() else 1 if pa.types.is_integer(c.type) else []
        for c in ITEM_CAPTIONS.columns
    }
    rows = [blank | given | {"item_id": f"i{n}"} for n in range(60)]
    stage.tables.write(ITEM_CAPTIONS, pa.Table.from_pylist(rows, ITEM_CAPTIONS.schema), "captions-1")
    grouping = {"interests": {"min_events": 3, "min_likes": 2, "grouping": "salient_terms"}}
    first = stage.drain(writing=grouping)
    assert first.refreshed >= 5 and first.refreshed + first.ineligible == 6, "groups of one item are dropped"
    stage.ask(clusters="c2")
    again = stage.drain(writing=grouping)
    assert (again.unchanged, again.ineligible, again.llm_calls) == (first.refreshed, first.ineligible, 0)


def test_config_and_result_travel_as_json(stage):
    config = stage.worker(safety=SafetyConfig(terms={"a": ("b",)}, categories=("c",))).config
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
    result = Result(counts=Counts(leased=3, refreshed=2))
    assert Result.model_validate(result.model_dump(mode="json")) == result


def test_a_text_that_was_paid_for_is_served_again_without_the_model(stage):
    stage.drain()
    stage.store.open().remove(USERS)
    stage.ask(clusters="c2")
    again = stage.drain()
    assert (again.refreshed, again.cached, again.llm_calls) == (6, 6, 0) and set(stage.served()) == set(USERS)


def test_an_unsafe_text_is_shown_to_nobody_and_the_last_safe_one_goes_on(stage):
    stage.drain()
    safe = stage.served()
    brutal = lambda prompt: f"Likes {prompt.split('topic: ')[1].splitlines()[0]} and brutal war stories."  # noqa: E731
    stage.model.before = lambda prompt: brutal(prompt) if re.search("topic: .*crime", prompt) else None
    strict = SafetyConfig(terms={"brutal": ("brutal war",)})
    stage.ask(clusters="c2")
    told = stage.drain(safety=strict, writing={"persona_version": "v2", "code_version": "2"})
    flagged = [r for r in stage.read(PERSONA_VERDICTS) if r["category"]]
    assert told.unsafe > 0 and told.refreshed > 0 and told.unsafe + told.refreshed == 6 and told.withdrawn == 0
    assert {r["rule"] for r in flagged} == {"term 1"}
    rows, served = stage.rows(), stage.served()
    victims = [u for u in USERS if rows[u].outcome == "unsafe"]
    assert len(victims) == told.unsafe and all(served[u] == safe[u] for u in victims), "that of v1"
    row = rows[victims[0]]
    assert (row.state, row.error) == ("done", "The safety filter found brutal (term 1).")
    assert stage.queue.enqueue([Wanted(victims[0], "stale", "c2", "v1")]) == [False], "not again and again"


def test_what_is_served_goes_when_the_filter_in_force_forbids_it(stage):
    stage.drain()
    before = stage.served()
    strict = SafetyConfig(terms={"brutal": ("war stories",)})
    forbidden = {u for u in USERS if "war stories" in before[u].persona}
    stage.ask(clusters="c2")
    told = stage.drain(safety=strict)
    assert (told.unsafe, told.withdrawn, told.unchanged) == (len(forbidden), len(forbidden), 6 - len(forbidden))
    assert 0 < len(forbidden) < 6 and told.llm_calls == 0 and set(stage.served()) == set(USERS) - forbidden
    assert {u for u, row in stage.rows().items() if row.outcome == "unsafe"} == forbidden


def test_no_row_keeps_the_id_of_a_user_of_whom_nothing_is_known(stage):
    stage.ask(["forgotten"])
    told = stage.drain()
    assert (told.refreshed, told.ineligible) == (6, 1) and set(stage.rows()) == set(USERS)


def test_a_student_writes_and_its_base_judges(stage):
    asked = []

    def note(body, number):
        asked.append((body["model"], body["messages"][-1]["content"].startswith("<text>")))
        return '{"choice": "safe"}' if asked[-1][1] else '{"interests": [], "explorations": []}'

    student = StudentConfig(version="s1", prompt=student_digest(), base="r", served_as="taught")
    with FaultServer(note) as server:
        config = refresh_config(stage.tables, stage.queue, server.url, stage.store, writing={"student": student})
        worker = PersonaRefresher(config.model_copy(update={"safety": SafetyConfig(categories=("violence",))}))
        worker.safety({"k": "Likes crime."})
        worker._loaded()
        assert worker.engine.config.model == "taught" and worker.judge.config.model == "m"
        assert asked == [("m", True)] and worker._usage().calls == 1


def test_the_models_verdict_is_paid_for_once(stage):
    def violent(prompt):
        return '{"choice": "violence"}' if prompt.startswith("<text>") and "comedy" in prompt else None

    stage.model.before = violent
    told = stage.drain(safety=SafetyConfig(categories=("violence",)))
    rules = {r["rule"] for r in stage.read(PERSONA_VERDICTS) if r["category"] == "violence"}
    assert told.unsafe > 0 and told.refreshed > 0 and rules == {"classifier"}
    asked = len(stage.model.verdicts)
    stage.ask(clusters="c2")
    again = stage.drain(safety=SafetyConfig(categories=("violence",)))
    assert (again.unsafe, again.llm_calls, len(stage.model.verdicts)) == (told.unsafe, 0, asked)


def test_users_wait_while_the_model_is_away_and_no_attempt_counts(stage):
    stage.model.before = lambda prompt: {"status": 503, "raw": "{}"}
    with pytest.raises(EngineUnavailableError):
        stage.drain()
    assert {(r.state, r.attempts) for r in stage.rows().values()} == {("queued", 0)}
    assert stage.queue.stats().due == 0 and stage.queue.stats(dt.datetime.now(dt.UTC) + LATER).due == 6
    stage.model.before = lambda prompt: None
    stage.queue.replay()
    with shared_engine(stage.queue.url).begin() as connection:
        connection.execute(sa.update(PERSONA_REFRESH).values(not_before=dt.datetime.now(dt.UTC)))
    assert stage.drain().refreshed == 6


def test_one_user_who_cannot_be_written_does_not_keep_the_others_from_it(stage):
    (stage.folder / "u1.json").mkdir(parents=True)
    told = stage.drain()
    assert (told.refreshed, told.retried) == (5, 1) and len(set(stage.model.sentences)) == len(stage.model.sentences)
    row = stage.rows()["u1"]
    assert (row.state, row.attempts) == ("queued", 1) and row.error.startswith("IsADirectoryError while the persona")


def test_users_wait_while_the_online_store_is_away(stage):
    worker = stage.worker()
    stage.folder.rmdir()
    with pytest.raises(FileNotFoundError):
        worker.drain()
    assert {(r.state, r.attempts) for r in stage.rows().values()} == {("queued", 0)}


def test_who_has_too_little_history_and_what_no_attempt_can_write_is_settled(stage):
    stage.model.before = lambda prompt: "no" if "topic: old crime" in prompt or "topic: new crime" in prompt else None
    short = stage.drain(writing={"interests": {"min_events": 3, "min_likes": 2, "max_interests": 1}})
    assert short.failed > 0 and short.failed + short.refreshed == 6
    letters = stage.read(PERSONA_DEAD_LETTERS)
    assert len(letters) == short.failed
    gone = next(r for r in stage.rows().values() if r.state == "failed")
    assert gone.error == "No usable text (too_short): see personas/dead_letters."
    calls = len(stage.model.sentences)
    assert stage.queue.replay() == short.failed
    again = stage.drain(writing={"interests": {"min_events": 3, "min_likes": 2, "max_interests": 1}})
    assert (again.failed, again.llm_calls, len(stage.model.sentences)) == (short.failed, 0, calls), (
        "nothing is paid twice"
    )
    stage.ask(clusters="c2")
    assert stage.drain(writing={"interests": {"min_events": 100}}).ineligible == 6


def test_a_worker_that_is_told_to_stop_ends_what_it_has_in_hand_and_gives_back_the_rest(stage):
    worker = stage.worker()
    stage.model.before = lambda prompt: worker.stop()
    told = worker.drain()
    assert (told.refreshed, told.retried) == (2, 4)
    assert stage.queue.stats().due == 4 and len(stage.served()) == 2
    assert {r.attempts for r in stage.rows().values() if r.state == "queued"} == {0}


def test_a_worker_stops_at_its_budget(stage):
    told = stage.drain(token_budget=1)
    assert (told.refreshed, told.retried, stage.queue.stats().due) == (2, 4, 4)


def test_a_worker_whose_lease_was_taken_over_writes_nothing(stage):
    taken = []

    def take_over(prompt):
        if not taken:
            taken.extend(stage.queue.lease(9, "other", 9e4, dt.datetime.now(dt.UTC) + LATER))

    stage.model.before = take_over
    told = stage.drain()
    assert (told.lost, told.refreshed) == (6, 0) and len(taken) == 6
    assert stage.served() == {} and stage.read(REFRESHED_PERSONAS) == []
    assert len(stage.read(PERSONA_STORE)) == 2, "what was paid for stays; for the others nothing is paid"


def test_what_is_asked_for_in_the_middle_is_done_in_the_same_drain(stage):
    stage.model.before = lambda prompt: stage.ask(["u0"], clusters="others")[:0] or None
    told = stage.drain()
    assert told.leased > 6 and {r.state for r in stage.rows().values()} == {"done"}
    assert stage.rows()["u0"].clusters == "others"


def test_leases_are_prolonged_while_the_model_writes(stage):
    slow = []

    def sleep(prompt):
        if not slow:
            slow.append(prompt)
            time.sleep(3)
            assert stage.queue.lease(9, "other", 60) == [], "still held"

    stage.model.before = sleep
    assert stage.drain(lease_seconds=2.0).refreshed == 6
