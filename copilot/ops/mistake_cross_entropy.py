"""The Pilot's loss (Eq. 2) and its mistakes (Eq. 4) from one read of the logits."""

from __future__ import annotations

from torch import Tensor

from copilot.ops import reference
from copilot.ops.mistakes import Mistakes


def mistake_cross_entropy(
    logits: Tensor, labels: Tensor, k: int | None, *, ignore_index: int = -100
) -> tuple[Tensor, Mistakes]:
    """Cross-entropy of every token and the compact mistakes of the supervised ones.

    Since l = -dL^P/dz, the mistakes are the negative gradient of the loss that is computed here anyway.

    Args:
        logits: (N, V) z, float32, bfloat16 or float16.
        labels: (N,) int64 targets; rows equal to `ignore_index` have loss 0 and leave no mistake.
        k: how many of the Pilot's most likely tokens to keep, 1 <= k <= V; None keeps the whole vocabulary.
        ignore_index: the label that means "not supervised".

    Returns:
        The losses (N,) float32, differentiable in `logits`, and the detached `Mistakes` of the M supervised rows, in
        order.

    Raises:
        ValueError: shapes that do not agree or a k out of range.
    """
    if logits.dim() != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (N, V) and labels (N,); got {tuple(logits.shape)} and {tuple(labels.shape)}")
    if k is not None and not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k must be None or between 1 and the vocabulary size {logits.shape[1]}; got {k}")
    return reference.mistake_cross_entropy(logits, labels, k, ignore_index)
