"""What comes is kept at once, together where keeping is slow, and never left behind."""

import threading

import pytest

from ray_jobs.captions.keeper import Keeper


def test_what_comes_while_a_write_rests_is_kept_soon_though_nothing_else_comes():
    kept, written = [], threading.Event()

    def write(batch):
        kept.append(list(batch))
        if sum(map(len, kept)) == 4:
            written.set()
        threading.Event().wait(0.02)

    keeper = Keeper(write)
    for thing in range(4):
        keeper.take(thing)
    assert kept == [[0]], "the first at once, the others wait for the rest to be over"
    assert written.wait(60) and kept == [[0], [1, 2, 3]]
    keeper.finish()
    assert len(kept) == 2


def test_who_rests_at_first_keeps_all_together():
    kept = []
    keeper = Keeper(lambda batch: kept.append(list(batch)), at_first=600.0)
    for thing in range(3):
        keeper.take(thing)
    assert kept == []
    keeper.finish()
    assert kept == [[0, 1, 2]]


def test_what_could_not_be_kept_is_tried_again():
    kept = []

    def write(batch):
        kept.append(list(batch))
        if len(kept) == 1:
            raise OSError("no room")

    keeper = Keeper(write)
    with pytest.raises(OSError, match="no room"):
        keeper.take("one")
    keeper.finish()
    assert kept == [["one"], ["one"]]
