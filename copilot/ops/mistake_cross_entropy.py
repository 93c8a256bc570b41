"""The Pilot's loss (Eq. 2) and its mistakes (Eq. 4) from one read of the logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from copilot.ops import extension, reference
from copilot.ops.mistakes import Mistakes


def mistake_cross_entropy(
    logits: Tensor, labels: Tensor, k: int | None, *, ignore_index: int | None = -100, overwrite_logits: bool = False
) -> tuple[Tensor, Mistakes]:
    """Cross-entropy of every token and the compact mistakes of the supervised ones.

    Since l = -dL^P/dz, the mistakes are the negative gradient of the loss that is computed here anyway.

    Args:
        logits: (N, V) z, float32, bfloat16 or float16.
        labels: (N,) int64 targets; rows equal to `ignore_index` have loss 0 and leave no mistake.
        k: how many of the Pilot's most likely tokens to keep, 1 <= k <= V; None keeps the whole vocabulary. They are
            in descending order, of equal logits the smaller index first.
        ignore_index: the label that means "not supervised"; None when every row is.
        overwrite_logits: the backward may write the gradient into the memory of `logits`, which must not be used after
            it: no second (N, V) tensor. The reference and compiled graphs do not make use of it.

    Returns:
        The losses (N,) float32, differentiable once in `logits`, and the detached `Mistakes` of the M supervised rows,
        in order. A row with NaN has a NaN loss and NaN probabilities.

    Raises:
        ValueError: shapes that do not agree, labels that are not int64 or a k out of range.
        IndexError, RuntimeError: a label that is neither a token nor `ignore_index`.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (N, V) and labels (N,); got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64; got {labels.dtype}")
    if k is not None and not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be None or between 1 and the vocabulary size {logits.shape[1]}; got {k}")
    if not extension.applies(logits):
        return reference.mistake_cross_entropy(logits, labels, k, ignore_index)
    compiling = torch.compiler.is_compiling()
    overwrite_logits = overwrite_logits and not compiling
    if logits.stride(1) != 1 or (overwrite_logits and logits.stride(0) < logits.shape[1]):
        logits = logits.contiguous()
    loss, _, *fields = torch.ops.copilot.mistake_cross_entropy(
        logits, labels.contiguous(), k, ignore_index, overwrite_logits
    )
    fields = [labels.clone(), *fields]  # the caller may reuse the labels' memory
    if ignore_index is not None:
        rows = (labels != ignore_index).nonzero().squeeze(1)
        if compiling or len(rows) != len(labels):
            fields = [field[rows] for field in fields]
    target, top_index, *others = fields
    return loss, Mistakes(target, None if k is None else top_index, *others)


if extension.LOADED:

    @torch.library.register_fake("copilot::mistake_cross_entropy")
    def _(
        logits: Tensor, labels: Tensor, k: int | None, ignore_index: int | None, overwrite_logits: bool
    ) -> tuple[Tensor, ...]:
        count, vocabulary = logits.shape

        def floats(*shape: int) -> Tensor:
            return logits.new_empty(shape, dtype=torch.float32)

        top_index = logits.new_empty(count, 0 if k is None else k, dtype=torch.int64)
        top_prob = floats(count, vocabulary if k is None else k)
        return floats(count), floats(count, 2), top_index, top_prob, floats(count), floats(count), floats(count)

    @torch.library.register_fake("copilot::mistake_cross_entropy_backward")
    def _(grad: Tensor, logits: Tensor, labels: Tensor, largest_and_total: Tensor, ignore_index: int | None) -> Tensor:
        return logits.new_empty(logits.shape)

    @torch.library.register_fake("copilot::mistake_cross_entropy_backward_")
    def _(grad: Tensor, logits: Tensor, labels: Tensor, largest_and_total: Tensor, ignore_index: int | None) -> None:
        return None

    def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, labels, _, ctx.ignore_index, ctx.overwrite_logits = inputs
        _, *fields = output
        ctx.set_materialize_grads(False)  # nor zeros for the fields, one of which may be (N, V)
        ctx.mark_non_differentiable(*fields)
        ctx.save_for_backward(logits, labels, fields[0])

    def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("mistake_cross_entropy cannot be differentiated twice (create_graph=True)")
        logits, labels, largest_and_total = ctx.saved_tensors
        arguments = grad.contiguous(), logits, labels, largest_and_total, ctx.ignore_index
        if not ctx.overwrite_logits:
            return torch.ops.copilot.mistake_cross_entropy_backward(*arguments), None, None, None, None
        torch.ops.copilot.mistake_cross_entropy_backward_(*arguments)
        torch.autograd.graph.increment_version(logits)  # a second backward raises, as does any formula that saved them
        return logits.detach(), None, None, None, None

    torch.library.register_autograd("copilot::mistake_cross_entropy", _backward, setup_context=_save)
