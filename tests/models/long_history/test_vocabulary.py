"""Vocabulary: 0 is unknown, buckets are monotone, foreign codebooks are refused."""

import json

import numpy as np
import pyarrow as pa
import pytest

from models.long_history.vocabulary import Vocabulary, fit_vocabulary

NAN = float("nan")


@pytest.fixture
def words():
    return fit_vocabulary(
        pa.array(["b", "a", "b", "c"]),
        pa.array(["rate", "click", "rate", "rate"]),
        np.array([1.0, NAN, 5.0, 3.0]),
        [4, 2],
        min_count=1,
    )


def test_items_and_actions(words):
    assert words.encode_items(pa.array(["a", "b", "z"])).tolist() == [1, 2, 0]
    assert words.encode_actions(pa.chunked_array([["rate"], ["view", "click"]])).tolist() == [2, 0, 1]


def test_rare_items_share_the_unknown_row():
    rare = fit_vocabulary(pa.array(["b", "a", "b"]), pa.array(["x"] * 3), np.full(3, NAN), [], min_count=2)
    assert rare.items == ["b"] and rare.num_values == 2 and rare.num_codes == 1


def test_few_distinct_values_keep_their_own_bucket(words):
    assert words.encode_values(np.array([NAN, 1, 2, 3, 5, 9])).tolist() == [0, 1, 1, 2, 3, 3]
    assert words.num_values == 4


def test_many_values_are_cut_at_quantiles():
    values = np.random.default_rng(0).lognormal(size=1000)
    words = fit_vocabulary(pa.array(["a"] * 1000), pa.array(["x"] * 1000), values, [])
    counts = np.bincount(words.encode_values(values))
    assert counts[0] == 0 and counts[1:].min() > 40 and words.encode_values(values).max() < words.num_values


def test_codes_of_levels_do_not_meet(words):
    assert words.encode_codes(np.array([[0, 0], [3, 1], [-1, -1]])).tolist() == [[1, 5], [4, 6], [0, 0]]
    assert words.num_codes == 7
    with pytest.raises(ValueError, match="another codebook"):
        words.encode_codes(np.array([[4, 0]]))


def test_json_round_trip(words):
    assert Vocabulary(**json.loads(json.dumps(words.to_json()))) == words
