"""candidate_loss and its gradient on k kept tokens and on the whole vocabulary, against the reference, also compiled.

    python -m pytest benchmarks/bench_candidate_loss.py --benchmark-only --results benchmarks/results/cpu

About a minute and 6 GB. The floor is a copy that moves as many bytes as must be moved: the probabilities and delta read
in the forward and again in the backward, the gradient written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_rounds import COMPILED, DEVICE, EAGER, FLOOR, KERNEL, Run, compare, copy_of, written_when_complete
from torch import Tensor

from copilot.ops import Mistakes, candidate_loss, reference

ROWS, K, VOCABULARY = 512, 32, 128256
CASES = {
    f"M = {ROWS}, {K} candidates": False,
    f"M = {ROWS}, whole vocabulary of {VOCABULARY}": True,
}


@pytest.fixture(scope="module")
def figures(write_results: Any) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case."""
    with written_when_complete(write_results, "candidate_loss", len(CASES)) as cases:
        yield cases


def mistakes_of_random_logits(dense: bool) -> Mistakes:
    generator = torch.Generator(DEVICE).manual_seed(0)
    logits = 2 * torch.randn(ROWS, VOCABULARY, generator=generator, device=DEVICE)
    _, kept = reference.mistake_cross_entropy(logits, logits.argmax(1), K, -100)
    if not dense:
        return kept
    zero = torch.zeros_like(kept.rest_mass)
    return replace(kept, top_index=None, top_prob=logits.softmax(-1), rest_mass=zero, rest_square=zero)


def forward_and_backward(loss: Callable[[Mistakes, Tensor], Tensor], mistakes: Mistakes) -> Run:
    generator = torch.Generator(DEVICE).manual_seed(1)
    delta = torch.randn(mistakes.top_prob.shape, generator=generator, device=DEVICE).requires_grad_()

    def run() -> None:
        delta.grad = None
        loss(mistakes, delta).mean().sqrt().backward()

    return run


@pytest.mark.parametrize("name", CASES)
def test_candidate_loss(benchmark: Any, figures: dict[str, Any], name: str) -> None:
    """Eq. 7 with the simplex rectifier, forward and backward."""
    mistakes = mistakes_of_random_logits(CASES[name])
    moved = 5 * mistakes.top_prob.nbytes
    torch.compiler.reset()
    compiled = torch.compile(reference.candidate_loss, fullgraph=True, dynamic=False)
    runs = {
        KERNEL: forward_and_backward(candidate_loss, mistakes),
        EAGER: forward_and_backward(lambda m, d: reference.candidate_loss(m, d, "simplex", "rmse"), mistakes),
        COMPILED: forward_and_backward(lambda m, d: compiled(m, d, "simplex", "rmse"), mistakes),
        FLOOR: copy_of(moved),
    }
    figures[name] = compare(benchmark, runs, moved, budget=15.0)
