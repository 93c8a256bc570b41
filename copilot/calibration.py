"""lambda* and the theory's quantities, measured on held-out data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from copilot.config import CopilotConfig
from copilot.data import DataCollator, prepare_dataset
from copilot.loss import PilotPass, Supervision
from copilot.ops import Mistakes
from copilot.ops.reference import at_target, predicted_mistake, rectify_kept, sum_of_squares
from copilot.pair import PilotCopilotModel

LOGIT_GRID = [step / 20 for step in range(21)]


@dataclass(frozen=True)
class Scores:
    """Teacher-forced scores of N rows; a row's value is the mean over its supervised tokens.

    Attributes:
        brier: (N,) mean ||p~ - onehot(y)||^2.
        nll: (N,) mean -log p~_y; a probability of 0 counts as the smallest float32, 87.3 nats.
        exact: (N,) bool, whether every supervised token is the most likely one of p~, so that greedy decoding writes
            exactly these tokens. With candidates it is a lower bound: a true token outside of them counts as not
            written, and so does one whose p~ is below what a token outside has at most.
        tokens: (N,) supervised tokens of each row.
    """

    brier: Tensor
    nll: Tensor
    exact: Tensor
    tokens: Tensor

    def per_token(self) -> tuple[float, float]:
        """(Brier score, NLL), the mean over all tokens."""
        weight = self.tokens / self.tokens.sum()
        return float((self.brier * weight).sum()), float((self.nll * weight).sum())


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found on held-out data.

    Attributes:
        strength: lambda*, the best single lambda, within what the rectifier allows.
        lambda_zero: every lambda in (0, lambda_zero) lowers the expected squared error (Theorem 4.1); 2 lambda* before
            clipping. None for fusion="logit", which the theorem does not cover.
        pilot: scores of the Pilot alone.
        pair: scores at lambda*.
    """

    strength: float
    lambda_zero: float | None
    pilot: Scores
    pair: Scores


@dataclass(frozen=True)
class Held:
    """Mistakes and corrections of one held-out batch, on the CPU, and how many tokens each of its rows has."""

    mistakes: Mistakes
    delta: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, pair: PilotCopilotModel, passed: PilotPass) -> Held:
        """Of a forward of the Pilot: of `pair`'s own, or of the same Pilot in another pair.

        Raises:
            FloatingPointError: NaN in the Pilot's logits or the Copilot's corrections, as after a training that failed.
        """
        _, round_ = pair.round_of(passed)
        delta = pair.predict(round_)
        if torch.isnan(delta).any():
            raise FloatingPointError("the corrections of the Copilot are NaN")
        return cls(round_.mistakes.cpu(), delta.cpu(), round_.lengths.cpu())


def supervision_of(pair: PilotCopilotModel, batch: dict[str, Tensor]) -> Tensor:
    """(B, S) bool: the positions whose logits predict a supervised token."""
    if pair.config.is_encoder_decoder:
        return batch["labels"] != -100
    return Supervision.causal(batch["labels"], batch["attention_mask"]).source


@contextmanager
def evaluating(*pairs: PilotCopilotModel) -> Iterator[None]:
    """The pairs in eval mode, and in that of before again at the end, whatever happens."""
    modes = [pair.training for pair in pairs]
    for pair in pairs:
        pair.eval()
    try:
        yield
    finally:
        for pair, mode in zip(pairs, modes, strict=True):
            pair.train(mode)


def batches(
    pair: PilotCopilotModel, dataset: Any, processing_class: Any, batch_size: int, max_length: int, **supervised: bool
) -> DataLoader[dict[str, Tensor]]:
    """The dataset in order, as padded batches on the pair's device.

    See `prepare_dataset` for what it may hold, and for `supervised`: completion_only_loss, assistant_only_loss.
    """
    encoder_decoder = pair.config.is_encoder_decoder
    rows = prepare_dataset(
        dataset, processing_class, max_length=max_length, is_encoder_decoder=encoder_decoder, **supervised
    )
    collate = DataCollator(getattr(processing_class, "pad_token_id", None) or 0, encoder_decoder)
    return DataLoader(
        rows,
        batch_size,
        collate_fn=lambda rows: {name: tensor.to(pair.device) for name, tensor in collate(rows).items()},
    )


@dataclass(frozen=True)
class HeldBatches:
    """`Held` of each batch, from new forwards of the pair in every iteration: only one is kept at a time."""

    pair: PilotCopilotModel
    batches: DataLoader[dict[str, Tensor]]

    @torch.no_grad()
    def __iter__(self) -> Iterator[Held]:
        with evaluating(self.pair):
            for batch in tqdm(self.batches, desc="Scoring", leave=False):
                yield Held.of(self.pair, self.pair.pilot_pass(**batch))


def collect(
    pair: PilotCopilotModel,
    dataset: Any,
    processing_class: Any = None,
    *,
    batch_size: int = 16,
    max_length: int = 256,
    completion_only_loss: bool = True,
    assistant_only_loss: bool = False,
) -> list[Held]:
    """Run the pair over held-out data once; everything else here is computed from what this keeps.

    Of a Copilot that corrects the whole vocabulary that is (tokens, V) floats, twice.

    Args:
        pair: trained.
        dataset: raw or tokenised rows, as for training.
        processing_class: the tokenizer, for raw rows.
        batch_size: rows per forward pass.
        max_length: tokens a row may have.
        completion_only_loss, assistant_only_loss: as in training; which tokens of raw rows count, see
            `prepare_dataset`.
    """
    supervised = {"completion_only_loss": completion_only_loss, "assistant_only_loss": assistant_only_loss}
    return list(HeldBatches(pair, batches(pair, dataset, processing_class, batch_size, max_length, **supervised)))


def scores(held: Iterable[Held], strength: float, rectifier: str, fusion: str) -> Scores:
    """Scores of the rectified distribution at a strength; 0 is the Pilot alone."""
    return scores_by_strength(held, [strength], rectifier, fusion)[strength]


def scores_by_strength(
    held: Iterable[Held], strengths: Iterable[float], rectifier: str, fusion: str
) -> dict[float, Scores]:
    """`scores` at each of the strengths, from one iteration over `held`."""
    parts: dict[float, list[tuple[Tensor, ...]]] = {strength: [] for strength in strengths}
    for part in held:
        for strength, rows in parts.items():
            rows.append(_score_rows(part, strength, rectifier, fusion))
    return {s: Scores(*(torch.cat(column) for column in zip(*rows, strict=True))) for s, rows in parts.items()}


def _score_rows(part: Held, strength: float, rectifier: str, fusion: str) -> tuple[Tensor, ...]:
    """The columns of `Scores`."""
    mistakes, lengths = part.mistakes, part.lengths
    kept, factor, target = rectify_kept(mistakes, part.delta, strength, rectifier, fusion)
    brier = sum_of_squares(mistakes, kept, factor) - 2 * target + 1
    nll = -target.clamp(min=torch.finfo(torch.float32).tiny).log()
    missed = ~is_most_likely(mistakes, kept, factor, target)
    row = torch.repeat_interleave(lengths)
    of_row = [torch.zeros(len(lengths)).index_add(0, row, value.float()) for value in (brier, nll, missed)]
    return of_row[0] / lengths, of_row[1] / lengths, of_row[2] == 0, lengths


def is_most_likely(mistakes: Mistakes, kept: Tensor, factor: Tensor, target: Tensor) -> Tensor:
    """(M,) bool: whether the true token is kept and p~ is nowhere larger; arguments as `rectify_kept` returns them."""
    largest = kept.max(1).values
    if mistakes.top_index is None:
        return target >= largest
    # What is not kept has at most the smallest kept p^, and its p~ is that times the common factor.
    largest = torch.maximum(largest, factor * mistakes.top_prob.float().min(1).values)
    return (mistakes.top_index == mistakes.target[:, None]).any(1) & (target >= largest)


def agreement(mistakes: Mistakes, delta: Tensor, rectifier: str) -> tuple[Tensor, Tensor]:
    """<l, f> and ||f||^2 of each row, (N,) float64, exact although only k entries are kept."""
    f, factor = predicted_mistake(mistakes.top_prob, mistakes.rest_mass, delta, rectifier)
    f_target = at_target(mistakes, f, (factor - 1.0) * mistakes.target_prob)
    along = (mistakes.top_prob * f).sum(1) + (factor - 1.0) * mistakes.rest_square
    return (f_target - along).double(), sum_of_squares(mistakes, f, factor - 1.0).double()


def calibrate(
    pair: PilotCopilotModel,
    dataset: Any,
    processing_class: Any = None,
    *,
    batch_size: int = 16,
    max_length: int = 256,
    completion_only_loss: bool = True,
    assistant_only_loss: bool = False,
) -> Calibration:
    """Set `pair.config.strength` to the lambda that minimises the squared error on held-out data.

    For fusion="probability" it is the closed form lambda* = sum <l, f> / sum ||f||^2, clipped to what the rectifier
    allows; for fusion="logit" the best of 0, 0.05, ..., 1. It counts f as it stands: where the linear rectifier clamps
    p^ + lambda f, another lambda may be better.

    The pair runs over the data once; with candidates=None and fusion="probability" twice, as what is computed of a
    whole vocabulary is not kept.

    Args:
        pair: trained; only its `config.strength` changes.
        dataset: validation rows, raw or tokenised, that neither model was trained on.
        processing_class: the tokenizer, for raw rows.
        batch_size: rows per forward pass.
        max_length: tokens a row may have.
        completion_only_loss, assistant_only_loss: as in training; which tokens of raw rows count, see
            `prepare_dataset`.

    Raises:
        ValueError: an empty or unsupervised dataset, or unknown columns.
        FloatingPointError: NaN in the Pilot's logits or the Copilot's corrections, or corrections that overflow.
    """
    supervised = {"completion_only_loss": completion_only_loss, "assistant_only_loss": assistant_only_loss}
    data = batches(pair, dataset, processing_class, batch_size, max_length, **supervised)
    held: Iterable[Held] = HeldBatches(pair, data)
    if pair.config.candidates is not None:
        held = list(held)
    found = calibration_of(held, pair.config)
    pair.config.strength = found.strength
    return found


def calibration_of(held: Iterable[Held], config: CopilotConfig) -> Calibration:
    """What `calibrate` finds, from what `collect` kept of the held-out data, or from `HeldBatches`."""
    if config.fusion == "logit":
        found = scores_by_strength(held, LOGIT_GRID, config.rectifier, "logit")
        strength, lambda_zero = min(found, key=lambda s: found[s].per_token()[0]), None
    else:
        sums = [torch.stack(agreement(part.mistakes, part.delta, config.rectifier)).sum(1) for part in held]
        numerator, denominator = torch.stack(sums).sum(0).tolist()
        if not math.isfinite(numerator) or not math.isfinite(denominator):
            raise FloatingPointError(
                "the corrections of the Copilot are too large to choose lambda: "
                f"sum <l, f> is {numerator} and sum ||f||^2 is {denominator}"
            )
        unclipped = numerator / denominator if denominator > 0 else 0.0
        strength = min(max(unclipped, 0.0), 1.0 if config.rectifier == "simplex" else float("inf"))
        lambda_zero = 2 * unclipped
        found = scores_by_strength(held, (0.0, strength), config.rectifier, config.fusion)
    return Calibration(strength, lambda_zero, found[0.0], found[strength])


@dataclass(frozen=True)
class TheoremQuantities:
    """Theorem 4.1 over a set of seeds: root mean square over tokens of the norm over the vocabulary.

    Attributes:
        e_pilot, s_pilot: bias ||p - mean p^|| and spread of the Pilots.
        e_copilot, s_copilot: bias ||mean f - mean l|| and spread of the Copilots.
        lambda_zero: 2 sum <l, f> / sum ||f||^2 over all seeds: below it the expected squared error falls.
        holds: whether the premise e_copilot < sqrt(e_pilot^2 + s_pilot^2) is met.
    """

    e_pilot: float
    s_pilot: float
    e_copilot: float
    s_copilot: float
    lambda_zero: float

    @property
    def holds(self) -> bool:
        return self.e_copilot < (self.e_pilot**2 + self.s_pilot**2) ** 0.5


@torch.no_grad()
def theorem_quantities(
    pairs: Sequence[PilotCopilotModel],
    dataset: Any,
    processing_class: Any = None,
    *,
    batch_size: int = 8,
    max_length: int = 256,
    completion_only_loss: bool = True,
    assistant_only_loss: bool = False,
) -> TheoremQuantities:
    """Bias and spread of Pilots and Copilots trained from different seeds, and lambda_0.

    Args:
        pairs: one per seed, of the same vocabulary and fusion="probability"; with a single one both spreads are 0.
        dataset: held-out rows.
        processing_class: the tokenizer, for raw rows.
        batch_size: rows per forward pass; (seeds, tokens, V) floats are held at a time.
        max_length: tokens a row may have.
        completion_only_loss, assistant_only_loss: as in training.

    Raises:
        ValueError: no pairs, or one of fusion="logit", which the theorem does not cover.
    """
    if not pairs:
        raise ValueError("pairs must hold at least one pair; got none")
    fusions = [pair.config.fusion for pair in pairs]
    if "logit" in fusions:
        raise ValueError(
            f"pairs have the fusions {fusions}, expected 'probability' of all: Theorem 4.1 covers no other"
        )
    sums, tokens = torch.zeros(6, dtype=torch.float64), 0
    supervised = {"completion_only_loss": completion_only_loss, "assistant_only_loss": assistant_only_loss}
    data = batches(pairs[0], dataset, processing_class, batch_size, max_length, **supervised)
    with evaluating(*pairs):
        for batch in tqdm(data, desc="Scoring", leave=False):
            prob, mistake, correction = (
                torch.stack(values) for values in zip(*(_dense(p, batch) for p in pairs), strict=True)
            )
            bias = correction.mean(0) - mistake.mean(0)
            terms = (
                mistake.mean(0).square(),  # p - mean p^
                prob.var(0, correction=0),
                bias.square(),
                correction.var(0, correction=0),
                mistake * correction,
                correction.square(),
            )
            sums += torch.stack([term.double().sum() / (1 if term.dim() == 2 else len(pairs)) for term in terms]).cpu()
            tokens += prob.shape[1]
    e_pilot, s_pilot, e_copilot, s_copilot = (sums[:4] / tokens).sqrt().tolist()
    return TheoremQuantities(e_pilot, s_pilot, e_copilot, s_copilot, float(2 * sums[4] / sums[5]))


def _dense(pair: PilotCopilotModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """p^, l and f of every supervised token, each (M, V)."""
    passed = pair.pilot_pass(**batch)
    _, round_ = pair.round_of(passed)
    prob, kept = passed.logits.float().softmax(-1), round_.mistakes
    f, factor = predicted_mistake(kept.top_prob, kept.rest_mass, pair.predict(round_), pair.config.rectifier)
    correction = f if kept.top_index is None else ((factor - 1.0)[:, None] * prob).scatter(1, kept.top_index, f)
    mistake = torch.zeros_like(prob).scatter_(1, kept.target[:, None], 1.0) - prob
    return prob, mistake, correction
