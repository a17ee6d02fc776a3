"""Scores validation and test with a trained ranker, and turns predictions into figures."""

import datetime as dt
import time

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pydantic

from models.ranking.evaluation import SLICES, Rules, Scored, estimate, figures, slices_of
from models.ranking.examples import Examples, index_of
from models.ranking.full_ranking import Exclusions, Histories, full_ranks
from models.ranking.metrics import auc, log_losses
from models.ranking.scoring import Ranker
from ray_jobs.ranking.data import Items, first_met, of_split
from ray_jobs.warehouse import TIMESTAMP

EXAMPLES_AT_ONCE = 50_000
REQUEST_ITEMS = 100
REQUESTS = 30


class Figure(pydantic.BaseModel, frozen=True):
    """One metric on one slice; see `models.ranking.evaluation.Row`."""

    slice: str
    metric: str
    baseline: str
    value: float
    low: float
    high: float
    num_examples: int
    num_users: int

    @property
    def key(self) -> str:
        """MLflow name, e.g. ``test/auc`` or ``slice/new_items/auc``."""
        return f"test/{self.metric}" if self.slice == "all" else f"slice/{self.slice}/{self.metric}"


def predicted(
    ranker: Ranker,
    data: pa.Table,
    items: Items,
    version: str,
    splits: tuple[str, ...] = ("valid", "test"),
    met: pa.Table | None = None,
) -> pa.Table:
    """Rows of the table ``ranking/<candidate>``: calibrated score, rank and slices of validation and test.

    Args:
        ranker: The ranker.
        data: Feature rows of all splits, by user and place in the history.
        items: The catalogue.
        version: Version of the ranker.
        splits: Splits that are scored.
        met: When each user first had each item, as `read_met` gives it, if ``data`` is not all of their histories.
    """
    rows = np.flatnonzero(pc.is_in(data["split"], pa.array(splits)).to_numpy(zero_copy_only=False))
    users, catalogue = pc.unique(data["user_id"]).sort(), pa.array(ranker.preprocessing.items, pa.string())
    user, place = index_of(data["user_id"], users), index_of(data["item_id"], catalogue) - 1
    position = data["position"].to_numpy().astype(np.int64)
    happened = ~data["sampled"].to_numpy(zero_copy_only=False)
    is_target = (data["label"].to_numpy() > 0) & happened
    when = data["event_timestamp"].cast(pa.int64()).to_numpy()
    # Whatever the catalogue says: an item that somebody chose was there.
    met = first_met(data.filter(pa.array(happened))) if met is None else met
    had, met_place = index_of(met["user_id"], users), index_of(met["item_id"], catalogue) - 1
    available_I = items.available_I.copy()
    known = met_place >= 0
    np.minimum.at(available_I, met_place[known], met["event_timestamp"].cast(pa.int64()).to_numpy()[known])
    histories = Histories(had, met_place, met["position"].to_numpy().astype(np.int64))
    score, rank = np.zeros(len(rows)), np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), EXAMPLES_AT_ONCE):
        part = rows[start : start + EXAMPLES_AT_ONCE]
        x = ranker.preprocessing.transform(data.take(pa.array(part)))
        score[start : start + len(part)] = ranker.calibration(ranker.scorer.like(x))
        target = part[is_target[part]]
        rank[start : start + len(part)][is_target[part]] = _ranked(
            ranker,
            x.take(is_target[part]),
            place[target],
            histories.before(user[target], position[target]),
            when[target],
            available_I,
        )
    trained = happened & pc.equal(data["split"], "train").to_numpy(zero_copy_only=False)
    counted = np.bincount(place[trained] + 1, minlength=len(items.ids) + 1)
    masks = slices_of(place[rows] + 1, position[rows], counted, np.isin(user[rows], user[trained]))
    created, scored = pa.scalar(dt.datetime.now(dt.UTC), TIMESTAMP), data.take(pa.array(rows))
    return pa.table(
        {
            **{n: scored[n] for n in ("example_id", "user_id", "item_id", "split", "label")},
            "score": score,
            "rank": pa.array(rank, pa.int64(), mask=rank == 0),
            "slices": _names(masks),
            "ranker_version": pa.repeat(version, len(rows)),
            "created_timestamp": pa.repeat(created, len(rows)),
        }
    )


def _ranked(
    ranker: Ranker,
    x: Examples,
    place_N: np.ndarray,
    excluded: Exclusions,
    when_N: np.ndarray,
    available_I: np.ndarray,
) -> np.ndarray:
    """Full rank of each target among the items that were available at its moment."""
    always = bool((available_I <= when_N.min(initial=np.iinfo(np.int64).max)).all())
    return full_ranks(
        lambda part: ranker.scorer.interest(x.take(part)),
        place_N,
        excluded,
        None if always else lambda part: available_I[None] <= when_N[part, None],
        len(available_I),
    )


def _names(masks: dict[str, np.ndarray]) -> pa.Array:
    """Names of the masks that hold, a list a row."""
    columns = [pl.when(pl.Series(mask)).then(pl.lit(name)) for name, mask in masks.items()]
    return pl.select(slices=pl.concat_list(columns).list.drop_nulls())["slices"].to_arrow()


def evaluated(table: pa.Table, rules: Rules) -> tuple[list[Figure], list[str], dict[str, float]]:
    """Figures of the test split out of predictions, what was left out, and all of it by MLflow name."""
    test, valid = of_split(table, "test"), of_split(table, "valid")
    found, left_out = estimate(scored_of(test), slice_masks(test), rules)
    told = [Figure(**row._asdict()) for row in figures(found)]
    metrics: dict[str, float] = {}
    for f in told:
        metrics |= {f.key: f.value, f"{f.key}_low": f.low, f"{f.key}_high": f.high}
        prefix = f.key.rsplit("/", 1)[0]
        counted = "num_targets" if f.metric in ("hr_at_10", "ndcg_at_10") else "num_examples"
        metrics[f"{prefix}/{counted}"] = float(f.num_examples)
    label, p = valid["label"].to_numpy(), valid["score"].to_numpy()
    metrics |= {"valid/auc": float(auc(p, label)[0]), "valid/logloss": float(log_losses(p, label).mean())}
    return told, left_out, {k: v for k, v in metrics.items() if np.isfinite(v)}


def scored_of(table: pa.Table) -> Scored:
    """Predictions as arrays, ordered by example, so that two candidates' are paired."""
    frame = pl.DataFrame(table).sort("example_id")
    return Scored(
        frame["user_id"].rank("dense").to_numpy().astype(np.int64) - 1,
        frame["label"].to_numpy(),
        frame["score"].to_numpy(),
        frame["rank"].fill_null(0).to_numpy(),
    )


def slice_masks(table: pa.Table) -> dict[str, np.ndarray]:
    """Mask of each slice, in the order of `scored_of`."""
    frame = pl.DataFrame(table).sort("example_id")
    return {name: frame["slices"].list.contains(name).to_numpy() for name in SLICES}


def request_latency(ranker: Ranker, data: pa.Table) -> dict[str, float]:
    """Milliseconds that one request takes: one user, up to a hundred items, preprocessing included."""
    rows = of_split(data, "test").slice(0, REQUEST_ITEMS)
    asking = rows.take(pa.array([0] * rows.num_rows))
    for place, name in enumerate(rows.column_names):
        if name.startswith("user_"):
            rows = rows.set_column(place, rows.schema.field(place), asking[name])
    taken = []
    for _ in range(REQUESTS):
        started = time.perf_counter()
        ranker.score(rows)
        taken.append((time.perf_counter() - started) * 1000)
    return {"latency/p50_ms": float(np.median(taken)), "latency/p99_ms": float(np.quantile(taken, 0.99))}
