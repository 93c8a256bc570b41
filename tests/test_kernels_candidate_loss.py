"""The compiled candidate_loss and its gradient: as exact as the reference, on every shape, stride and type."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import outputs_with
from torch import Tensor

from copilot.ops import Mistakes, candidate_loss, extension, reference

pytestmark = pytest.mark.skipif(not extension.LOADED, reason=f"no kernels: {extension.NOT_LOADED_BECAUSE}")

OBJECTIVES = [("simplex", "rmse"), ("linear", "rmse"), ("simplex", "ce"), ("simplex", "kl")]
objectives = pytest.mark.parametrize(("rectifier", "loss"), OBJECTIVES)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 15, 16, 17, 111, 4096, 4097, 32000]


def random_mistakes(
    rows: int, vocabulary: int, k: int | None, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Mistakes:
    """Half of the targets are likely tokens, the others are any."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, vocabulary, generator=g)
    target = torch.randint(vocabulary, (rows,), generator=g)
    target[::2] = logits[::2].argmax(1)
    _, mistakes = reference.mistake_cross_entropy(logits, target, k, -100)
    return replace(mistakes, top_prob=mistakes.top_prob.to(dtype))


def random_delta(mistakes: Mistakes, *, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    return torch.randn(mistakes.top_prob.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def truth(mistakes: Mistakes, delta: Tensor, rectifier: str, loss: str) -> Tensor:
    """The losses in float64, of the numbers that the mistakes hold."""
    p, d = mistakes.top_prob.double(), delta.double()
    p_y, rest = mistakes.target_prob.double(), mistakes.rest_mass.double()
    total = p.sum(1) + rest
    log_total = torch.logsumexp(torch.cat([p.log() + d, rest.log()[:, None]], dim=1), dim=1)
    d_y = reference.at_target(mistakes, d, torch.zeros_like(rest))
    log_q_y = p_y.log() + d_y - log_total
    if loss == "ce":
        return -log_q_y
    if loss == "kl":
        t_y = (1 + p_y) / 2
        ratio = log_total - math.log(2)
        kept = (p / 2 * (ratio[:, None] - d)).sum(1)
        return kept + rest / 2 * ratio - p_y / 2 * (ratio - d_y) + t_y * (t_y.log() - log_q_y)
    q = d + p if rectifier == "linear" else total[:, None] * (p.log() + d - log_total[:, None]).exp()
    g = torch.ones_like(rest) if rectifier == "linear" else total * (-log_total).exp()
    f_y = reference.at_target(mistakes, q - p, (g - 1) * p_y)
    return q.square().sum(1) + g.square() * mistakes.rest_square.double() - 2 * (f_y + p_y) + 1


def with_gradient(function, delta: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The losses and the gradient with respect to delta of their weighted sum."""
    delta = delta.detach().requires_grad_()
    losses = function(delta)
    (losses * weights).sum().backward()
    return losses.detach(), delta.grad


def assert_as_exact_as_the_reference(
    mistakes: Mistakes, delta: Tensor, rectifier: str, loss: str, least: float = 0.0
) -> None:
    """The largest error is at most that of the reference and 1e-6 of the largest value, or of `least`."""
    weights = torch.linspace(0.5, 2.0, len(mistakes))
    right = with_gradient(lambda d: truth(mistakes, d, rectifier, loss), delta.double(), weights.double())
    naive = with_gradient(lambda d: reference.candidate_loss(mistakes, d, rectifier, loss), delta, weights)
    mine = with_gradient(lambda d: candidate_loss(mistakes, d, rectifier=rectifier, loss=loss), delta, weights)
    assert mine[0].dtype == torch.float32
    assert mine[1].dtype == delta.dtype
    for value, other, exact in zip(mine, naive, right, strict=True):
        worst, allowed, largest = (
            error.abs().max().item() if error.numel() else 0.0 for error in (value - exact, other - exact, exact)
        )
        assert worst <= allowed + 1e-6 * max(largest, least)
        assert allowed <= (1e-5 + torch.finfo(other.dtype).eps) * max(largest, least, 1), "the reference is wrong"


@objectives
@pytest.mark.parametrize("size", SIZES)
def test_the_whole_vocabulary_is_as_exact_as_in_the_reference(rectifier, loss, size):
    mistakes = random_mistakes(3, size, None)
    assert_as_exact_as_the_reference(mistakes, random_delta(mistakes), rectifier, loss)


@objectives
def test_a_very_large_vocabulary_is_as_exact_as_in_the_reference(rectifier, loss):
    mistakes = random_mistakes(1, 151936, None)
    assert_as_exact_as_the_reference(mistakes, random_delta(mistakes), rectifier, loss)


@objectives
@pytest.mark.parametrize("change", [0.3, -1.7])
def test_sums_of_many_equal_terms_keep_the_truth(rectifier, loss, change):
    """Where roundings do not cancel out."""
    logits = torch.full((1, 262144), -5.0)
    logits[0, 0] = 0.0
    _, mistakes = reference.mistake_cross_entropy(logits, torch.tensor([7]), None, -100)
    delta = torch.full_like(logits, change)
    value = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    torch.testing.assert_close(value.double(), truth(mistakes, delta, rectifier, loss), rtol=3e-6, atol=0)


@objectives
@pytest.mark.parametrize("k", [1024, 1025, 2900])
def test_many_kept_tokens_are_as_exact_as_in_the_reference(rectifier, loss, k):
    mistakes = random_mistakes(4, 3000, k)
    assert_as_exact_as_the_reference(mistakes, random_delta(mistakes), rectifier, loss)


@pytest.mark.parametrize("loss", ["rmse", "ce", "kl"])
@pytest.mark.parametrize("size", [64, 5000])
@pytest.mark.parametrize("change", [55.0, 75.0])
def test_an_unlikely_token_may_be_what_delta_favours(loss, size, change):
    """The weights, relative to the largest delta, have squares that float32 does not hold."""
    logits = torch.zeros(2, size)
    logits[:, 7] = -65.0
    _, mistakes = reference.mistake_cross_entropy(logits, torch.tensor([7, 30]), None, -100)
    delta = random_delta(mistakes)
    delta[:, 7] = change
    right = with_gradient(lambda d: truth(mistakes, d, "simplex", loss), delta.double(), torch.ones(2).double())
    mine = with_gradient(lambda d: candidate_loss(mistakes, d, loss=loss), delta, torch.ones(2))
    for value, exact in zip(mine, right, strict=True):
        torch.testing.assert_close(value.double(), exact, atol=1e-4, rtol=0)  # float32 of numbers around 70


@objectives
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("prob_dtype", DTYPES)
def test_every_type_of_either_input_is_as_exact_as_in_the_reference(rectifier, loss, dtype, prob_dtype):
    mistakes = random_mistakes(5, 64, 21, dtype=prob_dtype)
    assert_as_exact_as_the_reference(mistakes, random_delta(mistakes, dtype=dtype), rectifier, loss)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    objective=st.sampled_from(OBJECTIVES),
    rows=st.sampled_from([0, 1, 3]),
    vocabulary=st.integers(1, 50),
    kept=st.none() | st.integers(1, 50),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    seed=st.integers(0, 1000),
)
def test_small_shapes_are_as_exact_as_in_the_reference(objective, rows, vocabulary, kept, dtypes, seed):
    k = None if kept is None else min(kept, vocabulary)
    mistakes = random_mistakes(rows, vocabulary, k, dtype=dtypes[0], seed=seed)
    delta = random_delta(mistakes, dtype=dtypes[1], seed=seed)
    assert_as_exact_as_the_reference(mistakes, delta, *objective, least=1.0)  # terms near 1 may cancel in a single row


@objectives
@pytest.mark.parametrize("k", [None, 21])
def test_strided_rows_are_what_adjacent_ones_are(rectifier, loss, k):
    mistakes = random_mistakes(5, 64, k)
    delta = random_delta(mistakes)
    weights = torch.ones(5)

    def run(m: Mistakes, d: Tensor) -> tuple[Tensor, Tensor]:
        return with_gradient(lambda d: candidate_loss(m, d, rectifier=rectifier, loss=loss), d, weights)

    expected = run(mistakes, delta)
    width = delta.shape[1]
    wide = torch.cat([delta, delta, delta], dim=1)
    every_other = torch.stack([delta, -delta], dim=2)[..., 0]
    index = None if k is None else mistakes.top_index.t().contiguous().t()
    strided = replace(mistakes, top_prob=mistakes.top_prob.t().contiguous().t(), top_index=index)
    for m, d in ((mistakes, wide[:, width : 2 * width]), (mistakes, every_other), (strided, delta)):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(run(m, d), expected, strict=True))


@pytest.mark.parametrize("k", [None, 21])
def test_a_delta_of_zero_predicts_exactly_nothing(k):
    """The factor on p is 1 to the last bit, so that f = q - p is 0."""
    mistakes = random_mistakes(50, 64, k)
    fields = mistakes.target_prob, mistakes.rest_mass, mistakes.rest_square
    _, gradient = torch.ops.copilot.candidate_loss(
        torch.zeros_like(mistakes.top_prob), mistakes.top_prob, mistakes.top_index, mistakes.target, *fields,
        "simplex", "rmse",
    )  # fmt: skip
    assert (gradient[:, :2] == torch.tensor([0.0, 1.0])).all()


@pytest.mark.parametrize("loss", ["rmse", "ce"])
@pytest.mark.parametrize("k", [None, 21])
def test_a_token_that_delta_excludes_takes_no_part(loss, k):
    mistakes = random_mistakes(4, 64, k)
    index = torch.arange(64).expand(4, -1) if k is None else mistakes.top_index
    excluded = torch.arange(4), (index != mistakes.target[:, None]).int().argmax(1)
    delta = random_delta(mistakes).index_put(excluded, torch.tensor(-torch.inf))
    value, gradient = with_gradient(lambda d: candidate_loss(mistakes, d, loss=loss), delta, torch.ones(4))
    torch.testing.assert_close(value.double(), truth(mistakes, delta, "simplex", loss), atol=1e-6, rtol=1e-6)
    assert (gradient[excluded] == 0).all()


@objectives
@pytest.mark.parametrize("k", [None, 21])
@pytest.mark.parametrize("field", ["delta", "delta of no probability", "top_prob", "target_prob"])
def test_a_nan_stays_in_its_row(rectifier, loss, k, field):
    mistakes = random_mistakes(4, 64, k)
    delta = random_delta(mistakes)
    expected = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    broken = {name: value.clone() for name, value in mistakes.tensors().items()}
    if field.startswith("delta"):
        delta[2, 5] = torch.nan
        broken["top_prob"][2, 5] *= field == "delta"
    else:
        broken[field][2] = torch.nan
    actual = candidate_loss(replace(mistakes, **broken), delta, rectifier=rectifier, loss=loss)
    assert actual.isnan().tolist() == [False, False, True, False]
    assert torch.equal(actual[[0, 1, 3]], expected[[0, 1, 3]])


def test_a_second_derivative_is_refused_rather_than_wrong():
    mistakes = random_mistakes(4, 50, 6)
    delta = random_delta(mistakes).requires_grad_()
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(candidate_loss(mistakes, delta).sum(), delta, create_graph=True)


def arguments(k: int | None, rectifier: str = "simplex", loss: str = "rmse", rows: int = 5) -> tuple:
    mistakes = random_mistakes(rows, 64, k)
    fields = mistakes.target_prob, mistakes.rest_mass, mistakes.rest_square
    return random_delta(mistakes), mistakes.top_prob, mistakes.top_index, mistakes.target, *fields, rectifier, loss


@pytest.mark.parametrize("k", [None, 21])
def test_the_operators_keep_torchs_rules(k):
    delta, *others = arguments(k)
    torch.library.opcheck(torch.ops.copilot.candidate_loss.default, (delta.requires_grad_(), *others))
    losses, gradient = torch.ops.copilot.candidate_loss(delta.detach(), *others)
    of_backward = losses, gradient, delta.detach(), *others[:3], *others[-2:]
    torch.library.opcheck(torch.ops.copilot.candidate_loss_backward.default, of_backward)


@pytest.mark.parametrize("k", [None, 21])
def test_a_compiled_call_is_the_eager_one(k):
    compiled = torch.compile(candidate_loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (5, 3):
        mistakes = random_mistakes(rows, 64, k)
        delta, weights = random_delta(mistakes), torch.rand(rows)
        mine = with_gradient(lambda d, m=mistakes: compiled(m, d), delta, weights)
        eager = with_gradient(lambda d, m=mistakes: candidate_loss(m, d), delta, weights)
        assert all(torch.equal(a, b) for a, b in zip(mine, eager, strict=True))


@objectives
def test_neither_threads_nor_the_other_rows_matter(rectifier, loss):
    mistakes = random_mistakes(9, 5000, None)
    delta, weights = random_delta(mistakes), torch.rand(9)

    def run(rows: slice) -> tuple[Tensor, Tensor]:
        some = replace(mistakes, **{name: value[rows] for name, value in mistakes.tensors().items()})
        return with_gradient(
            lambda d: candidate_loss(some, d, rectifier=rectifier, loss=loss), delta[rows], weights[rows]
        )

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(slice(None))
        torch.set_num_threads(2)
        assert all(torch.equal(a, b) for a, b in zip(run(slice(None)), expected, strict=True))
    finally:
        torch.set_num_threads(threads)
    parts = [run(slice(i, i + 1)) for i in range(9)]
    assert all(
        torch.equal(torch.cat(part), whole) for part, whole in zip(zip(*parts, strict=True), expected, strict=True)
    )


@pytest.mark.parametrize("instruction_set", ["avx2", "portable"])
def test_every_instruction_set_gives_the_same_losses(instruction_set, tmp_path):
    calls = []
    for rectifier, loss in OBJECTIVES:
        for k in (None, 21):
            delta, *others = arguments(k, rectifier, loss)
            losses, gradient = torch.ops.copilot.candidate_loss(delta, *others)
            of_backward = losses, gradient, delta.bfloat16(), *others[:3], *others[-2:]
            calls += [("candidate_loss", (delta, *others)), ("candidate_loss_backward", of_backward)]
    outputs = outputs_with(instruction_set, calls, tmp_path)
    for (operator, given_arguments), actual in zip(calls, outputs, strict=True):
        expected = getattr(torch.ops.copilot, operator)(*given_arguments)
        torch.testing.assert_close(actual, expected, atol=2e-6, rtol=1e-6 if operator == "candidate_loss" else 0.01)


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (1, torch.zeros(5, 63), "top_prob"),
        pytest.param(3, torch.full((5,), 64), "target must lie in .0, 64. .*; got 64", marks=pytest.mark.refuses),
        pytest.param(3, torch.full((5,), -100), "target must lie in .0, 64. .*; got -100", marks=pytest.mark.refuses),
        (3, torch.zeros(4, dtype=torch.int64), "target"),
        (3, torch.zeros(5, dtype=torch.int32), "target"),
        (4, torch.zeros(4), "target_prob"),
        (5, torch.zeros(5).double(), "rest_mass"),
        (6, torch.zeros(5, 1), "rest_square"),
        (0, torch.zeros(5, 64).double(), "delta"),
    ],
)
def test_a_wrong_argument_of_the_operator_is_named(place, value, named):
    given_arguments = list(arguments(None))
    given_arguments[place] = value
    with pytest.raises(RuntimeError, match=f" {named}"):
        torch.ops.copilot.candidate_loss(*given_arguments)


def test_no_kept_tokens_are_refused():
    delta, prob, index, *others = arguments(21)
    with pytest.raises(RuntimeError, match=r" top_index must .* at least one token"):
        torch.ops.copilot.candidate_loss(delta[:, :0], prob[:, :0], index[:, :0].contiguous(), *others)


def test_kept_tokens_of_another_shape_are_refused():
    given_arguments = list(arguments(21))
    given_arguments[2] = given_arguments[2][:, :20].contiguous()
    with pytest.raises(RuntimeError, match=r" top_index must be \(5, 21\)"):
        torch.ops.copilot.candidate_loss(*given_arguments)


@pytest.mark.refuses
@pytest.mark.parametrize("target", [64, -100])
def test_the_backward_itself_refuses_a_target_outside_the_vocabulary(target):
    """It would write there."""
    delta, *others = arguments(None)
    losses, gradient = torch.ops.copilot.candidate_loss(delta, *others)
    prob, index, targets = others[:3]
    with pytest.raises(RuntimeError, match=f" target must lie in .0, 64. .*; got {target}"):
        wrong = torch.full_like(targets, target)
        torch.ops.copilot.candidate_loss_backward(losses, gradient, delta, prob, index, wrong, *others[-2:])
