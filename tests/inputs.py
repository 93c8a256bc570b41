"""Random inputs of a CopilotModel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from builders import VOCAB_SIZE, WIDTH
from torch import Tensor

from copilot import CopilotModel

BATCH, STEPS, CONTEXT, KEPT = 2, 5, 4, 8


@dataclass(frozen=True)
class Inputs:
    """Random arguments of `CopilotModel.forward`."""

    error_index: Tensor
    error_value: Tensor
    context: Tensor
    context_mask: Tensor
    hidden: Tensor
    candidate_index: Tensor


def random_inputs(seed: int = 0) -> Inputs:
    g = torch.Generator().manual_seed(seed)
    return Inputs(
        error_index=torch.randint(VOCAB_SIZE, (BATCH, STEPS, KEPT + 1), generator=g),
        error_value=torch.randn(BATCH, STEPS, KEPT + 1, generator=g),
        context=torch.randn(BATCH, CONTEXT, WIDTH, generator=g),
        context_mask=torch.ones(BATCH, STEPS, CONTEXT, dtype=torch.bool),
        hidden=torch.randn(BATCH, STEPS, WIDTH, generator=g),
        candidate_index=torch.rand(BATCH, STEPS, VOCAB_SIZE, generator=g).argsort(-1)[..., :KEPT],
    )


@torch.no_grad()
def delta_of(copilot: CopilotModel, inputs: Inputs) -> Tensor:
    """(B, n, k)."""
    return copilot(**vars(inputs))
