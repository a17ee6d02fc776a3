"""The trainings of the comparison of history models: each is tuned on validation, and its test scores are kept once."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch

from models.long_history.evaluation import click_estimates, rank_estimates, rank_metrics
from models.long_history.floors import Asked, fit_floor, floor_scores, like_logits, signs_of
from models.ranking import floors
from models.ranking.evaluation import Estimates
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.histories.next_item_task import NextItemTask, Ranks, rank_targets
from ray_jobs.histories.peers.recbole_environment import PeerOptions, run_peer
from ray_jobs.histories.task import Clicks
from ray_jobs.histories.training import Config as Training
from ray_jobs.histories.training import HistoryTaskOf, build_task, load_history_model, train
from ray_jobs.training import Fitted

SCORES, PLACEBO, TOLD = "scores.parquet", "placebo.parquet", "training.json"
CLICK: Literal["click"] = "click"
NEXT_ITEM: Literal["next_item"] = "next_item"
DECIDES: dict[str, str] = {CLICK: "valid_auc", NEXT_ITEM: "valid_ndcg_at_10"}
"""What chooses among trials."""
PEER = "recbole_sasrec"
POPULARITY = "popularity"
FLOORS = (POPULARITY, "item_knn", "markov_chain")


class Scored(NamedTuple):
    """A kept model.

    Attributes:
        found: Its metrics on the test split.
        placebo: The same with every user given another one's history; empty for floors and peers.
        told: What is known of the training.
    """

    found: Estimates
    placebo: Estimates
    told: dict[str, Any]


def tune_cell(training: Training, threads: int) -> dict[str, float]:
    """Trains one cell, unless that was done, and says how it did on validation.

    Args:
        training: The training.
        threads: Threads.
    """
    quiet(threads)
    return dict(finished(training).final_metrics)


def finished(training: Training) -> Fitted:
    """A training to its end, or the finished one; its checkpoints are of no use then and are removed."""
    fitted = train(training)
    training.artifacts.remove(f"checkpoints/{training.name}")
    return fitted


def score_cell(training: Training, at: str, threads: int) -> None:
    """Keeps what a finished training says of the test split, with its users' histories and with others'.

    Args:
        training: The training.
        at: Name of the artifact.
        threads: Threads.
    """
    quiet(threads)
    task = build_task(training)
    loaded = load_history_model(training.artifacts, training.family, training.name)
    with torch.inference_mode():
        parts = [_of_test(task, loaded.model, shuffled) for shuffled in (False, True)]
    summary = loaded.summary
    told = {
        "seconds": summary["seconds"],
        "epochs": summary["epochs"],
        "best_epoch": summary["best_epoch"],
        "num_parameters": summary["num_parameters"],
        "examples_per_second": sum(r["examples"] for r in summary["history"]) / max(summary["seconds"], 1e-9),
        **summary["final_metrics"],
    }
    keep(training.artifacts, at, parts, told)


def score_floor(training: Training, name: str, at: str) -> None:
    """Keeps what a floor says of the test split.

    Args:
        training: Whose data it is fitted on.
        name: Out of `FLOORS`.
        at: Name of the artifact.
    """
    task = build_task(training)
    if isinstance(task, NextItemTask):
        floor, targets = fit_floor(name, task.events, task.num_items), task.targets("test")
        ranks = rank_targets(task, lambda rows: floor_scores(floor, task.events, targets, rows), targets)
        keep(training.artifacts, at, [Ranks(targets.users, ranks)], {})
        return
    examples = task.examples
    learned, asked = np.flatnonzero(examples.splits == 0), np.flatnonzero(examples.splits == 2)
    columns = (examples.users, examples.items, examples.labels, task.observed)
    floor = floors.FLOORS[name].fit(
        floors.Events(*(column[learned] for column in columns)), len(task.catalogue.ids) - 1
    )
    blocks = task.blocks["test"]
    own = np.searchsorted(blocks.starts, asked, side="right") - 1
    signs = signs_of(task.events, examples.users, examples.times, examples.items, examples.labels)
    histories = Asked(examples.items[asked], blocks.history_starts[own], blocks.history_stops[own])
    logits = like_logits(floor, task.events, signs, histories)
    keep(
        training.artifacts, at, [Clicks(examples.labels[asked], logits, examples.users[asked], blocks.starts[own])], {}
    )


def tune_peer(training: Training, options: PeerOptions, at: str) -> dict[str, float]:
    """Trains RecBole's SASRec on the same split, unless that was done, and says how it did on validation.

    Args:
        training: Whose data and split it gets.
        options: Its options.
        at: Name of the artifact.
    """
    if not training.artifacts.exists(at):
        task = build_task(training)
        assert isinstance(task, NextItemTask)
        made = run_peer(task, options)
        valid = rank_metrics(made.valid.ranks[made.valid.ranks > 0])
        curve = made.told["curve"]
        told = {
            "seconds": made.told["seconds"],
            "epochs": len(curve),
            "best_epoch": made.told["best_epoch"],
            "num_parameters": made.told["num_parameters"],
            "examples_per_second": len(curve) * made.told["num_examples"] / max(made.told["seconds"], 1e-9),
            **{f"valid_{name}": float(each.mean()) for name, each in valid.items()},
        }
        keep(training.artifacts, at, [made.test], told)
    with training.artifacts.local(at) as folder:
        return dict(json.loads((folder / TOLD).read_text(encoding="utf-8")))


def read_cell(artifacts: ArtifactStore, at: str, objective: str, resamples: int) -> Scored:
    """Resamples a kept model over users.

    Args:
        artifacts: Where it was kept.
        at: Name of the artifact.
        objective: What it was asked.
        resamples: Resamples of users.
    """
    with artifacts.local(at) as folder:
        told = json.loads((folder / TOLD).read_text(encoding="utf-8"))
        found, placebo = (
            _estimates(pl.read_parquet(folder / name), objective, resamples) if (folder / name).exists() else {}
            for name in (SCORES, PLACEBO)
        )
    return Scored(found, placebo, told)


def _estimates(table: pl.DataFrame, objective: str, resamples: int) -> Estimates:
    user = table["user"].to_numpy()
    if objective == NEXT_ITEM:
        return rank_estimates(user, table["rank"].to_numpy(), resamples)
    label, logit, request = (table[name].to_numpy() for name in ("label", "logit", "request"))
    return click_estimates(user, label, logit, resamples, request_N=request)


def _of_test(task: HistoryTaskOf, model: Any, shuffled: bool) -> Clicks | Ranks:
    return (task.rank if isinstance(task, NextItemTask) else task.predict)(model, "test", shuffled=shuffled)


def keep(artifacts: ArtifactStore, at: str, parts: list[Any], told: dict[str, Any]) -> None:
    """Keeps what a model says of the test split, and perhaps its placebo, with what is known of it.

    Args:
        artifacts: Where it goes.
        at: Name of the artifact.
        parts: `Clicks` or `Ranks`.
        told: What is known.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name, part in zip((SCORES, PLACEBO), parts, strict=False):
            columns = (
                {"user": part.users, "rank": part.ranks}
                if isinstance(part, Ranks)
                else {"user": part.users, "request": part.requests, "label": part.labels, "logit": part.logits}
            )
            # One order for all models, so that resamples and pairs are the same.
            order = np.argsort(part.users, kind="stable")
            pl.DataFrame({k: v[order] for k, v in columns.items()}).write_parquet(Path(folder) / name)
        (Path(folder) / TOLD).write_text(json.dumps(told), encoding="utf-8")
        artifacts.put(Path(folder), at)


def quiet(threads: int) -> None:
    """Sets the threads of a training, and silences what each would say of Ray Train's local mode."""
    torch.set_num_threads(threads)
    logging.getLogger("ray.train").setLevel(logging.WARNING)
