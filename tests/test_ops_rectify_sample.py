"""rectify_sample draws from p~ of Eq. 8 with temperature, top-k and top-p, and says how likely the token was."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from builders import dense, dense_rectified
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from copilot.ops import rectify, rectify_sample, reference
from copilot.ops.reference_sampling import philox, uniforms

MODES = [("simplex", "probability"), ("linear", "probability"), ("simplex", "logit"), ("linear", "logit")]
modes = pytest.mark.parametrize(("rectifier", "fusion"), MODES)
WARPINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 4},
    {"top_p": 0.7},
    {"temperature": 1.3, "top_k": 9, "top_p": 0.8},
]
warpings = pytest.mark.parametrize("warping", WARPINGS, ids=str)


def random_case(
    n: int, v: int, k: int | None = None, *, mode: tuple[str, str] = MODES[0], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits, delta and index of n rows."""
    g = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, v, generator=g)
    index = None if k is None else torch.rand(n, v, generator=g).argsort(-1)[:, :k]
    delta = 2 * torch.randn(n, v if k is None else k, generator=g)
    return logits, 0.05 * delta if mode == MODES[1] else delta, index


def draw(logits: Tensor, delta: Tensor, strength: float = 0.5, *, seed: int = 5, offset: int = 0, **options: Any):
    return rectify_sample(logits, delta, strength, seed=torch.tensor(seed), offset=torch.tensor([offset]), **options)


def warped(log_prob: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """The log-probabilities, in the precision of the given ones, that transformers' warpers make of them."""
    for warper in (
        TemperatureLogitsWarper(temperature),
        None if top_k is None else TopKLogitsWarper(top_k),
        None if top_p is None else TopPLogitsWarper(top_p),
    ):
        log_prob = log_prob if warper is None else warper(None, log_prob)
    return log_prob.log_softmax(-1)


def chi_square_probability(count: Tensor, expected: Tensor) -> float:
    """The probability of counts at least as far from the expected ones; rare cells are taken together."""
    rare = expected < 10
    count = torch.cat([count[~rare], count[rare].sum()[None]]).double()
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    count, expected = count[expected > 0], expected[expected > 0]
    statistic = ((count - expected).square() / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(count) - 1) / 2.0).double(), statistic / 2).item()


# ---- What is drawn ----

# Emulated (tests/emulation.py), a row takes a millisecond: there they are twenty thousand.
ROWS, STEPS = (10_000, 2) if os.environ.get("COPILOT_EMULATION") == "1" else (100_000, 10)


def zeros_case() -> tuple[Tensor, Tensor]:
    """A row that the linear rectifier sets to 0 at most entries."""
    logits, _, _ = random_case(1, 40, seed=3)
    delta = torch.where(torch.arange(40) % 4 == 0, 0.02, -1.0)[None]
    return logits, delta


@pytest.mark.parametrize(
    ("rectifier", "warping"), [("simplex", {}), ("simplex", WARPINGS[-1]), ("linear", {})], ids=str
)
def test_a_million_draws_have_the_frequencies_of_the_distribution(rectifier, warping):
    logits, delta = zeros_case() if rectifier == "linear" else random_case(1, 40, seed=3)[:2]
    prob = warped(dense_rectified(logits, delta, 0.5, rectifier).log(), **warping)[0].exp()
    rows = logits.expand(ROWS, 40), delta.expand(ROWS, 40)  # all of one memory
    tokens = [draw(*rows, rectifier=rectifier, offset=step, **warping)[0] for step in range(STEPS)]
    count = torch.cat(tokens).bincount(minlength=40)
    assert (count[prob == 0] == 0).all()
    assert chi_square_probability(count, ROWS * STEPS * prob) > 1e-3


@pytest.mark.parametrize("other", ["next offset", "next seed", "next row", "next token"])
def test_neighbouring_draws_are_independent(other):
    """Pairs of draws, four tokens each."""
    logits = torch.tensor([[0.0, 1.0, 0.5, -0.5] + [-torch.inf] * 4])
    later = torch.cat([logits[:, 4:], logits[:, :4]], dim=1) if other == "next token" else logits
    prob = logits.double().softmax(-1)[0, :4]

    def tokens(logits: Tensor, **numbers: int) -> Tensor:
        logits = logits.expand(ROWS, 8)
        return draw(logits, logits.new_zeros(1, 8).expand(ROWS, 8), **numbers)[0] % 4

    first = tokens(logits)
    second = tokens(later, seed=5 + (other == "next seed"), offset=int(other == "next offset"))
    if other == "next row":
        first, second = first[:-1], first[1:]
    count = (4 * first + second).bincount(minlength=16)
    assert chi_square_probability(count, len(first) * torch.outer(prob, prob).flatten()) > 1e-3


@warpings
@modes
@pytest.mark.parametrize("k", [None, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_are_as_exact_as_those_of_the_plain_chain(rectifier, fusion, k, dtype, warping):
    """Against float64: at most the error of rectify in float32 and then the warpers."""
    logits, delta, index = random_case(100, 300, k, mode=(rectifier, fusion), seed=1)
    logits, delta = logits.to(dtype), delta.to(dtype)
    token, log_prob = draw(logits, delta, index=index, rectifier=rectifier, fusion=fusion, **warping)
    truth = warped(dense_rectified(logits, dense(delta, index, 300), 0.5, rectifier, fusion).log(), **warping)
    plain = warped(reference.rectify(logits, delta, 0.5, index, rectifier, fusion), **warping)
    truth, plain = (of_all.gather(1, token[:, None])[:, 0] for of_all in (truth, plain))
    assert (log_prob - truth).abs().max() <= (plain - truth).abs().max() + 1e-6 * truth.abs().max()


def test_top_k_keeps_all_ties_of_the_last():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]]).expand(2000, 6)
    token, _ = draw(logits, torch.zeros(2000, 6), top_k=2)
    assert token.unique().tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1e-9, [1]), (0.25, [1]), (0.26, [1, 2]), (0.75, [1, 2, 3]), (1.0, [1, 2, 3, 4])]
)
def test_top_p_keeps_of_equal_tokens_the_first(top_p, kept):
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, 0.0, 0.0]]).expand(2000, 5)
    token, log_prob = draw(logits, torch.zeros(2000, 5), top_p=top_p)
    assert token.unique().tolist() == kept
    torch.testing.assert_close(log_prob, torch.full((2000,), -float(torch.tensor(float(len(kept))).log())))


def test_filters_that_keep_everything_change_nothing():
    logits, delta, _ = random_case(500, 30)
    plain = draw(logits, delta)
    for everything in ({"top_k": 30}, {"top_k": 99}, {"top_p": 1.0}):
        kept = draw(logits, delta, **everything)
        assert torch.equal(kept[0], plain[0])
        assert torch.equal(kept[1], plain[1])


@modes
@pytest.mark.parametrize("k", [None, 20])
def test_forbidden_tokens_are_never_drawn(rectifier, fusion, k):
    logits, delta, index = random_case(2000, 20, k)
    logits[:, ::3] = -torch.inf
    token, log_prob = draw(logits, delta.abs(), index=index, rectifier=rectifier, fusion=fusion, temperature=3.0)
    assert (token % 3 != 0).all()
    assert torch.isfinite(log_prob).all()


# ---- Greedy ----


@modes
@pytest.mark.parametrize("k", [None, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temperature_zero_takes_the_argmax_of_rectify(rectifier, fusion, k, dtype):
    """In bfloat16 many logits are equal."""
    logits, delta, index = random_case(400, 50, k, mode=(rectifier, fusion))
    logits = (logits / 2).to(dtype)
    options = {"index": index, "rectifier": rectifier, "fusion": fusion}
    log_p = rectify(logits, delta, 0.5, **options)
    token, log_prob = draw(logits, delta, temperature=0.0, top_k=1, top_p=0.1, **options)
    assert torch.equal(token, log_p.argmax(-1))
    assert torch.equal(log_prob, log_p.amax(-1))


@pytest.mark.parametrize("vocabulary", [5, 100, 5000])
def test_of_equal_tokens_the_first_is_the_argmax(vocabulary):
    logits = torch.zeros(3, vocabulary)
    logits[0, [vocabulary // 2, vocabulary - 1]] = 4.0
    logits[1, -1] = 4.0
    token, _ = draw(logits, torch.zeros(3, vocabulary), temperature=0.0)
    assert token.tolist() == [vocabulary // 2, vocabulary - 1, 0]


def test_the_argmax_does_not_depend_on_seed_and_offset():
    logits, delta, _ = random_case(50, 40)
    first, second = (draw(logits, delta, temperature=0.0, seed=n, offset=n)[0] for n in (1, 2))
    assert torch.equal(first, second)


# ---- What a draw depends on ----


def test_the_same_numbers_give_the_same_tokens_and_others_give_others():
    logits, delta, _ = random_case(500, 40)
    token, _ = draw(logits, delta, seed=1, offset=2)
    assert torch.equal(token, draw(logits, delta, seed=1, offset=2)[0])
    for seed, offset in ((2, 2), (1, 3), (1, 2 + 2**32), (1 + 2**32, 2), (-1, 2), (1, -1)):
        assert not torch.equal(token, draw(logits, delta, seed=seed, offset=offset)[0])


@warpings
def test_a_row_draws_the_same_at_its_place_in_any_batch(warping):
    logits, delta, index = random_case(20, 3000, 7)
    token, log_prob = draw(logits, delta, index=index, **warping)
    fewer = draw(logits[:3], delta[:3], index=index[:3], **warping)
    others = draw(
        torch.where(torch.arange(20)[:, None] == 2, logits, -logits),
        torch.where(torch.arange(20)[:, None] == 2, delta, torch.nan),
        index=index,
        **warping,
    )
    assert token[2] == fewer[0][2] == others[0][2]
    assert log_prob[2] == fewer[1][2] == others[1][2]


def test_equal_rows_of_a_batch_draw_independently():
    token, _ = draw(torch.zeros(100, 1000), torch.zeros(100, 1000))
    assert len(token.unique()) > 80


def test_the_random_words_are_those_of_philox():
    """Known answers of Philox 4x32-10, published with Random123."""
    full = 0xFFFFFFFF
    for counter, key, answer in [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((full,) * 4, (full,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]:
        a, b, c, d = (torch.tensor(word) for word in counter)
        words = philox((a, b, c, d), (torch.tensor(key[0]), torch.tensor(key[1])))
        assert tuple(int(word) for word in words) == answer


def test_uniforms_are_odd_multiples_of_the_smallest():
    """So that none is 0 or 1, and none is rounded."""
    drawn = uniforms(torch.tensor(3), torch.tensor(4), 50, 1001) * 2**53
    assert drawn.shape == (50, 1001)
    assert (drawn.long() % 2 == 1).all()
    assert abs((drawn / 2**53).mean() - 0.5) < 0.01


# ---- Rows without a distribution ----


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("warping", [{}, {"top_k": 2, "top_p": 0.5}])
def test_a_row_without_a_distribution_gives_no_token_and_leaves_the_others_alone(temperature, k, warping):
    logits, delta, index = random_case(5, 20, k)
    options = {"index": index, "temperature": temperature} | warping
    expected, expected_log_prob = draw(logits, delta, **options)
    logits[0, 7] = torch.nan
    logits[1] = -torch.inf
    delta[3, 1] = torch.nan
    token, log_prob = draw(logits, delta, **options)
    assert token[[0, 1, 3]].tolist() == [-1] * 3
    assert log_prob[[0, 1, 3]].isnan().all()
    assert torch.equal(token[[2, 4]], expected[[2, 4]])
    assert torch.equal(log_prob[[2, 4]], expected_log_prob[[2, 4]])


def test_no_token_is_refused_by_an_embedding():
    token, _ = draw(torch.full((1, 4), torch.nan), torch.zeros(1, 4))
    with pytest.raises(IndexError):
        torch.nn.Embedding(4, 2)(token)


@pytest.mark.parametrize("k", [None, 20])
def test_a_linear_row_without_a_positive_entry_falls_back_to_the_pilot(k):
    logits, _, index = random_case(300, 20, k)
    zero, negative = torch.zeros(300, 20), torch.full((300, 20), -4.0)
    pilot = draw(logits, zero, 0.5, index=index, rectifier="linear")
    fallen_back = draw(logits, negative, 0.5, index=index, rectifier="linear")
    assert torch.equal(pilot[0], fallen_back[0])
    torch.testing.assert_close(pilot[1], fallen_back[1])


# ---- Inputs of every kind ----


@pytest.mark.parametrize("k", [None, 3])
@pytest.mark.parametrize("warping", [{}, {"temperature": 0.0}, {"top_k": 2, "top_p": 0.5}])
def test_no_rows_give_no_tokens(k, warping):
    logits, delta, index = random_case(0, 20, k)
    token, log_prob = draw(logits, delta, index=index, **warping)
    assert (token.shape, token.dtype) == ((0,), torch.int64)
    assert (log_prob.shape, log_prob.dtype) == ((0,), torch.float32)


def test_inputs_are_left_as_they_were_and_get_no_gradient():
    case = random_case(5, 20, 3)
    before = [tensor.clone() for tensor in case]
    _, log_prob = draw(case[0].requires_grad_(), case[1].requires_grad_(), index=case[2])
    assert not log_prob.requires_grad
    assert all(torch.equal(now, then) for now, then in zip(case, before, strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rectifier": "cubic"}, "rectifier"),
        ({"fusion": "late"}, "fusion"),
        ({"strength": 1.1}, "strength"),
        ({"pilot_logits": torch.zeros(10)}, "pilot_logits"),
        ({"pilot_logits": torch.zeros(4, 0), "delta": torch.zeros(4, 0)}, "pilot_logits"),
        ({"delta": torch.zeros(4, 9)}, "delta"),
        ({"delta": torch.zeros(4, 3), "index": torch.zeros(4, 2, dtype=torch.long)}, "delta and index"),
        ({"delta": torch.zeros(3, 2), "index": torch.zeros(3, 2, dtype=torch.long)}, "delta and index"),
        ({"delta": torch.zeros(4, 2), "index": torch.zeros(4, 2, dtype=torch.int32)}, "index"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": torch.tensor(1.0)}, "seed"),
        ({"offset": torch.zeros(2, dtype=torch.long)}, "offset"),
    ],
)
def test_a_wrong_argument_is_named(change, named):
    arguments = {"pilot_logits": torch.zeros(4, 10), "delta": torch.zeros(4, 10), "strength": 0.5}
    numbers = {"seed": torch.tensor(0), "offset": torch.tensor(0)}
    with pytest.raises(ValueError, match=f"^{named} must"):
        rectify_sample(**arguments | numbers | change)


@pytest.mark.refuses
@pytest.mark.parametrize("token", [-1, 10, 2**40])
def test_an_index_outside_the_vocabulary_is_an_error(token):
    with pytest.raises(RuntimeError, match="index"):
        draw(torch.zeros(2, 10), torch.zeros(2, 1), index=torch.tensor([[3], [token]]))
