"""The benchmark of training in a tiny size, with a stand-in for the peer's program."""

import sys

import pytest

from benchmarks.long_history import training
from benchmarks.long_history.claims import Options
from ray_jobs.histories.peers import recbole_environment
from tests.factories import seed_interactions
from tests.ray_jobs.histories.peers.test_recbole_environment import STAND_IN


def test_rates_and_ranks_of_both_are_told(tables, tmp_path, monkeypatch):
    seed_interactions(tables, num_users=15, events_per_user=9)
    script = tmp_path / "peer.py"
    told = '"num_examples": 90, "cpu_seconds": 4.5, "curve": [{}], "best_epoch": 1'
    script.write_text(STAND_IN.replace('"curve": [{}]', told))
    monkeypatch.setattr(recbole_environment, "SCRIPT", script)
    options = Options(scale=0.05)
    found = training.compare(
        training.config_of(tables.warehouse(), tables.artifacts(), options), sys.executable, options
    )
    assert "90 examples an epoch" in found.claim and "20/s in 1 epochs (best 1), 4 s, NDCG@10" in found.detail
    ours = float(found.detail.split("/s")[0].replace(",", ""))
    assert found.ratio == pytest.approx(ours / 20, abs=0.05)
    # Faster and worse would not count.
    difference = float(found.detail.rpartition("difference ")[2].split(" ")[0])
    assert found.held == (found.ratio >= 2 and difference >= 0)
