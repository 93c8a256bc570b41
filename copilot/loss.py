"""Both losses of one round: the Pilot's (Eq. 2) with the mistakes it leaves, and the Copilot's (Eq. 7)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch import distributed as dist
from transformers import DynamicCache

from copilot.cache import CopilotCache
from copilot.mistake_log import Round
from copilot.model import CopilotModel
from copilot.ops import Mistakes, candidate_loss, mistake_cross_entropy, pool_layers
from copilot.ops.reference import predicted_mistake
from copilot.tap import Tapped

IGNORE_INDEX = -100


@dataclass(frozen=True)
class Supervision:
    """Which positions of a batch are supervised, and what the Copilot sees as context.

    Attributes:
        source: (B, S) bool, positions whose logits predict a supervised token.
        target: (M,) int64, those tokens, in the order of `source`.
        context: (B, S_x) bool, the entries of X~.
        visible: (M,) int64, how many entries of X~ stand before each supervised token.
    """

    source: Tensor
    target: Tensor
    context: Tensor
    visible: Tensor

    @classmethod
    def causal(cls, labels: Tensor, attention_mask: Tensor | None) -> Supervision:
        """Of a decoder-only batch: labels (B, S) unshifted; X~ is every real token that is not supervised."""
        real = torch.ones_like(labels, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        source = torch.zeros_like(real)
        source[:, :-1] = (labels[:, 1:] != IGNORE_INDEX) & real[:, :-1]
        supervised = source.roll(1, dims=1)  # the last column of source is always False
        context = real & ~supervised
        return cls(source, labels.roll(-1, dims=1)[source], context, context.cumsum(1)[source]).checked(labels)

    @classmethod
    def sequence_to_sequence(cls, labels: Tensor, context: Tensor) -> Supervision:
        """Of an encoder-decoder batch: labels (B, S) are the decoder's targets, context (B, S_x) the encoder's mask."""
        source = labels != IGNORE_INDEX
        visible = context.sum(1, keepdim=True).expand_as(labels)[source]
        return cls(source, labels[source], context, visible).checked(labels)

    @cached_property
    def rows(self) -> Tensor:
        """(M,) int64: where the supervised positions are among the flattened B * S."""
        return self.source.flatten().nonzero().squeeze(1)

    def checked(self, labels: Tensor) -> Supervision:
        """Self, or a ValueError when nothing is supervised."""
        if len(self.target) == 0:
            raise ValueError(f"labels must hold at least one supervised token; all {labels.numel()} are {IGNORE_INDEX}")
        return self


@dataclass(frozen=True)
class PilotPass:
    """A forward of the Pilot over a labelled batch, and all that a round needs of it.

    Attributes:
        logits: (M, V) at the supervised positions, with gradient; the backward of `pilot_loss` overwrites them.
        supervision: of the batch.
        tapped: states of the same forward.
        context_ids: (T,) packed input ids of X~, when it can be recomputed from them; else None.
        context: (T, d) packed X~ itself; else None.
        every_logits: (B, S, V) at every position, when asked for; no memory shared with `logits`.
    """

    logits: Tensor
    supervision: Supervision
    tapped: Tapped
    context_ids: Tensor | None
    context: Tensor | None
    every_logits: Tensor | None = None

    def pooled(self, pooling: str) -> Tensor:
        """(M, d) Pool of Eq. 6 at the supervised positions."""
        return pool_layers(self.tapped.hidden, self.supervision.rows, pooling=pooling)


def pilot_loss(logits: Tensor, supervision: Supervision, k: int | None) -> tuple[Tensor, Mistakes]:
    """Cross-entropy of the supervised tokens and their mistakes.

    Args:
        logits: (M, V) the Pilot's logits at the supervised positions; the backward may overwrite them.
        supervision: of the same batch.
        k: how many of the Pilot's most likely tokens to keep; None keeps all.

    Returns:
        (M,) losses, and the mistakes.

    Raises:
        FloatingPointError: the logits give a loss that is not finite.
    """
    losses, mistakes = mistake_cross_entropy(logits, supervision.target, k, ignore_index=None, overwrite_logits=True)
    bad = int((~torch.isfinite(losses.detach())).sum())
    if bad:
        raise FloatingPointError(
            f"the Pilot's loss is not finite at {bad} of {len(losses)} supervised tokens (NaN or infinite logits); "
            "nothing was logged"
        )
    return losses, mistakes


@dataclass(frozen=True)
class Grid:
    """Packed rows as a padded (B, n) grid.

    Attributes:
        flat: (M,) int64, the place of each packed row in the flattened grid.
        step: (M,) int64, its place in its own sequence.
        shape: (B, n).
    """

    flat: Tensor
    step: Tensor
    shape: tuple[int, int]

    @classmethod
    def of(cls, lengths: Tensor) -> Grid:
        """Of B sequences with `lengths` (B,) rows each."""
        n = int(lengths.max())
        sequence = torch.repeat_interleave(lengths)
        start = lengths.cumsum(0) - lengths
        step = torch.arange(len(sequence), device=lengths.device) - start[sequence]
        return cls(sequence * n + step, step, (len(lengths), n))

    def pad(self, packed: Tensor) -> Tensor:
        """(M, ...) -> (B, n, ...), zeros elsewhere."""
        padded = packed.new_zeros(self.shape[0] * self.shape[1], *packed.shape[1:])
        return padded.index_copy(0, self.flat, packed).unflatten(0, self.shape)

    def pack(self, padded: Tensor) -> Tensor:
        """(B, n, ...) -> (M, ...)."""
        return padded.flatten(0, 1)[self.flat]


def predict(
    copilot: CopilotModel,
    round_: Round,
    embed: Callable[[Tensor], Tensor],
    pilot_tables: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """delta of every supervised token of a round: (M, k), or (M, V) for the whole vocabulary.

    With the true mistakes as input (teacher forcing, as in training), or, in eval mode with feedback="predicted", with
    the Copilot's own predictions, step by step, as Algorithm 2 does.

    Args:
        copilot: the Copilot.
        round_: one round.
        embed: input ids (T,) -> X~ (T, d), for rounds that keep ids.
        pilot_tables: the Pilot's input and output embedding, for tied maps.
    """
    rows, columns = Grid.of(round_.lengths), Grid.of(round_.context_lengths)
    if round_.context is not None:
        context = round_.context
    else:
        assert round_.context_ids is not None
        context = embed(round_.context_ids)
    # A padded step sees the whole context: attention over nothing would be NaN.
    visible = round_.context_lengths[:, None].expand(rows.shape).flatten().index_copy(0, rows.flat, round_.visible)
    order = torch.arange(columns.shape[1], device=visible.device)
    context_mask = order < visible.unflatten(0, rows.shape)[..., None]
    mistakes = round_.mistakes
    top_index = mistakes.top_index
    candidates = None if top_index is None else rows.pad(top_index)
    hidden, padded_context = rows.pad(round_.hidden), columns.pad(context)

    if copilot.config.feedback == "predicted" and not copilot.training:
        delta = _rollout(copilot, mistakes, rows, candidates, padded_context, context_mask, hidden, pilot_tables)
        return rows.pack(delta)

    error_index, error_value = mistakes.error()
    has_previous = (rows.step > 0)[:, None]
    error_value = rows.pad(error_value.roll(1, dims=0) * has_previous)
    if error_index is not None:
        error_index = rows.pad(error_index.roll(1, dims=0))
    return rows.pack(copilot(error_index, error_value, padded_context, context_mask, hidden, candidates, pilot_tables))


def _rollout(
    copilot: CopilotModel,
    mistakes: Mistakes,
    rows: Grid,
    candidates: Tensor | None,
    context: Tensor,
    context_mask: Tensor,
    hidden: Tensor,
    pilot_tables: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """delta (B, n, k) where each step reads the f of the step before."""
    cache = CopilotCache(DynamicCache(), copilot.attention_count())
    top_prob, rest_mass = rows.pad(mistakes.top_prob.float()), rows.pad(mistakes.rest_mass)
    value = torch.zeros_like(top_prob[:, :1])
    deltas = []
    for i in range(rows.shape[1]):
        step = slice(i, i + 1)
        index = None if candidates is None else candidates[:, max(i - 1, 0) : max(i, 1)]
        delta = copilot(
            index,
            value,
            context if i == 0 else None,
            context_mask[:, step],
            hidden[:, step],
            None if candidates is None else candidates[:, step],
            pilot_tables,
            cache,
        )
        f, _ = predicted_mistake(top_prob[:, i], rest_mass[:, i], delta[:, 0], copilot.config.rectifier)
        value = f[:, None]
        deltas.append(delta)
    return torch.cat(deltas, dim=1)


def copilot_loss(copilot: CopilotModel, mistakes: Mistakes, delta: Tensor) -> Tensor:
    """Eq. 7, sqrt(mean ||f - l||^2), or the mean of the ablation's losses, over the supervised tokens.

    In a distributed training the mean runs over the tokens of all ranks: the value is the global one, and the gradient,
    once averaged over the ranks, is that of one process with all tokens.

    Args:
        copilot: for its configuration.
        mistakes: M rows.
        delta: (M, k) of the same rows.

    Returns:
        A float32 scalar.
    """
    config = copilot.config
    total = candidate_loss(mistakes, delta, rectifier=config.rectifier, loss=config.loss).sum()
    mean = total / len(mistakes)
    if copilot.training and dist.is_available() and dist.is_initialized():
        everywhere = torch.stack([total.detach(), total.new_tensor(len(mistakes))])
        dist.all_reduce(everywhere)
        own_share = total * dist.get_world_size() / everywhere[1]
        mean = own_share + (everywhere[0] / everywhere[1] - own_share).detach()
    if config.loss != "rmse":
        return mean
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).sqrt()


def check_copilot_loss(value: float) -> None:
    """Raise FloatingPointError where the Copilot's loss is NaN, and so, from the next step on, are its weights."""
    if math.isnan(value):
        raise FloatingPointError(
            "the Copilot's loss is NaN, and its weights may be as well: train anew, or resume from a checkpoint of "
            "before, with a smaller copilot_learning_rate"
        )
