"""The compiled rectify_sample draws what its reference draws, however the work is split."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from instruction_sets import outputs_with
from test_ops_rectify_sample import MODES, WARPINGS, draw, modes, random_case
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from copilot.ops import extension, rectify, rectify_sample, reference_sampling

pytestmark = pytest.mark.skipif(not extension.LOADED, reason="no compiled kernels")

GREEDY = {"temperature": 0.0}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def drawn_by_reference(
    logits: Tensor,
    delta: Tensor,
    strength: float = 0.5,
    *,
    index: Tensor | None = None,
    rectifier: str = "simplex",
    fusion: str = "probability",
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 5,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    numbers = (rectifier, fusion, temperature, top_k, top_p, torch.tensor(seed), torch.tensor(offset))
    return reference_sampling.rectify_sample(logits, delta, strength, index, *numbers)


def assert_drawn_as_by_reference(logits: Tensor, delta: Tensor, strength: float = 0.5, **options: Any) -> None:
    token, log_prob = draw(logits, delta, strength, **options)
    expected, expected_log_prob = drawn_by_reference(logits, delta, strength, **options)
    assert torch.equal(token, expected)
    torch.testing.assert_close(log_prob, expected_log_prob, atol=4e-6, rtol=1e-6, equal_nan=True)


@modes
@pytest.mark.parametrize("warping", [GREEDY, *WARPINGS], ids=str)
@pytest.mark.parametrize("vocabulary", [1, 15, 16, 17, 111, 4096, 4097])
def test_every_vocabulary_is_drawn_from_as_by_the_reference(rectifier, fusion, warping, vocabulary):
    for k, strength in ((None, 0.0), (None, 0.4), (None, 1.0), (1, 0.4), (min(5, vocabulary), 1.0)):
        logits, delta, index = random_case(3, vocabulary, k, mode=(rectifier, fusion), seed=vocabulary)
        logits[:, ::7] = -torch.inf
        logits[0, 0] = 1.0
        assert_drawn_as_by_reference(
            logits, delta, strength, index=index, rectifier=rectifier, fusion=fusion, offset=vocabulary, **warping
        )


@pytest.mark.parametrize("warping", [GREEDY, *WARPINGS], ids=str)
@pytest.mark.parametrize(("vocabulary", "k"), [(32000, 50), (32000, None), (151936, 64)])
def test_large_vocabularies_are_drawn_from_as_by_the_reference(warping, vocabulary, k):
    logits, delta, index = random_case(2, vocabulary, k)
    assert_drawn_as_by_reference(logits, delta, index=index, **warping)


def test_the_probability_of_one_of_many_equal_tokens_is_exact():
    """Where roundings do not cancel out."""
    logits = torch.full((1, 262144), -5.0)
    logits[0, 0] = 0.0
    token, log_prob = draw(logits, torch.zeros(1, 1), index=torch.zeros(1, 1, dtype=torch.long))
    exact = logits.double().log_softmax(-1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(log_prob.double(), exact, atol=4e-6, rtol=0)


@pytest.mark.parametrize("top_p", [None, 0.90003])  # of equal tokens no whole number
@pytest.mark.parametrize("top_k", [1, 50])
def test_a_small_top_k_of_unusual_rows_is_the_references(top_k, top_p):
    """Rows of equal tokens, of many that are the first, of fewer than k that are possible, and one with NaN."""
    random = torch.randn(4, 20000, generator=torch.Generator().manual_seed(1))
    logits = torch.stack([0 * random[0], random[1].clamp(max=1.0), random[2], random[3]])
    logits[2, 40:] = -torch.inf
    logits[3, 12345] = torch.nan
    assert_drawn_as_by_reference(logits, torch.zeros(4, 20000), 0.5, top_k=top_k, top_p=top_p)


def test_equal_rows_keep_the_same_tokens():
    """Also where top-p asks for the mass before a token but for its rounding."""
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        logits = torch.full((1, 3000), -torch.inf)
        possible = torch.randperm(3000, generator=g)[:60]
        logits[0, possible] = -30 * torch.rand(60, generator=g).square()
        log_p = rectify(logits, torch.zeros_like(logits), 0.0)[0]
        weights = (log_p[possible] - log_p.max()).double().exp().float().tolist()
        rows = logits.expand(12, -1).contiguous()
        token, log_prob = draw(rows, torch.zeros_like(rows), top_k=60, top_p=1 / math.fsum(weights))
        log_mass = log_p[token] - log_prob
        assert log_mass.max() - log_mass.min() < 1e-4


@modes
@pytest.mark.parametrize("k", [None, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_row_that_is_drawn_from_is_that_of_rectify_to_the_last_bit(rectifier, fusion, k, dtype):
    """In half precision many tokens are equal."""
    logits, delta, index = random_case(9, 3001, k, mode=(rectifier, fusion))
    logits = logits.to(dtype)
    options = {"index": index, "rectifier": rectifier, "fusion": fusion}
    log_p = rectify(logits, delta, 0.3, **options)
    token, log_prob = draw(logits, delta, 0.3, **options, **GREEDY)
    assert torch.equal(token, log_p.argmax(-1))
    assert torch.equal(log_prob, log_p.amax(-1))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 4),
    vocabulary=st.integers(1, 300),
    kept=st.none() | st.integers(0, 300),
    mode=st.sampled_from(MODES),
    strength=st.just(0.0) | st.floats(2.0**-99, 1, width=32),
    temperature=st.sampled_from([0.0, 1.0]) | st.floats(0.25, 4, width=32),
    top_k=st.none() | st.integers(1, 300),
    top_p=st.none() | st.floats(1e-3, 1),
    forbidden=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
    numbers=st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1)),
)
def test_any_arguments_draw_as_by_the_reference(
    rows, vocabulary, kept, mode, strength, temperature, top_k, top_p, forbidden, dtype, numbers
):
    k = None if kept is None else min(kept, vocabulary)
    logits, delta, index = random_case(rows, vocabulary, k, mode=mode, seed=vocabulary)
    logits[torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < forbidden] = -torch.inf
    options = {"rectifier": mode[0], "fusion": mode[1], "temperature": temperature, "top_k": top_k, "top_p": top_p}
    assert_drawn_as_by_reference(
        logits.to(dtype), delta.to(dtype), strength, index=index, seed=numbers[0], offset=numbers[1], **options
    )


def test_the_last_bits_of_a_uniform_count():
    """Races of two tokens, the one with a small E ahead or behind by a hair."""
    exponential = -reference_sampling.uniforms(torch.tensor(5), torch.tensor(0), 2000, 2000).log()
    smallest, token = exponential.topk(2, largest=False)
    lead = smallest.log().diff(dim=1)[:, 0]
    for ahead, winner in ((1e-5, 0), (-1e-5, 1)):
        logits = torch.full((2000, 2000), -torch.inf)
        logits.scatter_(1, token, torch.stack([ahead - lead, torch.zeros(2000)], dim=1).float())
        drawn, _ = draw(logits, torch.zeros(2000, 1), index=torch.zeros(2000, 1, dtype=torch.long))
        assert torch.equal(drawn, token[:, winner])


@pytest.mark.parametrize(
    "warping",
    [{}, {"temperature": 0.7}, {"top_p": 0.7071}, {"temperature": 0.01, "top_p": 0.7071}, {"temperature": 1e-30}],
    ids=str,
)
@pytest.mark.parametrize(("rows", "vocabulary"), [(20, 3000), (2, 20_001)])
def test_a_large_top_k_and_equal_scores_are_drawn_from_as_by_the_reference(warping, rows, vocabulary):
    g = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 6, (rows, vocabulary), generator=g).float()
    for top_k in (1, 700, 2999):
        assert_drawn_as_by_reference(logits, torch.zeros(rows, vocabulary), **warping | {"top_k": top_k})


@modes
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [None, 9])
def test_strided_rows_draw_what_contiguous_ones_draw(rectifier, fusion, dtype, k):
    logits, delta, index = random_case(6, 70, k, mode=(rectifier, fusion))
    plain = [t if t is None or t.dtype == torch.int64 else t.to(dtype) for t in (logits, delta, index)]
    options = {"rectifier": rectifier, "fusion": fusion}
    expected = draw(plain[0], plain[1], index=plain[2], **options)

    def rows_apart(t: Tensor) -> Tensor:
        return torch.cat([t, torch.zeros_like(t)], dim=1)[:, : t.shape[1]]

    def columns_apart(t: Tensor) -> Tensor:
        return t.t().contiguous().t()

    for layout in (rows_apart, columns_apart):
        strided = [t if t is None else layout(t) for t in plain]
        assert not strided[0].is_contiguous()
        actual = draw(strided[0], strided[1], index=strided[2], **options)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("warping", [GREEDY, {}, {"temperature": 0.7, "top_k": 50, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("rectifier", ["simplex", "linear"])
@pytest.mark.parametrize("k", [None, 30])
def test_the_number_of_threads_changes_no_bit(warping, rectifier, k):
    """p~ of few rows is split over the vocabulary, that of more over the rows."""
    logits, delta, index = random_case(4, 70_000, k, mode=(rectifier, "probability"))
    threads = torch.get_num_threads()
    drawn = []
    try:
        for number in (1, 2, 3, 7):
            torch.set_num_threads(number)
            for rows in (1, 4):
                some = None if index is None else index[:rows]
                drawn.append(draw(logits[:rows], delta[:rows], index=some, rectifier=rectifier, **warping))
    finally:
        torch.set_num_threads(threads)
    for token, log_prob in drawn:
        assert torch.equal(token, drawn[1][0][: len(token)])
        assert torch.equal(log_prob, drawn[1][1][: len(token)])


@pytest.mark.parametrize("instruction_set", ["avx2", "portable"])
def test_other_instruction_sets_draw_as_the_reference(instruction_set, tmp_path: Path):
    calls, expected = [], []
    for mode in MODES:
        for k in (None, 30):
            logits, delta, index = random_case(20, 1001, k, mode=mode)
            index = None if index is None else index.contiguous()
            for warping in (GREEDY, *WARPINGS, {"top_k": 700}):
                numbers = ({"temperature": 1.0, "top_k": None, "top_p": None} | warping).values()
                arguments = logits, delta, index, 0.5, *mode, *numbers, torch.tensor(5), torch.tensor(0)
                calls.append(("rectify_sample", arguments))
                options = {"index": index, "rectifier": mode[0], "fusion": mode[1]} | warping
                expected.append(drawn_by_reference(logits, delta, **options))
    outputs = outputs_with(instruction_set, calls, tmp_path)
    for (token, log_prob), (expected_token, expected_log_prob) in zip(outputs, expected, strict=True):
        assert torch.equal(token, expected_token)
        torch.testing.assert_close(log_prob, expected_log_prob, atol=4e-6, rtol=1e-6)


OPCHECKED = [
    (None, {}),
    (4, {}),
    (4, {"temperature": 0.0}),
    (None, {"temperature": 0.5, "top_k": 3, "top_p": 0.5}),
]


@pytest.mark.parametrize(("k", "warping"), OPCHECKED, ids=str)
def test_the_op_is_registered_as_torch_demands(k, warping):
    logits, delta, index = random_case(3, 20, k)
    index = None if index is None else index.contiguous()
    warping = {"temperature": 1.0, "top_k": None, "top_p": None} | warping
    numbers = (*warping.values(), torch.tensor(1), torch.tensor(2))
    torch.library.opcheck(
        torch.ops.copilot.rectify_sample.default, (logits, delta, index, 0.5, "simplex", "probability", *numbers)
    )


def test_a_compiled_call_takes_any_number_of_rows():
    counter = CompileCounter()
    step = torch.compile(rectify_sample, fullgraph=True, backend=counter, dynamic=True)
    one = torch.tensor([1])
    for rows in (3, 4, 7):
        logits, delta, _ = random_case(rows, 20, None)
        assert step(logits, delta, 0.5, seed=one, offset=one)[0].shape == (rows,)
    assert counter.frame_count == 1


@pytest.mark.parametrize("k", [None, 4])
def test_it_compiles_without_a_break(k):
    logits, delta, index = random_case(3, 20, k)

    def step(logits: Tensor, delta: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        seed = torch.ones_like(offset)
        return rectify_sample(logits, delta, 0.5, index=index, top_k=5, seed=seed, offset=offset + 1)

    offset = torch.tensor([7])
    expected = step(logits, delta, offset)
    actual = torch.compile(step, fullgraph=True, backend="aot_eager")(logits, delta, offset)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pilot_logits": torch.zeros(4, 10, dtype=torch.float64)}, "pilot_logits"),
        ({"pilot_logits": torch.zeros(4, 0), "delta": torch.zeros(4, 0)}, "pilot_logits"),
        ({"delta": torch.zeros(3, 10)}, "delta"),
        ({"delta": torch.zeros(4, 9)}, "delta"),
        ({"index": torch.zeros(4, 9, dtype=torch.long)}, "delta"),
        ({"index": torch.zeros(4, 10)}, "index"),
        ({"delta": torch.zeros(4, 10).double(), "index": torch.zeros(4, 10, dtype=torch.long)}, "delta"),
        pytest.param({"index": torch.full((4, 10), 10)}, "index", marks=pytest.mark.refuses),
        pytest.param({"index": torch.full((4, 10), 10), "strength": 0.0}, "index", marks=pytest.mark.refuses),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"seed": torch.zeros(2, dtype=torch.long)}, "seed"),
        ({"offset": torch.zeros(1)}, "offset"),
    ],
)
def test_the_bare_op_names_a_wrong_argument(change, named):
    arguments: dict[str, Any] = {
        "pilot_logits": torch.zeros(4, 10),
        "delta": torch.zeros(4, 10),
        "index": None,
        "strength": 0.5,
        "rectifier": "simplex",
        "fusion": "probability",
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "seed": torch.tensor(0),
        "offset": torch.tensor(0),
    }
    with pytest.raises(RuntimeError, match=f"{named} must"):
        torch.ops.copilot.rectify_sample(*(arguments | change).values())
