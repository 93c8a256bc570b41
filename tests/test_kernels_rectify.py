"""The compiled rectify: no worse than the reference against the float64 truth, whatever the shape, dtype or threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from builders import dense, dense_rectified
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from copilot.ops import extension, rectify, reference

pytestmark = pytest.mark.skipif(not extension.LOADED, reason="the compiled kernels are not there")

MODES = [("simplex", "probability"), ("linear", "probability"), ("simplex", "logit")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 15, 16, 17, 111, 511, 512, 513, 4096, 4097, 32000]
modes = pytest.mark.parametrize(("rectifier", "fusion"), MODES, ids=["simplex", "linear", "logit"])
INF = float("inf")


def random_case(
    n: int, v: int, k: int | None, mode: tuple[str, str] = MODES[0], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, delta and index; some of a linear delta take a token's whole probability away."""
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, v, generator=g)
    index = None if k is None else torch.rand(n, v, generator=g).argsort(-1)[:, : min(k, v)]
    delta = 2 * torch.randn(n, v if index is None else index.shape[1], generator=g)
    if mode == ("linear", "probability"):
        p = logits.softmax(-1)
        delta = delta * (p if index is None else p.gather(1, index))
    return logits, delta, index


def in_reference(logits: Tensor, delta: Tensor, strength: float, index: Tensor | None, mode: tuple[str, str]) -> Tensor:
    return reference.rectify(logits, delta, strength, index, *mode)


def in_kernel(logits: Tensor, delta: Tensor, strength: float, index: Tensor | None, mode: tuple[str, str]) -> Tensor:
    return rectify(logits, delta, strength, index=index, rectifier=mode[0], fusion=mode[1])


def assert_no_worse_than_the_reference(
    logits: Tensor, delta: Tensor, strength: float, index: Tensor | None, mode: tuple[str, str]
) -> None:
    """Probabilities, and logarithms except of the linear p~, a difference whose logarithm float32 does not hold."""
    truth = dense_rectified(logits, dense(delta.float(), index, logits.shape[1]), strength, *mode)
    actual, naive = (f(logits, delta, strength, index, mode).double() for f in (in_kernel, in_reference))
    triples = [(actual.exp(), naive.exp(), truth)]
    if mode != ("linear", "probability"):
        triples.append((actual, naive, truth.log()))
    for mine, other, exact in triples:
        # The difference of equal infinities counts as none.
        error, allowed = (torch.where(x == exact, 0.0, x - exact).abs() for x in (mine, other))
        scale = torch.where(exact.isinf(), 0.0, exact).abs()
        assert (error.sum() == 0) or error.max() <= allowed.max() + 1e-6 * scale.max()


# ---- The value ----


@modes
@pytest.mark.parametrize("k", [None, 1, 32])
@pytest.mark.parametrize("v", SIZES)
def test_every_vocabulary_size_is_as_exact_as_the_reference(rectifier, fusion, k, v):
    mode = rectifier, fusion
    for dtype in DTYPES:
        logits, delta, index = random_case(3, v, k, mode, seed=v)
        for strength in (0.3, 1.0):
            assert_no_worse_than_the_reference(logits.to(dtype), delta.to(dtype), strength, index, mode)


@modes
def test_a_large_vocabulary_is_as_exact_as_the_reference(rectifier, fusion):
    mode = rectifier, fusion
    for k in (None, 32):
        logits, delta, index = random_case(1, 151936, k, mode)
        assert_no_worse_than_the_reference(logits, delta, 0.3, index, mode)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 4),
    v=st.integers(1, 1100),
    k=st.none() | st.integers(1, 40),
    mode=st.sampled_from(MODES),
    strength=st.just(0.0) | st.floats(2.0**-99, 1, width=32),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    pad=st.integers(0, 3),
    masked=st.sampled_from([0.0, 0.5, 0.9]),
    seed=st.integers(0, 999),
)
def test_any_case_agrees_with_the_reference(n, v, k, mode, strength, dtypes, pad, masked, seed):
    logits, delta, index = random_case(n, v, k, mode, seed)
    forbidden = torch.rand(n, v, generator=torch.Generator().manual_seed(seed)) < masked
    forbidden[:, seed % v] = False
    logits[forbidden] = -INF
    logits, delta = (torch.nn.functional.pad(t, (1, pad))[:, 1 : 1 + t.shape[1]] for t in (logits, delta))
    logits, delta = logits.to(dtypes[0]), delta.to(dtypes[1])
    actual, expected = (f(logits, delta, strength, index, mode) for f in (in_kernel, in_reference))
    assert not actual.isnan().any()
    assert (actual[forbidden] == -INF).all()
    torch.testing.assert_close(actual.exp(), expected.exp(), atol=2e-6, rtol=2e-5)
    if mode != ("linear", "probability"):
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-6)


@modes
@pytest.mark.parametrize("v", [3, 600])
def test_extreme_corrections_are_as_exact_as_the_reference(rectifier, fusion, v):
    for large in (-150.0, -30.0, 30.0, 150.0):
        logits = torch.zeros(2, v)
        logits[1, 0] = 80.0
        delta = torch.zeros(2, v)
        delta[:, 0] = large
        for index in (None, torch.tensor([[0, 2]] * 2)):
            given = delta if index is None else delta.gather(1, index)
            for strength in (1e-4, 0.5, 1.0):
                assert_no_worse_than_the_reference(logits, given, strength, index, (rectifier, fusion))


@pytest.fixture
def flushed_denormals() -> Iterator[None]:
    """float32 denormals count as 0 in this thread."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    yield
    torch.set_flush_denormal(False)


def test_subnormals_of_float16_are_exact_where_denormals_are_flushed(flushed_denormals):
    subnormal = torch.arange(1024, dtype=torch.int16).view(torch.float16)[None]
    delta = torch.arange(1024)[None] * 2.0**-24
    logits = torch.zeros(1, 1024)
    actual = rectify(logits, subnormal, 2.0**14, fusion="logit")
    assert torch.equal(actual, rectify(logits, delta, 2.0**14, fusion="logit"))
    assert actual.unique().numel() > 500


@modes
def test_candidates_give_what_their_dense_delta_gives(rectifier, fusion):
    mode = rectifier, fusion
    logits, delta, index = random_case(5, 2000, 40, mode)
    actual, expected = (
        in_kernel(logits, *rest, mode) for rest in ((delta, 0.6, index), (dense(delta, index, 2000), 0.6, None))
    )
    torch.testing.assert_close(actual.exp(), expected.exp(), atol=1e-6, rtol=1e-6)


@modes
@pytest.mark.parametrize("dtype", DTYPES)
def test_candidates_of_any_dtype_give_what_their_float32_gives(rectifier, fusion, dtype):
    """To the last bit, as they are: also where the rows of delta lie apart."""
    logits, delta, index = random_case(3, 700, 300, (rectifier, fusion))
    apart = torch.nn.functional.pad(delta.to(dtype), (0, 1))[:, :-1]
    actual, expected = (
        torch.ops.copilot.rectify(logits, given, index.contiguous(), 0.6, rectifier, fusion)
        for given in (apart, apart.float().contiguous())
    )
    assert torch.equal(actual, expected)


@modes
@pytest.mark.parametrize("k", [None, 7])
def test_without_correction_the_result_is_one_and_the_same(rectifier, fusion, k):
    """To the last bit: over modes, strengths, and which tokens are candidates."""
    logits, delta, index = random_case(6, 3001, k)
    logits[2, ::3] = -INF
    expected = rectify(logits, torch.zeros_like(logits), 0.0)
    for strength in (0.0, 1e-4, 0.5, 1.0):
        assert torch.equal(in_kernel(logits, 0 * delta, strength, index, (rectifier, fusion)), expected)
    assert torch.equal(expected.argmax(-1), logits.argmax(-1))


# ---- Entries that are not numbers ----


@modes
@pytest.mark.parametrize("k", [None, 5])
@pytest.mark.parametrize("v", [40, 1500])
@pytest.mark.parametrize("where", ["logits", "delta"])
def test_nan_fills_its_row_alone(rectifier, fusion, k, v, where):
    mode = rectifier, fusion
    logits, delta, index = random_case(4, v, k, mode)
    clean = in_kernel(logits, delta, 0.7, index, mode)
    (logits if where == "logits" else delta)[2, -1] = float("nan")
    actual = in_kernel(logits, delta, 0.7, index, mode)
    assert actual[2].isnan().all()
    assert torch.equal(actual[[0, 1, 3]], clean[[0, 1, 3]])


@modes
@pytest.mark.parametrize("k", [None, 2])
def test_a_row_without_any_token_is_nan(rectifier, fusion, k):
    _, delta, index = random_case(2, 600, k)
    logits = torch.full((2, 600), -INF)
    logits[1, 3] = 0.0
    actual = in_kernel(logits, delta.abs(), 0.5, index, (rectifier, fusion))
    assert actual[0].isnan().all()
    torch.testing.assert_close(actual[1].exp(), torch.eye(600)[3])


@pytest.mark.parametrize("k", [None, 600])
def test_a_linear_row_that_is_all_zero_is_the_pilots(k):
    logits, _, index = random_case(2, 600, k)
    delta = torch.full((2, 600), -4.0)
    delta[1] = 0.01
    actual = in_kernel(logits, delta, 0.5, index, ("linear", "probability"))
    pilot = rectify(logits, torch.zeros_like(logits), 0.0)
    assert torch.equal(actual[0], pilot[0])
    assert not torch.equal(actual[1], pilot[1])


# ---- What the result must not depend on ----


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@modes
@pytest.mark.parametrize("k", [None, 32])
@pytest.mark.parametrize("n", [1, 3, 13])
def test_results_do_not_depend_on_the_number_of_threads(threads, rectifier, fusion, k, n):
    mode = rectifier, fusion
    logits, delta, index = random_case(n, 40000, k, mode)
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(in_kernel(logits, delta, 0.4, index, mode))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@modes
@pytest.mark.parametrize("k", [None, 32])
def test_a_row_does_not_depend_on_its_batch(rectifier, fusion, k):
    mode = rectifier, fusion
    logits, delta, index = random_case(9, 5000, k, mode)
    whole = in_kernel(logits, delta, 0.4, index, mode)
    for row in range(9):
        own = None if index is None else index[row : row + 1]
        alone = in_kernel(logits[row : row + 1].contiguous(), delta[row : row + 1], 0.4, own, mode)
        assert torch.equal(alone[0], whole[row])


@pytest.mark.parametrize("k", [None, 32])
@pytest.mark.parametrize("v", [65536, 65535])
def test_a_result_larger_than_the_caches_is_exactly_that_of_its_parts(v, k):
    """It is written past them; where a row starts at an odd address, it is not."""
    logits, delta, index = random_case(80, v, k)
    whole = in_kernel(logits, delta, 0.4, index, MODES[0])
    assert whole.numel() * whole.element_size() > 16 * 2**20
    for rows in (slice(0, 40), slice(40, 80)):
        part = in_kernel(logits[rows], delta[rows], 0.4, None if index is None else index[rows], MODES[0])
        assert torch.equal(part, whole[rows])


@modes
def test_the_order_of_the_candidates_does_not_matter(rectifier, fusion):
    mode = rectifier, fusion
    logits, delta, index = random_case(4, 3000, 50, mode)
    actual = in_kernel(logits, delta.flip(1), 0.4, index.flip(1), mode)
    assert torch.equal(actual, in_kernel(logits, delta, 0.4, index, mode))


@pytest.mark.parametrize("target", ["avx2", "portable"])
def test_every_instruction_set_passes_these_tests(target):
    """The tests of values and gradients in a process of its own, limited to `target`."""
    if os.environ.get("COPILOT_CPU"):
        pytest.skip("this process is already limited to one")
    if os.environ.get("COPILOT_EMULATION") == "1":
        pytest.skip("the kernels that are tested are not the CPU's")
    chosen = "exact or reference or nan or without"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    done = subprocess.run(
        command, env=os.environ | {"COPILOT_CPU": target}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


# ---- The gradient ----


def gradients(function, logits, delta, strength, index, mode, upstream) -> tuple[Tensor, Tensor]:
    inputs = logits.clone().requires_grad_(), delta.clone().requires_grad_()
    return torch.autograd.grad(function(*inputs, strength, index, mode), inputs, upstream, materialize_grads=True)


@modes
@pytest.mark.parametrize("k", [None, 6])
@pytest.mark.parametrize("strength", [0.0, 1e-3, 0.4, 1.0])
def test_gradients_are_as_exact_as_the_references(rectifier, fusion, k, strength):
    mode = rectifier, fusion
    logits, delta, index = random_case(10, 60, k, mode)
    delta = delta.tanh() if mode == MODES[0] else delta
    upstream = torch.randn(10, 60, generator=torch.Generator().manual_seed(1))
    if mode == ("linear", "probability"):
        # The gradient is the inverse of p^ + lambda delta, and so is the error that float32 makes where little of p^ is
        # left: such tokens count by the square of what is. Where it is clamped there is no gradient.
        prob = logits.softmax(-1)
        upstream *= ((prob + strength * dense(delta, index, 60)) / prob).clamp(0, 1) ** 2
    arguments = strength, index, mode, upstream
    truth = gradients(in_reference_of_float64, logits.double(), delta.double(), *arguments[:3], upstream.double())
    actual, naive = (gradients(f, logits, delta, *arguments) for f in (in_kernel, in_reference))
    for mine, other, exact in zip(actual, naive, truth, strict=True):
        allowed = (other - exact).abs().max() + 2e-6 * exact.abs().max().clamp(min=1.0)
        assert (mine - exact).abs().max() <= allowed


def in_reference_of_float64(logits, delta, strength, index, mode) -> Tensor:
    log_p = dense_rectified(logits, dense(delta, index, logits.shape[1]), strength, *mode)
    return torch.where(log_p > 0, log_p, 1.0).log()


@pytest.mark.parametrize("k", [None, 6])
def test_the_linear_gradient_is_right_without_any_correction(k):
    """Where the reference takes a short cut: there delta = 0 leaves no way for the gradient."""
    logits, delta, index = random_case(4, 30, k)
    upstream = torch.randn(4, 30, generator=torch.Generator().manual_seed(1))
    arguments = 0.5, index, ("linear", "probability")
    actual = gradients(in_kernel, logits, 0 * delta, *arguments, upstream)
    truth = gradients(in_reference_of_float64, logits.double(), 0 * delta.double(), *arguments, upstream.double())
    for mine, exact in zip(actual, truth, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_have_the_dtypes_of_their_tensors(dtype):
    logits, delta, index = random_case(3, 30, 4)
    of_logits, of_delta = gradients(
        in_kernel, logits.to(dtype), delta.bfloat16(), 0.5, index, MODES[0], torch.ones(3, 30)
    )
    assert of_logits.dtype == dtype
    assert of_delta.dtype == torch.bfloat16


# ---- As a torch operator ----


@modes
@pytest.mark.parametrize("k", [None, 4])
def test_the_operator_is_registered_as_torch_wants_it(rectifier, fusion, k):
    logits, delta, index = random_case(3, 20, k, (rectifier, fusion))
    index = None if index is None else index.contiguous()
    inputs = logits.requires_grad_(), delta.requires_grad_(), index
    torch.library.opcheck(torch.ops.copilot.rectify.default, (*inputs, 0.5, rectifier, fusion))


@modes
def test_compiled_functions_give_what_eager_ones_give(rectifier, fusion):
    mode = rectifier, fusion
    logits, delta, index = random_case(2, 40, 4, mode)
    inputs = logits.view(2, 1, 40).requires_grad_(), delta.view(2, 1, 4).requires_grad_()

    log_p = rectify(*inputs, 0.5, index=index[:, None], rectifier=rectifier, fusion=fusion)
    compiled = torch.compile(rectify, fullgraph=True, backend="aot_eager")
    again = compiled(*inputs, 0.5, index=index[:, None], rectifier=rectifier, fusion=fusion)
    assert torch.equal(again, log_p)
    for mine, expected in zip(
        torch.autograd.grad(again.exp().square().sum(), inputs),
        torch.autograd.grad(log_p.exp().square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


# ---- Errors ----


@pytest.mark.refuses
@pytest.mark.parametrize("wrong", [-1, 30, 2**40, -(2**63)])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_candidate_outside_the_vocabulary_is_refused(strength, wrong):
    logits, delta, index = random_case(3, 30, 4)
    index[1, 2] = wrong
    with pytest.raises(RuntimeError, match=r"index must lie in \[0, 30\)"):
        rectify(logits, delta, strength, index=index)


def test_an_index_of_another_dtype_is_refused():
    logits, delta, index = random_case(3, 30, 4)
    with pytest.raises(ValueError, match=r"index must be int64; got torch\.int32"):
        rectify(logits, delta, 0.5, index=index.int())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((torch.zeros(4), torch.zeros(4), None), "pilot_logits"),
        ((torch.zeros(4, 5).double(), torch.zeros(4, 5), None), "pilot_logits"),
        ((torch.zeros(4, 5), torch.zeros(4, 4), None), "delta"),
        ((torch.zeros(4, 5), torch.zeros(5, 4).t(), None), "delta"),
        ((torch.zeros(4, 5), torch.zeros(4, 2), torch.zeros(3, 2, dtype=torch.long)), "delta|index"),
        ((torch.zeros(4, 5), torch.zeros(4, 2).double(), torch.zeros(4, 2, dtype=torch.long)), "delta"),
    ],
)
def test_the_operator_checks_what_it_is_given(arguments, named):
    with pytest.raises(RuntimeError, match=named):
        torch.ops.copilot.rectify(*arguments, 0.5, "simplex", "probability")


@modes
def test_candidates_given_twice_harm_nothing_else(rectifier, fusion):
    logits, delta, index = random_case(4, 700, 40)
    expected = in_kernel(logits, 0.01 * delta.abs(), 0.5, index, (rectifier, fusion))
    index[1, 20:] = index[1, :20]
    index[3] = 699
    actual = in_kernel(logits, 0.01 * delta.abs(), 0.5, index, (rectifier, fusion))
    assert actual.isfinite().all()
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])


@modes
@pytest.mark.parametrize(("n", "v", "k"), [(0, 30, None), (0, 30, 4), (3, 30, 0), (0, 0, None), (3, 0, None)])
def test_nothing_to_do_is_done(rectifier, fusion, n, v, k):
    logits, delta, index = random_case(n, v, k, (rectifier, fusion))
    actual = in_kernel(logits, delta, 0.5, index, (rectifier, fusion))
    assert torch.equal(actual, in_kernel(logits, torch.zeros(n, v), 0.5, None, (rectifier, fusion)))
