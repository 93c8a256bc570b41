"""mistake_cross_entropy and candidate_loss: compact mistakes give the loss and the gradient of the whole vocabulary."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from builders import dense, dense_loss, onehot
from torch import Tensor
from torch.nn import functional as F

from copilot.ops import Mistakes, candidate_loss, mistake_cross_entropy, reference

N, V = 24, 40
OBJECTIVES = [("simplex", "rmse"), ("linear", "rmse"), ("simplex", "ce"), ("simplex", "kl")]
objectives = pytest.mark.parametrize(("rectifier", "loss"), OBJECTIVES)


def random_rows(*, targets: str = "random", spread: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (N, V), and targets that are the Pilot's most likely tokens, its least likely, or any."""
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(N, V, generator=g)
    order = logits.argsort(-1, descending=True)
    target = {
        "likely": order[:, 1],
        "unlikely": order[:, -1],
        "random": torch.randint(V, (N,), generator=g),
    }[targets]
    return logits, target


def random_delta(k: int | None, *, scale: float = 1.0, seed: int = 9) -> Tensor:
    return scale * torch.randn(N, V if k is None else k, generator=torch.Generator().manual_seed(seed))


def in_reference(logits: Tensor, labels: Tensor, k: int | None, *, ignore_index: int | None) -> tuple[Tensor, Mistakes]:
    return reference.mistake_cross_entropy(logits, labels, k, ignore_index)


# ---- mistake_cross_entropy ----


@pytest.mark.parametrize("k", [None, 1, 7, V])
def test_the_loss_is_cross_entropy_and_ignored_rows_cost_nothing(k):
    logits, target = random_rows()
    target[::3] = -100
    losses, _ = mistake_cross_entropy(logits, target, k)
    expected = F.cross_entropy(logits.double(), target, reduction="none")
    torch.testing.assert_close(losses.double(), expected, atol=1e-6, rtol=1e-6)
    assert (losses[::3] == 0).all()


def test_the_gradient_of_the_loss_is_minus_the_mistake():
    """l = -dL^P/dz (Eq. 4), zero in ignored rows."""
    logits, target = random_rows()
    logits.requires_grad_()
    target[::3] = -100
    losses, _ = mistake_cross_entropy(logits, target, 5)
    losses.sum().backward()
    mistake = onehot(target.clamp(min=0), V) - logits.detach().double().softmax(-1)
    mistake[::3] = 0
    torch.testing.assert_close(logits.grad.double(), -mistake, atol=1e-6, rtol=0)


@pytest.mark.parametrize("targets", ["likely", "unlikely", "random"])
@pytest.mark.parametrize("k", [1, 7, V])
def test_mistakes_hold_the_likeliest_tokens_and_the_sums_of_the_rest(targets, k):
    logits, target = random_rows(targets=targets)
    _, mistakes = mistake_cross_entropy(logits, target, k)
    p = logits.double().softmax(-1)
    top = p.topk(k)
    assert torch.equal(mistakes.target, target)
    assert torch.equal(mistakes.top_index.sort(-1).values, top.indices.sort(-1).values)
    torch.testing.assert_close(mistakes.top_prob.double(), p.gather(1, mistakes.top_index), atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(mistakes.target_prob.double(), p[torch.arange(N), target], atol=1e-7, rtol=1e-6)
    rest = p.scatter(1, top.indices, 0)
    torch.testing.assert_close(mistakes.rest_mass.double(), rest.sum(-1), atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(mistakes.rest_square.double(), rest.square().sum(-1), atol=1e-7, rtol=1e-5)


def test_the_whole_vocabulary_is_kept_in_order():
    logits, target = random_rows()
    _, mistakes = mistake_cross_entropy(logits, target, None)
    assert mistakes.top_index is None
    torch.testing.assert_close(mistakes.top_prob, logits.softmax(-1))
    assert (mistakes.rest_mass == 0).all()
    assert (mistakes.rest_square == 0).all()


def test_only_supervised_rows_leave_mistakes_in_their_order():
    logits, target = random_rows()
    ignored = torch.arange(N) % 3 == 0
    _, some = mistake_cross_entropy(logits, target.masked_fill(ignored, -100), 5)
    _, alone = mistake_cross_entropy(logits[~ignored], target[~ignored], 5)
    assert len(some) == int((~ignored).sum())
    for name, value in some.tensors().items():
        torch.testing.assert_close(value, alone.tensors()[name])


def test_another_ignore_index_is_honoured():
    logits, target = random_rows()
    target[3] = 7
    losses, mistakes = mistake_cross_entropy(logits, target, 5, ignore_index=7)
    assert losses[3] == 0
    assert len(mistakes) == int((target != 7).sum())


@pytest.mark.parametrize("ignore_index", [-100, None])
@pytest.mark.parametrize("implementation", [mistake_cross_entropy, in_reference])
def test_mistakes_outlive_a_change_of_the_labels(implementation, ignore_index):
    logits, target = random_rows()
    labels = target.clone()
    _, mistakes = implementation(logits, labels, 5, ignore_index=ignore_index)
    labels.zero_()
    assert torch.equal(mistakes.target, target)


def test_mistakes_carry_no_gradient():
    logits, target = random_rows()
    _, mistakes = mistake_cross_entropy(logits.requires_grad_(), target, 5)
    assert not any(value.requires_grad for value in mistakes.tensors().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_no_worse_than_the_naive_formula(dtype):
    logits, target = random_rows()
    logits = logits.to(dtype).requires_grad_()
    losses, mistakes = mistake_cross_entropy(logits, target, 5)
    losses.sum().backward()
    assert losses.dtype == torch.float32
    truth = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(truth, target, reduction="none")
    expected.sum().backward()
    naive = logits.detach().clone().requires_grad_()
    naive_losses = F.cross_entropy(naive, target, reduction="none")
    naive_losses.sum().backward()
    p = truth.detach().softmax(-1).gather(1, mistakes.top_index)
    naive_p = naive.detach().softmax(-1).gather(1, mistakes.top_index)

    def worst(value: Tensor, right: Tensor) -> float:
        return (value.double() - right).abs().max().item()

    assert worst(losses, expected.detach()) <= worst(naive_losses, expected.detach()) + 1e-6
    assert worst(logits.grad, truth.grad) <= worst(naive.grad, truth.grad) + 1e-6
    assert worst(mistakes.top_prob, p) <= worst(naive_p, p) + 1e-6


@pytest.mark.parametrize("k", [None, 3])
def test_no_rows_leave_no_mistakes(k):
    losses, mistakes = mistake_cross_entropy(torch.zeros(0, V), torch.zeros(0, dtype=torch.long), k)
    assert losses.shape == (0,)
    assert len(mistakes) == 0
    assert mistakes.top_prob.shape == (0, V if k is None else k)


def test_rows_that_are_all_ignored_leave_no_mistakes():
    logits, target = random_rows()
    losses, mistakes = mistake_cross_entropy(logits, torch.full_like(target, -100), 3)
    assert (losses == 0).all()
    assert len(mistakes) == 0


def test_strided_logits_give_what_contiguous_ones_give():
    logits, target = random_rows()
    strided = logits.t().contiguous().t()
    expected, _ = mistake_cross_entropy(logits, target, 5)
    actual, _ = mistake_cross_entropy(strided, target, 5)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def test_a_row_with_nan_has_a_nan_loss_and_leaves_the_others_alone():
    logits, target = random_rows()
    expected, _ = mistake_cross_entropy(logits, target, 5)
    logits[4, 2] = float("nan")
    losses, _ = mistake_cross_entropy(logits, target, 5)
    assert losses.isnan().nonzero().flatten().tolist() == [4]
    others = torch.arange(N) != 4
    assert torch.equal(losses[others], expected[others])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"logits": torch.zeros(2, 3, 4)}, "logits"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "logits .* labels"),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, "labels must be int64; got torch.int32"),
        ({"k": 0}, "k must"),
        ({"k": 11}, "k must"),
    ],
)
def test_a_wrong_argument_of_mistake_cross_entropy_is_named(change, named):
    arguments = {"logits": torch.zeros(4, 10), "labels": torch.zeros(4, dtype=torch.long), "k": 3} | change
    with pytest.raises(ValueError, match=f"^{named}"):
        mistake_cross_entropy(**arguments)


# ---- candidate_loss ----


@objectives
@pytest.mark.parametrize("targets", ["likely", "unlikely", "random"])
@pytest.mark.parametrize("k", [None, 1, 7, V])
@pytest.mark.parametrize("scale", [0.1, 4.0])
def test_the_loss_equals_the_dense_float64_one(rectifier, loss, targets, k, scale):
    logits, target = random_rows(targets=targets)
    _, mistakes = mistake_cross_entropy(logits, target, k)
    delta = random_delta(k, scale=scale if rectifier == "simplex" else 0.1 * scale)
    actual = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    expected = dense_loss(logits, target, dense(delta, mistakes.top_index, V), rectifier, loss)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, atol=3e-6, rtol=3e-6)


@objectives
@pytest.mark.parametrize("targets", ["likely", "unlikely", "random"])
@pytest.mark.parametrize("k", [None, 1, 7, V])
def test_the_gradient_equals_the_dense_float64_one(rectifier, loss, targets, k):
    logits, target = random_rows(targets=targets)
    _, mistakes = mistake_cross_entropy(logits, target, k)
    delta = random_delta(k, scale=1.0 if rectifier == "simplex" else 0.1)
    mine, truth = delta.clone().requires_grad_(), delta.double().requires_grad_()
    candidate_loss(mistakes, mine, rectifier=rectifier, loss=loss).sum().backward()
    dense_loss(logits, target, dense(truth, mistakes.top_index, V), rectifier, loss).sum().backward()
    torch.testing.assert_close(mine.grad.double(), truth.grad, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("rectifier", ["simplex", "linear"])
def test_a_zero_delta_costs_the_square_of_the_mistake(rectifier):
    logits, target = random_rows()
    _, mistakes = mistake_cross_entropy(logits, target, 7)
    mistake = onehot(target, V) - logits.double().softmax(-1)
    actual = candidate_loss(mistakes, torch.zeros(N, 7), rectifier=rectifier)
    torch.testing.assert_close(actual.double(), mistake.square().sum(-1), atol=1e-6, rtol=0)


def test_the_linear_loss_is_zero_when_the_whole_mistake_is_predicted():
    logits, target = random_rows()
    _, mistakes = mistake_cross_entropy(logits, target, None)
    mistake = onehot(target, V) - logits.double().softmax(-1)
    loss = candidate_loss(mistakes, mistake.float(), rectifier="linear")
    torch.testing.assert_close(loss, torch.zeros(N), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["rmse", "ce", "kl"])
@pytest.mark.parametrize("size", [50.0, 90.0, 300.0])
def test_the_simplex_loss_and_gradient_stay_finite_for_a_large_delta(loss, size):
    logits, target = random_rows(targets="likely")
    _, mistakes = mistake_cross_entropy(logits, target, 7)
    delta = size * random_delta(7).sign()
    delta.requires_grad_()
    actual = candidate_loss(mistakes, delta, loss=loss)
    actual.sum().backward()
    truth = dense_loss(logits, target, dense(delta.detach(), mistakes.top_index, V), loss=loss)
    float32_of_that_size = size * torch.finfo(torch.float32).eps
    torch.testing.assert_close(actual.detach().double(), truth, atol=float32_of_that_size, rtol=1e-6)
    assert torch.isfinite(delta.grad).all()


@objectives
@pytest.mark.parametrize("k", [None, 7])
def test_a_token_without_probability_may_have_any_delta(rectifier, loss, k):
    """In the log's half precision it is most of the vocabulary."""
    logits, target = random_rows(targets="likely")
    _, mistakes = mistake_cross_entropy(logits, target, k)
    gone = mistakes.top_prob.argmin(1, keepdim=True)
    mistakes = replace(mistakes, top_prob=mistakes.top_prob.scatter(1, gone, 0.0))
    delta = random_delta(k).scatter(1, gone, 200.0).requires_grad_()
    value = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(delta.grad).all()
    if rectifier == "simplex":
        other = candidate_loss(mistakes, delta.scatter(1, gone, -200.0), loss=loss)
        torch.testing.assert_close(value, other)


@objectives
@pytest.mark.parametrize("k", [None, 7])
@pytest.mark.parametrize("size", [0, -60, -500])
def test_a_very_confident_pilot_leaves_the_loss_finite(rectifier, loss, k, size):
    """Also where its likeliest tokens are corrected away, so that what it thought next to impossible becomes all."""
    logits, target = random_rows(targets="unlikely", spread=40.0)
    _, mistakes = mistake_cross_entropy(logits, target, k)
    delta = (size + random_delta(k)).requires_grad_()
    value = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(delta.grad).all()


@objectives
@pytest.mark.parametrize("of", [candidate_loss, reference.candidate_loss], ids=["kernel", "reference"])
def test_a_rest_that_is_subnormal_leaves_the_loss_finite(rectifier, loss, of):
    """Also where it is all that is left, since 1 divided by it is infinite."""
    logits, target = random_rows(targets="unlikely")
    _, mistakes = mistake_cross_entropy(logits, target, 7)
    none = torch.zeros_like(mistakes.rest_mass)
    top_prob = mistakes.top_prob / mistakes.top_prob.sum(1, keepdim=True)
    mistakes = replace(mistakes, top_prob=top_prob, rest_mass=none + 1e-40, rest_square=none)
    delta = (random_delta(7) - 500.0).requires_grad_()
    value = of(mistakes, delta, rectifier=rectifier, loss=loss)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(delta.grad).all()


@objectives
@pytest.mark.parametrize("k", [None, 7])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_delta_counts_as_the_number_it_is(rectifier, loss, k, dtype):
    logits, target = random_rows()
    _, mistakes = mistake_cross_entropy(logits, target, k)
    delta = random_delta(k, scale=0.3).to(dtype)
    actual = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    expected = candidate_loss(mistakes, delta.float(), rectifier=rectifier, loss=loss)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@objectives
@pytest.mark.parametrize("k", [None, 7])
def test_no_mistakes_cost_nothing(rectifier, loss, k):
    _, mistakes = mistake_cross_entropy(torch.zeros(0, V), torch.zeros(0, dtype=torch.long), k)
    delta = torch.zeros(0, V if k is None else k, requires_grad=True)
    value = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    assert value.shape == (0,)
    value.sum().backward()
    assert delta.grad.shape == delta.shape


@objectives
def test_the_order_of_the_kept_tokens_does_not_matter(rectifier, loss):
    logits, target = random_rows()
    _, mistakes = mistake_cross_entropy(logits, target, 7)
    delta = random_delta(7, scale=0.3)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    shuffled = replace(mistakes, top_index=mistakes.top_index[:, order], top_prob=mistakes.top_prob[:, order])
    expected = candidate_loss(mistakes, delta, rectifier=rectifier, loss=loss)
    actual = candidate_loss(shuffled, delta[:, order], rectifier=rectifier, loss=loss)
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("loss", ["rmse", "ce", "kl"])
@pytest.mark.parametrize("k", [None, V])
@pytest.mark.parametrize("shift", [-150.0, -20.0, 150.0])
def test_a_common_shift_of_the_whole_vocabulary_changes_nothing(loss, k, shift):
    """q = softmax(z + delta) does not see it, and so nothing holds a trained delta at any level."""
    _, mistakes = mistake_cross_entropy(*random_rows(), k)
    delta = random_delta(k)
    expected = candidate_loss(mistakes, delta, loss=loss)
    actual = candidate_loss(mistakes, delta + shift, loss=loss)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)  # float32 of numbers around 150


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rectifier": "cubic"}, "rectifier"),
        ({"loss": "hinge"}, "loss"),
        ({"rectifier": "linear", "loss": "ce"}, "loss"),
        ({"rectifier": "linear", "loss": "kl"}, "loss"),
        ({"delta": torch.zeros(N, 6)}, "delta"),
        ({"delta": torch.zeros(N - 1, 7)}, "delta"),
    ],
)
def test_a_wrong_argument_of_candidate_loss_is_named(change, named):
    _, mistakes = mistake_cross_entropy(*random_rows(), 7)
    with pytest.raises(ValueError, match=f"^{named}"):
        candidate_loss(**{"mistakes": mistakes, "delta": torch.zeros(N, 7)} | change)


# ---- The mistake as the Copilot reads it ----


def test_the_sparse_mistake_is_the_dense_one_on_the_kept_tokens():
    logits, target = random_rows(targets="likely")
    _, mistakes = mistake_cross_entropy(logits, target, 7)
    index, value = mistakes.error()
    read = torch.zeros(N, V).scatter_add(1, index, value)
    mistake = onehot(target, V) - logits.double().softmax(-1)
    kept = mistakes.top_index
    torch.testing.assert_close(read.double().gather(1, kept), mistake.gather(1, kept), atol=1e-6, rtol=0)
    assert torch.equal(read.scatter(1, kept, 0.0), torch.zeros(N, V))


def test_a_target_outside_the_kept_tokens_is_read_as_one():
    logits, target = random_rows(targets="unlikely")
    _, mistakes = mistake_cross_entropy(logits, target, 7)
    index, value = mistakes.error()
    read = torch.zeros(N, V).scatter_add(1, index, value)
    assert torch.equal(read[torch.arange(N), target], torch.ones(N))


def test_the_dense_mistake_is_the_whole_of_it():
    logits, target = random_rows()
    _, mistakes = mistake_cross_entropy(logits, target, None)
    index, value = mistakes.error()
    assert index is None
    mistake = onehot(target, V) - logits.double().softmax(-1)
    torch.testing.assert_close(value.double(), mistake, atol=1e-6, rtol=0)
