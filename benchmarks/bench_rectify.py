"""rectify: the kernel against eager and compiled plain torch, the reference, and moving the same bytes.

    python -m pytest benchmarks/bench_rectify.py --benchmark-only --results benchmarks/results/cpu

About six minutes on two cores, most of them torch.compile's. `-k 8x32000` runs the cases of one shape.

The floor: z (and a dense delta) must be read once, log p~ written once. That is N V (bytes of an element of z + 4), for
a dense delta another N V times its element; the candidates are nothing beside it. The copy does just that, by one
operation of torch that allocates its result as the others do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import plain_torch
import pytest
import torch
from kernel_rounds import COMPILED, DEVICE, EAGER, FLOOR, KERNEL, REFERENCE, Run, compare, written_when_complete
from torch import Tensor

from copilot.ops import rectify, reference

SHAPES = [(n, v) for n in (1, 8, 64) for v in (32000, 49152, 128256, 151936)]
KINDS = {  # type of the logits, candidates
    "float32, 32 candidates": (torch.float32, 32),
    "bfloat16, 32 candidates": (torch.bfloat16, 32),
    "float32, dense": (torch.float32, None),
}
STRENGTH = 0.3


@pytest.fixture(scope="module")
def figures(write_results: Any) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case."""
    count = len(SHAPES) * len(KINDS)
    with written_when_complete(write_results, "rectify", count, rectifier="simplex", strength=STRENGTH) as cases:
        yield cases


def variants(logits: Tensor, delta: Tensor, index: Tensor | None) -> dict[str, Run]:
    arguments = logits, delta, STRENGTH, index
    torch.compiler.reset()
    compiled = torch.compile(plain_torch.rectify, fullgraph=True, dynamic=False)

    def move() -> Tensor:
        out = torch.empty(logits.shape, device=logits.device)
        return out.copy_(logits) if index is not None else torch.add(logits, delta, out=out)

    return {
        KERNEL: lambda: rectify(logits, delta, STRENGTH, index=index),
        EAGER: lambda: plain_torch.rectify(*arguments),
        COMPILED: lambda: compiled(*arguments),
        REFERENCE: lambda: reference.rectify(*arguments, "simplex", "probability"),
        FLOOR: move,
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@torch.no_grad()
def test_rectify(benchmark: Any, figures: dict[str, Any], shape: tuple[int, int], kind: str) -> None:
    """The default mode; candidates are the Pilot's most likely tokens, as in decoding."""
    dtype, k = KINDS[kind]
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = (3 * torch.randn(shape, generator=generator, device=DEVICE)).to(dtype)
    index = None if k is None else logits.topk(k, dim=-1).indices
    kept = logits.shape if index is None else index.shape
    delta = torch.randn(kept, generator=generator, device=DEVICE).to(dtype)
    moved = logits.numel() * (logits.element_size() * (1 if index is not None else 2) + 4)
    case = compare(benchmark, variants(logits, delta, index), moved, budget=1.5)
    figures[f"N = {shape[0]}, V = {shape[1]}, {kind}"] = case
