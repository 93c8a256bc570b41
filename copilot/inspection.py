"""What the figures of a trained pair show, as numbers: falling mistakes, corrections, one step, reliability."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from copilot.calibration import batches, evaluating
from copilot.mistake_log import MistakeLog
from copilot.ops.rectify import check_strength, rectify
from copilot.pair import PilotCopilotModel
from copilot.tap import PilotTap, decoder_layers

LOSSES = ("ce", "rmse", "copilot_loss")  # as CopilotTrainer logs them
SHOWN = 5  # tokens of a step
LIKELIEST = 32  # candidates of a token where the Copilot corrects the whole vocabulary
BINS = 10  # of a reliability diagram


@dataclass(frozen=True)
class Rounds:
    """Mistakes of R rounds, oldest first.

    Attributes:
        number: (R,) which round of the training, from 1.
        squared_error: (R,) mean ||l||^2 over the supervised tokens.
        error_rate: (R,) share of supervised tokens whose most likely token was wrong.
    """

    number: list[int]
    squared_error: list[float]
    error_rate: list[float]


def rounds_of(logs: Iterable[MistakeLog]) -> Rounds:
    """The kept rounds of a training's Mistake Logs; of several processes' rounds of one number, the mean.

    Raises:
        ValueError: logs that hold no round.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for log in logs:
        summary = log.summary(None, top=0)
        first = log.rounds_seen - len(log) + 1
        for number, values in enumerate(zip(summary.squared_error, summary.error_rate, strict=True), start=first):
            found.setdefault(number, []).append(values)
    if not found:
        raise ValueError("logs must hold at least one round; got none")
    numbers = sorted(found)
    squared_error, error_rate = np.array([np.mean(found[number], axis=0) for number in numbers]).T.tolist()
    return Rounds(numbers, squared_error, error_rate)


def read_losses(folder: str | Path) -> dict[str, list[tuple[int, float]]]:
    """(optimizer step, value) of each of `LOSSES` in the folder's trainer_state.json; none where there is no such file.

    Raises:
        ValueError: a file that is no state of a Trainer.
    """
    path = Path(folder) / "trainer_state.json"
    if not path.is_file():
        return {}
    try:
        history = json.loads(path.read_text(encoding="utf-8"))["log_history"]
        points = {name: [(entry["step"], entry[name]) for entry in history if name in entry] for name in LOSSES}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be a Trainer's state with a log_history; it cannot be read: {error}") from error
    return {name: found for name, found in points.items() if found}


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in equal-width bins of the confidence.

    Attributes:
        count: (bins,) int64 tokens.
        confidence, accuracy: (bins,) float64 means, NaN where the bin is empty.
        error: the expected calibration error, sum_b count_b / N |accuracy_b - confidence_b|.
    """

    count: Tensor
    confidence: Tensor
    accuracy: Tensor
    error: float


def reliability(confidence: Tensor, right: Tensor, bins: int = BINS) -> Reliability:
    """Sort N tokens into the bins [0, 1/bins), ..., [1 - 1/bins, 1].

    Args:
        confidence: (N,) float, probability of the most likely token.
        right: (N,) bool, whether it is the true one.
        bins: how many.

    Raises:
        ValueError: no tokens.
    """
    if len(confidence) == 0:
        raise ValueError("confidence must hold at least one token; got none")
    confidence = confidence.double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    count = torch.bincount(index, minlength=bins)
    sums = [torch.zeros(bins).double().index_add(0, index, values) for values in (confidence, right.double())]
    error = float((sums[0] - sums[1]).abs().sum()) / len(confidence)
    return Reliability(count, sums[0] / count, sums[1] / count, error)


@dataclass(frozen=True)
class Step:
    """One decoding step, teacher-forced: the Pilot's likeliest tokens, and the right one if it is none of them.

    Attributes:
        context: the text before it.
        tokens: n tokens, by falling p^.
        right: which of them is the right one.
        before, after: (n,) float32, their p^ and p~.
        lens: (L, n) float32, their probabilities by each of the Pilot's layers; the last layer's are `before`.
        flipped: whether the Pilot's most likely token is wrong and the pair's right.
    """

    context: str
    tokens: list[str]
    right: int
    before: Tensor
    after: Tensor
    lens: Tensor
    flipped: bool


@dataclass(frozen=True)
class HeldOut:
    """What a pair does to M supervised held-out tokens and their N kept candidates.

    Attributes:
        strength: lambda.
        corrections: (N,) float32 p~ - p^.
        shares: (N,) float32 (log p~ - log p^) / (max z - min z), z the Pilot's logits; -inf where p~ is 0.
        before, after: of the Pilot and of the pair, the M confidences (float32) and whether they are right (bool).
        step: of those that the Copilot puts right the one where the right token gains most; without any, of all.
    """

    strength: float
    corrections: Tensor
    shares: Tensor
    before: tuple[Tensor, Tensor]
    after: tuple[Tensor, Tensor]
    step: Step


@torch.no_grad()
def measure(
    pair: PilotCopilotModel,
    dataset: Any,
    tokenizer: Any,
    *,
    strength: float | None = None,
    batch_size: int = 16,
    max_length: int = 256,
    completion_only_loss: bool = True,
    assistant_only_loss: bool = False,
) -> HeldOut:
    """Run the pair over held-out rows, teacher-forced.

    The candidates of a Copilot that corrects the whole vocabulary are the Pilot's 32 likeliest tokens.

    Args:
        pair: trained.
        dataset: rows, see `prepare_dataset`.
        tokenizer: of the Pilot.
        strength: lambda; None takes the configuration's.
        batch_size: rows per forward pass; a few (tokens, V) floats are held at a time.
        max_length: tokens a row may have.
        completion_only_loss, assistant_only_loss: as in training.

    Raises:
        ValueError: a strength out of range, or an empty or unsupervised dataset.
    """
    config = pair.config
    strength = config.strength if strength is None else strength
    mode = {"rectifier": config.rectifier, "fusion": config.fusion}
    check_strength(strength, **mode)
    parts: list[list[Tensor]] = []
    best, place, of_place = -2.0, (0, 0), {}
    supervised = {"completion_only_loss": completion_only_loss, "assistant_only_loss": assistant_only_loss}
    data = batches(pair, dataset, tokenizer, batch_size, max_length, **supervised)
    with evaluating(pair):
        for batch in tqdm(data, desc="Scoring", leave=False):
            passed = pair.pilot_pass(**batch)
            _, round_ = pair.round_of(passed)
            logits, kept, delta = passed.logits.float(), round_.mistakes, pair.predict(round_)
            # The same operation at 0, so that what is not corrected is equal to the last bit.
            before, after = (rectify(logits, delta, s, index=kept.top_index, **mode) for s in (0.0, strength))
            index = logits.topk(min(LIKELIEST, logits.shape[1])).indices if kept.top_index is None else kept.top_index
            log_p, log_fused = before.gather(1, index), after.gather(1, index)
            extent = (logits.amax(1) - logits.amin(1))[:, None]
            tops = [distribution.max(1) for distribution in (before, after)]
            right = [top.indices == kept.target for top in tops]
            parts.append([(log_fused.exp() - log_p.exp()).flatten(), ((log_fused - log_p) / extent).flatten()])
            parts[-1] += [tops[0].values.exp(), right[0], tops[1].values.exp(), right[1]]
            target = kept.target[:, None]
            gain = (after.gather(1, target).exp() - before.gather(1, target).exp()).squeeze(1)
            merit = gain + 3.0 * (right[1] & ~right[0])  # a step put right comes before all others
            if merit.max() > best:
                best, token = float(merit.max()), int(merit.argmax())
                row, position = passed.supervision.source.nonzero()[token].tolist()
                place, of_place = (position, token), {name: tensor[row : row + 1] for name, tensor in batch.items()}
                found = before[token], after[token], int(kept.target[token]), best > 1.0
        step = _step(pair, tokenizer, of_place, place[0], *found)
    columns = [torch.cat(column).cpu() for column in zip(*parts, strict=True)]
    return HeldOut(strength, columns[0], columns[1], (columns[2], columns[3]), (columns[4], columns[5]), step)


def _step(
    pair: PilotCopilotModel,
    tokenizer: Any,
    row: dict[str, Tensor],
    position: int,
    before: Tensor,
    after: Tensor,
    target: int,
    flipped: bool,
) -> Step:
    """The step at a position of a row, from log p^ and log p~ (V,) there."""
    shown = before.topk(min(SHOWN, len(before))).indices.tolist()
    shown += [] if target in shown else [target]
    lens = logit_lens(pair, row, position).softmax(1)
    ids = row["input_ids"][0]
    if pair.config.is_encoder_decoder:
        written = row["labels"][0, :position]
        text = f"{tokenizer.decode(ids[row['attention_mask'][0].bool()])} > {tokenizer.decode(written)}"
    else:
        text = tokenizer.decode(ids[: position + 1][row["attention_mask"][0, : position + 1].bool()])
    return Step(
        text,
        [tokenizer.decode([token]) for token in shown],
        shown.index(target),
        before[shown].exp().cpu(),
        after[shown].exp().cpu(),
        lens[:, shown].cpu(),
        flipped,
    )


@torch.no_grad()
def logit_lens(pair: PilotCopilotModel, row: dict[str, Tensor], position: int) -> Tensor:
    """What the Pilot's final norm and head make of every layer's state at one position.

    Args:
        pair: in eval mode.
        row: one labelled row, (1, S) tensors as `DataCollator` makes them.
        position: which of the decoder's positions.

    Returns:
        (L, V) float32 logits; those of the last layer are the Pilot's own.
    """
    pilot, inputs = pair.pilot, {name: tensor for name, tensor in row.items() if name != "labels"}
    if pair.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = pilot.prepare_decoder_input_ids_from_labels(row["labels"])
    with PilotTap(pilot, "every")() as tapped:
        pilot(**inputs, use_cache=False)
    states = torch.stack([hidden[:, position] for hidden in tapped.hidden], dim=1)  # (1, L, d)

    # Norm and head see each position alone: the layers take the places of the last layer's positions.
    def exchange(_module: Any, _args: Any, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = decoder_layers(pilot)[-1].register_forward_hook(exchange)
    try:
        return pilot(**inputs, use_cache=False).logits[0].float()
    finally:
        handle.remove()
