"""The Mistake Log: a compact ring whose draws, losses and files are exact."""

from __future__ import annotations

import pytest
import torch
from builders import dense, dense_loss, random_pair
from rounds import D, V, assert_same_round, filled, random_logits, random_round, take

from copilot import MistakeLog
from copilot.mistake_log import Round
from copilot.ops import candidate_loss, mistake_cross_entropy

# ---- The ring and its draws ----


def test_the_oldest_round_goes_when_the_ring_is_full():
    log = filled(1, 2, 3, 4, 5, 6, capacity=4)
    assert len(log) == 4
    assert log.rounds_seen == 6
    assert set(take(200, log)) == {3, 4, 5, 6}


def test_every_round_is_drawn_about_equally_often():
    counts = torch.tensor(take(2000, filled(0, 1, 2, 3))).bincount()
    assert counts.tolist() == pytest.approx([500] * 4, abs=90)  # 4.6 standard deviations


def test_equal_seeds_draw_equal_rounds_and_others_do_not():
    first, same, other = (take(50, filled(1, 2, 3, 4, seed=seed)) for seed in (5, 5, 6))
    assert first == same
    assert first != other


def test_draws_do_not_touch_torchs_own_randomness():
    log = filled(1, 2, 3)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    log.draw()
    assert torch.equal(torch.rand(3), expected)


def test_an_empty_log_has_nothing_to_draw():
    with pytest.raises(IndexError, match="log is empty"):
        MistakeLog().draw()


def test_a_round_without_supervised_tokens_is_refused():
    log = filled(1)
    with pytest.raises(ValueError, match=r"^round_ .*supervised"):
        log.append(random_round(lengths=(0, 0)))
    assert len(log) == 1
    assert log.rounds_seen == 1


@pytest.mark.parametrize(
    ("options", "named"), [({"capacity": 0}, "capacity"), ({"hidden_dtype": "int4"}, "hidden_dtype")]
)
def test_a_wrong_option_is_named(options, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        MistakeLog(**options)


# ---- What comes back ----


@pytest.mark.parametrize("k", [1, 6])
@pytest.mark.parametrize("hidden_dtype", ["float32", "bfloat16", "int8"])
def test_mistakes_come_back_to_the_last_bit(k, hidden_dtype):
    log = MistakeLog(hidden_dtype=hidden_dtype)
    round_ = random_round(k=k)
    log.append(round_)
    back = log.draw()
    for name, value in round_.mistakes.tensors().items():
        assert torch.equal(back.mistakes.tensors()[name], value), name


@pytest.mark.parametrize("rectifier", ["simplex", "linear"])
def test_the_loss_of_a_drawn_round_equals_the_dense_float64_one(rectifier):
    log = MistakeLog()
    log.append(random_round(seed=3))
    mistakes = log.draw().mistakes
    delta = 0.3 * torch.randn(len(mistakes), 6, generator=torch.Generator().manual_seed(2))
    logits, target = random_logits(len(mistakes), 3)
    expected = dense_loss(logits, target, dense(delta, mistakes.top_index, V), rectifier)
    actual = candidate_loss(mistakes, delta, rectifier=rectifier)
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=0)


def test_a_whole_vocabulary_comes_back_in_half_precision():
    log = MistakeLog()
    log.append(random_round(seed=3, k=None))
    mistakes = log.draw().mistakes
    delta = torch.randn(len(mistakes), V, generator=torch.Generator().manual_seed(2))
    logits, target = random_logits(len(mistakes), 3)
    assert mistakes.top_prob.dtype == torch.float16
    expected = dense_loss(logits, target, delta)
    torch.testing.assert_close(candidate_loss(mistakes, delta).double(), expected, atol=2e-3, rtol=0)


def test_rows_are_packed_without_padding():
    log = MistakeLog(hidden_dtype="float32")
    round_ = random_round(lengths=(3, 0, 4))
    log.append(round_)
    stored = log.rounds[0]
    assert stored.hidden.shape == (7, D)
    assert stored.mistakes.top_prob.shape == (7, 6)
    assert stored.context_ids.shape == (13,)
    assert_same_round(log.draw(), round_)


@pytest.mark.parametrize(("hidden_dtype", "relative"), [("float32", 0.0), ("bfloat16", 2**-8), ("int8", 2**-8)])
def test_states_come_back_within_their_types_rounding(hidden_dtype, relative):
    """Those of int8 by the row's largest; X~, which has rows of its own, is then kept as bfloat16."""
    log = MistakeLog(hidden_dtype=hidden_dtype)
    round_ = random_round(ids=False)
    log.append(round_)
    back = log.draw()
    size = round_.hidden.abs()
    if hidden_dtype == "int8":
        size = size.amax(1, keepdim=True)
    assert ((back.hidden - round_.hidden).abs() <= relative * size).all()
    assert ((back.context.float() - round_.context).abs() <= relative * round_.context.abs()).all()


def test_int8_states_come_back_within_half_a_step_of_their_row():
    log = MistakeLog(hidden_dtype="int8")
    round_ = random_round()
    round_.hidden[1] *= 1000
    round_.hidden[2] = 0
    log.append(round_)
    step = round_.hidden.abs().amax(1, keepdim=True) / 127
    back = log.draw()
    assert back.hidden_scale is None
    assert ((back.hidden - round_.hidden).abs() <= 0.5001 * step).all()
    assert (back.hidden[2] == 0).all()


def test_the_log_keeps_its_own_copy():
    log = MistakeLog(hidden_dtype="float32")
    round_, untouched = random_round(), random_round()
    log.append(round_)
    for value in round_.tensors().values():
        value.zero_()
    assert_same_round(log.draw(), untouched)


def test_a_drawn_round_is_the_callers_to_change():
    log = MistakeLog(hidden_dtype="float32")
    log.append(random_round())
    for value in log.draw().tensors().values():
        value.zero_()
    assert_same_round(log.draw(), random_round())


def test_a_round_drawn_from_a_pairs_log_gives_the_delta_of_the_fresh_round():
    """Through append and draw nothing of X~, h and l is lost with float32 states."""
    pair = random_pair("llama")
    batch = {"input_ids": torch.arange(3, 23).view(2, 10), "labels": torch.arange(3, 23).view(2, 10)}
    batch["labels"] = batch["labels"].masked_fill(torch.arange(10) < 4, -100)
    fresh = pair(**batch)
    pair.train()
    pair.mistake_log = MistakeLog(hidden_dtype="float32")
    assert torch.equal(pair(**batch).copilot_loss, fresh.copilot_loss)


# ---- Memory ----


@pytest.mark.parametrize("hidden_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("ids", [True, False])
def test_nbytes_is_what_all_tensors_take(hidden_dtype, ids):
    log = MistakeLog(2, hidden_dtype=hidden_dtype)
    for seed in range(3):
        log.append(random_round(seed, ids=ids))
    tensors = [value for round_ in log.rounds for value in round_.tensors().values()]
    assert log.nbytes == sum(value.untyped_storage().nbytes() for value in tensors)


def llama_sized_round() -> Round:
    """16 sequences of 256 tokens, 64 of them supervised, width 2048, 32 candidates."""
    rows, k, width = 16 * 64, 32, 2048
    g = torch.Generator().manual_seed(0)
    _, mistakes = mistake_cross_entropy(torch.randn(rows, 500, generator=g), torch.randint(500, (rows,)), k)
    return Round(
        mistakes=mistakes,
        hidden=torch.randn(rows, width, generator=g),
        lengths=torch.full((16,), 64),
        visible=torch.full((rows,), 192),
        context_lengths=torch.full((16,), 192),
        context_ids=torch.randint(128256, (16 * 192,), generator=g),
    )


SIZES = pytest.mark.parametrize(("hidden_dtype", "size"), [("bfloat16", 575e6), ("int8", 307e6)])  # as in README.md


@SIZES
def test_128_rounds_of_llama_size_take_what_the_readme_says(hidden_dtype, size):
    log = MistakeLog(128, hidden_dtype=hidden_dtype)
    log.append(llama_sized_round())
    assert 128 * log.nbytes == pytest.approx(size, rel=0.01)


@pytest.mark.slow
@SIZES
def test_a_full_ring_of_llama_size_takes_what_the_readme_says(hidden_dtype, size):
    log = MistakeLog(128, hidden_dtype=hidden_dtype)
    round_ = llama_sized_round()
    for _ in range(130):
        log.append(round_)
    assert len(log) == 128
    assert log.nbytes == pytest.approx(size, rel=0.01)


# ---- The summary ----


class Words:
    """A tokenizer for summaries."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f"w{index}" for index in ids]


def hand_made_log(*rounds: list[tuple[int, int, float]], k: int | None = 2) -> MistakeLog:
    """Each supervised token as (its true id, the Pilot's favourite of 5 ids, the favourite's probability)."""
    log = MistakeLog()
    for tokens in rounds:
        p = torch.stack(
            [torch.full((5,), (1 - share) / 4).index_fill(0, torch.tensor(best), share) for _, best, share in tokens]
        )
        _, mistakes = mistake_cross_entropy(p.log(), torch.tensor([truth for truth, _, _ in tokens]), k)
        count = torch.tensor([len(tokens)])
        log.append(
            Round(
                mistakes=mistakes,
                hidden=torch.zeros(len(tokens), 2),
                lengths=count,
                visible=torch.ones(len(tokens), dtype=torch.long),
                context_lengths=torch.ones_like(count),
                context_ids=torch.zeros(1, dtype=torch.long),
            )
        )
    return log


@pytest.mark.parametrize("k", [None, 2])
def test_the_summary_counts_confusions_and_follows_the_error(k):
    log = hand_made_log(
        [(1, 2, 0.6), (1, 2, 0.6), (3, 4, 0.6), (0, 0, 0.6)],
        [(1, 2, 0.6), (0, 0, 0.6), (3, 3, 0.6), (4, 4, 0.6)],
        [(1, 1, 0.8), (0, 0, 0.8), (3, 3, 0.8), (4, 4, 0.8)],
        k=k,
    )
    summary = log.summary(Words())
    assert summary.confusions == [("w1", "w2", 3), ("w3", "w4", 1)]
    assert summary.error_rate == [0.75, 0.25, 0.0]
    # ||l||^2 = sum p^2 - 2 p_y + 1, with p = (.6, .1, .1, .1, .1) or (.8, .05, .05, .05, .05)
    wrong, right, better = 0.40 - 0.2 + 1, 0.40 - 1.2 + 1, 0.65 - 1.6 + 1
    expected = [(3 * wrong + right) / 4, (wrong + 3 * right) / 4, better]
    assert summary.squared_error == pytest.approx(expected, abs=1e-3 if k is None else 1e-6)


def test_the_summary_names_only_the_most_frequent_confusions():
    log = hand_made_log([(1, 2, 0.6), (1, 2, 0.6), (3, 4, 0.6)])
    assert log.summary(Words(), top=1).confusions == [("w1", "w2", 2)]


def test_the_summary_as_text_compares_the_oldest_third_with_the_newest():
    text = str(hand_made_log(*[[(1, 2, 0.6)]] * 2, *[[(1, 1, 0.6)]] * 4).summary(Words()))
    assert "'w1' > 'w2'" in text
    assert "wrong tokens: 1.000 in the oldest third of the log, 0.000 in the newest" in text


def test_an_empty_log_has_an_empty_summary():
    summary = MistakeLog().summary(Words())
    assert (summary.confusions, summary.error_rate, summary.squared_error) == ([], [], [])
    assert "wrong tokens" not in str(summary)
