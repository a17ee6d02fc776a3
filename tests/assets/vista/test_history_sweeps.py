"""The sweeps as an asset: every point has its quality and its cost, and nothing is trained or scored twice."""

import dagster as dg
import polars as pl
import pytest
import torch

from assets.vista.history_checks import history_sweeps_checks
from assets.vista.history_sweeps import SWEEPS, history_sweeps
from orchestration.resources.ray_jobs import LocalRayJobs
from ray_jobs.histories import sweeps as job
from ray_jobs.histories.sweep_cells import kept_in
from ray_jobs.histories.training import Config as Training
from ray_jobs.histories.training import build_task
from ray_jobs.tables.history import HISTORY_SWEEPS
from ray_jobs.tables.interactions import RAW_INTERACTIONS, SPLITS
from tests.factories import seed_interactions

FAST = {
    "num_seeds": [4],
    "precisions": ["fp32", "int4"],
    "missed": [0, 5],
    "lengths": [1_000_000],
    "seeds": 1,
    "epochs": 1,
    "width": 8,
    "history_events": 16,
    "resamples": 50,
}


class OnTheTestsCluster(LocalRayJobs):
    """Jobs run on the cluster that the tests share."""

    def join(self) -> None:
        return


def materialize(tables, tracking, instance, **changes):
    return dg.materialize(
        [history_sweeps, history_sweeps_checks],
        resources={"tables": tables, "tracking": tracking, "ray_jobs": OnTheTestsCluster()},
        instance=instance,
        run_config={"ops": {"vista__history_sweeps": {"config": FAST | changes}}},
        raise_on_error=False,
    )


def said(result):
    (made,) = result.asset_materializations_for_node("vista__history_sweeps")
    return {name: value.value for name, value in made.metadata.items()}


def test_every_sweep_is_a_table_and_a_plot_with_its_cost(tables, tracking, instance, ray_cluster):
    seed_interactions(tables, num_users=30, events_per_user=12)
    result = materialize(tables, tracking, instance)
    assert result.success and all(e.passed for e in result.get_asset_check_evaluations())
    shown = said(result)
    assert shown["points_scored"] == 6
    for sweep in SWEEPS:
        assert "data:image/png" in shown[f"{sweep}_plot"] and "normalized_entropy" in shown[f"{sweep}_table"]
    rows = pl.DataFrame(tables.read(HISTORY_SWEEPS))
    cost = {(s, p): c for s, p, c in rows.select("sweep", "point", "cost").unique().rows()}
    # A byte a value, and four a token's scale.
    assert cost["seeds", "4"] == 4 * (8 + 4)
    assert cost["precision", "fp32"] == 16 * (32 + 4) and cost["precision", "int4"] == 16 * (4 + 4)
    assert cost["staleness", "0"] == 1000 and cost["length", "all"] > 0
    value = {(s, p): v for s, p, m, v in rows.select("sweep", "point", "metric", "value").rows() if m == "auc"}
    assert value["precision", "fp32"] == pytest.approx(value["staleness", "0"], abs=1e-6)
    assert value["staleness", "0"] != value["staleness", "5"]
    again = said(materialize(tables, tracking, instance))
    assert again["unchanged"] and again["points_scored"] == 0
    more = said(materialize(tables, tracking, instance, missed=[0, 1, 5], sweeps=["staleness"]))
    assert more["points_scored"] == 1
    runs = tracking.connect("history_models").search_runs(output_format="list")
    assert len(runs) == 2 and "staleness/auc" in runs[0].data.metrics


def test_what_was_missed_is_not_seen(tables):
    seed_interactions(tables, num_users=10, events_per_user=12)
    config = Training(
        warehouse=tables.warehouse(),
        artifacts=tables.artifacts(),
        inputs={"raw_interactions": tables.version(RAW_INTERACTIONS), "splits": tables.version(SPLITS)},
        family="vista",
        objective="click",
        history_events=6,
    )
    task = build_task(config)
    fresh, stale = (task.apart(task.blocks["test"], missed) for missed in (0, 3))
    for at in range(len(fresh.starts)):
        user, time = task.examples.users[fresh.starts[at]], task.examples.times[fresh.starts[at]]
        first = task.events.offsets[user]
        before = first + (task.events.times[first : task.events.offsets[user + 1]] < time).sum()
        assert fresh.history_stops[at] == before and stale.history_stops[at] == max(before - 3, first)
        assert fresh.history_stops[at] - fresh.history_starts[at] == min(before - first, 6)
    assert len(fresh.starts) == (task.examples.splits == 2).sum()


def test_summaries_lose_what_their_precision_loses():
    tokens = torch.randn(5, 3, 8)
    lost = {name: (kept_in(name)(tokens) - tokens).abs().max() for name in ("fp32", "fp16", "int8", "int4")}
    assert lost["fp32"] == 0 < lost["fp16"] < lost["int8"] < lost["int4"] < 0.5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"missed": (-1,)}, "greater than or equal to 0"),
        ({"missed": ()}, "at least 1 item"),
        ({"missed": (0, 0)}, "0 is there twice"),
        ({"lengths": (0,)}, "greater than or equal to 1"),
        ({"lengths": (2_000_000,)}, "less than or equal to 1000000"),
        ({"num_seeds": (0,)}, "greater than 0"),
        ({"seeds": (1, 1)}, "1 is there twice"),
        ({"sweeps": ("length", "length")}, "length is there twice"),
        ({"precisions": ("int2",)}, "int2|literal_error"),
    ],
)
def test_points_that_cannot_be_are_refused(tables, changes, said):
    inputs = {"raw_interactions": "1", "splits": "1", "semantic_ids": None}
    with pytest.raises(ValueError, match=said):
        job.Config(warehouse=tables.warehouse(), artifacts=tables.artifacts(), inputs=inputs, **changes)


def test_the_launchpad_offers_the_sweeps_that_there_are():
    assert SWEEPS == job.SWEEPS
