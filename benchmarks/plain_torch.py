"""p~ in plain torch as its users would write it, for what the kernels are compared with.

The reference reads like the equations and passes over the vocabulary many times; here is the default mode in as few
operations as torch has for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rectify(logits: Tensor, delta: Tensor, strength: float, index: Tensor | None) -> Tensor:
    """log p~ (N, V) float32, with the simplex rectifier and fusion of probabilities.

    Args:
        logits: (N, V).
        delta: (N, k) of the tokens `index`, or (N, V).
        strength: between 0 and 1, both excluded.
        index: (N, k) int64, or None.
    """
    log_prob = logits.log_softmax(-1, dtype=torch.float32)
    if index is None:
        log_corrected = (logits.float() + delta).log_softmax(-1)
        return torch.logaddexp(log_prob + math.log1p(-strength), log_corrected + math.log(strength))
    # p~_v = p^_v (1 - lambda + lambda exp(delta_v) / Z), with Z = 1 + sum p^_v (exp(delta_v) - 1): one factor for all
    # tokens but the candidates.
    delta, log_kept = delta.float(), log_prob.gather(-1, index)
    total = 1 + (log_kept.exp() * delta.expm1()).sum(-1, keepdim=True)
    log_kept = log_kept + (1 - strength + strength * delta.exp() / total).log()
    return log_prob.add_((1 - strength + strength / total).log()).scatter_(-1, index, log_kept)
