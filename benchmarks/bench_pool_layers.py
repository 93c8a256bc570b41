"""pool_layers against a running sum and against stack + mean.

    python -m pytest benchmarks/bench_pool_layers.py --benchmark-only --results benchmarks/results/cpu

About two minutes. Every layer must be read once and the result written once: a copy that moves as many bytes is the
floor. `-k small` tries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel_rounds import compare
from torch import Tensor

from copilot.ops import extension, pool_layers, reference

CASES = {
    "small": (4, 64, 576, torch.float32),
    "30 x 2048 x 576, float32": (30, 2048, 576, torch.float32),
    "30 x 2048 x 576, bfloat16": (30, 2048, 576, torch.bfloat16),
    "16 x 1024 x 2048, bfloat16": (16, 1024, 2048, torch.bfloat16),
}


@pytest.fixture(scope="module")
def figures(write_results: Callable[[str, dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case; written down when all of them have succeeded."""
    found: dict[str, Any] = {"cases": {}}
    yield found
    if len(found["cases"]) == len(CASES):
        write_results("pool_layers", found)


def stack_and_mean(layers: list[Tensor]) -> Tensor:
    return torch.stack(layers).float().mean(0)


@pytest.mark.parametrize("name", CASES)
def test_pool_layers(benchmark: Any, figures: dict[str, Any], name: str) -> None:
    """The mean over the layers, without gradient, as the Mistake Log takes it."""
    assert extension.LOADED, extension.NOT_LOADED_BECAUSE
    count, rows, width, dtype = CASES[name]
    layers = [torch.randn(rows, width).to(dtype) for _ in range(count)]
    runs = {
        "pool_layers": lambda: pool_layers(layers),
        "running sum": lambda: reference.pool_layers(layers, None, "mean"),
        "stack + mean": lambda: stack_and_mean(layers),
    }
    moved = sum(hidden.nbytes for hidden in layers) + rows * width * 4
    figures["cases"][name] = compare(benchmark, runs, "running sum", moved)
