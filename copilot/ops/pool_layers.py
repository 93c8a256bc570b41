"""Pool of Eq. 6: one state per token from the states of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from copilot.ops import extension, reference
from copilot.ops.rectify import check_choice

POOLINGS = ("mean", "max", "sum")


def pool_layers(hidden_states: Sequence[Tensor], rows: Tensor | None = None, *, pooling: str = "mean") -> Tensor:
    """Pool L states of equal shape, without stacking them.

    Args:
        hidden_states: L tensors (..., d), the output of each layer.
        rows: (M,) int64 indices into the flattened leading dimensions; None keeps all of them.
        pooling: "mean" (the paper's default), "max" or "sum".

    Returns:
        (M, d), or (..., d) without `rows`; float32.

    Raises:
        ValueError: no layers, layers of different shapes, an unknown pooling.
    """
    check_choice("pooling", pooling, POOLINGS)
    if len({tuple(hidden.shape) for hidden in hidden_states}) != 1:
        raise ValueError(
            f"hidden_states must be one or more tensors of one shape; got {[tuple(h.shape) for h in hidden_states]}"
        )
    first = hidden_states[0]
    if not all(extension.applies(hidden) for hidden in hidden_states) or first.dim() == 0:
        return reference.pool_layers(hidden_states, rows, pooling)
    flat = [hidden.reshape(-1, first.shape[-1]) for hidden in hidden_states]
    flat = [hidden if hidden.stride(1) == 1 else hidden.contiguous() for hidden in flat]
    pooled = torch.ops.copilot.pool_layers(flat, None if rows is None else rows.contiguous(), pooling)
    return pooled if rows is not None else pooled.view(first.shape)


if extension.LOADED:

    @torch.library.register_fake("copilot::pool_layers")
    def _(hidden_states: list[Tensor], rows: Tensor | None, pooling: str) -> Tensor:
        first = hidden_states[0]
        return first.new_empty(len(first) if rows is None else len(rows), first.shape[1], dtype=torch.float32)

    def _save(ctx: Any, inputs: tuple[list[Tensor], Tensor | None, str], output: Tensor) -> None:
        hidden_states, rows, pooling = inputs
        ctx.n_layers, ctx.pooling, ctx.shape, ctx.dtype = (
            len(hidden_states), pooling, hidden_states[0].shape, hidden_states[0].dtype
        )
        ctx.save_for_backward(rows, output, *(hidden_states if pooling == "max" else ()))

    def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None]:
        rows, pooled, *hidden_states = ctx.saved_tensors

        def of_all_rows(part: Tensor) -> Tensor:
            if rows is None:
                return part.to(ctx.dtype)
            return grad.new_zeros(ctx.shape).index_add(0, rows, part).to(ctx.dtype)

        if ctx.pooling != "max":
            share = of_all_rows(grad / ctx.n_layers if ctx.pooling == "mean" else grad)
            return [share] * ctx.n_layers, None, None
        raise NotImplementedError

    torch.library.register_autograd("copilot::pool_layers", _backward, setup_context=_save)
