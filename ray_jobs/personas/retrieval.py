"""From a user to items in one request: the persona of the read path restricts what the user's vector may find.

A request waits for the online store alone; no model is asked. The rule is that of `models/personas/retrieval.py`.
"""

import datetime as dt
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic

from models.personas.freshness import Event
from models.personas.neighbours import Neighbours
from models.personas.retrieval import RetrievalConfig, near_clusters
from ray_jobs.personas import serving as persona_serving
from ray_jobs.personas.panels import read_world
from ray_jobs.personas.queue import RefreshQueue
from ray_jobs.personas.serving import Counts, PersonaReader, count_likes
from ray_jobs.personas.store import PersonaStore
from ray_jobs.text_encoding import TextEncoder, TextEncoderConfig
from ray_jobs.warehouse import Warehouse


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of retrieval by personas."""

    reader: persona_serving.Config = pydantic.Field(description="The read path.")
    warehouse: Warehouse = pydantic.Field(description="Where the catalogue is.")
    encoder: TextEncoderConfig = pydantic.Field(description="Encoder of the items; of the labels, once, at the start.")
    retrieval: RetrievalConfig = pydantic.Field(RetrievalConfig(), description="The rule.")


class Candidates(NamedTuple):
    """What a request gets.

    Attributes:
        item_ids: Items, the nearest to the query first, without what the user has lately met.
        sources: What each was found by, see `models.personas.neighbours.Shown`.
        query: ``vector`` of the user's likes, or ``popularity`` where the online store knows of none.
        answer: What the read path said: state, source, interest and exploration.
    """

    item_ids: list[str]
    sources: list[str]
    query: Literal["vector", "popularity"]
    answer: persona_serving.Answer


class PersonaRetriever:
    """Finds candidates. Thread-safe. A new codebook, or another version in force, wants a new one.

    Args:
        config: Knobs.
        store: An opened store of personas; opens the configured one by default.
        queue: The queue of refreshes; the configured one by default.

    Raises:
        ValueError: If the items were embedded by another encoder.
    """

    def __init__(self, config: Config, store: PersonaStore | None = None, queue: RefreshQueue | None = None):
        self.config, self.reader, self.counted = config, PersonaReader(config.reader, store, queue), Counts()
        world = read_world(config.warehouse)
        self.item_ids, self.row_of = (
            world.items["item_id"].to_list(),
            dict(world.items.select("item_id", "item").rows()),
        )
        self.item_ND, self.centroid_CD = world.item_ND, world.centroid_CD
        self.neighbours = Neighbours(world.item_ND, world.items["column"].to_numpy(), world.clusters.height)
        self.column_of = dict(world.clusters.select("cluster", "column").rows())
        labels = world.clusters["label"].to_list()
        self.label_CD = TextEncoder(config.encoder).encode(labels) if labels else np.zeros_like(world.centroid_CD)
        if self.label_CD.shape[1] != world.item_ND.shape[1]:
            raise ValueError(
                f"Items have vectors of {world.item_ND.shape[1]} values, texts of {self.label_CD.shape[1]}: "
                "materialize clusters/item_embeddings again with the encoder in use."
            )
        self.text_of = dict(zip(self.column_of, labels, strict=True))
        likes = count_likes(config.warehouse)
        joined = world.items.join(likes, on="item_id", how="left", maintain_order="left")
        self.popular_N = joined["num_likes"].fill_null(0).to_numpy()
        self.near: dict[tuple[int, bool], np.ndarray] = {}

    def retrieve(self, user_id: str, request_id: str, now: dt.datetime | None = None) -> Candidates:
        """The candidates of a request.

        Args:
            user_id: User.
            request_id: Seeds the choice of interests: the same request gets the same ones.
            now: The moment; the clock's by default.
        """
        answer = self.reader.read(user_id, request_id, now)
        query_D = self._vector(answer.events)
        met = [self.row_of[e.item_id] for e in answer.events if e.item_id in self.row_of]
        found = self.neighbours.find(
            query_D,
            self._clusters(answer.interest),
            self._clusters(answer.exploration),
            np.array(met, np.int64),
            self.config.retrieval,
            self.popular_N,
        )
        query: Literal["vector", "popularity"] = "popularity" if query_D is None else "vector"
        sources = found.source_K.tolist()
        short = self.config.retrieval.budget - len(sources)
        items = {f"items_{source}": sources.count(source) for source in set(sources)}
        self.counted.add(**{"requests": 1, f"by_{query}": 1, "items_short": short}, **items)
        return Candidates([self.item_ids[row] for row in found.item_K], sources, query, answer)

    def counts(self) -> dict[str, int]:
        """What has happened since the start: that of the read path, and how requests and items were found."""
        return self.reader.counts() | self.counted.as_dict()

    def _vector(self, events: Sequence[Event]) -> np.ndarray | None:
        """Mean vector of what the user lately liked, late likes weighing more; None if there is nothing."""
        liked = dict.fromkeys(e.item_id for e in events if e.liked and e.item_id in self.row_of)
        if not liked:
            return None
        weight_M = 0.5 ** (np.arange(len(liked)) / self.config.reader.interests.half_life)
        mean_D = weight_M @ self.item_ND[[self.row_of[item] for item in liked]]
        return np.asarray(mean_D / max(float(np.linalg.norm(mean_D)), 1e-9), np.float32)

    def _clusters(self, topic: dict[str, Any] | None) -> np.ndarray:
        """The clusters that stand for an interest or exploration: near to its label, or to its cluster's centroid.

        The label of a group of the user's own is no cluster's, and encoding it would cost the request a model.
        """
        column = None if topic is None else self.column_of.get(topic["cluster"])
        if topic is None or column is None:
            if topic is not None:
                self.counted.add(unknown_cluster=1)
            return np.zeros(0, np.int64)
        by_text = self.text_of[topic["cluster"]] == topic["label"]
        self.counted.add(**{"topics_by_text" if by_text else "topics_by_centroid": 1})
        if (column, by_text) not in self.near:
            text_D = (self.label_CD if by_text else self.centroid_CD)[column]
            near_1C = near_clusters(text_D[None], self.centroid_CD, self.config.retrieval)
            self.near[column, by_text] = np.flatnonzero(near_1C[0])
        return self.near[column, by_text]
