"""Attention for prompts that share their first tokens: the prefix's keys and values exist once, not once a row.

All rows attend to the prefix as the queries of one sequence; each attends to its own tokens; the two are merged by
their log-sum-exp. The result equals plain attention over the concatenation (Hydragen: Juravsky et al. 2024,
arXiv:2402.05099).

Legend: B rows, H query heads, G key-value heads, R = H / G, Q query tokens, P prefix tokens, L own tokens, D width.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

ATTENTION = "belvedere_shared_prefix"


class Prefix(NamedTuple):
    """Keys and values of the shared tokens, one tensor ``(1, G, P, D)`` a layer.

    Attributes:
        keys: Keys, rotated to their positions.
        values: Values.
        length: P.
    """

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]
    length: int


class OwnLayer(CacheLayerMixin):
    """The tokens that follow the prefix, of one layer, in a buffer that is allocated once.

    Args:
        offset: Length P of the prefix.
        capacity: Most own tokens of a row.
    """

    is_sliding = False

    def __init__(self, offset: int, capacity: int):
        super().__init__()
        self.offset, self.capacity, self.used = offset, capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates the buffer in the form of the first states."""
        b, g, _, d = key_states.shape
        # Zeros, as a masked key that is no number would still spoil the sum.
        self.keys = key_states.new_zeros(b, g, self.capacity, d)
        self.values = value_states.new_zeros(b, g, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes new states ``(B, G, Q, D)`` and returns all own states ``(B, G, L, D)``."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.used + key_states.shape[2]
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """See `CacheLayerMixin.get_mask_sizes`."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen, prefix included."""
        return self.offset + self.used

    def get_max_length(self) -> int:
        """Most tokens, prefix included."""
        return self.offset + self.capacity

    def select(self, rows: torch.Tensor) -> None:
        """Keeps only ``rows``."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]

    def rows(self, rows: torch.Tensor) -> "OwnLayer":
        """A copy of ``rows``."""
        taken = copy.copy(self)
        taken.select(rows)
        return taken

    @staticmethod
    def joined(layers: Sequence["OwnLayer"]) -> "OwnLayer":
        """The rows of all layers, which may have seen different numbers of tokens."""
        first = copy.copy(layers[0])
        first.used = max(layer.used for layer in layers)
        for name in ("keys", "values"):
            setattr(first, name, torch.cat([getattr(layer, name) for layer in layers]))
        return first


def own_cache(prefix: Prefix, capacity: int) -> Cache:
    """An empty cache of the tokens that follow ``prefix``."""
    return Cache(layers=[OwnLayer(prefix.length, capacity) for _ in prefix.keys])


def shared_prefix_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prefix: Prefix | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of ``query`` to the prefix and to the row's own tokens.

    Args:
        module: The attention module; its ``layer_idx`` finds the prefix's layer.
        query: ``(B, H, Q, D)``.
        key: Own keys ``(B, G, L, D)``.
        value: Own values ``(B, G, L, D)``.
        attention_mask: Additive mask of the own tokens ``(B, 1, Q, L)``; the prefix is never masked.
        scaling: Factor on the scores; ``D ** -0.5`` by default.
        dropout: Must be 0: this attention is for decoding.
        shared_prefix: The prefix; without it this is scaled dot-product attention.
        **kwargs: What else the model passes.

    Returns:
        The output ``(B, Q, H, D)``, and None for the weights.

    Raises:
        NotImplementedError: If the model wants attention sinks or capped scores.
    """
    if shared_prefix is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    unsupported = [n for n in ("softcap", "s_aux", "position_bias") if kwargs.get(n) is not None]
    if unsupported or dropout:
        raise NotImplementedError(
            f"Shared-prefix decoding does not know {', '.join(unsupported) or 'dropout'}: "
            "serve this model behind an OpenAI-compatible endpoint instead."
        )
    b, h, q, d = query.shape
    g, own = key.shape[1], key.shape[2]
    r = h // g
    layer: Any = module.layer_idx
    scale = d**-0.5 if scaling is None else scaling
    q_BGND = query.reshape(b, g, r * q, d)
    mask = None if attention_mask is None else attention_mask.expand(b, 1, q, own).repeat(1, 1, r, 1)
    out, lse = _attend(q_BGND, key, value, mask, scale)
    if shared_prefix.length:
        q_1GND = q_BGND.transpose(0, 1).reshape(1, g, b * r * q, d)
        over_prefix, lse_prefix = _attend(q_1GND, shared_prefix.keys[layer], shared_prefix.values[layer], None, scale)
        over_prefix = over_prefix.view(g, b, r * q, -1).transpose(0, 1)
        lse_prefix = lse_prefix.view(g, b, r * q).transpose(0, 1)
        # The softmax over both parts weighs each by its share of the exponentials' sum.
        share = torch.sigmoid(lse_prefix - lse).unsqueeze(-1).to(out.dtype)
        out = torch.lerp(out, over_prefix, share)
    return out.view(b, h, q, -1).transpose(1, 2).contiguous(), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention ``(B, G, N, D)`` with the logarithm of the sum of the exponentials ``(B, G, N)``."""
    if query.device.type == "cpu":
        mask = None if mask is None else mask.to(query.dtype)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=mask, scale=scale
        )
    scores = torch.matmul(query, key.transpose(2, 3)).float() * scale
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, -1)
    return torch.matmul(torch.exp(scores - lse.unsqueeze(-1)).to(value.dtype), value), lse


AttentionInterface.register(ATTENTION, shared_prefix_attention)


@torch.inference_mode()
def compute_prefix(model: Any, ids: list[int]) -> Prefix:
    """Runs the shared tokens through the model once.

    Args:
        model: A causal language model of `transformers` whose attention is `ATTENTION`.
        ids: Token ids; may be empty.
    """
    config = model.config
    if not ids:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        none = torch.empty(1, heads, 0, width, dtype=model.dtype, device=model.device)
        return Prefix((none,) * config.num_hidden_layers, (none,) * config.num_hidden_layers, 0)
    cache = DynamicCache()
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = list(cache.layers)
    return Prefix(tuple(x.keys.contiguous() for x in layers), tuple(x.values.contiguous() for x in layers), len(ids))
