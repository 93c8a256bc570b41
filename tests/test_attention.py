"""CopilotAttention is Eq. 6 with a family's own projections, and nothing that knows positions."""

from __future__ import annotations

import pytest
import torch
from builders import FAMILIES, WIDTH, fresh_pair, random_pair
from torch import Tensor, nn

from copilot.attention import CopilotAttention
from copilot.model import encoder_decoder_layer

families = pytest.mark.parametrize("kind", FAMILIES)
# 1 / sqrt(head width), which is 8 in all tiny models; T5 folds the scale into its weights.
SCALES = dict.fromkeys(FAMILIES, 8**-0.5) | {"t5": 1.0}


def attention_of(kind: str) -> CopilotAttention:
    """The self-attention of a Copilot's first layer."""
    layer = random_pair(kind).copilot.layers[0]
    return layer.layer[0].SelfAttention if kind == "t5" else layer.self_attn


def states(steps: int, seed: int) -> Tensor:
    return torch.randn(2, steps, WIDTH, generator=torch.Generator().manual_seed(seed))


def by_hand(attention: nn.Module, kind: str, query: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q K^T scale) V, head by head; each group of queries shares its keys and values."""
    names = ("q", "k", "v", "o") if kind == "t5" else ("q_proj", "k_proj", "v_proj", "o_proj")
    to_q, to_k, to_v, to_o = (getattr(attention, name) for name in names)
    q, k, v = (to(x).unflatten(-1, (-1, 8)) for to, x in ((to_q, query), (to_k, source), (to_v, source)))
    if kind in ("qwen3", "gemma3_text"):
        q, k = attention.q_norm(q), attention.k_norm(k)
    heads = []
    for head in range(q.shape[2]):
        shared = head * k.shape[2] // q.shape[2]
        scores = q[:, :, head] @ k[:, :, shared].mT * SCALES[kind]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        heads.append(scores.softmax(-1) @ v[:, :, shared])
    return to_o(torch.cat(heads, dim=-1))


@families
def test_attention_to_a_source_is_softmax_of_scaled_products(kind):
    attention, query, source = attention_of(kind), states(3, 0), states(5, 1)
    with torch.no_grad():
        actual, weights = attention(query, source=source)
        expected = by_hand(attention, kind, query, source, None)
    assert weights is None
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@families
def test_without_a_source_it_attends_to_its_own_states_where_the_mask_says(kind):
    attention, query = attention_of(kind), states(4, 0)
    mask = torch.ones(4, 4, dtype=torch.bool).tril()
    with torch.no_grad():
        actual, _ = attention(query, attention_mask=mask[None, None])
        expected = by_hand(attention, kind, query, query, mask)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_encoder_decoder_layer_is_the_pilots_block_without_relative_positions():
    pair = fresh_pair("t5", layers="all")
    block = pair.pilot.decoder.block[0]
    block.layer[0].SelfAttention.relative_attention_bias.weight.zero_()
    queries, source = states(4, seed=1), states(6, seed=2)
    seen = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    source_seen = torch.tensor([[1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)[:, None, None]
    lowest = torch.finfo(torch.float32).min
    expected = block(
        queries,
        attention_mask=torch.where(seen, 0.0, lowest),
        encoder_hidden_states=source,
        encoder_attention_mask=torch.where(source_seen, 0.0, lowest),
    )[0]
    layer = pair.copilot.layers[0]
    actual = encoder_decoder_layer(layer, queries, seen, source, source_seen.expand(2, 1, 4, 6), None)
    torch.testing.assert_close(actual, expected)
