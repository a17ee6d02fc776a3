"""Attention for prompts that share their first tokens: the prefix's keys and values exist once, not once a row.

The scores against the prefix are one large matrix product over all rows; the scores against a row's own tokens are
a small one a row; one softmax runs over both. The result equals plain attention over the concatenation. The idea is
that of Hydragen (Juravsky et al. 2024, arXiv:2402.05099), with one softmax where they merge two by log-sum-exp.

Legend: B rows, H query heads, G key-value heads, R = H / G, Q query tokens, P prefix tokens, L own tokens, D width.
"""

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
        self.keys = key_states.new_empty(b, g, self.capacity, d)
        self.values = value_states.new_empty(b, g, self.capacity, value_states.shape[-1])
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
    r, p = h // g, shared_prefix.length
    layer: Any = module.layer_idx
    scale = d**-0.5 if scaling is None else scaling
    k_prefix, v_prefix = shared_prefix.keys[layer][0], shared_prefix.values[layer][0]
    q_BGRQD = query.view(b, g, r, q, d)
    q_GND = q_BGRQD.transpose(0, 1).reshape(g, b * r * q, d)
    q_BGND = q_BGRQD.reshape(b, g, r * q, d)
    to_prefix = torch.bmm(q_GND, k_prefix.transpose(1, 2)).view(g, b, r, q, p).transpose(0, 1)
    to_own = torch.matmul(q_BGND, key.transpose(2, 3)).view(b, g, r, q, own)
    scores = torch.empty(b, g, r, q, p + own, dtype=torch.float32, device=query.device)
    scores[..., :p] = to_prefix
    scores[..., p:] = to_own
    scores *= scale
    if attention_mask is not None:
        scores[..., p:] += attention_mask.unsqueeze(2)
    weights = torch.softmax(scores, -1).to(query.dtype)
    w_prefix = weights[..., :p].transpose(0, 1).reshape(g, b * r * q, p)
    out = torch.bmm(w_prefix, v_prefix).view(g, b, r, q, -1).transpose(0, 1).reshape(b, h, q, -1)
    out = out + torch.matmul(weights[..., p:].reshape(b, g, r * q, own), value).view(b, h, q, -1)
    return out.transpose(1, 2).contiguous(), None


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
