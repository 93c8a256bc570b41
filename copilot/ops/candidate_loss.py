"""The Copilot's loss (Eq. 7) from compact mistakes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from copilot.ops import extension, reference
from copilot.ops.mistakes import Mistakes
from copilot.ops.rectify import RECTIFIERS, check_choice

LOSSES = ("rmse", "ce", "kl")


def check_loss(loss: str, rectifier: str) -> None:
    """Raise ValueError for an unknown loss, or for one that the rectifier does not define."""
    check_choice("loss", loss, LOSSES)
    check_choice("rectifier", rectifier, RECTIFIERS)
    if loss != "rmse" and rectifier == "linear":
        raise ValueError(
            f"loss={loss!r} needs rectifier='simplex': the linear p~ has zero entries, whose logarithm is -inf"
        )


def candidate_loss(mistakes: Mistakes, delta: Tensor, *, rectifier: str = "simplex", loss: str = "rmse") -> Tensor:
    """The loss of every row, exact although only k entries of each mistake are kept.

    | loss | value of a row                                                                                   |
    | rmse | the squared error ||f - l||^2; Eq. 7 is the root of its mean. For simplex: sum q^2 - 2 q_y + 1     |
    | ce   | -log q_y                                                                                          |
    | kl   | KL(p^ + l/2 || q); for the one-hot truth itself KL and ce coincide, so the target is half way to it |

    with q = softmax(z + delta), the rectified distribution at lambda = 1.

    Args:
        mistakes: M rows with k kept tokens.
        delta: (M, k) the Copilot's output for the kept tokens ((M, V) when the whole vocabulary is kept).
        rectifier: "simplex" or "linear" (f = delta; rmse only).
        loss: "rmse", "ce" or "kl".

    Returns:
        (M,) float32, differentiable in `delta`.

    Raises:
        ValueError: a delta of another shape than the kept tokens, an unknown or undefined choice.
    """
    check_loss(loss, rectifier)
    if delta.shape != mistakes.top_prob.shape:
        raise ValueError(
            f"delta must be {tuple(mistakes.top_prob.shape)}, as the kept tokens; got {tuple(delta.shape)}"
        )
    if not (extension.applies(delta) and extension.applies(mistakes.top_prob)):
        return reference.candidate_loss(mistakes, delta, rectifier, loss)
    rows = [extension.adjacent(tensor) for tensor in (delta, mistakes.top_prob)]
    index = None if mistakes.top_index is None else mistakes.top_index.long().contiguous()
    columns = [value.float().contiguous() for value in (mistakes.target_prob, mistakes.rest_mass, mistakes.rest_square)]
    target = mistakes.target.long().contiguous()
    losses, _ = torch.ops.copilot.candidate_loss(*rows, index, target, *columns, rectifier, loss)
    return losses


if extension.LOADED:

    @torch.library.register_fake("copilot::candidate_loss")
    def _(delta: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        rows = delta.shape[0]
        return delta.new_empty(rows, dtype=torch.float32), delta.new_empty(rows, 3, dtype=torch.float32)

    @torch.library.register_fake("copilot::candidate_loss_backward")
    def _(upstream: Tensor, gradient: Tensor, delta: Tensor, *_: Any) -> Tensor:
        return delta.new_empty(delta.shape)

    def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        delta, top_prob, top_index, target, *_, rectifier, loss = inputs
        ctx.objective = rectifier, loss
        ctx.save_for_backward(output[1], delta, top_prob, top_index, target)

    def _backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("candidate_loss cannot be differentiated twice (create_graph=True)")
        backward = torch.ops.copilot.candidate_loss_backward
        return backward(upstream.contiguous(), *ctx.saved_tensors, *ctx.objective), *[None] * 8

    torch.library.register_autograd("copilot::candidate_loss", _backward, setup_context=_save)
