"""Items and their semantic IDs, in both directions.

Shape letters: N items, L levels.
"""

import dataclasses
import functools

import numpy as np

from models.semantic_ids.spec import SemanticIdSpec
from models.semantic_ids.trie import PrefixTrie


@dataclasses.dataclass(frozen=True)
class ItemMap:
    """The semantic IDs of a catalogue.

    Attributes:
        spec: Their form, with the number of collision digits.
        item_ids: Items.
        codes_NL: Codes of each item.
        digits_N: Collision digit of each item.
    """

    spec: SemanticIdSpec
    item_ids: tuple[str, ...]
    codes_NL: np.ndarray
    digits_N: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.item_ids) == len(self.codes_NL) == len(self.digits_N):
            raise ValueError("An item map needs as many items as codes and digits: materialize clusters/semantic_ids.")
        if len(self._items) < len(self.item_ids):
            raise ValueError("Two items have the same semantic ID: materialize clusters/semantic_ids again.")

    @functools.cached_property
    def texts(self) -> list[str]:
        """The semantic ID of each item, as text."""
        return self.spec.format(self.codes_NL, self.digits_N)

    @functools.cached_property
    def _items(self) -> dict[str, str]:
        return dict(zip(self.texts, self.item_ids, strict=True))

    @functools.cached_property
    def _texts(self) -> dict[str, str]:
        return dict(zip(self.item_ids, self.texts, strict=True))

    def item(self, semantic_id: str) -> str | None:
        """The item of a semantic ID; None if no item has it."""
        return self._items.get(semantic_id)

    def semantic_id(self, item_id: str) -> str | None:
        """The semantic ID of an item; None if the map does not know the item."""
        return self._texts.get(item_id)

    def items_below(self, prefix: tuple[int, ...]) -> list[str]:
        """Items whose codes start with ``prefix``, in the map's order: those of a cluster, or of a part of it."""
        matches_N = (self.codes_NL[:, : len(prefix)] == np.asarray(prefix, np.int64)).all(1)
        return [self.item_ids[i] for i in np.flatnonzero(matches_N)]

    @functools.cached_property
    def trie(self) -> PrefixTrie:
        """Trie of codes and collision digits."""
        tokens = np.column_stack([self.codes_NL, self.digits_N])
        return PrefixTrie.build(tokens, self.spec.vocabulary)
