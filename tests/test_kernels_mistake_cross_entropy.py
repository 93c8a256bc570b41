"""The compiled mistake_cross_entropy: as accurate as the reference, exact where it must be, and safe."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from copilot.ops import Mistakes, extension, mistake_cross_entropy, reference

pytestmark = pytest.mark.skipif(not extension.LOADED, reason="the compiled kernels are not loaded")

SIZES = [1, 15, 16, 17, 111, 4096, 4097, 32000]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random_rows(n: int, v: int, dtype: torch.dtype = torch.float32, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits around 20, so that what is lost by not subtracting the largest would show, and targets."""
    g = torch.Generator().manual_seed(seed)
    return (20 + 4 * torch.randn(n, v, generator=g)).to(dtype), torch.randint(v, (n,), generator=g)


@dataclass(frozen=True)
class Result:
    """All that an implementation gives, with the gradient for the upstream gradient of `run`."""

    loss: Tensor
    grad: Tensor
    mistakes: Mistakes


def run(implementation: Callable, logits: Tensor, labels: Tensor, k: int | None, ignore_index: int = -100) -> Result:
    z = same_layout(logits).requires_grad_()
    loss, mistakes = implementation(z, labels, k, ignore_index)
    upstream = torch.linspace(-1, 2, len(labels), dtype=loss.dtype)
    (grad,) = torch.autograd.grad(loss, z, upstream)
    return Result(loss.detach(), grad, mistakes)


def same_layout(logits: Tensor) -> Tensor:
    """A copy with the same strides, which `clone` would make dense, and all that lies between the rows."""
    storage = torch.empty(0, dtype=logits.dtype).set_(logits.detach().untyped_storage().clone())
    return storage.as_strided(logits.shape, logits.stride(), logits.storage_offset())


def compiled(logits: Tensor, labels: Tensor, k: int | None, ignore_index: int | None) -> tuple[Tensor, Mistakes]:
    return mistake_cross_entropy(logits, labels, k, ignore_index=ignore_index)


def truth(logits: Tensor, labels: Tensor, k: int | None, ignore_index: int | None) -> tuple[Tensor, Mistakes]:
    """In float64; of equal logits the smaller index is kept."""
    loss = F.cross_entropy(logits.double(), labels, ignore_index=ignore_index, reduction="none")
    rows = labels != ignore_index
    z, target = logits.detach().double()[rows], labels[rows]
    p = z.softmax(-1)
    target_prob = p.gather(1, target[:, None])[:, 0]
    if k is None:
        return loss, Mistakes(target, None, p, target_prob, 0 * target_prob, 0 * target_prob)
    index = z.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    rest = p.scatter(1, index, 0)
    return loss, Mistakes(target, index, p.gather(1, index), target_prob, rest.sum(1), rest.square().sum(1))


def assert_no_worse(actual: Tensor, naive: Tensor, right: Tensor, name: str) -> None:
    def worst(value: Tensor) -> float:
        return (value.double() - right.double()).abs().max().item() if len(right) else 0.0

    scale = right.abs().max().item() if len(right) else 0.0
    rounding = 1e-4 + torch.finfo(naive.dtype).eps
    assert worst(naive) <= rounding * scale + torch.finfo(torch.float32).tiny, f"{name} of the reference"
    assert worst(actual) <= worst(naive) + 1e-6 * scale, name


def assert_accurate(logits: Tensor, labels: Tensor, k: int | None) -> None:
    """The kept tokens are the right ones, and no number is further from the truth than the reference's."""
    actual, naive, right = (run(f, logits, labels, k) for f in (compiled, reference.mistake_cross_entropy, truth))
    assert actual.loss.dtype == torch.float32
    assert actual.grad.dtype == logits.dtype
    assert_no_worse(actual.loss, naive.loss, right.loss, "loss")
    assert_no_worse(actual.grad, naive.grad, right.grad, "grad")
    assert torch.equal(actual.mistakes.target, right.mistakes.target)
    assert (actual.mistakes.top_index is None) == (k is None)
    assert k is None or torch.equal(actual.mistakes.top_index, right.mistakes.top_index)
    for name in ("top_prob", "target_prob", "rest_mass", "rest_square"):
        assert_no_worse(*(getattr(result.mistakes, name) for result in (actual, naive, right)), name)


def assert_same(actual: Result, expected: Result) -> None:
    """To the last bit."""
    assert torch.equal(actual.loss, expected.loss)
    assert torch.equal(actual.grad, expected.grad)
    for name, value in expected.mistakes.tensors().items():
        assert torch.equal(actual.mistakes.tensors()[name], value), name


# ---- Accuracy ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("v", SIZES)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_the_kernel_is_as_near_to_the_float64_truth_as_the_reference(n, v, dtype):
    for k in {1, min(v, 32), None}:
        assert_accurate(*random_rows(n, v, dtype), k)


@pytest.mark.parametrize("k", [1, 300, None])
def test_a_large_vocabulary_is_as_near_to_the_float64_truth(k):
    """More kept tokens than hands: the selection starts without a bar."""
    assert_accurate(*random_rows(2, 151936), k)


@pytest.mark.parametrize("k", [1, 257, None])
@pytest.mark.parametrize("v", [5000, 70001])
@pytest.mark.parametrize("gap", [0, 5, 10, 20])
def test_sums_of_many_equal_terms_keep_the_float64_truth(gap, v, k):
    """They are where roundings do not cancel out. No allowance here for what the reference loses."""
    logits = torch.full((1, v), -float(gap))
    logits[0, 3] = 0
    labels = torch.tensor([5])
    (_, actual), (_, right) = (f(logits, labels, k, -100) for f in (compiled, truth))
    for name in ("top_prob", "target_prob", "rest_mass", "rest_square"):
        torch.testing.assert_close(getattr(actual, name).double(), getattr(right, name), rtol=1e-6, atol=0, msg=name)


@st.composite
def small_cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, int | None]:
    """Few distinct logits, so many ties, some -inf; rows any number of elements apart; some rows ignored."""
    n, v = draw(st.integers(1, 4)), draw(st.integers(1, 300))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    storage = torch.randint(draw(st.integers(1, 40)), (n, v + draw(st.integers(0, 3))), generator=g).float() / 4
    logits = storage[:, :v].masked_fill_(
        torch.rand(n, v, generator=g) < draw(st.sampled_from([0, 0.3, 0.95])), -torch.inf
    )
    labels = torch.randint(v, (n,), generator=g)
    logits.scatter_(1, labels[:, None], 1.0)  # a target of -inf has an infinite loss
    labels[torch.rand(n, generator=g) < draw(st.sampled_from([0, 0.4]))] = -100
    k = draw(st.none() | st.integers(1, v))
    return storage.to(draw(st.sampled_from(DTYPES)))[:, :v], labels, k


@settings(max_examples=60, deadline=None, derandomize=True)
@given(small_cases())
def test_ties_masks_strides_and_ignored_rows_change_nothing_about_the_truth(case):
    assert_accurate(*case)


@pytest.mark.parametrize("k", [1, 32, 257, 1000])
@pytest.mark.parametrize(
    ("row", "v"), [("one hand", 5000), *product(["rising", "falling", "constant", "late", "masked"], [5000, 70001])]
)
def test_rows_that_are_hard_to_select_from_are_selected_from_rightly(row, k, v):
    logits = {
        "rising": torch.arange(v) / 500,
        "falling": -torch.arange(v) / 500,
        "constant": torch.full((v,), -3.0),
        "one hand": torch.randn(v, generator=torch.Generator().manual_seed(1)) + 20 * (torch.arange(v) % 256 == 7),
        "late": torch.randn(v, generator=torch.Generator().manual_seed(2)) + 200 * (torch.arange(v) > 0.95 * v),
        "masked": torch.where(torch.arange(v) % 991 == 5, 1.0, -torch.inf),
    }[row]
    assert_accurate(logits[None].float(), torch.tensor([5]), k)


@pytest.mark.parametrize("k", [1, 8, 32])
@pytest.mark.parametrize("v", [200, 1000, 40000])
@pytest.mark.parametrize("largest", [-95.0, -720.0])
def test_far_below_zero_a_row_with_few_tokens_keeps_its_truth(largest, v, k):
    """Where exp(-largest) is no float, or no double."""
    logits = torch.full((1, v), -torch.inf)
    logits[0, 3:23] = largest - torch.arange(20) / 4
    assert_accurate(logits, torch.tensor([5]), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 32, 300, None])
@pytest.mark.parametrize("masked", [-1e8, -1e9, -1e10, -1e30, torch.finfo(torch.float32).min, 1e10])
def test_huge_finite_logits_keep_the_truth(masked, k, dtype):
    """Masks that are not -infinity: few other tokens, in one part of the row, or none at all."""
    masked = max(masked, torch.finfo(dtype).min)
    logits = torch.full((3, 40000), masked)
    logits[0, 3] = 0.0
    logits[1, 100:150] = torch.linspace(-5, 5, 50)
    assert_accurate(logits.to(dtype), torch.tensor([3, 120, 39999]), k)


@pytest.mark.parametrize("largest", [2.0**29, -(2.0**29) + 32])
def test_the_largest_logits_whose_neighbours_still_count_keep_the_truth(largest):
    logits = torch.tensor([[largest, largest - 32]])
    (_, actual), (_, right) = (f(logits, torch.tensor([0]), 1, -100) for f in (compiled, truth))
    for name in ("rest_mass", "rest_square"):
        torch.testing.assert_close(getattr(actual, name).double(), getattr(right, name), rtol=1e-5, atol=0, msg=name)


def test_masked_tokens_have_exactly_no_probability_and_no_gradient():
    logits, labels = random_rows(3, 1000)
    logits[:, ::2] = -torch.inf
    labels[:] = torch.tensor([1, 2, 3])
    result = run(compiled, logits, labels, None)
    assert (result.mistakes.top_prob[:, ::2] == 0).all()
    assert (result.grad[[0, 2], ::2] == 0).all()
    assert result.loss.isinf().tolist() == [False, True, False]
    assert result.mistakes.target_prob[1] == 0


# ---- NaN ----


@pytest.mark.parametrize("k", [1, 7, 100, None])
@pytest.mark.parametrize("poison", ["one", "half", "all", "masked", "infinite"])
def test_a_row_with_nan_is_nan_with_valid_indices_and_leaves_the_others_alone(poison, k):
    logits, labels = random_rows(3, 100)
    expected = run(compiled, logits, labels, k)
    logits[1, {"one": slice(3, 4), "half": slice(0, 50), "all": slice(None)}.get(poison, slice(0, 0))] = torch.nan
    if poison == "masked":  # nothing is left: 0 / 0
        logits[1] = -torch.inf
    if poison == "infinite":  # infinity / infinity
        logits[1, 8] = torch.inf
    actual = run(compiled, logits, labels, k)
    values = [actual.loss, actual.grad, actual.mistakes.top_prob, actual.mistakes.target_prob]
    if k is not None:
        index = actual.mistakes.top_index[1]
        assert index.min() >= 0
        assert index.max() < 100
        assert len(index.unique()) == k
    if k in (1, 7):
        values.append(actual.mistakes.rest_mass)
    right = [expected.loss, expected.grad, expected.mistakes.top_prob, expected.mistakes.target_prob]
    for value in values:
        assert value[1].isnan().all()
    for value, same in zip(values, right, strict=False):
        assert torch.equal(value[[0, 2]], same[[0, 2]])


def test_nan_is_kept_behind_minus_infinity():
    _, mistakes = mistake_cross_entropy(torch.tensor([[torch.nan, -torch.inf, 1.0]]), torch.tensor([2]), 3)
    assert mistakes.top_index.tolist() == [[2, 1, 0]]


# ---- What must not matter ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [9, None])
def test_layout_does_not_matter(dtype, k):
    logits, labels = random_rows(3, 777, dtype)
    expected = run(compiled, logits, labels, k)
    wide = torch.full((3, 900), 7.0, dtype=dtype)
    wide[:, 50:827] = logits
    spaced = torch.empty(3, 1554, dtype=dtype)
    spaced[:, ::2] = logits
    for same in (wide[:, 50:827], spaced[:, ::2], logits.t().contiguous().t()):
        assert torch.equal(same, logits)
        for implementation in (compiled, overwriting):
            assert_same(run(implementation, same, labels, k), expected)


@pytest.mark.parametrize("k", [9, None])
def test_the_batch_a_row_stands_in_does_not_matter(k):
    logits, labels = random_rows(7, 5001)
    loss, mistakes = mistake_cross_entropy(logits, labels, k)
    for i in range(7):
        alone_loss, alone = mistake_cross_entropy(logits[i : i + 1], labels[i : i + 1], k)
        assert torch.equal(alone_loss[0], loss[i])
        for name, value in mistakes.tensors().items():
            assert torch.equal(alone.tensors()[name][0], value[i]), name


@pytest.mark.parametrize("k", [9, None])
def test_the_number_of_threads_does_not_matter(k):
    logits, labels = random_rows(7, 33000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(compiled, logits, labels, k)
        for count in (2, 3):
            torch.set_num_threads(count)
            assert_same(run(compiled, logits, labels, k), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("k", [9, None])
def test_ignored_rows_are_dropped_and_cost_no_gradient(k):
    logits, labels = random_rows(9, 500)
    supervised = torch.arange(9) % 3 != 1
    expected_loss, expected = mistake_cross_entropy(logits[supervised], labels[supervised], k, ignore_index=None)
    logits[~supervised] = torch.nan  # not even read
    result = run(compiled, logits, labels.masked_fill(~supervised, -1), k, -1)
    assert torch.equal(result.loss[supervised], expected_loss)
    assert (result.loss[~supervised] == 0).all()
    assert (result.grad[~supervised] == 0).all()
    for name, value in expected.tensors().items():
        assert torch.equal(result.mistakes.tensors()[name], value), name


@pytest.mark.parametrize("instructions", ["avx2", "portable"])
def test_other_instruction_sets_are_as_accurate(instructions):
    tests = [sys.executable, "-m", "pytest", "-q", "--noconftest", __file__, "-k", "float64 or selected or nan"]
    found = subprocess.run(tests, env=os.environ | {"COPILOT_CPU": instructions}, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


# ---- Gradients ----


def overwriting(logits: Tensor, labels: Tensor, k: int | None, ignore_index: int | None) -> tuple[Tensor, Mistakes]:
    return mistake_cross_entropy(logits, labels, k, ignore_index=ignore_index, overwrite_logits=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overwriting_gives_the_same_gradient_in_the_memory_of_the_logits(dtype):
    logits, labels = random_rows(5, 1001, dtype)
    labels[2] = -100
    expected = run(compiled, logits, labels, 6).grad
    z = logits.requires_grad_() * 1
    loss, _ = overwriting(z, labels, 6, -100)
    (grad,) = torch.autograd.grad(loss, z, torch.linspace(-1, 2, 5))
    assert grad.data_ptr() == z.data_ptr()
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overwriting_leaves_what_lies_between_the_rows(dtype):
    logits, labels = random_rows(5, 1001, dtype)
    wide = torch.full((5, 1100), 7.0, dtype=dtype)
    z = wide[:, 50:1051].copy_(logits).requires_grad_()
    loss, _ = overwriting(z, labels, 6, -100)
    (grad,) = torch.autograd.grad(loss, z, torch.linspace(-1, 2, 5))
    assert grad.data_ptr() == z.data_ptr()
    assert torch.equal(wide[:, 50:1051], run(compiled, logits, labels, 6).grad)
    assert (wide[:, :50] == 7).all()
    assert (wide[:, 1051:] == 7).all()


def test_without_overwriting_the_logits_stay_and_a_second_backward_agrees():
    logits, labels = random_rows(3, 50)
    before = logits.clone()
    loss, _ = mistake_cross_entropy(logits.requires_grad_(), labels, 6)
    first, second = (torch.autograd.grad(loss.sum(), logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(logits, before)


def test_overwritten_logits_cannot_be_used_by_another_backward():
    logits, labels = random_rows(3, 50)
    z = logits.requires_grad_() * 1
    square = z.square()  # its formula keeps z
    loss, _ = overwriting(z, labels, 6, None)
    torch.autograd.grad(loss.sum(), z, retain_graph=True)
    for again in (loss, square):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            again.sum().backward()


def test_rows_that_share_memory_are_not_overwritten():
    row, _ = random_rows(1, 50)
    loss, _ = overwriting(row.requires_grad_().expand(3, 50), torch.tensor([4, 5, 6]), 6, None)
    (grad,) = torch.autograd.grad(loss.sum(), row)
    (expected,) = torch.autograd.grad(F.cross_entropy(row.expand(3, 50), torch.tensor([4, 5, 6]), reduction="sum"), row)
    torch.testing.assert_close(grad, expected)


def test_a_second_derivative_is_refused_rather_than_wrong():
    logits, labels = random_rows(3, 50)
    loss, _ = mistake_cross_entropy(logits.requires_grad_(), labels, 6)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        torch.autograd.grad(loss.sum(), logits, create_graph=True)


# ---- torch ----


@pytest.mark.parametrize("k", [3, None])
def test_torch_checks_the_registration(k):
    logits, labels = random_rows(3, 50)
    labels[1] = -100
    ops = torch.ops.copilot
    for overwrite in (False, True):
        arguments = ((logits.clone().requires_grad_() * 1), labels, k, -100, overwrite)
        torch.library.opcheck(
            ops.mistake_cross_entropy,
            arguments,
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
    torch.library.opcheck(ops.mistake_cross_entropy, (logits.clone().requires_grad_(), labels, k, -100, False))
    saved = ops.mistake_cross_entropy(logits, labels, k, -100, False)[1]
    for op in (ops.mistake_cross_entropy_backward, ops.mistake_cross_entropy_backward_):
        torch.library.opcheck(op, (torch.ones(3), logits.clone(), labels, saved, -100))


@pytest.mark.parametrize("ignore_index", [-100, None])
@pytest.mark.parametrize("k", [3, None])
def test_compiled_graphs_give_what_eager_gives(k, ignore_index):
    def step(weight: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        loss, mistakes = overwriting(weight * 2, labels, k, ignore_index)
        return loss.sum(), *mistakes.tensors().values()

    logits, labels = random_rows(6, 200)
    if ignore_index is not None:
        labels[[1, 4]] = ignore_index
    logits.requires_grad_()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        actual = torch.compile(step, fullgraph=True, backend="aot_eager")(logits, labels)
    expected = step(logits, labels)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(*(torch.autograd.grad(result[0], logits)[0] for result in (actual, expected)))


# ---- Wrong arguments ----


@pytest.mark.refuses
@pytest.mark.parametrize("label", [-1, 10, -101, 2**40, -(2**63)])
@pytest.mark.parametrize("ignore_index", [-100, None])
def test_a_label_that_is_no_token_is_refused(label, ignore_index):
    with pytest.raises(RuntimeError, match=f"labels must lie in .*got {label}"):
        mistake_cross_entropy(torch.zeros(2, 10), torch.tensor([3, label]), 2, ignore_index=ignore_index)


@pytest.mark.refuses
def test_the_ignored_label_is_named_only_where_there_is_one():
    if {"COPILOT_EMULATION", "COPILOT_TEST_GPU"} & os.environ.keys():
        pytest.skip("the kernels for GPUs do not tell the two apart")
    for ignore_index, accepted in ((-100, r"\[0, 10\) or be ignore_index"), (None, r"\[0, 10\)")):
        with pytest.raises(RuntimeError, match=f"labels must lie in {accepted}; got 10"):
            mistake_cross_entropy(torch.zeros(2, 10), torch.tensor([3, 10]), 2, ignore_index=ignore_index)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"logits": torch.zeros(2, 10, 1)}, "logits"),
        ({"logits": torch.zeros(2, 20)[:, ::2]}, "logits"),
        ({"logits": torch.zeros(2, 10, dtype=torch.float64)}, "logits"),
        ({"labels": torch.zeros(3, dtype=torch.long)}, "labels"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels"),
        ({"k": 0}, "k"),
        ({"k": 11}, "k"),
        ({"ignore_index": -(2**63)}, "ignore_index"),
    ],
)
def test_the_op_itself_refuses_a_wrong_argument_and_names_it(change, named):
    arguments = {"logits": torch.zeros(2, 10), "labels": torch.zeros(2, dtype=torch.long), "k": 3, "ignore_index": -100}
    with pytest.raises(RuntimeError, match=f", {named} "):
        torch.ops.copilot.mistake_cross_entropy(**arguments | change, overwrite_logits=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"grad": torch.ones(3)}, "grad"),
        ({"grad": torch.ones(2, dtype=torch.float64)}, "grad"),
        ({"largest_and_total": torch.ones(2, 3)}, "largest_and_total"),
        pytest.param({"labels": torch.tensor([0, 10])}, "labels", marks=pytest.mark.refuses),
        pytest.param({"labels": torch.tensor([0, -(2**63)])}, "labels", marks=pytest.mark.refuses),
        ({"ignore_index": -(2**63)}, "ignore_index"),
        ({"logits": torch.zeros(1, 10).expand(2, 10)}, "rows of logits"),
    ],
)
def test_the_backward_itself_refuses_a_wrong_argument_and_names_it(change, named):
    arguments = {
        "grad": torch.ones(2),
        "logits": torch.zeros(2, 10),
        "labels": torch.zeros(2, dtype=torch.long),
        "largest_and_total": torch.ones(2, 2),
        "ignore_index": None,
    }
    with pytest.raises(RuntimeError, match=f", {named} "):
        torch.ops.copilot.mistake_cross_entropy_backward_(**arguments | change)
