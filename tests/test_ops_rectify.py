"""rectify returns log p~ of Eq. 8: against a dense float64 truth, at the edges, and in half precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from builders import dense, dense_rectified
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from copilot.ops import mistake_cross_entropy, rectify, reference

RECTIFIERS = ("simplex", "linear")
MODES = [("simplex", "probability"), ("linear", "probability"), ("simplex", "logit"), ("linear", "logit")]
modes = pytest.mark.parametrize(("rectifier", "fusion"), MODES)
STRENGTHS = (0.0, 1e-4, 0.3, 0.5, 1.0)


def random_case(n: int, v: int, k: int | None = None, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, delta and index of n rows; delta is sometimes large."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, v, generator=g)
    index = None if k is None else torch.rand(n, v, generator=g).argsort(-1)[:, :k]
    delta = 2 * torch.randn(n, v if k is None else k, generator=g)
    return logits, delta, index


def in_reference(
    logits: Tensor,
    delta: Tensor,
    strength: float,
    *,
    index: Tensor | None = None,
    rectifier: str = "simplex",
    fusion: str = "probability",
) -> Tensor:
    return reference.rectify(logits, delta, strength, index, rectifier, fusion)


implementations = pytest.mark.parametrize("implementation", [rectify, in_reference])


def scaled_for(rectifier: str, fusion: str, delta: Tensor) -> Tensor:
    """A delta of the size that the mode expects: differences of probabilities for the linear Eq. 8, else of logits."""
    return delta * 0.05 if (rectifier, fusion) == ("linear", "probability") else delta


# ---- The value ----


@modes
@pytest.mark.parametrize("k", [None, 1, 8])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_log_probabilities_equal_the_float64_truth(rectifier, fusion, k, strength):
    logits, delta, index = random_case(40, 50, k)
    delta = scaled_for(rectifier, fusion, delta)
    actual = rectify(logits, delta, strength, index=index, rectifier=rectifier, fusion=fusion)
    expected = dense_rectified(logits, dense(delta, index, 50), strength, rectifier, fusion)
    if (rectifier, fusion) == ("linear", "probability"):
        # p^ + lambda f is a difference of float32 numbers: its absolute error is small, not its logarithm's.
        torch.testing.assert_close(actual.double().exp(), expected, atol=1e-6, rtol=0)
    else:
        torch.testing.assert_close(actual.double(), expected.log(), atol=5e-6, rtol=0)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("correction", [-60.0, -30.0, -18.0, -10.0, -1e-3, 1e-3, 10.0, 18.0, 30.0, 60.0])
def test_simplex_stays_accurate_where_the_correction_is_large(strength, correction):
    """log p~ of every entry, the unlikely ones too: beams and losses sum them."""
    logits = torch.tensor([[20.0, 0.0, 0.0, -3.0]])
    delta = torch.tensor([[0.0, correction, 0.0, 0.0]])
    expected = dense_rectified(logits, delta, strength).log()
    actual = rectify(logits, delta, strength)
    torch.testing.assert_close(actual.double(), expected, atol=5e-6, rtol=1e-6)


def test_linear_stays_accurate_where_a_confident_token_is_taken_away():
    """p^ = (1, 1e-10, 1e-10) in float32 and f = (-1, 0, 0): what remains is all of the rest."""
    logits = torch.tensor([[23.0, 0.0, 0.0], [23.0, 0.0, 1.0]])
    delta = torch.tensor([[-1.0, 0.0, 0.0], [-2.0, 0.0, 0.0]])
    expected = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1 / (1 + torch.e), torch.e / (1 + torch.e)]])
    torch.testing.assert_close(rectify(logits, delta, 1.0, rectifier="linear").exp(), expected)


@implementations
def test_linear_shares_out_a_rest_however_unlikely_it_was(implementation):
    """f takes all of the first token: what remains is 1e-39 of p^."""
    logits = torch.tensor([[0.0, -90.0, -91.0]], requires_grad=True)
    log_p = implementation(logits, torch.tensor([[-1.0, 0.0, 0.0]]), 1.0, rectifier="linear")
    rest = torch.tensor([0.0, -1.0]).log_softmax(-1)
    torch.testing.assert_close(log_p[0].detach(), torch.tensor([-torch.inf, *rest]), atol=1e-5, rtol=0)
    log_p[0, 1].backward()
    expected = torch.tensor([0.0, 1 - rest[0].exp(), -rest[1].exp()])
    torch.testing.assert_close(logits.grad[0], expected, atol=1e-5, rtol=0)


@implementations
@pytest.mark.parametrize("strength", [1e-30, 1e-17, 1e-8])
def test_simplex_keeps_the_smallest_strengths(implementation, strength):
    logits, delta = torch.tensor([[0.0, -80.0, -5.0]]), torch.tensor([[0.0, 160.0, 0.0]])
    expected = dense_rectified(logits, delta, strength).log()
    torch.testing.assert_close(implementation(logits, delta, strength).double(), expected, atol=1e-5, rtol=0)


@modes
@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("k", [3, 4])
def test_the_kept_tokens_alone_give_the_same_numbers(rectifier, fusion, strength, k):
    """The third and fourth most likely tokens are forbidden, whatever delta wants."""
    logits = torch.tensor([[0.0, 0.5, -torch.inf, -torch.inf]])
    _, mistakes = mistake_cross_entropy(logits, torch.tensor([1]), k)
    delta = torch.tensor([[0.1, -0.2, 0.5, 0.4]])[:, :k]
    mode = {"rectifier": rectifier, "fusion": fusion}
    kept, _, target = reference.rectify_kept(mistakes, delta, strength, **mode)
    expected = rectify(logits, delta, strength, index=mistakes.top_index, **mode).exp()
    torch.testing.assert_close(kept, expected.gather(1, mistakes.top_index))
    torch.testing.assert_close(target, expected[:, 1])


@modes
@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("k", [None, 5])
def test_rectified_rows_are_distributions(rectifier, fusion, strength, k):
    logits, delta, index = random_case(64, 30, k, seed=1)
    probability = rectify(logits, delta, strength, index=index, rectifier=rectifier, fusion=fusion).exp()
    torch.testing.assert_close(probability.sum(-1), torch.ones(64), atol=2e-6, rtol=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    vocabulary=st.integers(1, 300),
    kept=st.none() | st.integers(1, 300),
    mode=st.sampled_from(MODES),
    strength=st.just(0.0) | st.floats(2.0**-99, 1, width=32),
    seed=st.integers(0, 999),
)
def test_any_shape_equals_the_float64_truth(leading, vocabulary, kept, mode, strength, seed):
    rows = torch.Size(leading).numel()
    logits, delta, index = random_case(rows, vocabulary, None if kept is None else min(kept, vocabulary), seed=seed)
    delta = scaled_for(*mode, delta)
    actual = rectify(
        logits.view(*leading, vocabulary),
        delta.view(*leading, delta.shape[1]),
        strength,
        index=None if index is None else index.view(*leading, index.shape[1]),
        rectifier=mode[0],
        fusion=mode[1],
    )
    assert actual.shape == (*leading, vocabulary)
    assert actual.dtype == torch.float32
    expected = dense_rectified(logits, dense(delta, index, vocabulary), strength, *mode)
    torch.testing.assert_close(actual.double().exp().view(rows, vocabulary), expected, atol=2e-6, rtol=0)


# ---- No correction ----


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("k", [None, 4])
def test_a_zero_delta_changes_nothing_to_the_last_bit(rectifier, fusion, dtype, strength, k):
    logits, delta, index = random_case(50, 200, k)
    logits = (5 * logits).to(dtype)
    actual = rectify(logits, 0 * delta, strength, index=index, rectifier=rectifier, fusion=fusion)
    assert torch.equal(actual, rectify(logits, torch.zeros_like(logits), 0.0))
    assert torch.equal(actual.argmax(-1), logits.argmax(-1))
    # 1e-6 of a probability, or 2 ulp of its logarithm.
    torch.testing.assert_close(actual.double(), logits.double().log_softmax(-1), rtol=2.4e-7, atol=1e-6)


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("k", [None, 4])
def test_a_zero_delta_gives_the_reference_torchs_log_softmax_to_the_last_bit(rectifier, fusion, dtype, strength, k):
    logits, delta, index = random_case(50, 200, k)
    logits = (5 * logits).to(dtype)
    actual = reference.rectify(logits, 0 * delta, strength, index, rectifier, fusion)
    assert torch.equal(actual, logits.float().log_softmax(-1))


@modes
@implementations
@pytest.mark.parametrize("k", [None, 4])
def test_strength_zero_is_the_pilot_whatever_the_correction(rectifier, fusion, implementation, k):
    logits, delta, index = random_case(50, 200, k)
    logits[:, ::2] -= 150.0  # probabilities that float32 does not hold
    delta[:, 1], delta[:, 2] = torch.nan, torch.inf
    logits.requires_grad_()
    actual = implementation(logits, delta, 0.0, index=index, rectifier=rectifier, fusion=fusion)
    truth = logits.detach().double().requires_grad_()
    expected = truth.log_softmax(-1)
    torch.testing.assert_close(actual.double(), expected, atol=2e-5, rtol=0)
    upstream = torch.rand(50, 200, generator=torch.Generator().manual_seed(5))
    actual.backward(upstream)
    expected.backward(upstream.double())
    torch.testing.assert_close(logits.grad.double(), truth.grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_linear_row_without_a_positive_entry_falls_back_to_the_pilot(strength):
    logits, _, _ = random_case(3, 20)
    delta = torch.full((3, 20), -4.0)
    delta[1] = 0.01
    actual = rectify(logits, delta, strength, rectifier="linear")
    pilot = rectify(logits, torch.zeros(3, 20), 0.0)
    assert torch.equal(actual[[0, 2]], pilot[[0, 2]])
    assert not torch.equal(actual[1], pilot[1])


# ---- Entries that are not numbers ----


@modes
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [None, 20])
def test_forbidden_tokens_stay_forbidden(rectifier, fusion, strength, k):
    """-inf in the Pilot's logits means p^ = 0, and no correction brings the token back."""
    logits, delta, index = random_case(6, 20, k)
    forbidden = torch.arange(20) % 3 == 0
    logits[:, forbidden] = float("-inf")
    log_p = rectify(logits, delta.abs() * 0.05, strength, index=index, rectifier=rectifier, fusion=fusion)
    assert (log_p[:, forbidden] == float("-inf")).all()
    torch.testing.assert_close(log_p[:, ~forbidden].exp().sum(-1), torch.ones(6), atol=1e-6, rtol=0)


@modes
def test_forbidden_tokens_leave_the_gradient_finite(rectifier, fusion):
    logits, delta, index = random_case(6, 20, 20)
    logits[:, ::3] = float("-inf")
    logits.requires_grad_()
    delta = (delta.abs() * 0.05).requires_grad_()
    log_p = rectify(logits, delta, 0.5, index=index, rectifier=rectifier, fusion=fusion)
    log_p[:, 1::3].sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(delta.grad).all()


@modes
@pytest.mark.parametrize("where", ["logits", "delta"])
def test_a_row_with_nan_becomes_nan_and_leaves_the_others_alone(rectifier, fusion, where):
    logits, delta, index = random_case(4, 20, 3)
    delta = scaled_for(rectifier, fusion, delta)
    clean = rectify(logits, delta, 0.7, index=index, rectifier=rectifier, fusion=fusion)
    (logits if where == "logits" else delta)[2, 1] = float("nan")
    actual = rectify(logits, delta, 0.7, index=index, rectifier=rectifier, fusion=fusion)
    assert actual[2].isnan().all()
    assert torch.equal(actual[[0, 1, 3]], clean[[0, 1, 3]])


# ---- The gradient ----


@modes
@pytest.mark.parametrize("k", [None, 6])
@pytest.mark.parametrize("strength", [1e-3, 0.4, 1.0])
def test_gradients_equal_those_of_the_float64_truth(rectifier, fusion, k, strength):
    logits, delta, index = random_case(10, 24, k, seed=2)
    if (rectifier, fusion) == ("linear", "probability"):  # no entry is clamped: there log p~ has no gradient
        p = logits.softmax(-1)
        delta = 0.5 * delta.tanh() * (p if index is None else p.gather(1, index))
    upstream = torch.rand(10, 24, generator=torch.Generator().manual_seed(5))
    single = [logits.clone().requires_grad_(), delta.clone().requires_grad_()]
    double = [logits.double().requires_grad_(), delta.double().requires_grad_()]
    actual = rectify(*single, strength, index=index, rectifier=rectifier, fusion=fusion)
    (actual * upstream).sum().backward()
    expected = dense_rectified(double[0], dense(double[1], index, 24), strength, rectifier, fusion).log()
    (expected * upstream).sum().backward()
    for mine, truth in zip(single, double, strict=True):
        scale = truth.grad.abs().max().item()
        torch.testing.assert_close(mine.grad.double(), truth.grad, atol=2e-6 * max(scale, 1.0), rtol=1e-5)


@implementations
def test_where_the_mixture_is_one_of_its_two_parts_the_gradient_is_that_ones(implementation):
    logits = torch.zeros(1, 3, requires_grad=True)
    delta = torch.tensor([[-torch.inf, 0.0, 1.0]], requires_grad=True)
    upstream = torch.tensor([0.0, 1.0, -2.0])
    (implementation(logits, delta, 1.0)[0, 1:] @ upstream[1:]).backward()
    expected = upstream - torch.log_softmax(torch.tensor([-torch.inf, 0.0, 1.0]), -1).exp() * upstream.sum()
    for leaf in (logits, delta):
        torch.testing.assert_close(leaf.grad[0], expected)
    logits.grad = delta.grad = None
    (implementation(logits, delta * torch.nan, 0.0)[0] @ upstream).backward()
    torch.testing.assert_close(logits.grad[0], upstream - upstream.sum() / 3)


@pytest.mark.parametrize("strength", [1e-3, 0.5, 1.0])
def test_the_simplex_gradient_is_finite_however_large_the_correction(strength):
    logits = torch.tensor([[20.0, 0.0, 0.0, -3.0]] * 2, requires_grad=True)
    delta = torch.tensor([[-60.0, 60.0, 0.0, 0.0], [60.0, -60.0, 0.0, 0.0]], requires_grad=True)
    rectify(logits, delta, strength).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(delta.grad).all()


def test_the_linear_gradient_of_the_kept_tokens_is_finite_beside_clamped_ones():
    logits, _, _ = random_case(1, 20)
    best = logits.argmax()
    logits.requires_grad_()
    delta = torch.full((1, 20), 0.05)
    delta[0, (best + 1) % 20] = -2.0
    delta.requires_grad_()
    rectify(logits, delta, 1.0, rectifier="linear")[0, best].backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(delta.grad).all()


def test_the_linear_gradient_of_a_row_that_falls_back_is_the_pilots():
    logits, _, _ = random_case(1, 20)
    mine, truth = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    rectify(mine, torch.full((1, 20), -4.0), 1.0, rectifier="linear")[0, 3].backward()
    truth.log_softmax(-1)[0, 3].backward()
    torch.testing.assert_close(mine.grad, truth.grad)


# ---- Inputs of every kind ----


@modes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_no_worse_than_the_naive_formula(rectifier, fusion, dtype):
    logits, delta, _ = random_case(50, 64, seed=3)
    logits, delta = logits.to(dtype), scaled_for(rectifier, fusion, delta).to(dtype)
    truth = dense_rectified(logits, delta, 0.5, rectifier, fusion)
    if fusion == "logit":
        naive = (logits + 0.5 * delta).softmax(-1)
    elif rectifier == "simplex":
        naive = 0.5 * logits.softmax(-1) + 0.5 * (logits + delta).softmax(-1)
    else:
        naive = (logits.softmax(-1) + 0.5 * delta).clamp(min=0)
        naive = naive / naive.sum(-1, keepdim=True)
    actual = rectify(logits, delta, 0.5, rectifier=rectifier, fusion=fusion)
    assert actual.dtype == torch.float32
    error = (actual.double().exp() - truth).abs().max()
    assert error <= (naive.double() - truth).abs().max() + 1e-6


@modes
@pytest.mark.parametrize("k", [None, 4])
def test_strided_inputs_give_what_contiguous_ones_give(rectifier, fusion, k):
    logits, delta, index = random_case(12, 30, k)
    strided = [t if t is None else torch.stack([t, t], -1)[..., 0].t().contiguous().t() for t in (logits, delta, index)]
    assert not strided[0].is_contiguous()
    expected = rectify(logits, delta, 0.6, index=index, rectifier=rectifier, fusion=fusion)
    actual = rectify(strided[0], strided[1], 0.6, index=strided[2], rectifier=rectifier, fusion=fusion)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@modes
@pytest.mark.parametrize("k", [None, 4])
def test_no_rows_give_no_rows(rectifier, fusion, k):
    logits, delta, index = random_case(0, 30, k)
    actual = rectify(logits.requires_grad_(), delta, 0.5, index=index, rectifier=rectifier, fusion=fusion)
    assert actual.shape == (0, 30)
    actual.sum().backward()
    assert logits.grad.shape == (0, 30)


@modes
def test_inputs_are_left_as_they_were(rectifier, fusion):
    case = random_case(5, 20, 3)
    before = [tensor.clone() for tensor in case]
    rectify(case[0], case[1], 0.5, index=case[2], rectifier=rectifier, fusion=fusion)
    assert all(torch.equal(now, then) for now, then in zip(case, before, strict=True))


# ---- Errors ----


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rectifier": "cubic"}, "rectifier"),
        ({"fusion": "late"}, "fusion"),
        ({"strength": -0.1}, "strength"),
        ({"strength": 1.1}, "strength must be 0 or in \\[1e-30, 1\\]"),
        ({"strength": 1e-31}, "strength"),
        ({"strength": 1e31, "fusion": "logit"}, "strength must be 0 or in \\[1e-30, 1e\\+30\\]"),
        ({"strength": float("nan")}, "strength"),
        ({"strength": float("inf"), "rectifier": "linear"}, "strength"),
        ({"pilot_logits": torch.tensor(1.0), "delta": torch.tensor(1.0)}, "pilot_logits"),
        ({"delta": torch.zeros(4, 9)}, "delta"),
        ({"delta": torch.zeros(4, 3), "index": torch.zeros(4, 2, dtype=torch.long)}, "delta and index"),
        ({"delta": torch.zeros(3, 2), "index": torch.zeros(3, 2, dtype=torch.long)}, "delta and index"),
        ({"delta": torch.zeros(4, 2), "index": torch.zeros(4, 2, dtype=torch.int32)}, "index"),
    ],
)
def test_a_wrong_argument_is_named(change, named):
    arguments = {"pilot_logits": torch.zeros(4, 10), "delta": torch.zeros(4, 10), "strength": 0.5} | change
    with pytest.raises(ValueError, match=f"^{named}"):
        rectify(**arguments)


@pytest.mark.parametrize(("rectifier", "fusion"), [mode for mode in MODES if mode != ("simplex", "probability")])
def test_strengths_above_one_are_fine_outside_the_simplex_mixture(rectifier, fusion):
    logits, delta, _ = random_case(5, 20)
    delta = scaled_for(rectifier, fusion, delta)
    actual = rectify(logits, delta, 1.7, rectifier=rectifier, fusion=fusion)
    expected = dense_rectified(logits, delta, 1.7, rectifier, fusion)
    torch.testing.assert_close(actual.double().exp(), expected, atol=1e-6, rtol=0)


def test_the_two_fusions_and_the_two_rectifiers_differ():
    logits, delta, _ = random_case(5, 20)
    results = [rectify(logits, delta, 0.5, rectifier=r, fusion=f) for r, f in MODES[:3]]
    assert not any(torch.allclose(a, b, atol=1e-2) for a, b in itertools.combinations(results, 2))
