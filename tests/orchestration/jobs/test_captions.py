"""The jobs around captions as people launch them: the dry run, and a revision beside the published one."""

import polars as pl

from orchestration.jobs.captions import preview_captions, stage_captions
from orchestration.resources.interpreter import LanguageModelInterpreter
from orchestration.resources.language_model import EndpointLanguageModel
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.tables.captions import CALL_LEDGER, CAPTION_STORE, ITEM_CAPTIONS
from tests.assets.captions.seeding import seed_item_captions
from tests.ray_jobs.captioned import record, store, write_items
from tests.ray_jobs.language.fault_server import FaultServer


def launch(job, tables, instance, server, usd_budget=0.0, run_config=None, **prices):
    engine = EndpointLanguageModel(base_url=server.url, model="m", revision="1", **prices)
    interpreter = LanguageModelInterpreter(language_model=engine, caption_usd_budget=usd_budget)
    resources = {"tables": tables, "interpreter": interpreter}
    if job is stage_captions:
        resources["ray_jobs"] = LocalRayJobs()
    return job.execute_in_process(
        resources=resources, instance=instance, raise_on_error=False, run_config=run_config or {}
    )


def said_by(done, step):
    (output,) = (e for e in done.events_for_node(step) if e.event_type_value == "STEP_OUTPUT")
    return {name: value.value for name, value in output.event_specific_data.metadata.items()}


def told(done):
    return next(e.event_specific_data.error_display_string for e in done.all_events if e.is_step_failure)


def test_a_dry_run_says_rows_tokens_and_money_and_asks_nothing(tables, instance):
    write_items(tables, ["One", "Two", "Two"])
    with FaultServer(lambda body, n: record()) as server:
        prices = {"usd_per_million_prompt_tokens": 2.0, "usd_per_million_completion_tokens": 8.0}
        done = launch(preview_captions, tables, instance, server, usd_budget=1.0, **prices)
        said = said_by(done, "preview")
        unpriced = launch(preview_captions, tables, instance, server, usd_budget=1.0)
    assert not server.bodies and not any(tables.warehouse().exists(t) for t in (CAPTION_STORE, CALL_LEDGER))
    assert (said["items"], said["contents"], said["to_write"], said["with_image"]) == (3, 2, 2, 0)
    assert said["usd_budget"] == 1.0
    assert said["usd"] == (2 * said["prompt_tokens"] + 8 * said["completion_tokens"]) / 1e6 > 0
    assert not unpriced.success and "tokens have no price" in told(unpriced), "a dry run of what would not start"


def test_a_revision_is_captioned_beside_the_published_one(ray_cluster, tables, instance):
    write_items(tables, ["One", "Two"])
    seed_item_captions(tables)
    before = tables.read(ITEM_CAPTIONS)
    with FaultServer(lambda body, n: record()) as server:
        knobs = {"ops": {"stage": {"config": {"canaries": 0}}}}
        done = launch(stage_captions, tables, instance, server, run_config=knobs)
        said = said_by(done, "stage")
    assert (said["llm_calls"], said["num_both"], said["published"]) == (2, 2, "v") and len(server.bodies) == 2
    assert store(tables)["caption_version"].unique().to_list() == [said["caption_version"]]
    assert pl.DataFrame(tables.read(ITEM_CAPTIONS)).equals(pl.DataFrame(before)), "readers notice nothing"
