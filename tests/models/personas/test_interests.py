import polars as pl
import pytest

from models.personas.interests import InterestConfig, eligible_users, find_interests

CONFIG = InterestConfig(half_life=1e9)
LABELS = {0: "crime", 1: "war", 2: "music"}


def history(rows):
    """Rows of (user, item, cluster, liked[, value])."""
    places: dict[str, int] = {}
    out = []
    for user, item, cluster, liked, *value in rows:
        out.append(
            {
                "user_id": user,
                "item_id": item,
                "position": places.setdefault(user, 0),
                "liked": bool(liked),
                "value": float(value[0]) if value else None,
                "cluster": cluster,
                "label": LABELS[cluster],
                "title": item.upper(),
            }
        )
        places[user] += 1
    return pl.DataFrame(out, schema_overrides={"value": pl.Float64})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # Shares follow likes; evidence is the user's own.
        (
            [("u", "a", 0, 1), ("u", "b", 0, 1), ("u", "c", 0, 1), ("u", "d", 1, 1), ("u", "e", 1, 1)],
            [(0, 0.6, {"a", "b", "c"}), (1, 0.4, {"d", "e"})],
        ),
        # Negative feedback is left out, and what it leaves is too small.
        ([("u", "a", 0, 1), ("u", "b", 0, 1), ("u", "c", 1, 1), ("u", "d", 1, 0)], [(0, 2 / 3, {"a", "b"})]),
        # One item liked three times is one item.
        ([("u", "a", 0, 1), ("u", "a", 0, 1), ("u", "a", 0, 1)], []),
        # Nothing liked.
        ([("u", "a", 0, 0), ("u", "b", 0, 0)], []),
    ],
)
def test_interests_of_a_user(rows, expected):
    found = find_interests(history(rows), CONFIG)
    assert [
        (r["cluster"], pytest.approx(r["share"]), set(r["evidence_item_ids"])) for r in found.iter_rows(named=True)
    ] == expected


def test_late_likes_weigh_more():
    rows = [("u", f"old{i}", 0, 1) for i in range(4)] + [("u", f"new{i}", 1, 1) for i in range(4)]
    even = find_interests(history(rows), CONFIG)
    late = find_interests(history(rows), InterestConfig(half_life=2.0))
    assert even["share"].to_list() == pytest.approx([0.5, 0.5])
    assert late["cluster"].to_list() == [1, 0] and late["share"][0] == pytest.approx(0.8)
    assert late["share"].sum() == pytest.approx(1)


def test_evidence_is_the_strongest_then_the_latest():
    rows = [("u", "weak", 0, 1, 4), ("u", "best", 0, 1, 5), ("u", "late", 0, 1, 4), ("u", "later", 0, 1, 4)]
    (row,) = find_interests(history(rows), CONFIG).iter_rows(named=True)
    assert row["evidence_item_ids"] == ["best", "later", "late"] and row["evidence_titles"] == ["BEST", "LATER", "LATE"]


def test_users_do_not_mix_and_only_the_strongest_interests_stay():
    rows = [(u, f"{u}{c}{i}", c, 1) for u in ("u", "v") for c in range(3) for i in range(4 - c)]
    found = find_interests(history(rows), InterestConfig(max_interests=2))
    assert found.group_by("user_id", maintain_order=True).agg("cluster").rows() == [("u", [0, 1]), ("v", [0, 1])]
    assert all(i.startswith(r["user_id"]) for r in found.iter_rows(named=True) for i in r["evidence_item_ids"])


def test_the_most_active_come_first():
    activity = pl.DataFrame(
        {"user_id": ["b", "a", "few", "dislikes"], "events": [50, 50, 9, 99], "likes": [9, 5, 9, 4]}
    )
    assert eligible_users(activity, InterestConfig())["user_id"].to_list() == ["a", "b"]
