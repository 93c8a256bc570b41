"""Metrics of the twelve tasks, and how far a measured difference can be trusted."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Resampled values held at once, about 32 MB of indices.
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedBootstrap:
    """Two systems on the same examples: the mean of each, and the mean of `b - a`, each with its interval."""

    a: Interval
    b: Interval
    difference: Interval


def accuracy(correct: ArrayLike) -> float:
    """Share of correct answers; `correct` is (examples,), boolean or 0 and 1."""
    return float(_values("correct", correct).mean())


def ranks_in_lists(rankings: Sequence[Sequence[Hashable]], targets: Sequence[Hashable]) -> NDArray[np.float64]:
    """Rank of each target in its ranked list, counted from 1; infinity where the list does not hold it.

    Args:
        rankings: For each user the recommended items, best first; the lists may differ in length.
        targets: (users,), the item each user chose.

    Returns:
        (users,) ranks.
    """
    if len(rankings) != len(targets):
        raise ValueError(f"rankings has {len(rankings)} lists; accepted is one for each of the {len(targets)} targets")
    ranks = [
        list(ranking).index(target) + 1 if target in ranking else np.inf
        for ranking, target in zip(rankings, targets, strict=True)
    ]
    return np.asarray(ranks, dtype=np.float64)


def hit_at_k(ranks: ArrayLike, k: int) -> float:
    """Share of users whose target is among the first `k` items; `ranks` is (users,), from 1, infinity if absent."""
    return float((_ranks(ranks, k) <= k).mean())


def ndcg_at_k(ranks: ArrayLike, k: int) -> float:
    """Normalised discounted cumulative gain with one relevant item a user: the mean of `discounted_gains`."""
    return float(discounted_gains(ranks, k).mean())


def discounted_gains(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """For each user 1 / log2(1 + rank), and 0 beyond `k`: (users,) ranks to (users,) gains between 0 and 1."""
    checked = _ranks(ranks, k)
    return np.where(checked <= k, 1.0 / np.log2(1.0 + checked), 0.0)


def bootstrap_interval(values: ArrayLike, samples: int = 10_000, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of `values`, (examples,), with its percentile bootstrap interval.

    Args:
        values: One finite number for each example, such as 0 or 1 for wrong or correct.
        samples: Number of resamples.
        seed: Seed of the resampling; the same seed gives the same interval.
        level: Probability the interval is to cover, above 0 and below 1.
    """
    return _intervals(_values("values", values)[:, None], samples, seed, level)[0]


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> PairedBootstrap:
    """Compare two systems on the same examples; `difference` is the gain of `b` over `a`.

    Each resample draws the same examples for both, so what makes an example hard for both does not widen the interval
    of the difference. `a` and `b` are (examples,); the other arguments are those of `bootstrap_interval`.
    """
    first, second = _values("a", a), _values("b", b)
    if first.shape != second.shape:
        raise ValueError(f"b has {len(second)} values; accepted is one for each of the {len(first)} values of a")
    columns = np.stack([first, second, second - first], axis=1)
    return PairedBootstrap(*_intervals(columns, samples, seed, level))


def _intervals(columns: NDArray[np.float64], samples: int, seed: int, level: float) -> list[Interval]:
    """Intervals of the means of (examples, quantities), all quantities resampled together."""
    if samples < 1:
        raise ValueError(f"samples is {samples}; accepted is 1 or more")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}; accepted is above 0 and below 1")
    generator = np.random.default_rng(seed)
    examples = len(columns)
    rows = max(1, _CHUNK // examples)
    means = np.empty((samples, columns.shape[1]))
    for start in range(0, samples, rows):
        chunk = means[start : start + rows]
        drawn = generator.integers(examples, size=(len(chunk), examples))
        for quantity, values in enumerate(columns.T):
            chunk[:, quantity] = values[drawn].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return [Interval(*map(float, bounds)) for bounds in zip(columns.mean(axis=0), low, high, strict=True)]


def _ranks(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    if k < 1:
        raise ValueError(f"k is {k}; accepted is 1 or more")
    array = np.asarray(ranks, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"ranks has shape {array.shape}; accepted is one rank a user, for at least one user")
    if not (array >= 1).all():
        raise ValueError(f"ranks holds {array[~(array >= 1)][0]}; accepted is 1 or more, infinity for an absent target")
    return array


def _values(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}; accepted is one value per example, for at least one example")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {array[~np.isfinite(array)][0]}; accepted are finite numbers")
    return array
