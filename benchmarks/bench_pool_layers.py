"""pool_layers against a running sum and against stack + mean, eager and compiled.

    python -m pytest benchmarks/bench_pool_layers.py --benchmark-only --results benchmarks/results/cpu

About a minute. Every layer must be read once and the result written once: a copy that moves as many bytes is the floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from kernel_rounds import COMPILED, DEVICE, EAGER, FLOOR, KERNEL, REFERENCE, compare, copy_of, written_when_complete
from torch import Tensor

from copilot.ops import pool_layers, reference

CASES = {
    "30 x 2048 x 576, float32": (30, 2048, 576, torch.float32),
    "30 x 2048 x 576, bfloat16": (30, 2048, 576, torch.bfloat16),
    "16 x 1024 x 2048, bfloat16": (16, 1024, 2048, torch.bfloat16),
}


@pytest.fixture(scope="module")
def figures(write_results: Any) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case."""
    with written_when_complete(write_results, "pool_layers", len(CASES), eager="stack + mean") as cases:
        yield cases


def stack_and_mean(layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).float().mean(0)


@pytest.mark.parametrize("name", CASES)
def test_pool_layers(benchmark: Any, figures: dict[str, Any], name: str) -> None:
    """The mean over the layers, without gradient, as the Mistake Log takes it; the reference is a running sum."""
    count, rows, width, dtype = CASES[name]
    layers = [torch.randn(rows, width, device=DEVICE).to(dtype) for _ in range(count)]
    moved = sum(hidden.nbytes for hidden in layers) + rows * width * 4
    torch.compiler.reset()
    compiled = torch.compile(stack_and_mean, fullgraph=True, dynamic=False)
    runs = {
        KERNEL: lambda: pool_layers(layers),
        EAGER: lambda: stack_and_mean(layers),
        COMPILED: lambda: compiled(layers),
        REFERENCE: lambda: reference.pool_layers(layers, None, "mean"),
        FLOOR: copy_of(moved),
    }
    figures[name] = compare(benchmark, runs, moved, budget=10.0)
