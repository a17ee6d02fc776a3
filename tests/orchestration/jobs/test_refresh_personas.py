"""The whole path: a request that finds no persona, the queue, the sensor, workers on Ray, and the next request."""

import datetime as dt
import functools
import os
import re
import signal
from pathlib import Path

import dagster as dg
import polars as pl
import pyarrow as pa
import pytest

import feature_repo  # noqa: F401
from assets.personas.refreshing import (
    KEY,
    Means,
    RefreshConfig,
    ask_for_written,
    reader_config,
    refresh_config,
    retriever_config,
    tokens_today,
)
from feature_repo import online
from feature_repo.entities import item, user
from feature_repo.latest import REMOVED
from feature_repo.views import item_semantic_ids, user_activity
from orchestration.definitions import defs
from orchestration.jobs.forget_user import forget_user
from orchestration.jobs.refresh_personas import refresh_personas
from orchestration.persona_watch import persona_looks, persona_sensor
from orchestration.resources.features import features_twin
from orchestration.resources.language_model import EndpointLanguageModel
from orchestration.resources.ledger import ledger_twin
from orchestration.resources.ray_jobs import LocalRayJobs
from orchestration.resources.text_encoder import PackagedTextEncoder
from orchestration.settings import Settings
from orchestration.watch import Directory, Limits
from ray_jobs.databases import shared_engine
from ray_jobs.personas import refresh as persona_refresh
from ray_jobs.personas.queue import Wanted
from ray_jobs.personas.serving import PersonaReader
from ray_jobs.tables.clusters import SEMANTIC_IDS
from ray_jobs.tables.features import ITEM_POPULARITY
from ray_jobs.tables.interactions import SPLITS
from ray_jobs.tables.personas import USER_PERSONAS
from tests.factories import CREATED
from tests.ray_jobs.language.fault_server import FaultServer
from tests.ray_jobs.refreshes import Model, seed_tables

pytestmark = pytest.mark.ray
KNOBS = {"min_events": 3, "min_likes": 2, "max_interests": 2, "num_explorations": 1, "users_per_batch": 2}
USERS = [f"u{n}" for n in range(6)]


def publish_histories(feast, tables):
    """Writes online what `features/online_store` would: the newest events of users, and the items' clusters."""
    feast.apply(
        [user, item, user_activity.batch_source, user_activity, item_semantic_ids.batch_source, item_semantic_ids]
    )
    events = pl.DataFrame(tables.read(SPLITS)).sort("user_id", "position", descending=[False, True])
    counts = [pl.len().cast(pl.Int64).alias(n) for n in ("num_events", "num_likes")]
    newest = [pl.col("item_id").head(20).alias("recent_item_ids"), pl.col("label").cast(pl.Int32).head(20)]
    users = events.group_by("user_id", maintain_order=True).agg(*counts, pl.col("value").mean(), *newest)
    ids = pl.DataFrame(tables.read(SEMANTIC_IDS, ["item_id", "codes", "cluster", "codebook_version"]))
    renamed = users.rename({"value": "mean_value", "label": "recent_labels"})
    times = [pl.lit(CREATED).dt.cast_time_unit("us").alias(f"{n}_timestamp") for n in ("event", "created")]
    for view, rows in (("user_activity", renamed), ("item_semantic_ids", ids)):
        online.write(feast, view, [rows.with_columns(*times, pl.lit(False).alias(REMOVED)).to_arrow()])


@pytest.fixture
def platform(tables, tracking, tmp_path, ray_cluster):
    """Resources of a platform with tables, and the model behind its endpoint."""
    settings = Settings(home=tmp_path / "home", runbook_base="http://docs")
    seed_tables(tables)
    popular = [{"item_id": "i1", "num_events": 9, "num_likes": 9, "mean_value": 4.0, "event_timestamp": CREATED}]
    rows = [p | {"created_timestamp": CREATED} for p in popular]
    tables.write(ITEM_POPULARITY, pa.Table.from_pylist(rows, ITEM_POPULARITY.schema), "popular-1")
    model = Model()
    with FaultServer(model) as server:
        yield (
            {
                "tables": tables,
                "features": features_twin(
                    online_path=f"{tmp_path}/online.db",
                    redis="",
                    registry_url=f"sqlite:///{tmp_path}/registry.db",
                    offline_root=f"{tmp_path}/offline",
                    storage_options={},
                ),
                "ledger": ledger_twin(settings.ledger_url),
                "ray_jobs": LocalRayJobs(),
                "language_model": EndpointLanguageModel(base_url=server.url, model="m"),
                "text_encoder": PackagedTextEncoder(),
                "tracking": tracking,
            },
            model,
            settings,
        )
    shared_engine(settings.ledger_url).dispose()


def launch(resources, instance, **config):
    done = refresh_personas.execute_in_process(
        run_config={"ops": {"drain_persona_queue": {"config": KNOBS | config}}},
        resources=resources,
        instance=instance,
        raise_on_error=False,
    )
    told = instance.fetch_observations(KEY, limit=1).records[0].asset_observation.metadata
    return done, {name: value.value for name, value in told.items()}


def tick(resources, settings, instance):
    context = dg.build_sensor_context(instance, resources={"tables": resources["tables"]})
    return persona_sensor(settings)(context)


def given(resources):
    return Means(**{name: resources[name] for name in Means._fields})


def test_from_a_request_without_persona_to_one_with(platform, instance):
    resources, model, settings = platform
    look = functools.partial(tick, resources, settings, instance)
    assert "No persona refresh is due" in look().skip_message
    store = resources["features"].persona_store().open()
    publish_histories(store.store, resources["tables"])
    reader = PersonaReader(reader_config(given(resources), RefreshConfig(**KNOBS)), store)
    assert {reader.read(u, "r").source for u in USERS} == {"clusters"}
    reader.asking.flush()
    assert isinstance(look(), dg.RunRequest)
    forgetting = {"ops": {"forget_users": {"config": {"reason": "They asked for it.", "users_file": "users.txt"}}}}
    for job, config in ((refresh_personas, {}), (forget_user, forgetting)):
        running = instance.create_run_for_job(job, run_config=config, status=dg.DagsterRunStatus.STARTED)
        assert f"{job.name} is running" in look().skip_message
        instance.report_run_canceled(running)
    assert isinstance(look(), dg.RunRequest)

    done, told = launch(resources, instance)
    assert done.success and told["refreshed"] == 6 and told["llm_calls"] > 0 and told["queue_depth"] == 0
    assert (told["served_users"], told["stale_users"], told["share_stale"]) == (6, 0, 0.0)
    assert "No persona refresh is due" in look().skip_message
    answers = [reader.read(u, "r") for u in USERS]
    assert {(a.state, a.source) for a in answers} == {("fresh", "persona")}, "reader and worker see the same clusters"
    assert all(a.interest["label"].split()[1] in a.persona.persona for a in answers)

    # What the asset wrote costs nothing: these users are asked for, and nothing has changed.
    rows = [
        {c.name: [] if pa.types.is_list(c.type) else 1 if c.type == pa.int64() else "x" for c in USER_PERSONAS.columns}
        | {"user_id": u, "event_timestamp": CREATED, "created_timestamp": CREATED}
        for u in [*USERS, "u9"]
    ]
    resources["tables"].write(USER_PERSONAS, pa.Table.from_pylist(rows, USER_PERSONAS.schema), "p1")
    store.remove(["u0"])
    resources["ledger"].persona_queue().remove(USERS)
    calls = len(model.sentences)
    job = refresh_config(given(resources), RefreshConfig(**KNOBS), owner="test")
    assert ask_for_written(resources["tables"], job) == 6, "u9 has no history"
    counted = persona_refresh.PersonaRefresher(job).drain()
    assert (counted.unchanged, counted.refreshed, counted.cached, counted.llm_calls) == (5, 1, 1, 0)
    assert len(model.sentences) == calls and reader.read("u0", "r").source == "persona"


def test_a_model_that_refuses_makes_the_run_red_users_wait_and_alerts_tell(platform, instance):
    resources, model, settings = platform
    queue = resources["ledger"].persona_queue()
    queue.enqueue([Wanted(u, "missing") for u in USERS])
    model.before = lambda prompt: {"status": 401, "raw": "{}"}
    done, told = launch(resources, instance)
    said = done.failure_data_for_node("drain_persona_queue").user_failure_data.description
    assert not done.success and "personas.refresh" in said and told["queue_depth"] == 6 and told["queue_due"] == 0
    queue.enqueue([Wanted("u9", "missing")])
    assert "The last refresh_personas failed: 1 refreshes" in tick(resources, settings, instance).skip_message, (
        "not again at once"
    )
    queue.remove(["u9"])

    now = dt.datetime.now(dt.UTC)
    directory, seen = Directory(defs().resolve_asset_graph(), settings), {}
    limits = Limits(stale_users=1)
    looks = lambda later: list(persona_looks(resources["ledger"], directory, seen, now + later, limits))  # noqa: E731
    assert [a.identity for a in looks(dt.timedelta())] == ["refreshes stale"]
    found = looks(dt.timedelta(hours=2))
    assert [a.identity for a in found] == ["refreshes age", "refreshes stale"]
    assert found[0].owner == "team:personalization" and found[0].runbook.endswith("runbooks/personas.md")
    assert found[0].cause.startswith("A persona refresh has waited for 12") and found[0].cause.endswith("; 6 wait.")
    for lease in queue.lease(9, "w", 60, now + dt.timedelta(hours=1)):
        queue.fail(lease, "No.", retryable=False, now=now)
    limits = Limits(stale_users=99, dead_refreshes=6)
    assert [a.cause for a in looks(dt.timedelta())] == ["6 persona refreshes were given up."]
    assert looks(dt.timedelta()) == [] and seen == {"dead": 6}, "told once"
    assert queue.replay(now) == 6 and looks(dt.timedelta()) == [] and seen == {"dead": 0}


def test_sigterm_has_workers_on_ray_end_what_they_have_in_hand(platform):
    resources, model, _ = platform
    queue = resources["ledger"].persona_queue()
    queue.enqueue([Wanted(u, "missing") for u in USERS])
    config = refresh_config(given(resources), RefreshConfig(**KNOBS | {"users_per_batch": 1}), owner="test")
    told = []

    def terminate(prompt):
        if not told:
            told.append(prompt)
            os.kill(os.getpid(), signal.SIGTERM)
        # The word goes through Ray, and may take a batch to arrive.
        return (
            {"text": f"Likes {prompt.split('topic: ')[1].splitlines()[0]} stories.", "seconds": 0.5}
            if "topic:" in prompt
            else None
        )

    model.before = terminate
    with pytest.raises(KeyboardInterrupt):
        persona_refresh.run(config)
    stats = queue.stats()
    assert stats.leased == 0 and 0 < stats.due < 6 and stats.due + len(online_users(resources)) == 6


def test_a_day_has_a_budget_and_what_is_over_it_waits(platform, instance):
    resources, model, settings = platform
    queue = resources["ledger"].persona_queue()
    queue.enqueue([Wanted(u, "missing") for u in USERS])
    tables = resources["tables"]
    assert tokens_today(tables) == 0, "before any text was written there is no store"
    unlimited = tick(resources, settings.model_copy(update={"persona_daily_tokens": 0}), instance)
    assert not unlimited.run_config
    asked = tick(resources, settings.model_copy(update={"persona_daily_tokens": 5}), instance).run_config
    assert asked == {"ops": {"drain_persona_queue": {"config": {"token_budget": 5}}}}
    done, told = launch(resources, instance, users_per_batch=2, **asked["ops"]["drain_persona_queue"]["config"])
    assert done.success and told["refreshed"] == 2 and told["queue_due"] == 4, "a batch, and the others wait"
    spent = tokens_today(tables)
    assert spent == told["tokens_today"] == told["prompt_tokens"] + told["completion_tokens"] > 5

    said = tick(resources, settings.model_copy(update={"persona_daily_tokens": spent}), instance).skip_message
    assert f"cost {spent:,} tokens today (UTC), and the day's budget is {spent:,}: 4 refreshes wait" in said
    assert "BELVEDERE_PERSONA_DAILY_TOKENS" in said and len(model.sentences) > 0
    left = tick(resources, settings.model_copy(update={"persona_daily_tokens": spent + 7}), instance).run_config
    assert left["ops"]["drain_persona_queue"]["config"]["token_budget"] == 7
    assert tokens_today(tables, dt.datetime.now(dt.UTC) + dt.timedelta(days=1)) == 0, "tomorrow has its own"


def test_the_page_shows_a_reader_that_can_be_made(platform):
    resources, _, _ = platform
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "refresh_personas.md").read_text()
    shown = re.search(r"PersonaReader\((reader_config\(.*\))\)\n", page)[1]
    config = eval(shown, {"reader_config": reader_config, "Means": Means, "found": resources})
    assert config.persona_version == reader_config(given(resources)).persona_version
    shown = re.search(r"PersonaRetriever\((retriever_config\(.*\))\)\n", page)[1]
    config = eval(shown, {"retriever_config": retriever_config, "Means": Means, "found": resources})
    assert config.retrieval.budget == 50 and config.reader == reader_config(given(resources))


def online_users(resources):
    return resources["features"].persona_store().open().read(USERS)
