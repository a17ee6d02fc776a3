"""What rankers read of histories that are longer than they learn from."""

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ray_jobs import newest
from ray_jobs.newest import Newest
from ray_jobs.ranking import evaluation as ranker_evaluation
from ray_jobs.ranking import training as ranker_training
from ray_jobs.ranking.data import of_split, read_examples, read_met
from ray_jobs.ranking.files import read_ranker
from ray_jobs.tables.features import TRAINING_SET
from tests.ray_jobs.ranking.test_training import config
from tests.training_sets import seed_training_set

FEW = Newest(trained=6, scored=3)


@pytest.fixture
def long(tables):
    """A training set in which each user has events of all three splits."""
    seed_training_set(tables, num_users=40, num_items=60, per_user=30)
    data = tables.read(TRAINING_SET)
    place = data["position"].to_numpy()
    split = pa.array(np.where(place < 18, "train", np.where(place < 24, "valid", "test")))
    at = data.schema.get_field_index("split")
    tables.write(TRAINING_SET, data.set_column(at, data.schema.field(at), split), "long")
    return tables


def test_the_newest_events_of_each_user_and_split_are_read(long):
    whole, read = read_examples(long.warehouse(), ()), read_examples(long.warehouse(), (), newest=FEW)
    for split, first, size in (("train", 12, 6), ("valid", 21, 3), ("test", 27, 3)):
        found = pl.DataFrame(of_split(read, split))
        assert found.group_by("user_id").len()["len"].to_list() == [size] * 40
        assert found["position"].min() == first
    kept = pl.DataFrame(whole).join(pl.DataFrame(read).select("example_id"), on="example_id", how="semi")
    assert pl.DataFrame(read).equals(kept), "rows are what they were"


def test_nothing_is_left_out_of_histories_that_are_short(long):
    whole = read_examples(long.warehouse(), ())
    assert whole.equals(read_examples(long.warehouse(), (), newest=Newest(trained=18, scored=6)))
    assert whole.num_rows == 40 * 30


@pytest.mark.parametrize("per_user", [60, 600])
def test_what_is_held_does_not_grow_with_the_history(tables, monkeypatch, per_user):
    seed_training_set(tables, num_users=10, num_items=600, per_user=per_user)
    most, since = [], newest._since
    monkeypatch.setattr(newest, "ROWS_AT_ONCE", 50)
    monkeypatch.setattr(newest, "_since", lambda part, first: most.append(part.num_rows) or since(part, first))
    data = read_examples(tables.warehouse(), ("summary",), newest=FEW)
    # Ten times the history, and as many rows are read.
    assert max(most) <= 50 and data.num_rows == 8 * 6 + 2 * 3


def test_ranks_know_the_whole_history_whatever_is_read(long):
    ranker_training.run(config(long, "popularity"))
    with long.artifacts().local(config(long, "popularity").artifact) as folder:
        ranker = read_ranker(folder)
    whole, items = ranker_training.read_data(config(long))
    few, met = read_examples(long.warehouse(), (), newest=FEW), read_met(long.warehouse())
    full = pl.DataFrame(ranker_evaluation.predicted(ranker, whole, items, "v"))
    part = pl.DataFrame(ranker_evaluation.predicted(ranker, few, items, "v", met=met))
    blind = pl.DataFrame(ranker_evaluation.predicted(ranker, few, items, "v"))
    wanted = full.join(part.select("example_id"), on="example_id", how="semi", maintain_order="left")["rank"]
    assert part.height < full.height and part["rank"].equals(wanted) and wanted.count()
    assert not blind["rank"].equals(wanted), "without the older events, items that were met would be ranked"
