"""What a peer is given, and what is made of its scores. Its own program runs in the benchmark."""

import sys

import numpy as np
import polars as pl
import pytest

from ray_jobs.histories.next_item_task import rank_targets
from ray_jobs.histories.peers import recbole_environment
from ray_jobs.histories.peers.recbole_environment import PeerOptions, export_events, run_peer
from tests.factories import seed_interactions
from tests.ray_jobs.histories.test_training import build_task, config_of

# In the place of RecBole: another order of users and items, one item never seen, a score that the test knows.
STAND_IN = """
import json, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[1])
rows = [line.split() for line in (folder / "peer" / "peer.inter").read_text().splitlines()[1:]]
users, items = (sorted({r[i] for r in rows}, key=int, reverse=True) for i in (0, 1))
items = [i for i in items if i != "1"]
scores = np.array([[(int(u) * 7 + int(i) * 13) % 31 for i in items] for u in users], np.float32)
for name in ("valid", "test"):
    np.save(folder / f"{name}.npy", scores)
told = {"curve": [{}], "threads": json.loads((folder / "options.json").read_text())["threads"]}
for name, value in (("users", users), ("items", items), ("told", told)):
    (folder / f"{name}.json").write_text(json.dumps(value))
"""


@pytest.fixture
def task(tables):
    seed_interactions(tables, num_users=12, events_per_user=9)
    return build_task(config_of(tables, "sasrec"))


def test_events_have_their_places_as_time(task, tmp_path):
    export_events(task, tmp_path)
    frame = pl.read_csv(tmp_path / "peer.inter", separator="\t")
    assert frame.columns == ["user_id:token", "item_id:token", "timestamp:float"]
    assert frame["item_id:token"].to_list() == task.events.items.tolist()
    last = frame.group_by("user_id:token", maintain_order=True).tail(1)
    assert last["item_id:token"].to_list() == task.events.items[task.targets("test").places].tolist()
    assert frame["timestamp:float"].to_list() == [*range(9)] * 12


def test_scores_of_a_peer_are_ranked_by_our_rules(task, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(recbole_environment, "SCRIPT", script)
    found = run_peer(task, PeerOptions(python=sys.executable, threads=3))
    assert found.told["threads"] == 3
    for split, ranks in (("valid", found.valid), ("test", found.test)):
        targets = task.targets(split)
        numbers = np.arange(1, task.num_items + 1)

        def scores(rows, targets=targets, numbers=numbers):
            made = ((targets.users[rows, None] * 7 + numbers * 13) % 31).astype(float)
            made[:, 0] = -np.inf
            return made

        assert ranks.ranks.tolist() == rank_targets(task, scores, targets).tolist()
        assert ranks.users.tolist() == targets.users.tolist()


def test_a_failed_peer_is_one_sentence(task, tmp_path, monkeypatch):
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit('no such model')")
    monkeypatch.setattr(recbole_environment, "SCRIPT", script)
    with pytest.raises(RuntimeError, match="RecBole's SASRec failed: no such model"):
        run_peer(task, PeerOptions(python=sys.executable))
