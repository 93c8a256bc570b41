"""The rectified distribution of Eq. 8."""

from __future__ import annotations

import math

from torch import Tensor

from copilot.ops import reference

RECTIFIERS = ("simplex", "linear")
FUSIONS = ("probability", "logit")


def check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `accepted`."""
    if value not in accepted:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, accepted))}; got {value!r}")


def check_strength(strength: float, rectifier: str, fusion: str) -> None:
    """Raise ValueError unless lambda keeps p~ a distribution: [0, 1] for the simplex mixture, else any >= 0."""
    mixture = rectifier == "simplex" and fusion == "probability"
    if not math.isfinite(strength) or strength < 0 or (mixture and strength > 1):
        accepted = "in [0, 1] (rectifier='simplex', fusion='probability')" if mixture else "finite and not negative"
        raise ValueError(f"strength must be {accepted}; got {strength}")


def rectify(
    pilot_logits: Tensor,
    delta: Tensor,
    strength: float,
    *,
    index: Tensor | None = None,
    rectifier: str = "simplex",
    fusion: str = "probability",
) -> Tensor:
    """log p~, the logarithm of the rectified distribution (Eq. 8).

    | rectifier | predicted mistake f     | p~                                                        |
    | simplex   | softmax(z + delta) - p^ | (1 - lambda) p^ + lambda softmax(z + delta)               |
    | linear    | delta                   | max(p^ + lambda delta, 0), renormalised; p^ where all are 0 |

    `fusion="logit"` gives softmax(z + lambda delta) for both. delta = 0 gives log_softmax(z) to the last bit.

    Args:
        pilot_logits: (..., V) z, float32, bfloat16 or float16. Entries of -inf stay -inf; a row with NaN becomes NaN.
        delta: (..., V), or (..., k) when `index` is given.
        strength: lambda; in [0, 1] for the simplex mixture, otherwise >= 0.
        index: (..., k) int64, the tokens that `delta` belongs to, distinct within a row; all others have delta = 0.
        rectifier: "simplex" or "linear".
        fusion: "probability" or "logit".

    Returns:
        (..., V) float32. Differentiable in `pilot_logits` and `delta`.

    Raises:
        ValueError: shapes that do not agree, a strength out of range, an unknown rectifier or fusion.
    """
    check_choice("rectifier", rectifier, RECTIFIERS)
    check_choice("fusion", fusion, FUSIONS)
    check_strength(strength, rectifier, fusion)
    if index is None and delta.shape != pilot_logits.shape:
        raise ValueError(
            f"delta must have the shape of pilot_logits {tuple(pilot_logits.shape)}; got {tuple(delta.shape)}"
        )
    if index is not None and (delta.shape != index.shape or index.shape[:-1] != pilot_logits.shape[:-1]):
        expected = (*pilot_logits.shape[:-1], "k")
        raise ValueError(f"delta and index must both be {expected}; got {tuple(delta.shape)} and {tuple(index.shape)}")
    return reference.rectify(pilot_logits, delta, strength, index, rectifier, fusion)
