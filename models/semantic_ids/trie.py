"""The prefix trie of semantic IDs: which codes may follow, for decoding that is constrained to items that exist.

Nodes of a depth are numbered by the sorted order of their prefixes, and an edge is the number ``node * width + code``
in a sorted array. A step or a mask is then one binary search for a whole beam, instead of a comparison of every prefix
with every item (GRID's `_check_valid_prefix`, `spec/generative.md`, section 2.4).

Shape letters: N semantic IDs, T tokens (levels and collision digit), B prefixes, W width of a depth, E edges.
"""

import dataclasses

import numpy as np

NOWHERE = -1
ROOT = 0


@dataclasses.dataclass(frozen=True)
class PrefixTrie:
    """A trie of token sequences of one length.

    Attributes:
        widths: Number of tokens that each depth has.
        edges: Sorted edges ``node * width + token`` out of each depth's nodes; the place of an edge is the number of
            the node that it leads to.
    """

    widths: tuple[int, ...]
    edges: tuple[np.ndarray, ...]

    @classmethod
    def build(cls, tokens_NT: np.ndarray, widths: tuple[int, ...]) -> "PrefixTrie":
        """The trie of sequences.

        Args:
            tokens_NT: Sequences; repeated ones count once.
            widths: Number of tokens that each depth has.

        Raises:
            ValueError: If a token is outside of its depth's width.
        """
        if tokens_NT.ndim != 2 or tokens_NT.shape[1] != len(widths):
            raise ValueError(f"Sequences of shape {tokens_NT.shape} do not have {len(widths)} tokens.")
        if len(tokens_NT) and ((tokens_NT < 0) | (tokens_NT >= np.asarray(widths))).any():
            raise ValueError(f"A token is outside of the widths {widths}.")
        node_N, edges = np.zeros(len(tokens_NT), np.int64), []
        for depth, width in enumerate(widths):
            edge_E, node_N = np.unique(node_N * width + tokens_NT[:, depth], return_inverse=True)
            edges.append(edge_E)
        return cls(tuple(int(w) for w in widths), tuple(edges))

    @property
    def depth(self) -> int:
        """Tokens of a whole sequence."""
        return len(self.widths)

    def step(self, node_B: np.ndarray, token_B: np.ndarray, depth: int) -> np.ndarray:
        """Nodes that one more token leads to, `NOWHERE` where no sequence goes on so.

        Args:
            node_B: Nodes of ``depth`` tokens; `ROOT` before the first, `NOWHERE` stays nowhere.
            token_B: The next token of each.
            depth: Tokens before it.
        """
        edge_E, width = self.edges[depth], self.widths[depth]
        valid_B = (node_B != NOWHERE) & (token_B >= 0) & (token_B < width)
        wanted_B = np.where(valid_B, node_B.astype(np.int64) * width + token_B, -1)
        place_B = np.searchsorted(edge_E, wanted_B)
        found_B = valid_B & (place_B < len(edge_E))
        found_B[found_B] = edge_E[place_B[found_B]] == wanted_B[found_B]
        return np.where(found_B, place_B, NOWHERE)

    def mask(self, node_B: np.ndarray, depth: int) -> np.ndarray:
        """Which tokens may follow, shape (B, W), bool: nothing may follow `NOWHERE`.

        Args:
            node_B: Nodes of ``depth`` tokens.
            depth: Tokens before.
        """
        edge_E, width = self.edges[depth], self.widths[depth]
        start_B = np.searchsorted(edge_E, node_B * width)
        size_B = np.where(node_B == NOWHERE, 0, np.searchsorted(edge_E, (node_B + 1) * width) - start_B)
        row_A = np.repeat(np.arange(len(node_B)), size_B)
        ahead_A = np.arange(len(row_A)) - np.repeat(np.cumsum(size_B) - size_B, size_B)
        allowed_BW = np.zeros((len(node_B), width), bool)
        allowed_BW[row_A, edge_E[start_B[row_A] + ahead_A] % width] = True
        return allowed_BW

    def node(self, prefix: tuple[int, ...]) -> int:
        """Node of one prefix, or `NOWHERE`."""
        node_B = np.array([ROOT])
        for depth, token in enumerate(prefix):
            node_B = self.step(node_B, np.array([token]), depth)
        return int(node_B[0])

    def allowed(self, prefix: tuple[int, ...]) -> np.ndarray:
        """Tokens that may follow one prefix, ascending.

        Raises:
            ValueError: If the prefix is a whole sequence already.
        """
        if len(prefix) >= self.depth:
            raise ValueError(f"{prefix} has all {self.depth} tokens of a sequence: nothing follows it.")
        return np.flatnonzero(self.mask(np.array([self.node(prefix)]), len(prefix))[0])
