"""What the kernels' benchmarks share: rounds in which every variant runs in turn, and what is made of them."""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from copilot.ops import extension

# Of one case: as many rounds as its seconds allow, by its warm-up round, within these bounds.
FEWEST_ROUNDS, MOST_ROUNDS = 5, 100

# Where the benchmarks run.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Seconds of a measurement; a faster variant runs several times in it. Events of a GPU tell half a microsecond.
SHORTEST = 1e-3 if DEVICE.type == "cpu" else 1e-4
SPEED_UP = 1 if DEVICE.type == "cpu" else 10  # of the budgets, which are seconds of a CPU
# Bytes written before a run on a GPU: more than its L2 cache, and for longer than forward and backward take to launch.
FLUSHED = 6 * 2**30

KERNEL, EAGER, COMPILED, REFERENCE = "kernel", "eager", "torch.compile", "reference"
FLOOR = "copy of the same bytes"
LIGER, FLASHINFER = "Liger", "FlashInfer"  # the best public kernels

Run = Callable[[], Any]


@contextmanager
def written_when_complete(write_results: Any, name: str, n_cases: int, **settings: Any) -> Iterator[dict[str, Any]]:
    """Figures by case, written down as `name` when all cases have been measured."""
    assert extension.LOADED, extension.NOT_LOADED_BECAUSE
    assert DEVICE.type == "cpu" or extension.CUDA, "built without CUDA"
    found: dict[str, Any] = {"settings": settings, "cases": {}}
    yield found["cases"]
    if len(found["cases"]) == n_cases:
        write_results(name, found)


def public_kernels(module: str) -> Any | None:
    """A module of public kernels to compare with; None if it cannot be imported, or on a CPU, which it is not for."""
    if DEVICE.type == "cpu":
        return None
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def version_of(package: str) -> str | None:
    """Of an installed package, else None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def copy_of(moved: int) -> Run:
    """A copy between two tensors that reads and writes `moved` bytes in all."""
    source = torch.ones(moved // 8, device=DEVICE)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def seconds_of(run: Run, repeats: int) -> float:
    """Seconds a run: of the clock, or on a GPU of its own events, with a cold L2 cache."""
    if DEVICE.type == "cuda":
        return sum(seconds_on_gpu(run) for _ in range(repeats)) / repeats
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - started) / repeats


def seconds_on_gpu(run: Run) -> float:
    """Seconds from the start of a run's first kernel to the end of its last.

    While the GPU empties its cache, the CPU gets ahead: the launches themselves are not counted, unless a run waits for
    the GPU.
    """
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.empty(FLUSHED, dtype=torch.uint8, device=DEVICE).zero_()
    started.record()
    run()
    ended.record()
    ended.synchronize()
    return started.elapsed_time(ended) / 1e3


def compare(
    benchmark: Any, runs: dict[str, Run], moved: int, budget: float, prepare: Run | None = None
) -> dict[str, Any]:
    """Seconds of every variant and their ratio to the kernel's, within rounds that run each of them once.

    Args:
        benchmark: pytest-benchmark's fixture.
        runs: the variants by name, `KERNEL` among them.
        moved: bytes that must be read and written at least.
        budget: seconds for all rounds on a CPU.
        prepare: what comes before each run and is not timed.

    Returns:
        What a results file keeps: p20, median and p80 of each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}

    def timed(name: str, repeats: int) -> float:
        if prepare is not None:
            prepare()
        return seconds_of(runs[name], repeats)

    for name in runs:
        timed(name, 1)  # compiles
    often = prepare is None
    repeats = {name: max(1, round(SHORTEST / timed(name, 1))) if often else 1 for name in runs}

    def one_round() -> None:
        for name, values in seconds.items():
            values.append(timed(name, repeats[name]))

    started = time.perf_counter()
    one_round()
    rounds = int(budget / SPEED_UP / (time.perf_counter() - started))
    for values in seconds.values():
        values.clear()
    benchmark.pedantic(one_round, rounds=min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS))

    def quantiles(values: np.ndarray) -> list[float]:
        return np.quantile(values, [0.2, 0.5, 0.8]).tolist()

    kernel = np.array(seconds[KERNEL])
    variants = {
        name: {"seconds": quantiles(np.array(values)), "ratio": quantiles(np.array(values) / kernel)}
        for name, values in seconds.items()
    }
    case = {"rounds": len(kernel), "bytes": moved, "variants": variants}
    benchmark.extra_info.update(case)
    return case
