"""mistake_cross_entropy, forward and backward, against what it replaces: cross_entropy, its backward, softmax and topk.

    python -m pytest benchmarks/bench_mistake_cross_entropy.py --benchmark-only --results benchmarks/results/cpu

About five minutes on two cores. The data are random: logits of standard deviation 3. The floor is a copy of the logits:
one read and one write of (N, V), which the gradient needs at least. Eager and compiled softmax give float32
probabilities, as the kernel does. All rows are supervised, and the kernel is told so, as in training; in its variant
with ignore_index it looks for rows that are not, and the CPU waits for it.

On a GPU with Liger-Kernel (`pip install liger-kernel`) its cross-entropy is measured too, as its users call it: with
its checks of the labels, for which the CPU waits, so that the kernel with ignore_index is what it compares with. It
writes the gradient over the logits, and keeps no tokens: "Liger" is the loss and the gradient alone, less than the
others do; with softmax and topk before it, it is the same job.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel_rounds import (
    COMPILED,
    DEVICE,
    EAGER,
    FLOOR,
    KERNEL,
    LIGER,
    REFERENCE,
    compare,
    public_kernels,
    version_of,
    written_when_complete,
)
from torch import Tensor
from torch.nn import functional as F

from copilot.ops import mistake_cross_entropy, reference

K = 32
SHAPES = [(n, v) for n in (64, 512) for v in (32000, 49152, 128256, 151936)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
OVERWRITING = "kernel, overwriting the logits"
LOOKING = "kernel, overwriting the logits, ignore_index=-100"
LIGER_AND_TOP_K = f"{LIGER}, softmax and topk"

Step = Callable[[Tensor], Any]


def plain_mistakes(logits: Tensor) -> Any:
    return logits.detach().softmax(-1, dtype=torch.float32).topk(K)


def plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
    """What the kernel replaces; the backward comes on top."""
    return F.cross_entropy(logits, labels), plain_mistakes(logits)


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

    steps = {
        EAGER: with_backward(lambda z: plain_loss(z, labels)),
        COMPILED: with_backward(lambda z: compiled_loss(z, labels)),
        REFERENCE: with_backward(lambda z: reference.mistake_cross_entropy(z, labels, K, None)),
        KERNEL: with_backward(lambda z: mistake_cross_entropy(z, labels, K, ignore_index=None)),
        OVERWRITING: with_backward(
            lambda z: mistake_cross_entropy(z, labels, K, ignore_index=None, overwrite_logits=True)
        ),
        LOOKING: with_backward(lambda z: mistake_cross_entropy(z, labels, K, overwrite_logits=True)),
        FLOOR: torch.clone,
    }
    liger = public_kernels("liger_kernel.transformers.functional")
    if liger is not None:

        def liger_loss(logits: Tensor) -> tuple[Tensor, Any]:
            mistakes = plain_mistakes(logits)  # of logits that are still there
            return liger.liger_cross_entropy(logits, labels), mistakes

        steps[LIGER] = with_backward(lambda z: (liger.liger_cross_entropy(z, labels), None))
        steps[LIGER_AND_TOP_K] = with_backward(liger_loss)
    return steps


def peak_memory(step: Step, logits: Tensor) -> int:
    """Bytes of tensors that a step holds at most, its result included and its logits not.

    Counted where torch allocates; what the kernel keeps beside that is some KiB a thread.
    """
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(logits)
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        result = step(logits)
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    del result
    sizes = (event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(itertools.accumulate(sizes, initial=0))


@pytest.fixture(scope="module")
def figures(write_results: Any) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case."""
    settings = {"k": K, "liger_kernel": version_of("liger-kernel")}
    with written_when_complete(write_results, "mistake_cross_entropy", len(SHAPES) * len(DTYPES), **settings) as cases:
        yield cases


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_forward_and_backward(benchmark: Any, figures: dict[str, Any], shape: tuple[int, int], dtype: str) -> None:
    """Time of every variant on fresh logits, and its peak memory."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = (3 * torch.randn(shape, generator=generator, device=DEVICE)).to(DTYPES[dtype])
    scratch = logits.clone()
    steps = variants(torch.randint(shape[1], shape[:1], generator=generator, device=DEVICE))
    runs = {name: lambda step=step: step(scratch) for name, step in steps.items()}
    case = compare(benchmark, runs, 2 * logits.nbytes, budget=4.0, prepare=lambda: scratch.copy_(logits))
    for name, step in steps.items():
        case["variants"][name]["peak_memory_of_logits"] = peak_memory(step, logits.clone()) / logits.nbytes
    figures[f"N = {shape[0]}, V = {shape[1]}, {dtype}"] = case
