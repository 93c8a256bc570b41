"""Pool of Eq. 6: one state per token from the states of all layers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from copilot.ops import reference
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
    return reference.pool_layers(hidden_states, rows, pooling)
