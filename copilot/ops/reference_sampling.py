"""Plain-torch reference of `rectify_sample`: the specification and the fallback.

A token v is drawn with probability w_v / sum(w) by an exponential race: the smallest of E_v / w_v wins, where
E_v = -log(U_v). The uniforms U_v are a pure function of (seed, offset, row, token), so that a draw depends neither on
how the work is split nor on the rest of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from copilot.ops import reference

WORD = 0xFFFFFFFF  # words of 32 bits in int64 tensors: products wrap, and a shift to the right needs the mask
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def words_of(value: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper 32 bits of an int64 tensor."""
    return value & WORD, (value >> 32) & WORD


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox 4x32-10 (Salmon et al., 2011): four random words from four words of counter and two of key.

    All are int64 tensors of 32-bit words, and broadcast.
    """
    a, b, c, d = counter
    for step in range(ROUNDS):
        first, second = (k + step * increment & WORD for k, increment in zip(key, KEY_STEPS, strict=True))
        low_a, high_a = words_of(MULTIPLIERS[0] * a)
        low_c, high_c = words_of(MULTIPLIERS[1] * c)
        a, b, c, d = high_c ^ b ^ first, low_c, high_a ^ d ^ second, low_a
    return a, b, c, d


def uniforms(seed: Tensor, offset: Tensor, rows: int, vocabulary: int) -> Tensor:
    """U of every row and token, (N, V) float64: odd multiples of 2^-53, so never 0 or 1.

    The key is the seed and the counter (block, row, offset). Token v takes word v % 4 of block 2 (v // 4) for the upper
    32 bits and of the block after it for the rest.
    """
    low_offset, high_offset = words_of(offset.reshape(()))
    row = torch.arange(rows, device=seed.device)[:, None]
    block = 2 * torch.arange((vocabulary + 3) // 4, device=seed.device)

    def words(half: int) -> Tensor:
        counter = torch.broadcast_tensors(block + half, row & WORD, low_offset, high_offset)
        drawn = philox((counter[0], counter[1], counter[2], counter[3]), words_of(seed.reshape(())))
        return torch.stack(drawn, dim=-1).flatten(1)[:, :vocabulary]

    return ((words(0) << 21) | (words(1) >> 11) | 1).double() * 2.0**-53


def warp(log_prob: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """log p~ with temperature, top-k and top-p applied in this order, as transformers does; not renormalised.

    Top-k keeps all ties of the k-th. Top-p keeps the smallest set whose mass reaches top_p, of equal tokens the first.
    """
    scores = log_prob / temperature
    if top_k is not None:
        smallest = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
        scores = scores.masked_fill(scores < smallest, -torch.inf)
    if top_p is not None:
        ordered, order = scores.sort(descending=True, stable=True)
        prob = ordered.double().softmax(-1)
        dropped = prob.cumsum(-1) - prob >= top_p
        scores = scores.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -torch.inf)
    return scores


def rectify_sample(
    logits: Tensor,
    delta: Tensor,
    strength: float,
    index: Tensor | None,
    rectifier: str,
    fusion: str,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor]:
    log_prob = reference.rectify(logits, delta, strength, index, rectifier, fusion)
    undefined = log_prob.isnan().any(-1)
    if temperature == 0:
        token = log_prob.argmax(-1)
    else:
        scores = warp(log_prob, temperature, top_k, top_p)
        race = uniforms(seed, offset, *scores.shape).log().neg().log() - scores.double()  # log(E_v / w_v)
        token = race.argmin(-1)
        # In float64: torch's float32 sum over a large vocabulary can lose the fifth digit on a CPU.
        log_prob = scores.log_softmax(-1, dtype=torch.float64).float()
    value = log_prob.gather(-1, token[:, None]).squeeze(1)
    return token.masked_fill(undefined, -1), value.masked_fill(undefined, math.nan)
