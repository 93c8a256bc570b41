"""candidate_loss and its gradient on k kept tokens against the whole vocabulary, and each against its reference.

    python -m pytest benchmarks/bench_candidate_loss.py --benchmark-only --results benchmarks/results/cpu

About three minutes and 6 GB. The floor of the whole vocabulary is a copy that moves as many bytes as must be moved: the
probabilities and delta read in the forward and again in the backward, the gradient written. `-k small` tries it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_rounds import compare
from torch import Tensor

from copilot.ops import Mistakes, candidate_loss, extension, reference

CASES = {  # rows, kept tokens, vocabulary
    "small": (16, 32, 1000),
    "512 rows, k = 32, V = 128256": (512, 32, 128256),
}
DENSE = "whole vocabulary"


@pytest.fixture(scope="module")
def figures(write_results: Callable[[str, dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case; written down when all of them have succeeded."""
    found: dict[str, Any] = {"cases": {}}
    yield found
    if len(found["cases"]) == len(CASES):
        write_results("candidate_loss", found)


def mistakes_of_random_logits(rows: int, k: int, vocabulary: int) -> tuple[Mistakes, Mistakes]:
    """The same mistakes with k kept tokens and with the whole vocabulary."""
    logits = 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))
    _, kept = reference.mistake_cross_entropy(logits, logits.argmax(1), k, -100)
    zero = torch.zeros_like(kept.rest_mass)
    return kept, replace(kept, top_index=None, top_prob=logits.softmax(-1), rest_mass=zero, rest_square=zero)


def forward_and_backward(loss: Callable[[Mistakes, Tensor], Tensor], mistakes: Mistakes) -> Callable[[], None]:
    delta = torch.randn(mistakes.top_prob.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def run() -> None:
        delta.grad = None
        loss(mistakes, delta).mean().sqrt().backward()

    return run


@pytest.mark.parametrize("name", CASES)
def test_candidate_loss(benchmark: Any, figures: dict[str, Any], name: str) -> None:
    """Eq. 7 with the simplex rectifier, forward and backward."""
    assert extension.LOADED, extension.NOT_LOADED_BECAUSE
    rows, k, vocabulary = CASES[name]
    kept, dense = mistakes_of_random_logits(rows, k, vocabulary)

    def plain(mistakes: Mistakes, delta: Tensor) -> Tensor:
        return reference.candidate_loss(mistakes, delta, "simplex", "rmse")

    runs = {
        f"{k} candidates": forward_and_backward(candidate_loss, kept),
        f"{k} candidates, reference": forward_and_backward(plain, kept),
        DENSE: forward_and_backward(candidate_loss, dense),
        f"{DENSE}, reference": forward_and_backward(plain, dense),
    }
    figures["cases"][name] = compare(benchmark, runs, DENSE, moved=5 * dense.top_prob.nbytes)
