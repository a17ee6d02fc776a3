"""When a persona is stale, what its digest sees, and that interests are drawn evenly."""

import collections
import datetime as dt

import pytest

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

NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)
CONFIG = InterestConfig(min_items=2)
LIKED = [Event("a", True, 1), Event("b", True, 2), Event("c", True, 1), Event("d", True, 2), Event("e", True, 3)]


def digest(events, window=20):
    return clusters_digest(events, CONFIG, window)


@pytest.mark.parametrize(
    ("events", "same"),
    [
        (LIKED[::-1], True),
        ([Event("f", True, 1), *LIKED], True),
        ([Event("f", False, 3), *LIKED], True),
        ([Event("f", True, None), *LIKED], True),
        ([LIKED[4], *LIKED], True),
        ([Event("f", True, 3), *LIKED], False),
        (LIKED[1:], False),
    ],
    ids=["order", "more of a cluster", "disliked", "no cluster", "one item twice", "new cluster", "cluster gone"],
)
def test_the_digest_changes_with_the_clusters_and_nothing_else(events, same):
    assert (digest(events) == digest(LIKED)) is same


def test_only_the_newest_events_count():
    assert digest(LIKED, window=4) == digest(LIKED) != digest(LIKED, window=2)
    assert digest([]) == digest(LIKED[:1])


@pytest.mark.parametrize(
    ("clusters", "version", "days", "stale"),
    [("c", "v", 6, False), ("c", "v", 8, True), ("d", "v", 0, True), ("c", "w", 0, True)],
)
def test_other_clusters_another_version_or_age_make_a_persona_stale(clusters, version, days, stale):
    persona = ServedPersona("u", "k", "text", [], [], "c", "v", NOW - dt.timedelta(days=days))
    assert is_stale(persona, clusters, version, NOW, FreshnessConfig()) is stale


def test_a_request_draws_evenly_and_the_same_request_the_same():
    options = [{"cluster": n} for n in range(4)]
    drawn = collections.Counter(sample(options, f"r{n}", "interest")["cluster"] for n in range(4000))
    assert set(drawn) == {0, 1, 2, 3} and all(900 < count < 1100 for count in drawn.values())
    assert sample(options, "r1", "interest") == sample(options, "r1", "interest")
    together = {
        (sample(options, f"r{n}", "a")["cluster"], sample(options, f"r{n}", "b")["cluster"]) for n in range(200)
    }
    assert len(together) == 16, "two choices of one request do not depend on each other"
    assert sample([], "r", "interest") is None


def test_recent_interests_come_from_the_events_alone():
    found = recent_interests(LIKED, {1: "crime", 2: "war"}, InterestConfig(min_items=1))
    assert found["label"].to_list() == ["crime", "war"], "the newest like weighs most, and 3 has no label"
    assert recent_interests([], {}, CONFIG).height == 0
