"""The rectified distribution of Eq. 8."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from copilot.ops import extension, reference

RECTIFIERS = ("simplex", "linear")
FUSIONS = ("probability", "logit")
STRENGTHS = (1e-30, 1e30)  # besides 0; in between, p~ stays within float32


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `accepted`."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}; got {value!r}")


def check_strength(strength: float, rectifier: str, fusion: str) -> None:
    """Raise ValueError unless lambda is 0 or in [1e-30, 1e30]; in [1e-30, 1] for the simplex mixture."""
    mixture = rectifier == "simplex" and fusion == "probability"
    smallest, largest = STRENGTHS[0], 1 if mixture else STRENGTHS[1]
    if strength != 0 and not smallest <= strength <= largest:
        choice = f" (rectifier={rectifier!r}, fusion={fusion!r})" if mixture else ""
        raise ValueError(f"strength must be 0 or in [{smallest}, {largest}]{choice}; got {strength}")


def check_correction(pilot_logits: Tensor, delta: Tensor, index: Tensor | None) -> None:
    """Raise ValueError unless the shapes agree and `index` is int64."""
    if pilot_logits.dim() == 0:
        raise ValueError("pilot_logits must be (..., V); got a scalar")
    if index is None:
        if delta.shape != pilot_logits.shape:
            raise ValueError(
                f"delta must have the shape of pilot_logits {tuple(pilot_logits.shape)}; got {tuple(delta.shape)}"
            )
        return
    if delta.shape != index.shape or index.shape[:-1] != pilot_logits.shape[:-1]:
        expected = ", ".join([*map(str, pilot_logits.shape[:-1]), "k"])
        raise ValueError(
            f"delta and index must both be ({expected}); got {tuple(delta.shape)} and {tuple(index.shape)}"
        )
    if index.dtype != torch.int64:
        raise ValueError(f"index must be int64; got {index.dtype}")


def rectify(
    pilot_logits: Tensor,
    delta: Tensor,
    strength: float,
    *,
    index: Tensor | None = None,
    rectifier: str = "simplex",
    fusion: str = "probability",
) -> Tensor:
    """log p~, the logarithm of the rectified distribution (Eq. 8).

    | rectifier | predicted mistake f     | p~                                                        |
    | simplex   | softmax(z + delta) - p^ | (1 - lambda) p^ + lambda softmax(z + delta)               |
    | linear    | delta                   | max(p^ + lambda delta, 0), renormalised; p^ where all are 0 |

    `fusion="logit"` gives softmax(z + lambda delta) for both. delta = 0 gives the same log_softmax(z), to the last bit,
    in every mode and at any strength.

    Args:
        pilot_logits: (..., V) z, float32, bfloat16 or float16. Entries of -inf stay -inf; a row with NaN becomes NaN.
        delta: (..., V), or (..., k) when `index` is given.
        strength: lambda; 0 is the Pilot, whatever delta is; else in [1e-30, 1] for the simplex mixture, otherwise in
            [1e-30, 1e30].
        index: (..., k) int64, the tokens that `delta` belongs to, distinct within a row; all others have delta = 0.
        rectifier: "simplex" or "linear".
        fusion: "probability" or "logit".

    Returns:
        (..., V) float32. Differentiable in `pilot_logits` and `delta`. The gradient's sums over a row are torch's: how
        they are rounded depends on the number of threads and on the other rows.

    Raises:
        ValueError: shapes or dtypes that do not agree, a strength out of range, an unknown rectifier or fusion.
        RuntimeError: an index out of range.
    """
    check_choice("rectifier", rectifier, RECTIFIERS)
    check_choice("fusion", fusion, FUSIONS)
    check_strength(strength, rectifier, fusion)
    check_correction(pilot_logits, delta, index)
    if not (extension.applies(pilot_logits) and extension.applies(delta)):
        return reference.rectify(pilot_logits, delta, strength, index, rectifier, fusion)
    rows, delta = _rows(pilot_logits), _rows(delta)
    if index is not None:
        index = _rows(index).contiguous()
    return torch.ops.copilot.rectify(rows, delta, index, float(strength), rectifier, fusion).view_as(pilot_logits)


def _rows(tensor: Tensor) -> Tensor:
    """(..., n) as (N, n), each row adjacent."""
    flat = tensor if tensor.dim() == 2 else tensor.reshape(math.prod(tensor.shape[:-1]), tensor.shape[-1])
    return extension.adjacent(flat)


# The gradient, from g, that of log p~. With p = softmax(z) and q = softmax(z + delta):
#   simplex  g is shared between the two terms of the mixture, a_v = g_v (1 - lambda) p_v / p~_v and b_v = g_v - a_v:
#            grad z = g - p sum(a) - q sum(b), grad delta = b - q sum(b)
#   logit    q = softmax(z + lambda delta): grad z = g - q sum(g), grad delta = lambda grad z
#   linear   r = p + lambda delta, of the entries that are not clamped: d_v = (g_v - p~_v sum(g)) / r_v
#            grad z = p (d - sum(p d)), grad delta = lambda d; a row that falls back to p^ has grad z = g - p sum(g)
# A clamped entry stays at -inf when z and delta change a little: its g counts for nothing.


def _simplex_gradients(z: Tensor, delta: Tensor, strength: float, g: Tensor) -> tuple[Tensor, Tensor]:
    if strength == 1:  # q alone
        return _logit_gradients(z, delta, 1.0, g)
    log_p = z.log_softmax(-1)
    log_total = (log_p + delta).logsumexp(-1, keepdim=True)
    # log(lambda q / ((1 - lambda) p)), also where p = q = 0
    of_q = delta - log_total + math.log(strength / (1 - strength))
    a, b = g * (-of_q).sigmoid(), g * of_q.sigmoid()
    through_q = (log_p + delta - log_total).exp() * b.sum(-1, keepdim=True)
    return g - log_p.exp() * a.sum(-1, keepdim=True) - through_q, b - through_q


def _logit_gradients(z: Tensor, delta: Tensor, strength: float, g: Tensor) -> tuple[Tensor, Tensor]:
    grad_z = g - (z + strength * delta).softmax(-1) * g.sum(-1, keepdim=True)
    return grad_z, strength * grad_z


def _linear_gradients(
    z: Tensor, delta: Tensor, strength: float, g: Tensor, log_rectified: Tensor
) -> tuple[Tensor, Tensor]:
    p = z.softmax(-1)
    r = (p + strength * delta).clamp(min=0.0)
    g = torch.where(log_rectified.isneginf(), 0.0, g)
    rd = g - log_rectified.exp() * g.sum(-1, keepdim=True)
    safe_r = torch.where(r == 0, 1.0, r)
    # p / r is 1 without a correction, also where float32 holds p = 0, and in a row that falls back, where all r are 0.
    pd = rd * torch.where((delta == 0) | (r == 0), 1.0, p / safe_r)
    return pd - p * pd.sum(-1, keepdim=True), strength * torch.where(r == 0, 0.0, rd / safe_r)


if extension.LOADED:

    @torch.library.register_fake("copilot::rectify")
    def _(
        pilot_logits: Tensor, delta: Tensor, index: Tensor | None, strength: float, rectifier: str, fusion: str
    ) -> Tensor:
        return pilot_logits.new_empty(pilot_logits.shape, dtype=torch.float32)

    def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, float, str, str], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.strength, ctx.rectifier, ctx.fusion = inputs[3:]

    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        pilot_logits, delta, index = ctx.saved_tensors
        z, full = pilot_logits.float(), delta.float()
        if index is not None:
            full = torch.zeros_like(z).scatter(1, index, full)
        if ctx.strength == 0:  # p alone, whatever delta is
            grad_z, grad_delta = _logit_gradients(z, torch.zeros_like(z), 0.0, grad)
        elif ctx.fusion == "logit":
            grad_z, grad_delta = _logit_gradients(z, full, ctx.strength, grad)
        elif ctx.rectifier == "simplex":
            grad_z, grad_delta = _simplex_gradients(z, full, ctx.strength, grad)
        else:
            log_rectified = torch.ops.copilot.rectify(*ctx.saved_tensors, ctx.strength, ctx.rectifier, ctx.fusion)
            grad_z, grad_delta = _linear_gradients(z, full, ctx.strength, grad, log_rectified)
        if index is not None:
            grad_delta = grad_delta.gather(1, index)
        return grad_z.to(pilot_logits.dtype), grad_delta.to(delta.dtype), None, None, None, None

    torch.library.register_autograd("copilot::rectify", _backward, setup_context=_save)
