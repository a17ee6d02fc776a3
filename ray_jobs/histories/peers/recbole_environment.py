"""RecBole in an environment of its own, and our split as its files."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pydantic

from models.long_history.leave_one_out import held_out
from ray_jobs.histories.next_item_task import NextItemTask, Ranks, rank_targets

PINS = ("recbole==1.2.1", "torch==2.13.0", "numpy<2", "pandas<3", "scipy<1.14", "setuptools<81")
"""RecBole 1.2.1 says ``np.float_`` and was written for pandas 2."""
SCRIPT = Path(__file__).with_name("recbole_sasrec.py")


class PeerOptions(pydantic.BaseModel, frozen=True):
    """A training of RecBole's SASRec."""

    python: str = pydantic.Field(description="Python of the peer's environment.")
    width: int = pydantic.Field(32, description="Width of a token.")
    heads: int = pydantic.Field(2, description="Attention heads.")
    layers: int = pydantic.Field(2, description="Blocks.")
    history_events: int = pydantic.Field(50, description="Most events of a history.")
    dropout: float = pydantic.Field(0.5, description="Dropout, of tokens and of attention.")
    learning_rate: float = pydantic.Field(1e-3, description="Learning rate.")
    batch: int = pydantic.Field(512, description="Examples of a batch.")
    epochs: int = pydantic.Field(20, description="Most epochs.")
    patience: int = pydantic.Field(3, description="Epochs without a better NDCG@10 before it stops.")
    seed: int = pydantic.Field(0, description="Seed.")
    threads: int = pydantic.Field(1, description="Threads.")


class PeerRun(NamedTuple):
    """What came of it.

    Attributes:
        valid: Ranks of the validation targets.
        test: Ranks of the test targets.
        told: Curve, best epoch, seconds, parameters, examples of an epoch.
    """

    valid: Ranks
    test: Ranks
    told: dict[str, Any]


def python_of(folder: str | Path) -> str:
    """Python of an environment in ``folder``."""
    return str(Path(folder) / "bin" / "python")


def make_environment(folder: Path) -> str:
    """Makes the environment unless it is there, by pip.

    Args:
        folder: Where it goes.

    Returns:
        Its Python.
    """
    python = python_of(folder)
    done = folder / "complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
        done.touch()
    return python


def export_events(task: NextItemTask, folder: Path) -> None:
    """Writes all events as an atomic file; the time of an event is its place in the user's history.

    So ties in time are broken by our rule, and its leave-one-out split is ours. Items and users are their numbers.
    """
    events = task.events
    owner = np.repeat(np.arange(len(events.offsets) - 1), np.diff(events.offsets))
    frame = pl.DataFrame(
        {
            "user_id:token": owner,
            "item_id:token": events.items,
            "timestamp:float": np.arange(len(owner)) - events.offsets[owner],
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_csv(folder / "peer.inter", separator="\t")


def run_peer(task: NextItemTask, options: PeerOptions, log: Path | None = None) -> PeerRun:
    """Trains RecBole's SASRec on our split, and ranks by our rules with its scores.

    Args:
        task: Who knows the events and the split.
        options: The training.
        log: Where its output goes; None: nowhere.

    Raises:
        RuntimeError: If it failed; says its last line.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        export_events(task, folder / "peer")
        (folder / "options.json").write_text(options.model_dump_json(), encoding="utf-8")
        output = log or folder / "log"
        with output.open("a", encoding="utf-8") as stream:
            done = subprocess.run(
                [options.python, str(SCRIPT), str(folder)],
                stdout=stream,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=folder,
                env=_environment(options.threads),
            )
        if done.returncode:
            last = (output.read_text(encoding="utf-8").strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"RecBole's SASRec failed: {last}")
        users, items, told = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in ("users", "items", "told")
        )
        found = {split: _ranks(task, split, folder, users, items) for split in ("valid", "test")}
    return PeerRun(found["valid"], found["test"], told)


def _environment(threads: int) -> dict[str, str]:
    """Without our own packages: PYTHONPATH would put them before the peer's."""
    return {"PATH": "/usr/bin:/bin", "HOME": tempfile.gettempdir(), "OMP_NUM_THREADS": str(threads)}


def _ranks(task: NextItemTask, split: str, folder: Path, users: list[str], items: list[str]) -> Ranks:
    targets = held_out(task.events, split, 1)
    theirs = np.load(folder / f"{split}.npy")
    row_of = np.full(len(task.events.offsets), -1, np.int64)
    row_of[np.array(users, np.int64)] = np.arange(len(users))
    # An item that it never saw gets the worst score.
    padded = np.full((len(users), task.num_items), -np.inf, np.float32)
    padded[:, np.array(items, np.int64) - 1] = theirs
    return Ranks(targets.users, rank_targets(task, lambda rows: padded[row_of[targets.users[rows]]], targets))
