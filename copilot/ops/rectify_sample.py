"""The next token from the rectified distribution of Eq. 8, without writing the distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from copilot.ops import extension, reference_sampling
from copilot.ops.rectify import FUSIONS, RECTIFIERS, check_choice, check_correction, check_strength

TEMPERATURES = (1e-30, 1e30)  # in between, scores stay within float32


@torch.no_grad()
def rectify_sample(
    pilot_logits: Tensor,
    delta: Tensor,
    strength: float,
    *,
    index: Tensor | None = None,
    rectifier: str = "simplex",
    fusion: str = "probability",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor]:
    """The next token of every row and its log p~, straight from the Pilot's logits and delta.

    For decoding loops of your own: an engine that holds z and delta of a step needs nothing of size (N, V) besides; the
    CPU kernels hold one row of p~ a thread. (`generate` of a pair samples with GenerationMixin, from `rectify`.)

    The distribution is p~ as `rectify` gives it, to the last bit, then temperature, top_k and top_p in this order, as
    the warpers of transformers apply them to log p~: top-k keeps all ties of the k-th token; top-p keeps the smallest
    set whose mass reaches top_p, at least one token, and of equal tokens those of smaller index.

    A draw is a pure function of the row's distribution and of (seed, offset, row number, token): row i of a batch draws
    what it draws as row i of any other batch, whatever the other rows hold and however many threads there are. Change
    `offset` from step to step, and `seed` from run to run.

    Args:
        pilot_logits: (N, V) z, float32, bfloat16 or float16. Tokens of logit -inf are never drawn.
        delta: (N, V), or (N, k) when `index` is given.
        strength: lambda, as `rectify` takes it.
        index: (N, k) int64, the tokens that `delta` belongs to, distinct within a row; all others have delta = 0.
        rectifier: "simplex" or "linear".
        fusion: "probability" or "logit".
        temperature: 0 takes exactly the argmax of what `rectify` returns, of equal entries the one of smallest index,
            and leaves top_k and top_p aside; otherwise in [1e-30, 1e30].
        top_k: how many tokens to keep, at least 1; None keeps all.
        top_p: the mass to keep, in (0, 1]; None and 1 keep all.
        seed: int64 tensor of one element, on the device of `pilot_logits`.
        offset: likewise.

    Returns:
        token: (N,) int64. -1 for a row without a distribution (NaN in log p~, or all logits -inf): embeddings, gather
            and scatter refuse it, so it goes nowhere unnoticed, and the other rows are not lost.
        log_prob: (N,) float32, the logarithm of the token's probability under the distribution it was drawn from,
            renormalised; under p~ itself for temperature 0. NaN where token is -1.

        Neither has a gradient.

    Raises:
        ValueError: shapes or dtypes that do not agree, a number out of range, an unknown rectifier or fusion.
        RuntimeError: an index out of range; on a GPU, V of 2^20 or more.
    """
    check_choice("rectifier", rectifier, RECTIFIERS)
    check_choice("fusion", fusion, FUSIONS)
    check_strength(strength, rectifier, fusion)
    if pilot_logits.dim() != 2 or pilot_logits.shape[1] == 0:
        raise ValueError(f"pilot_logits must be (N, V) with V >= 1; got {tuple(pilot_logits.shape)}")
    check_correction(pilot_logits, delta, index)
    check_warping(temperature, top_k, top_p)
    for name, number in (("seed", seed), ("offset", offset)):
        if number.numel() != 1 or number.dtype != torch.int64:
            raise ValueError(
                f"{name} must be an int64 tensor of one element; got {number.dtype} of shape {tuple(number.shape)}"
            )
    top_k = None if top_k is None or top_k >= pilot_logits.shape[1] else top_k
    top_p = None if top_p == 1 else top_p
    numbers = (rectifier, fusion, float(temperature), top_k, top_p, seed, offset)
    if not extension.applies(pilot_logits) or not extension.applies(delta):
        return reference_sampling.rectify_sample(pilot_logits, delta, strength, index, *numbers)
    pilot_logits, delta = (extension.adjacent(rows) for rows in (pilot_logits, delta))
    if index is not None:
        index = index.contiguous()
    return torch.ops.copilot.rectify_sample(pilot_logits, delta, index, float(strength), *numbers)


def check_warping(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for a temperature, top_k or top_p out of range."""
    if temperature != 0 and not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise ValueError(f"temperature must be 0 or in [{TEMPERATURES[0]}, {TEMPERATURES[1]}]; got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be None or at least 1; got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be None or in (0, 1]; got {top_p}")


if extension.LOADED:

    @torch.library.register_fake("copilot::rectify_sample")
    def _(pilot_logits: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        rows = pilot_logits.shape[0]  # len() would fix a dynamic number of rows
        return (
            pilot_logits.new_empty(rows, dtype=torch.int64),
            pilot_logits.new_empty(rows, dtype=torch.float32),
        )
