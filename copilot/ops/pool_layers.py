"""Pool of Eq. 6: one state per token from the states of all layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
        (M, d), or (..., d) without `rows`; float32. Differentiable; of equal maxima the first layer takes the gradient.

    Raises:
        ValueError: no layers, layers of different shapes, an unknown pooling, rows that are no vector of int64.
        IndexError, RuntimeError: rows out of range.
    """
    check_choice("pooling", pooling, POOLINGS)
    if len({hidden.shape for hidden in hidden_states}) != 1:
        raise ValueError(
            f"hidden_states must be one or more tensors of one shape; got {[tuple(h.shape) for h in hidden_states]}"
        )
    if rows is not None and (rows.dim() != 1 or rows.dtype != torch.int64):
        raise ValueError(f"rows must be (M,) int64; got {tuple(rows.shape)} {rows.dtype}")
    first = hidden_states[0]
    if not all(extension.applies(hidden) for hidden in hidden_states) or first.dim() == 0:
        return reference.pool_layers(hidden_states, rows, pooling)
    layers = list(hidden_states)
    if not all(hidden.is_contiguous() for hidden in layers):
        layers = [extension.adjacent(hidden.reshape(-1, first.shape[-1])) for hidden in layers]
    pooled = torch.ops.copilot.pool_layers(layers, None if rows is None else rows.contiguous(), pooling)
    return pooled if rows is not None else pooled.view(first.shape)


if extension.LOADED:

    @torch.library.register_fake("copilot::pool_layers")
    def _(hidden_states: list[Tensor], rows: Tensor | None, pooling: str) -> Tensor:
        first = hidden_states[0]
        shape = first.shape if rows is None else (rows.shape[0], first.shape[-1])
        return first.new_empty(shape, dtype=torch.float32)

    def _save(ctx: Any, inputs: tuple[list[Tensor], Tensor | None, str], output: Tensor) -> None:
        hidden_states, rows, ctx.pooling = inputs
        ctx.shape, ctx.dtypes = hidden_states[0].shape, [hidden.dtype for hidden in hidden_states]
        ctx.save_for_backward(rows, *([output, *hidden_states] if ctx.pooling == "max" else []))

    def _backward(ctx: Any, grad: Tensor) -> tuple[list[Tensor], None, None]:
        rows, *states = ctx.saved_tensors

        def of_all_rows(part: Tensor) -> Tensor:
            if rows is None:
                return part
            everywhere = part.new_zeros(math.prod(ctx.shape[:-1]), ctx.shape[-1])
            return everywhere.index_add(0, rows, part).view(ctx.shape)

        if ctx.pooling == "max":
            shares = [of_all_rows(share) for share in _shares_of_maximum(grad, states[0], states[1:], rows)]
        else:
            shares = [of_all_rows(grad / len(ctx.dtypes) if ctx.pooling == "mean" else grad)] * len(ctx.dtypes)
        return [share.to(dtype) for share, dtype in zip(shares, ctx.dtypes, strict=True)], None, None

    def _shares_of_maximum(
        grad: Tensor, pooled: Tensor, hidden_states: list[Tensor], rows: Tensor | None
    ) -> Iterator[Tensor]:
        """What each layer gets: the gradient of the elements where it is the first to hold the maximum."""
        left = torch.ones_like(pooled, dtype=torch.bool)
        for hidden in hidden_states:
            taken = hidden if rows is None else hidden.flatten(0, -2)[rows]
            first = left & (taken == pooled)
            left = left & ~first
            yield torch.where(first, grad, 0.0)

    torch.library.register_autograd("copilot::pool_layers", _backward, setup_context=_save)
