"""mistake_cross_entropy, forward and backward, against what it replaces: cross_entropy, its backward, softmax and topk.

    python -m pytest benchmarks/bench_mistake_cross_entropy.py --benchmark-only --results benchmarks/results/cpu

The data are random: logits of standard deviation 3. SHAPES of the environment (such as "64x32000,512x49152") chooses
what is measured. Without --results the figures are in pytest-benchmark's extra_info only.

A round runs every variant once in turn, and a ratio is taken within its round. The floor is a copy of the logits: one
read and one write of (N, V), which the gradient needs at least. Eager and compiled softmax give float32 probabilities,
as the kernel does.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from copilot.ops import extension, mistake_cross_entropy, reference

pytestmark = pytest.mark.skipif(not extension.LOADED, reason="the compiled kernels are not loaded")

K = 32
SHAPES = [(n, v) for n in (64, 512) for v in (32000, 49152, 128256, 151936)]
if "SHAPES" in os.environ:
    SHAPES = [tuple(map(int, shape.split("x"))) for shape in os.environ["SHAPES"].split(",")]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EAGER, FLOOR = "eager", "floor: copy of the logits"

# Rounds of one case: as many as its seconds allow, by its first round, within these bounds.
BUDGET, FEWEST_ROUNDS, MOST_ROUNDS = 8.0, 5, 30

Step = Callable[[Tensor], Any]


def plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
    """What the kernel replaces; the backward comes on top."""
    return F.cross_entropy(logits, labels), logits.detach().softmax(-1, dtype=torch.float32).topk(K)


def variants(labels: Tensor) -> dict[str, Step]:
    """Steps over logits (N, V): each gives loss, gradient and mistakes, and may destroy the logits."""
    torch.compiler.reset()
    compiled_loss = torch.compile(plain_loss, dynamic=False)

    def with_backward(loss_of: Callable[[Tensor], tuple[Tensor, Any]]) -> Step:
        def step(logits: Tensor) -> Any:
            z = logits.detach().requires_grad_()
            loss, mistakes = loss_of(z)
            return loss, mistakes, torch.autograd.grad(loss.mean(), z)

        return step

    return {
        EAGER: with_backward(lambda z: plain_loss(z, labels)),
        "torch.compile": with_backward(lambda z: compiled_loss(z, labels)),
        "reference": with_backward(lambda z: reference.mistake_cross_entropy(z, labels, K, -100)),
        "kernel": with_backward(lambda z: mistake_cross_entropy(z, labels, K)),
        "kernel, overwriting": with_backward(lambda z: mistake_cross_entropy(z, labels, K, overwrite_logits=True)),
        FLOOR: torch.clone,
    }


def peak_memory(step: Step, logits: Tensor) -> int:
    """Bytes of tensors that a step holds at most, its result included and its logits not.

    Counted where torch allocates; what the kernel keeps beside that is some KiB a thread.
    """
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = step(logits)
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    del result
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes, initial=0))


def interleave(benchmark: Any, steps: dict[str, Step], logits: Tensor) -> dict[str, list[float]]:
    """Run the variants in turn, round after round, each on fresh logits: {variant: [seconds in each round]}."""
    seconds: dict[str, list[float]] = defaultdict(list)
    scratch = torch.empty_like(logits)

    def one_round() -> None:
        for name, step in steps.items():
            scratch.copy_(logits)
            started = time.perf_counter()
            result = step(scratch)
            seconds[name].append(time.perf_counter() - started)
            del result

    one_round()  # compiles
    started = time.perf_counter()
    one_round()
    rounds = int(BUDGET / (time.perf_counter() - started))
    seconds.clear()
    benchmark.pedantic(one_round, rounds=min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS))
    return seconds


@pytest.fixture(scope="module")
def figures(write_results: Callable[[str, dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case; written down when all of them have succeeded."""
    found: dict[str, Any] = {"settings": {"k": K}, "cases": {}}
    yield found
    if len(found["cases"]) == len(SHAPES) * len(DTYPES):
        write_results("mistake_cross_entropy", found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "v"), SHAPES)
def test_forward_and_backward(benchmark: Any, figures: dict[str, Any], n: int, v: int, dtype: str) -> None:
    """Seconds, ratio to eager (both p20, median, p80) and peak memory of every variant."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(n, v, generator=generator)).to(DTYPES[dtype])
    steps = variants(torch.randint(v, (n,), generator=generator))
    seconds = interleave(benchmark, steps, logits)
    eager = np.array(seconds[EAGER])
    case = {
        "rounds": len(eager),
        "bytes_of_logits": logits.nbytes,
        "variants": {
            name: {
                "seconds": np.quantile(values, [0.2, 0.5, 0.8]).tolist(),
                "ratio": np.quantile(np.array(values) / eager, [0.2, 0.5, 0.8]).tolist(),
                "peak_memory": peak_memory(steps[name], logits.clone()),
            }
            for name, values in seconds.items()
        },
    }
    benchmark.extra_info.update(case)
    figures["cases"][f"N = {n}, V = {v}, {dtype}"] = case
