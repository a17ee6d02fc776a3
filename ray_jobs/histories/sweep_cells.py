"""The points of the sweeps: a training each, or one that several points share, and what is kept of it."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from models.long_history.histories import history_batch
from models.vista.cache import CacheFormat, Precision, quantise, restore
from ray_jobs.histories.cells import finished, keep, quiet
from ray_jobs.histories.task import ClickTask
from ray_jobs.histories.training import Config as Training
from ray_jobs.histories.training import build_task, load_history_model

TIMED_USERS, TIMES = 32, 5


class Point(NamedTuple):
    """A point of a sweep.

    Attributes:
        sweep: The sweep.
        label: What the point is called.
        place: Where it stands on the axis.
        training: The training.
        precision: What summaries are kept in; None: as they are.
        missed: Newest events that a summary has not seen; None: as in training.
    """

    sweep: str
    label: str
    place: float
    training: Training
    precision: Precision | None = None
    missed: int | None = None


def kept_in(precision: Precision) -> Callable[[Any], Any]:
    """What becomes of summary tokens in a cache."""
    form = CacheFormat(precision)

    def through(tokens_BKD: torch.Tensor) -> torch.Tensor:
        kept = restore(quantise(tokens_BKD.float().cpu().numpy(), form))
        return torch.from_numpy(kept).to(tokens_BKD)

    return through


def score_point(point: Point, at: str, threads: int) -> None:
    """Trains the point's model, unless that was done, and keeps what it says of the test split, with its cost.

    Args:
        point: The point.
        at: Name of the artifact.
        threads: Threads.
    """
    quiet(threads)
    training = point.training
    fitted = finished(training)
    task = build_task(training)
    assert isinstance(task, ClickTask)
    model: Any = load_history_model(training.artifacts, training.family, training.name).model
    through = None if point.precision is None else kept_in(point.precision)
    with torch.inference_mode():
        clicks = task.predict(model, "test", missed=point.missed, through=through)
        encode_ms, tokens_KD = _encoding(task, model)
    form = CacheFormat(point.precision or "int8")
    told = {
        "bytes_per_user": form.row_bytes(*tokens_KD) + 4 * tokens_KD[0] * form.scales,
        "encode_ms_per_user": encode_ms,
        "seconds": fitted.seconds,
        **fitted.final_metrics,
    }
    keep(training.artifacts, at, [clicks], told)


def _encoding(task: ClickTask, model: Any) -> tuple[float, tuple[int, int]]:
    """Milliseconds that stage 1 computes for a user with the longest history allowed, and the summary's size."""
    events = task.events
    counts = np.diff(events.offsets)
    users = np.argsort(-counts, kind="stable")[:TIMED_USERS]
    stops = events.offsets[users + 1]
    starts = np.maximum(events.offsets[users], stops - task.config.history_events)
    history = history_batch(events, task.catalogue, starts, stops)
    taken = []
    for _ in range(TIMES):
        computed = time.process_time()
        encoded = model.encode_history(history)
        taken.append(1000 * (time.process_time() - computed) / len(users))
    return statistics.median(taken), (encoded.shape[1], encoded.shape[2])
