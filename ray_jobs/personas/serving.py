"""The read path: a request's persona out of the online store, and a refresh asked for where it is stale or missing.

A request waits for the online store alone: never for a model, and never for the queue, whose database may be away.
"""

import datetime as dt
import logging
import queue as queues
import threading
import time
from typing import Any, Literal, NamedTuple

import polars as pl
import pydantic

from models.personas.freshness import (
    Event,
    FreshnessConfig,
    ServedPersona,
    clusters_digest,
    is_stale,
    recent_interests,
    sample,
)
from models.personas.interests import InterestConfig
from ray_jobs.counts import Counts
from ray_jobs.personas.queue import QueueUnavailableError, RefreshQueue, Wanted
from ray_jobs.personas.sql_queue import PersonaQueue
from ray_jobs.personas.store import PersonaStore, StoreConfig
from ray_jobs.tables.clusters import CLUSTER_PROFILES, SEMANTIC_IDS
from ray_jobs.tables.features import ITEM_POPULARITY
from ray_jobs.warehouse import Warehouse

logger = logging.getLogger("belvedere.personas")

BATCH = 256


class Catalogue(pydantic.BaseModel, frozen=True):
    """What the fallback says without a persona.

    Attributes:
        labels: Label by cluster.
        popular: Clusters by likes, the most liked first.
    """

    labels: dict[int, str]
    popular: list[int]


class Config(pydantic.BaseModel, frozen=True):
    """Knobs of the read path."""

    store: StoreConfig = pydantic.Field(description="The online store.")
    queue: PersonaQueue = pydantic.Field(description="Where refreshes are asked for.")
    persona_version: str = pydantic.Field(description="The version in force.")
    catalogue: Catalogue = pydantic.Field(description="Labels and popular clusters.")
    interests: InterestConfig = pydantic.Field(InterestConfig(), description="Knobs of the interests.")
    freshness: FreshnessConfig = pydantic.Field(FreshnessConfig(), description="When a persona is stale.")
    max_waiting: int = pydantic.Field(10_000, ge=1, description="Requests for refreshes that wait in this process.")
    quiet_seconds: float = pydantic.Field(
        60.0, ge=0, description="How long this process asks no second time for the same refresh."
    )
    store_pause_seconds: float = pydantic.Field(
        5.0, ge=0, description="How long the online store is left alone after it did not answer."
    )


class Answer(NamedTuple):
    """What a request gets.

    Attributes:
        state: ``fresh``, ``stale`` or ``missing``.
        source: ``persona``, ``clusters`` (of the history, without text) or ``popular``.
        persona: The persona, if there is one; a stale one still serves.
        interest: One existing interest, drawn uniformly.
        exploration: One novel interest, drawn uniformly; None if there is none.
        events: The user's newest events, newest first.
    """

    state: Literal["fresh", "stale", "missing"]
    source: Literal["persona", "clusters", "popular"]
    persona: ServedPersona | None
    interest: dict[str, Any] | None
    exploration: dict[str, Any] | None
    events: list[Event]


class Asking:
    """Asks for refreshes in a thread of its own, so that no request waits for the queue.

    What cannot be asked for is counted and dropped: the next request of the user asks again.

    Args:
        queue: The queue.
        max_waiting: Most requests that wait; more are dropped.
        quiet_seconds: How long the same refresh is not asked for again.
        counts: Where ``enqueued``, ``known``, ``dropped`` and ``queue_unavailable`` are counted.
    """

    def __init__(self, queue: RefreshQueue, max_waiting: int, quiet_seconds: float, counts: Counts):
        self.queue, self.quiet_seconds, self.counts = queue, quiet_seconds, counts
        self.waiting: queues.Queue[Wanted] = queues.Queue(max_waiting)
        self.asked: dict[Wanted, float] = {}
        threading.Thread(target=self._work, name="persona-refreshes", daemon=True).start()

    def ask(self, wanted: Wanted) -> None:
        """Asks for a refresh; returns at once."""
        now = time.monotonic()
        if now - self.asked.get(wanted, -self.quiet_seconds) < self.quiet_seconds:
            return
        try:
            self.waiting.put_nowait(wanted)
        except queues.Full:
            self.counts.add(dropped=1)
            return
        if len(self.asked) >= self.waiting.maxsize:
            self.asked.clear()
        self.asked[wanted] = now

    def flush(self) -> None:
        """Waits until everything that was asked for has reached the queue, or was dropped."""
        self.waiting.join()

    def _work(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < BATCH:
                try:
                    batch.append(self.waiting.get_nowait())
                except queues.Empty:
                    break
            try:
                news = self.queue.enqueue(batch)
                self.counts.add(enqueued=sum(news), known=len(news) - sum(news))
            except Exception as error:
                # Whatever it is, this thread must live: without it no refresh would be asked for any more.
                self.counts.add(queue_unavailable=len(batch))
                for wanted in batch:
                    self.asked.pop(wanted, None)
                said = error if isinstance(error, QueueUnavailableError) else type(error).__name__
                logger.warning("personas: %d refreshes could not be asked for: %s", len(batch), said)
            finally:
                for _ in batch:
                    self.waiting.task_done()


class PersonaReader:
    """Reads personas for requests. Thread-safe.

    Args:
        config: Knobs.
        store: An opened store; opens the configured one by default.
        queue: The queue; the configured one by default.
    """

    def __init__(self, config: Config, store: PersonaStore | None = None, queue: RefreshQueue | None = None):
        self.config = config
        self.store = store or config.store.open()
        self.counted = Counts()
        self.away_until = 0.0
        self.asking = Asking(queue or config.queue, config.max_waiting, config.quiet_seconds, self.counted)

    def read(self, user_id: str, request_id: str, now: dt.datetime | None = None) -> Answer:
        """The persona for a request.

        Args:
            user_id: User.
            request_id: Seeds the choice of interests: the same request gets the same ones.
            now: The moment; the clock's by default.
        """
        config, now = self.config, now or dt.datetime.now(dt.UTC)
        found = self._look_up(user_id)
        if found is None:
            return self._answer("missing", None, [], request_id)
        persona, events = found
        clusters = clusters_digest(events, config.interests, config.freshness.window)
        if persona is None:
            state: Literal["fresh", "stale", "missing"] = "missing"
        else:
            old = is_stale(persona, clusters, config.persona_version, now, config.freshness)
            state = "stale" if old else "fresh"
        # Nobody can write a persona of a user without a history.
        if state != "fresh" and (events or persona is not None):
            self.asking.ask(Wanted(user_id, "stale" if persona else "missing", clusters, config.persona_version))
        return self._answer(state, persona, events, request_id)

    def _look_up(self, user_id: str) -> tuple[ServedPersona | None, list[Event]] | None:
        """What the store knows of a user; None while it is away. Its client may try for seconds: one request waits."""
        if time.monotonic() >= self.away_until:
            try:
                return self.store.look_up(user_id, self.config.freshness.window)
            except (ValueError, TypeError) as error:
                # An id that is no text, for one: this request has no persona, the others are served.
                self.counted.add(unreadable=1)
                logger.warning("personas: a user could not be looked up: %s", type(error).__name__)
                return None
            except Exception as error:
                # A request without persona is better than none, whatever the store's client raises.
                self.away_until = time.monotonic() + self.config.store_pause_seconds
                logger.warning("personas: the online store did not answer: %s", type(error).__name__)
        self.counted.add(store_unavailable=1)
        return None

    def counts(self) -> dict[str, int]:
        """What has happened since the start: requests by state and source, refreshes asked for, what was away."""
        return self.counted.as_dict()

    def _answer(
        self,
        state: Literal["fresh", "stale", "missing"],
        persona: ServedPersona | None,
        events: list[Event],
        request_id: str,
    ) -> Answer:
        source: Literal["persona", "clusters", "popular"] = "persona"
        if persona is not None:
            interests, explorations = persona.interests, persona.explorations
        else:
            interests, explorations = self._from_clusters(events), []
            source = "clusters" if interests else "popular"
        if not interests:
            popular = self.config.catalogue.popular[: self.config.interests.max_interests]
            interests = [{"cluster": c, "label": self.config.catalogue.labels[c]} for c in popular]
        self.counted.add(**{state: 1, f"from_{source}": 1})
        interest, exploration = sample(interests, request_id, "interest"), sample(explorations, request_id, "explore")
        return Answer(state, source, persona, interest, exploration, events)

    def _from_clusters(self, events: list[Event]) -> list[dict[str, Any]]:
        """The strongest clusters of a history, however few items they have: the request has nothing better."""
        config = self.config.interests
        single = InterestConfig(half_life=config.half_life, min_items=1, max_interests=config.max_interests)
        found = recent_interests(events, self.config.catalogue.labels, single) if events else pl.DataFrame()
        return found.select("cluster", "label", "share").to_dicts() if found.height else []


def load_catalogue(warehouse: Warehouse) -> Catalogue:
    """Labels and popular clusters, from the newest tables."""
    profiles = pl.DataFrame(warehouse.read(CLUSTER_PROFILES, ["cluster", "label"]))
    clusters = pl.DataFrame(warehouse.read(SEMANTIC_IDS, ["item_id", "cluster"])).join(
        count_likes(warehouse), on="item_id"
    )
    popular = clusters.group_by("cluster").agg(pl.col("num_likes").sum()).join(profiles, on="cluster", how="semi")
    ranked = popular.sort(["num_likes", "cluster"], descending=[True, False])
    return Catalogue(labels=dict(profiles.iter_rows()), popular=ranked["cluster"].to_list())


def count_likes(warehouse: Warehouse) -> pl.DataFrame:
    """Likes of every item that has any events, from the newest table: ``item_id``, ``num_likes``."""
    parts = [pl.DataFrame(p) for p in warehouse.batches(ITEM_POPULARITY, ["item_id", "num_likes"])]
    parts = [p.group_by("item_id").agg(pl.col("num_likes").max()) for p in parts]
    schema = {"item_id": pl.String, "num_likes": pl.Int64}
    return pl.concat([pl.DataFrame(schema=schema), *parts]).group_by("item_id").agg(pl.col("num_likes").max())
