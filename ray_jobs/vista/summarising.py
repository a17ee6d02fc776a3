"""Turns histories into summary tokens, part by part: memory holds a part of the events, however many there are.

A bidirectional model reads the newest events before each snapshot; an incremental one goes through the history once,
and what it remembers is carried from part to part.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from torch.utils import _pytree as pytree

from models.long_history.families import FAMILIES
from models.long_history.histories import Events, Held, Snapshots, cut_snapshots, history_batch
from models.long_history.interface import HistoryModel, IncrementalModel, State
from models.long_history.vocabulary import Vocabulary
from models.vista.states import unpack
from ray_jobs.artifacts import ArtifactStore
from ray_jobs.checkpoints import read_model
from ray_jobs.histories.data import catalogue_of, encode_events, known_items, read_codes
from ray_jobs.histories.store import HistoryStore, Window, parts_of
from ray_jobs.warehouse import Warehouse

# Events that are read beyond a window to find the end of a tie; doubled until it is found.
TIE = 64


class LoadedSummarizer(NamedTuple):
    """A trained model whose encoding of a history is its summary tokens.

    Attributes:
        model: The network, in eval mode.
        vocabulary: What encodes its inputs.
        preprocessing: The rest of it.
    """

    model: HistoryModel
    vocabulary: Vocabulary
    preprocessing: dict[str, Any]


class Summarised(NamedTuple):
    """Snapshots of a part.

    Attributes:
        users: Users of the part; snapshots name them by place.
        snapshots: The snapshots.
        moments: Time of the last event of each, microseconds.
        tokens_NKD: Their summaries, float32.
    """

    users: pl.Series
    snapshots: Snapshots
    moments: np.ndarray
    tokens_NKD: np.ndarray


class Remembered(NamedTuple):
    """What is carried from one part of a history to the next.

    Attributes:
        state: States of an incremental model; None for others.
        seen: Events until the last snapshot.
    """

    state: State
    seen: int


def load_summarizer(artifacts: ArtifactStore, name: str) -> LoadedSummarizer:
    """Loads a trained summarizer of any family by its version."""
    trained = read_model(artifacts, name)
    model = FAMILIES[trained.preprocessing.get("family", "vista")].build(**trained.constructor)
    model.load_state_dict(trained.weights)
    return LoadedSummarizer(
        model.eval(), Vocabulary(**trained.preprocessing["vocabulary"]), dict(trained.preprocessing)
    )


class Summariser:
    """Summaries of chosen users.

    Args:
        loaded: The model.
        store: The histories.
        warehouse: Where the semantic IDs are.
        device: Where the model runs.
        batch_snapshots: Histories in one pass of the model.
        part_events: Events in memory.
    """

    def __init__(
        self,
        loaded: LoadedSummarizer,
        store: HistoryStore,
        warehouse: Warehouse,
        device: torch.device,
        batch_snapshots: int,
        part_events: int,
    ):
        self.model, self.store, self.device = loaded.model.to(device), store, device
        self.vocabulary, self.batch_snapshots, self.part_events = loaded.vocabulary, batch_snapshots, part_events
        codes = read_codes(warehouse, loaded.preprocessing["semantic_ids"])
        self.known = known_items(self.vocabulary, codes)
        self.catalogue = catalogue_of(self.vocabulary, codes, self.known)
        self.every = int(loaded.preprocessing["block_examples"])
        self.limit = int(loaded.preprocessing["history_events"])
        self.remembers = isinstance(self.model, IncrementalModel)

    def run(self, plan: pl.DataFrame) -> Iterator[tuple[Summarised, State]]:
        """Yields new snapshots part by part, and the states after them.

        Args:
            plan: Users with ``num_events``, ``seen`` (events that were summarised before) and ``state`` (bytes).

        Yields:
            Snapshots, and the states of the part's users after their last event: None for a model that has none, and
            while a history goes on in the next part.
        """
        behind = 1 if self.remembers else self.limit
        ordered = plan.with_columns(read_from=(pl.col("seen") - behind).clip(0))
        carried: Remembered | None = None
        at = 0
        for part in parts_of(ordered, self.part_events, start="read_from"):
            order = part.users.arg_sort().to_numpy()
            chosen = ordered[at : at + len(order)][order]
            part = Window(part.users[order], part.starts[order], part.stops[order])
            totals, seen = chosen["num_events"].to_numpy(), chosen["seen"].to_numpy()
            known = np.maximum(part.starts, seen) if carried is None else np.array([max(carried.seen, part.starts[0])])
            going_on = bool((part.stops < totals).any())
            if (part.stops > known).any():
                made, carried = self._part(part, known, chosen, carried)
                yield made, carried.state if made.snapshots.latest.sum() == len(order) else None
            if not going_on:
                at, carried = at + len(order), None

    def _part(
        self, part: Window, starts: np.ndarray, chosen: pl.DataFrame, carried: Remembered | None
    ) -> tuple[Summarised, Remembered]:
        totals = chosen["num_events"].to_numpy()
        # An incremental model goes on where it stopped, which may be before this part.
        seen = (
            starts if not self.remembers else chosen["seen"].to_numpy() if carried is None else np.array([carried.seen])
        )
        firsts = np.maximum(seen - 1 if self.remembers else starts - self.limit, 0)
        frame = self._read(part, firsts, totals)
        events = encode_events(frame, part.users, self.vocabulary, self.known)
        snapshots = cut_snapshots(events, self.every, Held(firsts, starts, part.stops, totals))
        state: State = None
        if isinstance(self.model, IncrementalModel):
            state = unpack(self.model, chosen["state"].to_list()) if carried is None else carried.state
            tokens, state = self._extended(events, snapshots, state, events.offsets[:-1] + seen - firsts)
        else:
            tokens = self._encoded(events, snapshots)
        until = int(snapshots.seen[-1]) if len(snapshots.seen) else int(seen[-1])
        made = Summarised(part.users, snapshots, events.times[snapshots.stops - 1], tokens)
        return made, Remembered(state, until)

    def _read(self, part: Window, firsts: np.ndarray, totals: np.ndarray) -> pl.DataFrame:
        """The part's events and what belongs before them; a window goes on to the end of its tie."""
        more = TIE
        while True:
            stops = np.where(part.stops < totals, np.minimum(part.stops + more, totals), part.stops)
            frame = self.store.read(Window(part.users, firsts, stops))
            if len(part.users) > 1 or stops[0] == totals[0]:
                return frame
            times = frame["timestamp"]
            if times[int(part.stops[0] - 1 - firsts[0])] != times[-1]:
                return frame
            more *= 2

    @torch.inference_mode()
    def _encoded(self, events: Events, snapshots: Snapshots) -> np.ndarray:
        starts = np.maximum(events.offsets[snapshots.users], snapshots.stops - self.limit)
        order = np.argsort(snapshots.stops - starts, kind="stable")
        made: list[np.ndarray] = []
        for chosen in np.split(order, range(self.batch_snapshots, len(order), self.batch_snapshots)):
            if len(chosen):
                history = history_batch(events, self.catalogue, starts[chosen], snapshots.stops[chosen])
                made.append(self._finite(self.model.encode_history(self._moved(history))))
        back = np.argsort(order, kind="stable")
        return np.concatenate(made)[back] if made else self._none()

    @torch.inference_mode()
    def _extended(
        self, events: Events, snapshots: Snapshots, state: State, places: np.ndarray
    ) -> tuple[np.ndarray, State]:
        """Goes from snapshot to snapshot, all users of a batch side by side."""
        model = self.model
        assert isinstance(model, IncrementalModel)
        state = pytree.tree_map(lambda x: x.to(self.device).clone(), state)
        # Snapshots are sorted by user and place: the nth of each user is its first plus n.
        firsts = np.searchsorted(snapshots.users, np.arange(len(places) + 1))
        counts, tokens = np.diff(firsts), self._none(len(snapshots.users))
        for group in np.split(np.arange(len(places)), range(self.batch_snapshots, len(places), self.batch_snapshots)):
            for nth in range(int(counts[group].max(initial=0))):
                users = group[counts[group] > nth]
                chosen = firsts[users] + nth
                history = history_batch(events, self.catalogue, places[users], snapshots.stops[chosen])
                rows = torch.from_numpy(users).to(self.device)
                some = model.extend(_taken(state, rows), self._moved(history))
                _put(state, rows, some)
                tokens[chosen] = self._finite(model.read(some))
                places[users] = snapshots.stops[chosen]
        return tokens, state

    def _none(self, num: int = 0) -> np.ndarray:
        config: Any = self.model.config
        return np.zeros((num, config.num_seeds, config.width), np.float32)

    def _moved(self, tree: Any) -> Any:
        return pytree.tree_map_only(torch.Tensor, lambda x: x.to(self.device), tree)

    def _finite(self, tokens: torch.Tensor) -> np.ndarray:
        found = tokens.float().cpu().numpy()
        if not np.isfinite(found).all():
            raise ValueError("The model gives summaries that are not finite: train vista/summarizer again.")
        return found


def _taken(state: State, rows: torch.Tensor) -> State:
    return pytree.tree_map(lambda x: x[rows], state)


def _put(state: State, rows: torch.Tensor, some: State) -> None:
    for whole, part in zip(pytree.tree_leaves(state), pytree.tree_leaves(some), strict=True):
        whole[rows] = part.to(whole.dtype)
