"""Plain-torch references: they read like the equations, they are the specification, and they are the fallback.

Notation: z are the Pilot's logits, p^ = softmax(z), delta the Copilot's output, lambda the strength,
l = onehot(y) - p^ (Eq. 4), f the predicted mistake, p~ = p^ + lambda f (Eq. 8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from copilot.ops.mistakes import Mistakes


def mistakes_of(log_prob: Tensor, target: Tensor, k: int | None) -> Mistakes:
    """The compact mistakes of (M, V) log p^ and (M,) targets; `k=None` keeps the whole vocabulary."""
    prob = log_prob.exp()
    target_prob = prob.gather(1, target[:, None]).squeeze(1)
    if k is None:
        zero = torch.zeros_like(target_prob)
        return Mistakes(target, None, prob, target_prob, zero, zero)
    top_prob, top_index = prob.topk(k, dim=1)
    rest = prob.scatter(1, top_index, 0.0)
    return Mistakes(target, top_index, top_prob, target_prob, rest.sum(1), rest.square().sum(1))


def mistake_cross_entropy(
    logits: Tensor, labels: Tensor, k: int | None, ignore_index: int | None
) -> tuple[Tensor, Mistakes]:
    log_prob = F.log_softmax(logits.float(), dim=-1)
    if ignore_index is None:
        loss = -log_prob.gather(1, labels[:, None]).squeeze(1)
        return loss, mistakes_of(log_prob.detach(), labels.clone(), k)
    loss = F.nll_loss(log_prob, labels, ignore_index=ignore_index, reduction="none")
    rows = (labels != ignore_index).nonzero().squeeze(1)
    kept = log_prob if len(rows) == len(labels) else log_prob[rows]
    return loss, mistakes_of(kept.detach(), labels[rows], k)


def log_mean(difference: Tensor, weight: float, one_minus_weight: float) -> Tensor:
    """log(1 - weight + weight exp(difference)) for difference <= 0; exactly 0 at 0."""
    near = torch.log1p(weight * torch.expm1(difference.clamp(min=-1.0)))
    return torch.where(difference > -1.0, near, torch.log(one_minus_weight + weight * difference.exp()))


def mix_log(log_p: Tensor, log_q: Tensor, strength: float) -> Tensor:
    """log((1 - lambda) p + lambda q), factoring out the larger of the two; exactly log p where p equals q."""
    if strength == 1.0:
        return log_q
    difference = torch.where(torch.isneginf(log_p), 0.0, log_q - log_p)
    p_is_larger = log_p + log_mean(difference.clamp(max=0.0), strength, 1.0 - strength)
    q_is_larger = log_q + log_mean(-difference.clamp(min=0.0), 1.0 - strength, strength)
    return torch.where(difference > 0, q_is_larger, p_is_larger)


def rectify(
    logits: Tensor, delta: Tensor, strength: float, index: Tensor | None, rectifier: str, fusion: str
) -> Tensor:
    logits = logits.float()
    delta = delta.float()
    if index is not None:
        delta = torch.zeros_like(logits).scatter(-1, index, delta)
    if strength == 0:
        return F.log_softmax(logits, dim=-1)
    if fusion == "logit":
        return F.log_softmax(logits + strength * delta, dim=-1)
    log_p = F.log_softmax(logits, dim=-1)
    if rectifier == "simplex":
        return mix_log(log_p, F.log_softmax(logits + delta, dim=-1), strength)
    untouched = delta == 0  # their log-probability stays, to the last bit and however small
    rectified = (log_p.exp() + strength * delta).clamp(min=0.0)
    gone = torch.isneginf(log_p) | (~untouched & (rectified == 0))
    log_rectified = torch.where(untouched, log_p, torch.where(untouched | gone, 1.0, rectified).log())
    # A row of which nothing is left is the Pilot's, as is one without a correction.
    pilots = gone.all(-1, keepdim=True) | untouched.all(-1, keepdim=True)
    log_rectified = torch.where(pilots, log_p, torch.where(gone, -torch.inf, log_rectified))
    return log_rectified - torch.where(pilots, 0.0, log_rectified.logsumexp(-1, keepdim=True))


def predicted_mistake(top_prob: Tensor, rest_mass: Tensor, delta: Tensor, rectifier: str) -> tuple[Tensor, Tensor]:
    """The predicted mistake f from the kept probabilities (M, k), the rest's mass (M,) and delta (M, k).

    Returns f of the kept tokens (M, k), and g (M,) with f_v = (g - 1) p^_v for every other token.
    """
    if rectifier == "linear":
        return delta, torch.ones_like(rest_mass)
    top_prob = top_prob.float()
    others = rest_mass > 0  # the tokens that are not kept, whose delta is 0
    largest = torch.where(top_prob > 0, delta, -torch.inf).amax(1)  # of the tokens that have a weight at all
    largest = torch.where(others, largest.clamp(min=0.0), largest)
    weight = top_prob * (delta - largest[:, None]).clamp(max=0.0).exp()  # exp never overflows
    log_unchanged = torch.where(others, -largest, -torch.inf)
    # Divided by what the same sums give for delta = 0, so that f is exactly 0 there.
    total = (weight.sum(1) + rest_mass * log_unchanged.exp()) / (top_prob.sum(1) + rest_mass)
    total = total.clamp(min=torch.finfo(torch.float32).tiny)  # 1 divided by less is infinite
    # As logarithms: the gradient of a quotient would divide by total^2.
    return weight / total[:, None] - top_prob, (log_unchanged - total.log()).exp()


def at_target(mistakes: Mistakes, kept: Tensor, otherwise: Tensor) -> Tensor:
    """The entry of `kept` (M, k) that belongs to the target, or `otherwise` (M,) where the target is not kept."""
    if mistakes.top_index is None:
        return kept.gather(1, mistakes.target[:, None]).squeeze(1)
    match = mistakes.top_index == mistakes.target[:, None]
    return torch.where(match.any(1), torch.where(match, kept, 0.0).sum(1), otherwise)


def sum_of_squares(mistakes: Mistakes, kept: Tensor, factor: Tensor) -> Tensor:
    """Over the vocabulary (M,), of `kept` (M, k) on the kept tokens and `factor` (M,) times p^ on all others."""
    return kept.square().sum(1) + factor * mistakes.rest_square * factor  # beside a tiny rest factor^2 may overflow


def candidate_loss(mistakes: Mistakes, delta: Tensor, rectifier: str, loss: str) -> Tensor:
    delta = delta.float()
    if loss == "rmse":
        return squared_error(mistakes, delta, rectifier)
    # log q_v = log p^_v + delta_v - log Z with Z = sum_v p^_v exp(delta_v)
    tiny = torch.finfo(torch.float32).tiny
    log_prob = mistakes.top_prob.float().log()
    log_target_prob = mistakes.target_prob.clamp(min=tiny).log()
    log_total = torch.logsumexp(torch.cat([log_prob + delta, mistakes.rest_mass.log()[:, None]], dim=1), dim=1)
    log_q_target = log_target_prob + at_target(mistakes, delta, torch.zeros_like(log_total)) - log_total
    if loss == "ce":
        return -log_q_target
    # KL(t || q) with t = p^ + l / 2, half of the way to the truth. Outside the kept tokens log(t_v / q_v) is constant.
    t_target = (1.0 + mistakes.target_prob) / 2
    log_ratio_rest = log_total - math.log(2)
    kept = mistakes.top_prob.float() / 2 * (log_total[:, None] - math.log(2) - delta)
    own_share = mistakes.target_prob / 2 * (log_ratio_rest - at_target(mistakes, delta, torch.zeros_like(log_total)))
    return (
        kept.sum(1) + mistakes.rest_mass / 2 * log_ratio_rest - own_share + t_target * (t_target.log() - log_q_target)
    )


def squared_error(mistakes: Mistakes, delta: Tensor, rectifier: str) -> Tensor:
    """||f - l||^2 of every row (M,)."""
    f, factor = predicted_mistake(mistakes.top_prob, mistakes.rest_mass, delta, rectifier)
    f_target = at_target(mistakes, f, (factor - 1.0) * mistakes.target_prob)
    # f - l = f + p^ - onehot(y): the square of f + p^ over all tokens, then the target's share exchanged.
    square = sum_of_squares(mistakes, f + mistakes.top_prob.float(), factor)
    return square - 2.0 * (f_target + mistakes.target_prob) + 1.0


def rectify_kept(
    mistakes: Mistakes, delta: Tensor, strength: float, rectifier: str, fusion: str
) -> tuple[Tensor, Tensor, Tensor]:
    """p~ without the vocabulary: of the kept tokens (M, k), the factor on p^ of all others (M,), of the target (M,).

    The same numbers as `rectify`, up to rounding; that p^ is 0 in float32 counts as a logit of -inf.
    """
    prob = mistakes.top_prob.float()
    if fusion == "logit":
        f, factor = predicted_mistake(mistakes.top_prob, mistakes.rest_mass, strength * delta, "simplex")
        kept = prob + f
    else:
        f, factor = predicted_mistake(mistakes.top_prob, mistakes.rest_mass, delta, rectifier)
        kept = torch.where(prob > 0, prob + strength * f, 0.0).clamp(min=0.0)
        factor = 1.0 + strength * (factor - 1.0)
    total = kept.sum(1) + factor * mistakes.rest_mass
    empty = total <= 0
    kept = torch.where(empty[:, None], prob, kept / total[:, None])
    factor = torch.where(empty, 1.0, factor / total)
    return kept, factor, at_target(mistakes, kept, factor * mistakes.target_prob)


def pool_layers(hidden_states: Sequence[Tensor], rows: Tensor | None, pooling: str) -> Tensor:
    """Running mean, sum or maximum, so that the layers are never stacked."""
    pooled: Tensor | None = None
    for hidden in hidden_states:
        taken = (hidden if rows is None else hidden.flatten(0, -2).index_select(0, rows)).float()
        if pooled is None:
            pooled = taken.clone()
        elif pooling == "max":
            pooled = torch.where((taken > pooled) | taken.isnan(), taken, pooled)  # of equal maxima, the first
        else:
            pooled += taken
    assert pooled is not None
    return pooled / len(hidden_states) if pooling == "mean" else pooled
