"""Training examples a second: our SASRec against RecBole's, on the events of BELVEDERE_HOME, in the same sizes.

Both learn the same leave-one-out split by full cross-entropy, and rank it by the same rules. RecBole makes an example
of every prefix of a history and encodes each; ours learns from all prefixes in one pass. What is equal here is the
question, not the weights: the ratio counts only if NDCG@10 on the test split is equal or better. Seconds are those
that each process computed, with its validation after every epoch, since waiting for a core is nobody's doing.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.long_history.claims import Finding, Options
from models.long_history.evaluation import rank_estimates
from models.ranking.bootstrap import Interval, interval
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.histories.data import Inputs
from ray_jobs.histories.next_item_task import NextItemTask, Ranks
from ray_jobs.histories.peers.recbole_environment import PeerOptions, make_environment, run_peer
from ray_jobs.histories.training import Config, build_task, load_history_model, train
from ray_jobs.tables.interactions import RAW_INTERACTIONS
from ray_jobs.training_task import TrainingOptions
from ray_jobs.warehouse import Warehouse

WIDTH, HEADS, LAYERS, EVENTS = 32, 2, 2, 50
# Ours has an update where RecBole has some twenty: it may take more epochs, and stays far below RecBole's seconds.
OUR_EPOCHS, OUR_PATIENCE = 60, 8
PEER_EPOCHS, PEER_PATIENCE = 10, 3
RESAMPLES = 1000
TARGET = 2.0


def measure(options: Options) -> list[Finding]:
    """See the package."""
    from orchestration.settings import Settings

    home = Path(Settings().home)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(Warehouse(str(home / "warehouse")), ArtifactStore(folder), options)
        return [compare(config, make_environment(home / "peers" / "recbole"), options)]


def config_of(warehouse: Warehouse, artifacts: ArtifactStore, options: Options) -> Config:
    """Our training."""
    return Config(
        warehouse=warehouse,
        artifacts=artifacts,
        inputs=Inputs(raw_interactions=warehouse.version(RAW_INTERACTIONS), splits=""),
        family="sasrec",
        objective="next_item",
        arguments={
            "width": WIDTH,
            "heads": HEADS,
            "layers": LAYERS,
            "max_positions": EVENTS,
            "dropout": 0.2,
            "item_dropout": 0.0,
        },
        training=TrainingOptions(
            epochs=options.size(OUR_EPOCHS), patience=OUR_PATIENCE, learning_rate=2e-3, epoch_decay=0.98
        ),
        history_events=EVENTS,
        cpus_per_worker=options.threads,
    )


def compare(config: Config, python: str, options: Options) -> Finding:
    """Trains both and compares examples a second, and NDCG@10."""
    task = build_task(config)
    assert isinstance(task, NextItemTask)
    computed = time.process_time()
    fitted = train(config, task)
    ours_cpu = time.process_time() - computed
    model = load_history_model(config.artifacts, "sasrec", config.name).model
    with torch.inference_mode():
        ours = task.rank(model, "test")
    peer = run_peer(
        task,
        PeerOptions(
            python=python,
            width=WIDTH,
            heads=HEADS,
            layers=LAYERS,
            history_events=EVENTS,
            dropout=0.2,
            epochs=options.size(PEER_EPOCHS),
            patience=PEER_PATIENCE,
            threads=options.threads,
        ),
    )
    seen = task.num_examples(1) * fitted.epochs
    theirs_seen = peer.told["num_examples"] * len(peer.told["curve"])
    rate, theirs_rate = seen / ours_cpu, theirs_seen / peer.told["cpu_seconds"]
    better = difference(ours, peer.test)
    ratio = rate / theirs_rate
    return Finding(
        f"SASRec, width {WIDTH}, {LAYERS} layers, {EVENTS} events, {task.num_examples(1):,} examples an epoch: "
        "examples a second vs RecBole's",
        f">= {TARGET:g}x at equal or better NDCG@10",
        ratio,
        ratio >= TARGET and better.value >= 0,
        f"{rate:,.0f}/s in {fitted.epochs} epochs (best {fitted.best_epoch}), {ours_cpu:,.0f} s, NDCG@10 {told(ours)}; "
        f"{theirs_rate:,.0f}/s in {len(peer.told['curve'])} epochs (best {peer.told['best_epoch']}), "
        f"{peer.told['cpu_seconds']:,.0f} s, NDCG@10 {told(peer.test)}; "
        f"difference {better.value:+.4f} [{better.low:+.4f}, {better.high:+.4f}]",
    )


def told(ranks: Ranks) -> str:
    """NDCG@10 with its interval over users."""
    found = rank_estimates(ranks.users, ranks.ranks, RESAMPLES)["all", "ndcg_at_10"]
    value, low, high = interval(found.value, found.draws_R)
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"


def difference(ours: Ranks, theirs: Ranks) -> Interval:
    """Difference in NDCG@10, paired by user."""
    assert np.array_equal(ours.users, theirs.users)
    one, other = (rank_estimates(r.users, r.ranks, RESAMPLES)["all", "ndcg_at_10"] for r in (ours, theirs))
    return interval(one.value - other.value, one.draws_R - other.draws_R)
