import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.semantic_ids.spec import SemanticIdSpec, collision_digits, widths_for

SPEC = SemanticIdSpec((4, 8), "v1")


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=60))
def test_codes_and_digit_are_unique_and_digits_count_from_zero(rows):
    codes = np.array(rows, np.int32).reshape(-1, 2)
    digits = collision_digits(codes)
    texts = SPEC.format(codes, digits)
    assert len(set(texts)) == len(texts)
    for code in set(rows):
        assert [d for c, d in zip(rows, digits, strict=True) if c == code] == list(range(rows.count(code)))
    for text, row, digit in zip(texts, rows, digits, strict=True):
        assert SPEC.parse(text) == (row, digit)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=30), st.data())
def test_digits_that_are_kept_stay_and_the_rest_is_unique(rows, data):
    codes = np.array(rows, np.int32).reshape(-1, 2)
    before = collision_digits(codes)
    left = [i for i in range(len(rows)) if data.draw(st.booleans())]
    new = data.draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=10))
    order = data.draw(st.permutations(range(len(left) + len(new))))
    now = [*(rows[i] for i in left), *new]
    kept = np.array([*(int(before[i]) for i in left), *(-1 for _ in new)], int)[list(order)]
    digits = collision_digits(np.array([now[i] for i in order], np.int32).reshape(-1, 2), kept)
    assert (digits[kept >= 0] == kept[kept >= 0]).all()
    assert len({(now[i], d) for i, d in zip(order, digits.tolist(), strict=True)}) == len(now)
    assert max(digits.tolist(), default=0) <= len(rows) + len(new)


@pytest.mark.parametrize("text", ["1-2", "1-2-3-4", "4-0-0", "1-8-0", "a-1-0", "-1-1-0", ""])
def test_what_is_no_semantic_id_is_refused(text):
    with pytest.raises(ValueError):
        SPEC.parse(text)


@pytest.mark.parametrize(
    ("num_items", "widths"),
    [
        (0, (1, 1, 1)),
        (1, (1, 1, 1)),
        (3, (3, 3, 3)),
        (5, (4, 4, 4)),
        (40, (16, 16, 16)),
        (1682, (64, 64, 64)),
        (12_101, (256, 256, 256)),
        (10**9, (1024, 1024, 1024)),
    ],
)
def test_widths_suit_the_catalogue(num_items, widths):
    assert widths_for(num_items, levels=3, max_width=1024) == widths


def test_form_is_checked():
    assert SPEC.levels == 2 and SPEC.capacity == 32
    with pytest.raises(ValueError, match="levels"):
        SPEC.check(np.zeros((1, 3), int))
    with pytest.raises(ValueError, match="outside"):
        SPEC.check(np.array([[0, 8]]))
    with pytest.raises(ValueError, match="at least one level"):
        SemanticIdSpec((), "v")
    with pytest.raises(ValueError, match="at least one level"):
        widths_for(10, levels=0, max_width=4)
