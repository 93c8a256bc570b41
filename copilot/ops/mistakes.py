"""The mistakes of a batch of tokens in the compact form the Mistake Log keeps."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mistakes:
    """What is kept of l = onehot(y) - p^ (Eq. 4) for M supervised tokens.

    With a correction restricted to the k kept entries, every other probability is scaled by one common factor, so
    `rest_mass` and `rest_square` make the loss and its gradient exact.

    Attributes:
        target: (M,) int64, the true token y.
        top_index: (M, k) int64, the Pilot's k most likely tokens, distinct; None when the whole vocabulary is kept
            (k = V).
        top_prob: (M, k) p^ of those tokens.
        target_prob: (M,) float32, p^ of the true token.
        rest_mass: (M,) float32, sum of p^ over the tokens that are not kept.
        rest_square: (M,) float32, sum of p^ squared over the tokens that are not kept.
    """

    target: Tensor
    top_index: Tensor | None
    top_prob: Tensor
    target_prob: Tensor
    rest_mass: Tensor
    rest_square: Tensor

    def __len__(self) -> int:
        return self.target.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, without `top_index` where it is None."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # which torch.compile can trace
        return {name: value for name, value in values.items() if value is not None}

    def cpu(self) -> Mistakes:
        """A copy in the CPU's memory, or these where they are there already."""
        moved = {name: value.cpu() for name, value in self.tensors().items()}
        return Mistakes(top_index=moved.pop("top_index", None), **moved)

    def error(self) -> tuple[Tensor | None, Tensor]:
        """The mistake as the Copilot reads it: (index, value) with l = sum_j value_j onehot(index_j).

        Sparse: index (M, k + 1) and value (M, k + 1), the last entry being the true token's +1. Dense (`top_index` is
        None): index None and value (M, V).
        """
        value = -self.top_prob.float()
        if self.top_index is None:
            return None, value.scatter_add(1, self.target[:, None], torch.ones_like(value[:, :1]))
        index = torch.cat([self.top_index, self.target[:, None]], dim=1)
        return index, torch.cat([value, torch.ones_like(value[:, :1])], dim=1)
