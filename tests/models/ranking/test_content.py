"""Rows carry the version of their content, and a ranker refuses another one than its own."""

import pyarrow as pa
import pytest

from models.ranking.content import (
    HELD,
    SUMMARY,
    TOKENS,
    ContentVersionError,
    carried,
    only_version,
    readable_summaries,
    require_content,
)
from tests.models.ranking.test_examples import fitted, rows


def test_only_rows_that_have_the_content_carry_a_version():
    # The third item has no token, whatever its version says; the second has nothing at all.
    assert carried(rows(item_token_version=["t1", "t8", "t9"]), TOKENS) == ["t1"]
    assert carried(rows(user_summary_version=[None, "s1", None]), SUMMARY) == ["", "s1"]
    assert carried(rows().drop_columns(["user_summary_version"]), SUMMARY) == [""]
    assert carried(rows().drop_columns(["user_summary"]), SUMMARY) == []
    assert carried(rows(user_summary=pa.nulls(3)), SUMMARY) == []
    assert carried(rows().slice(0, 0), SUMMARY) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"item_token_version": ["t2", None, "t2"]},
            "The ranker was trained on caption tokens of version t1 and is given version t2: train it again on these "
            "(materialize its asset in ranking), or bring captions/caption_tokens back to version t1.",
        ),
        (
            {"user_summary_version": [None, "s1", "s2"]},
            "The ranker was trained on VISTA summaries of version s1 and is given version s2: train it again on these "
            "(materialize its asset in ranking), or bring vista/user_summaries back to version s1.",
        ),
        (
            {"user_summary_version": [None, "s1", ""]},
            "The ranker was trained on VISTA summaries of version s1 and is given version (not carried): train it "
            "again on these (materialize its asset in ranking), or bring vista/user_summaries back to version s1.",
        ),
    ],
)
def test_foreign_content_is_refused_in_one_sentence(change, sentence):
    fitted().transform(rows())
    with pytest.raises(ContentVersionError) as refused:
        fitted().transform(rows(**change))
    assert str(refused.value) == sentence


def test_content_that_is_not_read_may_be_of_any_version():
    plain = fitted(num_tokens=0, summary_shape=(0, 0), content_versions={})
    assert plain.transform(rows(item_token_version=["t2", None, "t2"])).num_rows == 3


def test_a_ranker_that_never_said_what_it_was_trained_on_reads_nothing():
    with pytest.raises(ContentVersionError, match=r"version \(not recorded\) and is given version t1: train it again"):
        require_content(rows(), TOKENS, {})


def test_training_rows_are_of_one_version():
    assert only_version([], TOKENS, "t") == "" and only_version(["a"], TOKENS, "t") == "a"
    for versions, said in ((["a", "b"], "of a and b"), ([""], "of no version"), (["", "a"], "of no version and a")):
        with pytest.raises(ContentVersionError, match=f"{said}, so that no ranker .*materialize captions/caption_tok"):
            only_version(versions, TOKENS, "features/training_set")


def test_a_row_carries_the_summary_that_the_ranker_can_read():
    """The newest of its version, else the held one, else none; and another version only where there is no other."""
    names = ["user_summary", "user_summary_scales", "user_summary_version"]
    newest = [b"n", [1.0], "A"], [b"n", [1.0], "B"], [b"n", [1.0], "B"], [None, None, ""], [b"n", [1.0], "B"]
    held = [None, None, None], [b"h", [2.0], "A"], [None, None, "A"], [None, None, None], [None, None, None]
    types = dict(zip(names, (pa.binary(), pa.list_(pa.float32()), pa.string()), strict=True))
    rows = {n: pa.array([row[i] for row in newest], types[n]) for i, n in enumerate(names)}
    rows |= {HELD[n]: pa.array([row[i] for row in held], types[n]) for i, n in enumerate(names)}
    found, counts = readable_summaries(pa.table(rows), "A")
    assert found.column_names == names and counts == {"newest": 1, "held": 1, "missing": 2}
    assert found["user_summary"].to_pylist() == [b"n", b"h", None, None, b"n"]
    assert found["user_summary_scales"].to_pylist() == [[1.0], [2.0], None, None, [1.0]]
    with pytest.raises(ContentVersionError, match="given version B"):
        require_content(found, SUMMARY, {"user_summary_version": "A"})
    require_content(found.slice(0, 4), SUMMARY, {"user_summary_version": "A"})
    assert readable_summaries(pa.table(rows).slice(0, 0), "A")[1] == {"newest": 0, "held": 0, "missing": 0}
