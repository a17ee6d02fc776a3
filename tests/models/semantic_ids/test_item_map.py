import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.semantic_ids.item_map import ItemMap
from models.semantic_ids.spec import SemanticIdSpec, collision_digits
from models.semantic_ids.trie import NOWHERE, ROOT, PrefixTrie

ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 1)), max_size=40)


def every_prefix(widths):
    prefixes = [()]
    for width in widths[:-1]:
        yield from prefixes
        prefixes = [(*p, token) for p in prefixes for token in range(width)]
    yield from prefixes


@settings(max_examples=60)
@given(ROWS)
def test_the_trie_is_brute_force(rows):
    widths = (3, 5, 2)
    trie = PrefixTrie.build(np.array(rows, np.int64).reshape(-1, 3), widths)
    for prefix in every_prefix(widths):
        follow = sorted({row[len(prefix)] for row in rows if row[: len(prefix)] == prefix})
        assert trie.allowed(prefix).tolist() == follow
        assert (trie.node(prefix) != NOWHERE) == (bool(follow) or prefix == ())
    assert all(trie.node(row) != NOWHERE for row in rows)
    assert len({trie.node(row) for row in rows}) == len(set(rows))


def test_a_beam_steps_together():
    rows = np.random.default_rng(0).integers(0, 8, (200, 3))
    trie = PrefixTrie.build(rows, (8, 8, 8))
    node = np.full(64, ROOT)
    tokens = np.random.default_rng(1).integers(-1, 9, (64, 3))
    for depth in range(3):
        mask = trie.mask(node, depth)
        for b in range(64):
            expected = set() if node[b] == NOWHERE else set(trie.allowed(tuple(tokens[b, :depth])).tolist())
            assert set(np.flatnonzero(mask[b]).tolist()) == expected
        node = trie.step(node, tokens[:, depth], depth)
    known = {tuple(r) for r in rows.tolist()}
    assert (node != NOWHERE).tolist() == [tuple(t) in known for t in tokens.tolist()]


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="outside"):
        PrefixTrie.build(np.array([[3]]), (3,))
    with pytest.raises(ValueError, match="do not have 2"):
        PrefixTrie.build(np.array([[0]]), (3, 3))
    with pytest.raises(ValueError, match="nothing follows"):
        PrefixTrie.build(np.array([[0]]), (3,)).allowed((0,))


def test_both_directions_and_only_what_exists():
    codes = np.array([[0, 1], [0, 1], [2, 0], [0, 3]])
    digits = collision_digits(codes)
    spec = SemanticIdSpec((3, 4), "v")
    with pytest.raises(ValueError, match="encoded no catalogue"):
        _ = spec.vocabulary
    items = ItemMap(dataclasses.replace(spec, digits=2), ("a", "b", "c", "d"), codes, digits)
    assert [items.item(items.semantic_id(i)) for i in "abcd"] == list("abcd")
    assert items.item("2-1-0") is None and items.semantic_id("z") is None
    assert items.items_below((0,)) == ["a", "b", "d"] and items.items_below((0, 1)) == ["a", "b"]
    assert items.items_below(()) == list("abcd")
    assert items.spec.vocabulary == (3, 4, 2)
    assert items.trie.allowed((0, 1)).tolist() == [0, 1] and items.trie.allowed((1,)).tolist() == []
    with pytest.raises(ValueError, match="same semantic ID"):
        ItemMap(items.spec, ("a", "b"), codes[:2], np.zeros(2, int))
