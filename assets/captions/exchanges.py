"""What MLflow gets to see of a captioning run: prompts by version, parameters, costs, and a sample of exchanges."""

import time
from typing import Any

import dagster as dg

from assets.resources import Tracking
from ray_jobs.tables.captions import CALL_LEDGER, CAPTION_STORE, ITEM_CAPTIONS, RECORD

EXPERIMENT = "captions"
DIGEST = "digest"
# MLflow's names of token counts, and ours.
TOKENS = {"input": "prompt", "output": "completion"}
# So many contents that no model was asked about are shown, too.
CACHED = 2


def register_prompt(mlflow: Any, name: str) -> str:
    """Registers a prompt file as a version of MLflow's registered prompt of that name, once for each content.

    Returns:
        The version's number.
    """
    from ray_jobs.prompts import prompt_digest, prompt_text

    digest = prompt_digest(name)
    client = mlflow.MlflowClient()
    found = client.search_prompts(filter_string=f"name = '{name}'")
    for known in client.search_prompt_versions(name) if found else []:
        if known.tags.get(DIGEST) == digest:
            return str(known.version)
    # Double braces are variables to MLflow; the whole file is the template, so that nothing of it is lost.
    made = mlflow.genai.register_prompt(
        name=name, template=prompt_text(name), commit_message=f"ray_jobs/prompts/{name}.toml", tags={DIGEST: digest}
    )
    return str(made.version)


def log_run(context: dg.AssetExecutionContext, tracking: Tracking, job: Any, done: Any) -> dict[str, Any]:
    """Logs what a captioning run did, if it asked a model at all. Returns metadata with the run's address."""
    if not done.llm_calls:
        return {}
    engine = job.interpreter.engine
    with tracking.run(
        context,
        EXPERIMENT,
        f"{job.prompt} {done.caption_version}",
        params={
            "prompt": job.prompt,
            "interpreter": job.interpreter.kind,
            "sees_images": job.interpreter.sees_images,
            "caption_version": done.caption_version,
            **{f"engine.{name}": value for name, value in engine.identity.items()},
            **{f"decoding.{name}": value for name, value in job.parameters.model_dump(mode="json").items()},
        },
        tags={"caption_version": done.caption_version},
        note=f"Captions of {done.num_generated:,} contents by `{job.interpreter.kind}`; samples are under *Traces*.",
    ) as run:
        import mlflow

        version = register_prompt(mlflow, job.prompt)
        mlflow.set_tag("prompt.version", f"{job.prompt}/{version}")
        mlflow.log_metrics(
            {
                "calls": done.llm_calls,
                "failed_calls": done.failed_calls,
                "prompt_tokens": done.prompt_tokens,
                "completion_tokens": done.completion_tokens,
                "usd": done.usd,
                "cache_hit_rate": done.cache_hit_rate,
                "contents_generated": done.num_generated,
                "dead_letters": done.num_dead_letters,
                "seconds": done.seconds,
                "captions_per_second": done.num_generated / max(done.seconds, 1e-9),
            }
        )
        for exchange in [*done.traces, *(cached_exchanges(job) if job.traces else [])]:
            trace(mlflow, exchange, run.info.run_id, f"{job.prompt}/{version}")
        url = tracking.run_url(run.info.experiment_id, run.info.run_id)
    return {"mlflow_run": dg.MetadataValue.url(url), "prompt_version": f"{job.prompt}/{version}"}


def cached_exchanges(job: Any) -> list[dict[str, Any]]:
    """Some items whose content was in the store already, in the form of `captioner.trace_of`.

    Args:
        job: The config of a run whose `captions/item_captions` are written.
    """
    from ray_jobs.captions.plan import read_frame

    house = job.warehouse
    asked = read_frame(house, CALL_LEDGER, ["content_key"], [("run_id", "=", job.run_id)])
    cached = read_frame(house, ITEM_CAPTIONS, ["item_id", "content_key"]).join(asked, on="content_key", how="anti")
    picked = cached.sort("item_id").sample(min(CACHED, cached.height), seed=0)
    items = {key: item for item, key in picked.iter_rows()}
    names = ["content_key", "evidence", "pixel_digest", *(c.name for c in RECORD)]
    stored = read_frame(house, CAPTION_STORE, names, [("content_key", "in", list(items))]).unique("content_key")
    return [
        {
            "item_id": items[row["content_key"]],
            "content_key": row["content_key"],
            "prompt": row["evidence"],
            "has_image": row["pixel_digest"] is not None,
            "record": {c.name: row[c.name] for c in RECORD},
            "problem": "",
            "answers": [],
            "cache_hit": True,
        }
        for row in stored.to_dicts()
    ]


def trace(mlflow: Any, exchange: dict[str, Any], run_id: str, prompt: str) -> None:
    """One exchange as an MLflow trace: a span an attempt, below one for the content, as long as the model took.

    Tag `cache_hit`: the record was in the store, nothing was asked and there is no attempt. Attribute
    `prefix_cached_tokens` of an attempt: tokens of its prompt that the model had computed before.
    """
    took = [sum(int(call["seconds"] * 1e9) for call in answer["calls"]) for answer in exchange["answers"]]
    ended = time.time_ns()
    now = ended - sum(took)
    shown = {"item": exchange["prompt"], "has_image": exchange["has_image"]}
    root = mlflow.start_span_no_context(
        "interpret",
        span_type="CHAIN",
        inputs=shown,
        start_time_ns=now,
        tags={
            "item_id": exchange["item_id"],
            "content_key": exchange["content_key"],
            "prompt": prompt,
            "cache_hit": str(exchange.get("cache_hit", False)).lower(),
        },
        metadata={"mlflow.sourceRun": run_id},
    )
    for attempt, (answer, nanoseconds) in enumerate(zip(exchange["answers"], took, strict=True)):
        last = answer["calls"][-1] if answer["calls"] else {}
        span = mlflow.start_span_no_context(
            f"attempt {attempt}", span_type="LLM", parent_span=root, inputs=shown, start_time_ns=now
        )
        spent = {f"{end}_tokens": last.get(f"{name}_tokens", 0) for end, name in TOKENS.items()}
        span.set_attributes(
            {
                "mlflow.chat.tokenUsage": spent | {"total_tokens": sum(spent.values())},
                "prefix_cached_tokens": last.get("cached_tokens", 0),
                "requests": len(answer["calls"]),
            }
        )
        now += nanoseconds
        span.end(outputs={"text": answer["text"], "finish": answer["finish"]}, end_time_ns=now)
    root.end(outputs=exchange["record"] or {"problem": exchange["problem"]}, end_time_ns=ended)
