import polars as pl

from ray_jobs.clusters.semantic_id_encoding import Moves, moves


def frame(rows):
    return pl.DataFrame(rows, schema=["item_id", "semantic_id", "cluster"], orient="row")


def test_moves_are_counted_by_item():
    before = frame([("a", "0-1-0", 0), ("b", "0-2-0", 0), ("c", "1-1-0", 1), ("gone", "1-2-0", 1)])
    now = frame([("c", "0-3-0", 0), ("a", "0-1-0", 0), ("b", "0-4-0", 0), ("new", "1-1-0", 1)])
    assert moves(before, now) == Moves(moved=2, moved_clusters=1, new=1, gone=1)
    assert moves(before, before) == Moves(0, 0, 0, 0)
