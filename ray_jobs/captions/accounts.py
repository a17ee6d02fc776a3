"""The call ledger of captions: a row for every request, and what a kill left out of it."""

import datetime as dt
import hashlib
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from ray_jobs.captions.plan import Config, read_frame
from ray_jobs.language.engine import Call
from ray_jobs.tables.captions import CALL_LEDGER, CAPTION_STORE

CAPTION, CANARY = "caption", "canary"
SPENT = ("calls", "failed_calls", "prompt_tokens", "completion_tokens", "usd")


def call_row(
    config: Config,
    content_key: str,
    purpose: str,
    attempt: int,
    request: int,
    call: Call,
    gpus: float,
    now: dt.datetime,
) -> dict[str, Any]:
    """A row of the call ledger.

    Args:
        config: The job's config.
        content_key: What was asked about.
        purpose: `CAPTION` or `CANARY`.
        attempt: 0, or the number of the repair.
        request: Number of the request within the attempt.
        call: What became of it.
        gpus: GPUs of the actor.
        now: When the row is written.
    """
    price = config.interpreter.engine
    # Time is part of the digest: the same content may be paid for again, after a kill.
    name = f"{config.run_id}|{content_key}|{attempt}|{request}|{now.isoformat()}"
    return {
        "call_id": hashlib.sha256(name.encode()).hexdigest()[:32],
        "run_id": config.run_id,
        "content_key": content_key,
        "purpose": purpose,
        "attempt": attempt,
        "request": request,
        "outcome": call.outcome,
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.completion_tokens,
        "image_tokens": call.image_tokens,
        "cached_tokens": call.cached_tokens,
        "usd": price.usd(call.prompt_tokens, call.completion_tokens),
        "price_version": price.price_version,
        "wall_seconds": call.seconds,
        "gpu_seconds": call.seconds * gpus,
        "caption_version": config.caption_version,
        "created_timestamp": now,
    }


def mend_accounts(config: Config) -> int:
    """Enters what the store holds and the ledger does not: a kill between the two. Returns the rows that it wrote.

    The records of one caption version only: of another one the prices may be others.
    """
    tokens, version = ["prompt_tokens", "completion_tokens"], [("caption_version", "=", config.caption_version)]
    stored = read_frame(config.warehouse, CAPTION_STORE, ["content_key", "attempts", *tokens], version)
    if stored.is_empty():
        return 0
    calls = read_frame(config.warehouse, CALL_LEDGER, ["content_key", *tokens], [*version, ("purpose", "=", CAPTION)])
    paid = calls.group_by("content_key").agg(pl.col(tokens).sum())
    short = (
        stored.join(paid, on="content_key", how="left", suffix="_paid")
        .fill_null(0)
        .with_columns((pl.col(name) - pl.col(f"{name}_paid")).clip(0) for name in tokens)
        .filter(pl.any_horizontal(pl.col(name) > 0 for name in tokens))
    )
    now = dt.datetime.now(dt.UTC)
    rows = [
        call_row(config, key, CAPTION, attempts - 1, 0, Call("ok", int(prompt), int(completion)), 0.0, now)
        for key, attempts, prompt, completion in short.select("content_key", "attempts", *tokens).iter_rows()
    ]
    if rows:
        config.warehouse.append(CALL_LEDGER, pa.Table.from_pylist(rows, CALL_LEDGER.schema))
    return len(rows)


def ledger_totals(config: Config) -> dict[str, float]:
    """What the run spent, as the call ledger has it: a run that was killed and came back counts as one."""
    names = ["outcome", "prompt_tokens", "completion_tokens", "usd", "created_timestamp"]
    rows = read_frame(config.warehouse, CALL_LEDGER, names, [("run_id", "=", config.run_id)])
    made = (
        rows.height,
        rows.filter(pl.col("outcome") != "ok").height,
        *(float(np.sum(rows[name].to_numpy())) for name in SPENT[2:]),
    )
    return dict(zip(SPENT, made, strict=True))
