"""rectify: the kernel against eager and compiled plain torch, and against moving the same bytes.

    python -m pytest benchmarks/bench_rectify.py --benchmark-only --results benchmarks/results/cpu

About ten minutes on two cores, most of them torch.compile's. `-k 8x32000` runs the cases of one shape. Without
--results the figures are in pytest-benchmark's extra_info only.

A round runs every variant once in turn, and a ratio to the kernel is taken within its round: whatever slows the machine
down for a while slows all of them down.

The floor: z (and a dense delta) must be read once, log p~ written once. That is N V (bytes of an element of z + 4), for
a dense delta another N V times its element; the candidates are nothing beside it. "same bytes" does just that, by one
operation of torch that allocates its result as the others do.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from copilot.ops import extension, rectify, reference

ROWS = (1, 8, 64)
VOCABULARIES = (32000, 49152, 128256, 151936)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KEPT = {"32 candidates": 32, "dense": None}
STRENGTH = 0.3
SHAPES = [(n, v) for n in ROWS for v in VOCABULARIES]
CASES = len(SHAPES) * len(DTYPES) * len(KEPT)

KERNEL, EAGER, COMPILED, FLOOR = "kernel", "eager", "torch.compile", "same bytes"

# Rounds of one case: as many as its seconds allow, by its warm-up round, within these bounds.
BUDGET, FEWEST_ROUNDS, MOST_ROUNDS = 2.0, 5, 200

Run = Callable[[], Tensor]


def interleave(benchmark: Any, runs: dict[str, Run]) -> dict[str, list[float]]:
    """Run the variants in turn, round after round: {variant: [seconds in each round]}."""
    seconds: dict[str, list[float]] = defaultdict(list)

    def one_round() -> None:
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)

    one_round()  # compiles
    started = time.perf_counter()
    one_round()
    rounds = int(BUDGET / (time.perf_counter() - started))
    seconds.clear()
    benchmark.pedantic(one_round, rounds=min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS))
    return seconds


def summarise(seconds: dict[str, list[float]], moved: int) -> dict[str, Any]:
    """Seconds, ratio to the kernel and GB/s of every variant: p20, median, p80."""
    kernel = np.array(seconds[KERNEL])
    variants = {
        name: {
            "seconds": np.quantile(values, [0.2, 0.5, 0.8]).tolist(),
            "ratio": np.quantile(np.array(values) / kernel, [0.2, 0.5, 0.8]).tolist(),
            "gigabytes_per_second": moved / float(np.median(values)) / 1e9,
        }
        for name, values in seconds.items()
    }
    return {"rounds": len(kernel), "bytes": moved, "variants": variants}


@pytest.fixture(scope="module")
def figures(write_results: Callable[[str, dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case; written down when all of them have succeeded."""
    settings = {"threads": torch.get_num_threads(), "rectifier": "simplex", "strength": STRENGTH}
    found: dict[str, Any] = {"settings": settings, "cases": {}}
    yield found
    if len(found["cases"]) == CASES:
        write_results("rectify", found)


def variants(logits: Tensor, delta: Tensor, index: Tensor | None) -> dict[str, Run]:
    arguments = logits, delta, STRENGTH, index, "simplex", "probability"
    torch.compiler.reset()
    compiled = torch.compile(reference.rectify, fullgraph=True, dynamic=False)

    def move() -> Tensor:
        out = torch.empty(logits.shape)
        return out.copy_(logits) if index is not None else torch.add(logits, delta, out=out)

    return {
        KERNEL: lambda: rectify(logits, delta, STRENGTH, index=index),
        EAGER: lambda: reference.rectify(*arguments),
        COMPILED: lambda: compiled(*arguments),
        FLOOR: move,
    }


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
@torch.no_grad()
def test_rectify(benchmark: Any, figures: dict[str, Any], shape: tuple[int, int], dtype: str, kept: str) -> None:
    """The default mode; candidates are the Pilot's most likely tokens, as in decoding."""
    assert extension.LOADED, "without the compiled kernels there is nothing to compare"
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(shape, generator=generator)).to(DTYPES[dtype])
    k = KEPT[kept]
    index = None if k is None else logits.topk(k, dim=-1).indices
    delta = torch.randn(logits.shape if index is None else index.shape, generator=generator).to(DTYPES[dtype])
    moved = logits.numel() * (logits.element_size() * (1 if index is not None else 2) + 4)
    case = summarise(interleave(benchmark, variants(logits, delta, index)), moved)
    benchmark.extra_info.update(case)
    figures["cases"][f"{shape[0]} x {shape[1]}, {dtype}, {kept}"] = case
