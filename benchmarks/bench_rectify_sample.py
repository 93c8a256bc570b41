"""rectify_sample against the chain that it replaces: log p~, the warpers, a draw.

    python -m pytest benchmarks/bench_rectify_sample.py --benchmark-only --results benchmarks/results/cpu

About two minutes on two cores, most of them torch.compile's. The chain takes log p~ from `plain_torch`, looks for
top-p among the top-k alone and draws with torch.multinomial; greedily it is an argmax. The reference's takes log p~ of
the reference, and warps as transformers does, by sorting. The floor is a copy that moves as many bytes as must be
moved: z read once.

On a GPU the CPU waits for checks of torch.multinomial, in the chain's time. With FlashInfer (`pip install
flashinfer-python`) its sampling is measured there too, except greedily. It knows nothing of p~: log p~ / temperature
comes from one compiled graph, and FlashInfer takes it for logits, with its own top-k and top-p. Neither it nor the
chain gives the token's log-probability, as the kernel does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import plain_torch
import pytest
import torch
from kernel_rounds import (
    COMPILED,
    DEVICE,
    EAGER,
    FLASHINFER,
    FLOOR,
    KERNEL,
    REFERENCE,
    compare,
    copy_of,
    public_kernels,
    version_of,
    written_when_complete,
)
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed

from copilot.ops import rectify_sample, reference, reference_sampling

VOCABULARY, K, STRENGTH = 128256, 32, 0.3
ROWS = (1, 8, 64)
DRAWS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.8": {"temperature": 0.8},
    "temperature 0.8, top-k 50, top-p 0.95": {"temperature": 0.8, "top_k": 50, "top_p": 0.95},
}

Draw = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def figures(write_results: Any) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case."""
    count = len(ROWS) * len(DRAWS)
    settings = {"rectifier": "simplex", "strength": STRENGTH, "vocabulary": VOCABULARY, "candidates": K}
    settings["flashinfer"] = version_of("flashinfer-python")
    with written_when_complete(write_results, "rectify_sample", count, **settings) as cases:
        yield cases


def log_rectified(logits: Tensor, delta: Tensor, index: Tensor) -> Tensor:
    return plain_torch.rectify(logits, delta, STRENGTH, index)


def chain(temperature: float, top_k: int | None = None, top_p: float | None = None) -> Draw:
    """From z, delta and index to a token of every row, in plain torch; top_k and top_p come together."""

    def draw(*rows: Tensor) -> Tensor:
        log_prob = log_rectified(*rows)
        if temperature == 0:
            return log_prob.argmax(-1)
        if top_k is None:
            return (log_prob / temperature).softmax(-1).multinomial(1)
        largest, tokens = log_prob.topk(top_k)
        prob = (largest / temperature).softmax(-1)
        likelier = prob.cumsum(-1) - prob
        return tokens.gather(-1, prob.masked_fill(likelier >= top_p, 0.0).multinomial(1))

    return draw


def reference_chain(temperature: float, top_k: int | None = None, top_p: float | None = None) -> Draw:
    """The same by the references."""

    def draw(logits: Tensor, delta: Tensor, index: Tensor) -> Tensor:
        log_prob = reference.rectify(logits, delta, STRENGTH, index, "simplex", "probability")
        if temperature == 0:
            return log_prob.argmax(-1)
        return reference_sampling.warp(log_prob, temperature, top_k, top_p).softmax(-1).multinomial(1)

    return draw


def flashinfer_chain(sampling: Any, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Draw:
    """The same by flashinfer.sampling, from compiled log p~ / temperature on."""
    scores = torch.compile(lambda *rows: log_rectified(*rows) / temperature, dynamic=False)
    if top_k is None:
        return lambda *rows: sampling.sampling_from_logits(scores(*rows))
    return lambda *rows: sampling.top_k_top_p_sampling_from_logits(scores(*rows), top_k, top_p)


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("rows", ROWS)
@torch.no_grad()
def test_rectify_sample(benchmark: Any, figures: dict[str, Any], rows: int, kind: str) -> None:
    """The default mode; candidates are the Pilot's most likely tokens, as in decoding."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = 3 * torch.randn(rows, VOCABULARY, generator=generator, device=DEVICE)
    index = logits.topk(K, dim=-1).indices
    delta = torch.randn(rows, K, generator=generator, device=DEVICE)
    seed, offset = torch.zeros(2, 1, dtype=torch.int64, device=DEVICE)
    eager, of_reference = chain(**DRAWS[kind]), reference_chain(**DRAWS[kind])
    torch.compiler.reset()
    compiled = torch.compile(eager, dynamic=False)
    runs = {
        KERNEL: lambda: rectify_sample(logits, delta, STRENGTH, index=index, seed=seed, offset=offset, **DRAWS[kind]),
        EAGER: lambda: eager(logits, delta, index),
        REFERENCE: lambda: of_reference(logits, delta, index),
        FLOOR: copy_of(logits.nbytes),
    }
    try:
        compiled(logits, delta, index)
    except BackendCompilerFailed as error:  # as Inductor of torch 2.11 does on a GPU, at the cumulative sum of top-p
        warnings.warn(f"Not compared with {COMPILED}: {error}", stacklevel=1)
    else:
        runs[COMPILED] = lambda: compiled(logits, delta, index)
    sampling = public_kernels("flashinfer.sampling")
    if sampling is not None and DRAWS[kind]["temperature"] > 0:
        flashinfer = flashinfer_chain(sampling, **DRAWS[kind])
        runs[FLASHINFER] = lambda: flashinfer(logits, delta, index)
    figures[f"N = {rows}, {kind}"] = compare(benchmark, runs, logits.nbytes, budget=3.0)
