"""When a persona is still good for a request, and which of its interests the request uses."""

import dataclasses
import datetime as dt
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from models.identity import version_of
from models.personas.interests import InterestConfig, find_interests


@dataclasses.dataclass(frozen=True)
class FreshnessConfig:
    """Knobs of the freshness.

    Attributes:
        window: Newest events of a user whose clusters are compared. No more than `features/user_activity` keeps, or
            readers and workers would never agree.
        max_age_seconds: Age of a persona from which it is written anew even if nothing is known to have changed.
    """

    window: int = 20
    max_age_seconds: float = 7 * 86_400.0


class Event(NamedTuple):
    """One event as the online store knows it: the item, whether it was liked, and the item's cluster (None: none)."""

    item_id: str
    liked: bool
    cluster: int | None


@dataclasses.dataclass(frozen=True)
class ServedPersona:
    """A persona as requests read it.

    Attributes:
        user_id: User.
        content_key: Its text in the store.
        persona: The text.
        interests: Existing interests as in `personas/user_personas`, strongest first.
        explorations: Novel interests.
        clusters: Digest of the clusters that it was written for, see `clusters_digest`.
        persona_version: Codebooks, prompts, model and parameters.
        written: When it was written, or last confirmed.
    """

    user_id: str
    content_key: str
    persona: str
    interests: list[dict[str, Any]]
    explorations: list[dict[str, Any]]
    clusters: str
    persona_version: str
    written: dt.datetime


def recent_interests(newest_first: Sequence[Event], labels: dict[int, str], config: InterestConfig) -> pl.DataFrame:
    """Interests out of a user's newest events, as `find_interests` returns them; without titles.

    Args:
        newest_first: Events.
        labels: Label by cluster.
        config: Knobs of the interests.
    """
    rows = [
        (e.item_id, len(newest_first) - place, e.liked, e.cluster, labels[e.cluster])
        for place, e in enumerate(newest_first)
        if e.cluster is not None and e.cluster in labels
    ]
    schema = {"item_id": pl.String, "position": pl.Int64, "liked": pl.Boolean, "cluster": pl.Int32, "label": pl.String}
    history = pl.DataFrame(rows, schema=schema, orient="row").with_columns(
        pl.lit("").alias("user_id"), pl.lit(None, pl.Float64).alias("value"), pl.lit("").alias("title")
    )
    return find_interests(history, config)


def clusters_digest(newest_first: Sequence[Event], config: InterestConfig, window: int) -> str:
    """Digest of the clusters that a user likes now: it changes when the interests do, not with every event.

    Order and shares are left out, and so is a cluster with fewer than ``min_items`` liked items.

    Args:
        newest_first: The user's events.
        config: Knobs of the interests.
        window: Events that count.
    """
    liked: dict[int, set[str]] = {}
    for event in newest_first[:window]:
        if event.liked and event.cluster is not None:
            liked.setdefault(event.cluster, set()).add(event.item_id)
    return version_of(clusters=sorted(c for c, items in liked.items() if len(items) >= config.min_items))


def is_stale(
    persona: ServedPersona, clusters: str, persona_version: str, now: dt.datetime, config: FreshnessConfig
) -> bool:
    """Whether a persona is to be written anew: other clusters, another version than the one in force, or too old.

    Args:
        persona: What is served.
        clusters: Digest of the history as it is now.
        persona_version: The version in force.
        now: The moment.
        config: Knobs.
    """
    too_old = (now - persona.written).total_seconds() > config.max_age_seconds
    return (persona.clusters, persona.persona_version) != (clusters, persona_version) or too_old


def sample(options: Sequence[dict[str, Any]], request_id: str, purpose: str) -> dict[str, Any] | None:
    """One of the options, uniformly, and the same one for the same request; None if there is none.

    Args:
        options: Interests, or explorations.
        request_id: What seeds the choice.
        purpose: Keeps choices of one request independent.
    """
    # A string seeds by its SHA-512, so that the choice is the same on every machine.
    return random.Random(f"{purpose}:{request_id}").choice(options) if options else None
