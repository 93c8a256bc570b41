"""What the kernels' benchmarks share: rounds in which every variant runs in turn, and what is made of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

# Of one benchmark: as many rounds as its seconds allow, by its warm-up round, within these bounds.
BUDGET, FEWEST_ROUNDS, MOST_ROUNDS = 30.0, 5, 100
SHORTEST = 1e-3  # seconds of a measurement; a faster variant runs several times in it

FLOOR = "copy of the same bytes"


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Seconds a run."""
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def compare(benchmark: Any, runs: dict[str, Callable[[], Any]], baseline: str, moved: int) -> dict[str, Any]:
    """Seconds of every variant and their ratio to the baseline's, within rounds that run each of them once.

    Args:
        benchmark: pytest-benchmark's fixture.
        runs: the variants by name; to them is added `FLOOR`, a copy that reads and writes `moved` bytes in all.
        baseline: the variant that ratios refer to.
        moved: bytes that must be read and written at least.

    Returns:
        What a results file keeps: p20, median and p80 of each.
    """
    source = torch.ones(moved // 8)
    target = torch.empty_like(source)
    runs = runs | {FLOOR: lambda: target.copy_(source)}
    for run in runs.values():
        run()
    repeats = {name: max(1, round(SHORTEST / seconds_of(run, 1))) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def one_round() -> None:
        for name, run in runs.items():
            seconds[name].append(seconds_of(run, repeats[name]))

    started = time.perf_counter()
    one_round()
    rounds = int(BUDGET / (time.perf_counter() - started))
    for values in seconds.values():
        values.clear()
    benchmark.pedantic(one_round, rounds=min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS))

    def quantiles(values: np.ndarray) -> list[float]:
        return np.quantile(values, [0.2, 0.5, 0.8]).tolist()

    base = np.array(seconds[baseline])
    variants = {
        name: {"seconds": quantiles(np.array(values)), "ratio": quantiles(np.array(values) / base)}
        for name, values in seconds.items()
    }
    case = {"rounds": len(base), "baseline": baseline, "bytes": moved, "variants": variants}
    benchmark.extra_info.update(case)
    return case
