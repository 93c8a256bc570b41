"""Attention without positions: one module for the Copilot's self- and cross-attention, in every supported family."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward


class CopilotAttention(nn.Module):
    """The projections of a family's attention module, used as Eq. 6: Q from the Copilot, K and V from `source`.

    It owns the very modules of the attention it replaces, so state-dict keys and pretrained weights stay what they
    were; positions, sliding windows and soft caps are gone.

    Args:
        attention: the attention module of a supported decoder layer.
        cache_index: which layer of the Copilot's cache this attention fills.
    """

    def __init__(self, attention: Any, cache_index: int):
        super().__init__()
        long_names = hasattr(attention, "q_proj")
        self.names = ("q_proj", "k_proj", "v_proj", "o_proj") if long_names else ("q", "k", "v", "o")
        for name in (*self.names, "q_norm", "k_norm"):
            if hasattr(attention, name):
                setattr(self, name, getattr(attention, name))
        self.head_dim: int = attention.head_dim if long_names else attention.key_value_proj_dim
        self.scaling: float = attention.scaling if long_names else 1.0  # T5 folds the scale into its weights
        self.num_key_value_groups: int = attention.num_key_value_groups if long_names else 1
        self.dropout: float = attention.attention_dropout if long_names else attention.dropout
        self.cache_index = cache_index

    def _heads(self, projection: str, norm: str | None, states: Tensor) -> Tensor:
        """(B, n, c) -> (B, heads, n, head_dim)."""
        heads = getattr(self, projection)(states).unflatten(-1, (-1, self.head_dim))
        if norm is not None and hasattr(self, norm):
            heads = getattr(self, norm)(heads)
        return heads.transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        source: Tensor | None = None,
        cache_layers: list[CacheLayerMixin] | None = None,
        **_family_arguments: Any,
    ) -> tuple[Tensor, None]:
        """Attend from hidden_states (B, n, c) to source (B, m, c) and to what the cache holds.

        Args:
            hidden_states: (B, n, c) queries.
            attention_mask: (B | 1, 1, n, keys) bool, True where a query sees a key; None sees all.
            source: (B, m, c) new keys and values; None is self-attention.
            cache_layers: the Copilot's cache; the new keys and values are appended to layer `cache_index`.

        Returns:
            (B, n, c), and None in the place of the attention weights.
        """
        q_name, k_name, v_name, o_name = self.names
        source = hidden_states if source is None else source
        query = self._heads(q_name, "q_norm", hidden_states)
        key = self._heads(k_name, "k_norm", source)
        value = self._heads(v_name, None, source)
        if cache_layers is not None:
            key, value = cache_layers[self.cache_index].update(key, value)
        attended, _ = sdpa_attention_forward(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            is_causal=False,
        )
        return getattr(self, o_name)(attended.flatten(2)), None
