import json

import numpy as np
import pyarrow as pa
import pytest

from models.ranking.examples import ITEM_RATE, Preprocessing, index_of, padded, token_matrix
from models.vista.cache import CacheFormat, quantise, restore, to_arrow

VERSIONS = {"item_token_version": "t1", "user_summary_version": "s1"}


def rows(**changes):
    columns = {
        "user_id": ["a", "a", "b"],
        "item_id": ["x", "y", "x"],
        "label": [1, 0, 1],
        "item_num_events": [3, None, 9],
        "item_num_likes": [2, None, 3],
        "item_mean_value": [4.0, None, 2.0],
        "user_num_events": [0, 1, 5],
        "user_num_likes": [0, 1, 2],
        "user_mean_value": [None, 5.0, 3.0],
        "user_recent_item_ids": pa.array([[], ["x"], ["y", "gone", "x"]], pa.list_(pa.string())),
        "user_recent_labels": pa.array([[], [1], [0, 1, 1]], pa.list_(pa.int32())),
        "item_token_ids": pa.array([[0, 7], None, []], pa.list_(pa.int32())),
        "item_token_version": ["t1", None, "t1"],
        "user_summary_version": [None, "s1", "s1"],
        "user_summary": pa.array([None, bytes(range(6)), bytes([255] * 6)], pa.binary()),
        "user_summary_scales": pa.array([None, [0.5, 2.0], [1.0, 1.0]], pa.list_(pa.float32())),
    }
    return pa.table(columns | changes)


def fitted(**changes):
    return Preprocessing.fit(
        rows(),
        ["x", "y", "z"],
        **({"num_recent": 2, "num_tokens": 3, "summary_shape": (2, 3), "content_versions": VERSIONS} | changes),
    )


def test_index_and_padding():
    assert index_of(pa.array(["b", "q", None]), pa.array(["a", "b"])).tolist() == [2, 0, 0]
    lists = pa.chunked_array([pa.array([[1, 2, 3], None]), pa.array([[], [4]])])
    assert padded(lists, 2, int).tolist() == [[1, 2], [0, 0], [0, 0], [4, 0]]
    assert token_matrix(pa.chunked_array([pa.array([[0, 7], None])]), 3).tolist() == [[1, 8, 0], [0, 0, 0]]


def test_rows_become_arrays():
    x = fitted().transform(rows())
    assert x.user_N.tolist() == [1, 1, 2] and x.item_N.tolist() == [1, 2, 1]
    assert x.recent_NL.tolist() == [[0, 0], [1, 0], [2, 0]], "an unknown recent item keeps its place"
    assert x.liked_NL.tolist() == [[0, 0], [1, 0], [-1, 1]]
    assert x.tokens_NT.tolist() == [[1, 8, 0], [0, 0, 0], [0, 0, 0]]
    assert x.summary_NKW[1].tolist() == [[0, 1, 2], [3, 4, 5]] and x.summary_NKW[2, 0, 0] == -1
    assert x.scales_NK.tolist() == [[0, 0], [0.5, 2.0], [1.0, 1.0]]


def test_missing_numbers_are_told_apart_from_zeros():
    p = fitted()
    x = p.transform(rows())
    assert np.isfinite(x.dense_NF).all() and x.dense_NF.shape == (3, p.num_dense)
    missing = x.dense_NF[:, -6:]
    assert missing.tolist() == [[0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0]]


def test_the_like_rate_of_an_unseen_item_is_the_base_rate():
    p = fitted()
    rate = p.raw_dense(rows())[:, ITEM_RATE]
    assert rate[1] == pytest.approx(np.log(2 / 3 / (1 / 3)), rel=1e-6)
    # Two likes of three events, with five of prior: (2 + 5 * 2/3) / 8.
    assert rate[0] == pytest.approx(np.log((2 + 10 / 3) / 8 / (1 - (2 + 10 / 3) / 8)), rel=1e-6)


def test_unseen_users_and_items_are_the_unknown_one():
    x = fitted().transform(rows(user_id=["new", "a", "b"], item_id=["new", "z", "x"]))
    assert x.user_N.tolist() == [0, 1, 2] and x.item_N.tolist() == [0, 3, 1]


def test_only_the_most_active_users_have_a_row_of_their_own():
    assert fitted(max_users=1).users == ("a",)


def test_all_inputs_may_be_null():
    nulls = {n: pa.nulls(3, rows()[n].type) for n in rows().column_names if n not in ("user_id", "item_id", "label")}
    x = fitted().transform(rows(**nulls))
    assert np.isfinite(x.dense_NF).all() and not x.recent_NL.any() and not x.liked_NL.any() and not x.scales_NK.any()


def test_no_rows():
    assert fitted().transform(rows().slice(0, 0)).num_rows == 0


def test_a_summary_of_another_size_is_refused():
    with pytest.raises(ValueError, match="6 bytes, not 4 tokens x 3 values"):
        fitted(summary_shape=(4, 3)).transform(rows())


def test_preprocessing_survives_json():
    import dataclasses

    p = fitted()
    assert Preprocessing.from_json(json.loads(json.dumps(dataclasses.asdict(p)))) == p


@pytest.mark.parametrize(
    "form", [CacheFormat("int4"), CacheFormat("int8", 2), CacheFormat("fp16")], ids=lambda f: f.name
)
def test_summaries_of_every_format_are_read(form):
    tokens = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    tokens[1, 2] = 0
    stored = quantise(tokens, form)
    summaries, scales = (pa.concat_arrays([pa.nulls(1, c.type), *c.chunks]) for c in to_arrow(stored, form))
    version = form.versioned("s1")
    said = {"user_summary": summaries, "user_summary_scales": scales, "user_summary_version": [None, version, version]}
    reader = fitted(summary_shape=(3, 4), content_versions=VERSIONS | {"user_summary_version": version})
    x = reader.transform(rows(**said))
    read = x.summary_NKW.astype(np.float32) * x.scales_NK[..., None]
    np.testing.assert_allclose(read[1:], restore(stored), rtol=1e-6)
    assert not read[0].any() and (x.scales_NK == 0).all(1).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="version s1 and is given version"):
        fitted(summary_shape=(3, 4)).transform(rows(**said))
