"""Random rounds for the tests of the Mistake Log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from copilot import MistakeLog
from copilot.mistake_log import Round
from copilot.ops import mistake_cross_entropy

V, D = 60, 16


def random_logits(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(rows, V, generator=g), torch.randint(V, (rows,), generator=g)


def random_round(
    seed: int = 0, *, lengths: tuple[int, ...] = (3, 0, 4), k: int | None = 6, width: int = D, ids: bool = True
) -> Round:
    """A round of len(lengths) sequences, each with two more context entries than supervised tokens."""
    g = torch.Generator().manual_seed(1000 + seed)
    supervised = torch.tensor(lengths)
    rows, entries = int(supervised.sum()), int(supervised.sum()) + 2 * len(lengths)
    _, mistakes = mistake_cross_entropy(*random_logits(rows, seed), k)
    return Round(
        mistakes=mistakes,
        hidden=torch.randn(rows, width, generator=g),
        lengths=supervised,
        visible=torch.repeat_interleave(supervised + 2, supervised),
        context_lengths=supervised + 2,
        context_ids=torch.randint(V, (entries,), generator=g) if ids else None,
        context=None if ids else torch.randn(entries, width, generator=g),
    )


def assert_same_round(actual: Round, expected: Round) -> None:
    assert actual.tensors().keys() == expected.tensors().keys()
    for name, value in expected.tensors().items():
        assert torch.equal(actual.tensors()[name], value), name


def filled(*seeds: int, capacity: int = 4, **options: Any) -> MistakeLog:
    """A log whose rounds are told apart by their first context id, the seed."""
    log = MistakeLog(capacity, **options)
    for seed in seeds:
        round_ = random_round(seed)
        round_.context_ids[0] = seed
        log.append(round_)
    return log


def take(count: int, log: MistakeLog) -> list[int]:
    """Which rounds of a `filled` log the next draws are."""
    return [int(log.draw().context_ids[0]) for _ in range(count)]
