"""Pilot and pair on the same examples, side by side, with the uncertainty of every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from copilot.calibration import HeldBatches, batches, scores_by_strength
from copilot.evaluation import complete, is_written, to_rows
from copilot.ops.rectify import check_strength
from copilot.pair import PilotCopilotModel
from copilot.tasks import TASKS, Example, Interval, PairedBootstrap, paired_bootstrap

LOWER_IS_BETTER = ("Brier score", "NLL")
# With fewer the intervals are too narrow: without a true difference they show one in half of all comparisons of 2
# examples, in a tenth of those of 10.
FEWEST_EXAMPLES = 20
HEADER = ("95 % intervals", "Pilot", "Pilot + Copilot", "difference", "")


@dataclass(frozen=True)
class Comparison:
    """The Pilot alone (a) and the pair (b) on N examples.

    Attributes:
        strength: lambda of the pair.
        metrics: by name: "exact match", "Brier score" and "NLL" (the mean over an example's tokens), where the examples
            have completions; "answer accuracy", where they are of a task.
        pilot_texts, pair_texts: the N completions of each.
    """

    strength: float
    metrics: dict[str, PairedBootstrap]
    pilot_texts: list[str]
    pair_texts: list[str]

    def rows(self) -> list[tuple[str, ...]]:
        """The lines of `HEADER`'s table, one for each metric, and lambda.

        The last cell is a verdict: "better", "worse", "no difference shown" where the interval of the difference, as
        it is written, holds 0, or "too few examples", below 20.
        """
        lines = []
        for name, found in self.metrics.items():
            digits = 4 if name in LOWER_IS_BETTER else 3
            cells = (_interval(interval, f".{digits}f") for interval in (found.a, found.b))
            few = len(self.pair_texts) < FEWEST_EXAMPLES
            verdict = "too few examples" if few else _verdict(name, found, digits)
            lines.append((name, *cells, _interval(found.difference, f"+.{digits}f"), verdict))
        return [*lines, ("lambda", "0", f"{self.strength:.3f}", "", "")]

    def __str__(self) -> str:
        return align([HEADER, *self.rows()])


def compare(
    pair: PilotCopilotModel,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    strength: float | None = None,
    batch_size: int = 32,
    max_length: int = 256,
    **generation: Any,
) -> Comparison:
    """Generate and score every example twice, at strength 0 and at `strength`.

    Args:
        pair: trained.
        tokenizer: of the Pilot, with a padding token.
        examples: N examples; `task` is empty where there is no answer to judge, `completion` where there is no text to
            score.
        strength: lambda of the pair; None takes the configuration's.
        batch_size: examples per forward pass.
        max_length: tokens a scored example may have.
        **generation: max_new_tokens and others, see `complete`; greedy decoding unless they say otherwise.

    Raises:
        ValueError: no examples, a strength out of range, or examples that do not all have completions or a task.
    """
    config = pair.config
    strength = config.strength if strength is None else strength
    check_strength(strength, config.rectifier, config.fusion)
    without = {field: [n for n, e in enumerate(examples) if not getattr(e, field)] for field in ("completion", "task")}
    has_completions, has_task = not without["completion"], not without["task"]
    for field, missing in without.items():
        if 0 < len(missing) < len(examples):
            some = f"{len(missing)} of {len(examples)} have none, the first is number {missing[0]}"
            raise ValueError(f"examples must all have a {field}, or none; {some}")
    if not examples or not (has_completions or has_task):
        raise ValueError(f"examples must have completions or a task each; got {len(examples)} examples")
    prompts = [example.prompt for example in examples]
    generation = {"do_sample": False} | generation
    texts = [
        complete(pair, tokenizer, prompts, strength=s, batch_size=batch_size, **generation) for s in (0.0, strength)
    ]
    metrics = {}
    if has_completions:
        exact = [[is_written(tokenizer, t, e.completion) for t, e in zip(of, examples, strict=True)] for of in texts]
        metrics["exact match"] = paired_bootstrap(exact[0], exact[1])
    if has_task:
        right = [[TASKS[e.task].is_correct(t, e.answer) for t, e in zip(of, examples, strict=True)] for of in texts]
        metrics["answer accuracy"] = paired_bootstrap(right[0], right[1])
    if has_completions:
        held = HeldBatches(pair, batches(pair, to_rows(examples), tokenizer, batch_size, max_length))
        found = scores_by_strength(held, (0.0, strength), config.rectifier, config.fusion)
        alone, fused = found[0.0], found[strength]
        metrics["Brier score"] = paired_bootstrap(alone.brier, fused.brier)
        metrics["NLL"] = paired_bootstrap(alone.nll, fused.nll)
    return Comparison(strength, metrics, *texts)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Lines of equally many cells as a text table."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _interval(interval: Interval, form: str) -> str:
    return f"{interval.mean:{form}} [{interval.low:{form}}, {interval.high:{form}}]"


def _verdict(name: str, found: PairedBootstrap, digits: int) -> str:
    low, high = round(found.difference.low, digits), round(found.difference.high, digits)
    if low <= 0 <= high:
        return "no difference shown"
    return "better" if (found.difference.low > 0) != (name in LOWER_IS_BETTER) else "worse"
