"""lambda*, held-out scores and the theorem's quantities, against dense float64 computations."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import ROWS, VOCAB_SIZE, batch_of_rows, fresh_pair, random_pair, rows_of, tiny_pilot
from builders import dense as dense_delta

from copilot.calibration import (
    Held,
    agreement,
    calibrate,
    calibration_of,
    collect,
    scores,
    supervision_of,
    theorem_quantities,
)
from copilot.data import prepare_dataset
from copilot.inspection import measure

MODES = [
    {},
    {"candidates": None},
    {"rectifier": "linear"},
    {"rectifier": "linear", "candidates": None},
    {"fusion": "logit"},
    {"feedback": "predicted"},
]
batch_sizes = pytest.mark.parametrize("batch_size", [16, 2])  # of three rows


def dense_distributions(pair, kind: str, strength: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(p^, p~, onehot), each (M, V) float64, from the pair's logits over the whole vocabulary."""
    batch = batch_of_rows(kind, ROWS, side="left")
    supervised = supervision_of(pair, batch)
    with torch.no_grad():
        pilot = pair(**batch, strength=0).logits[supervised].double().softmax(-1)
        output = pair(**batch, strength=strength)
    rectified = output.logits[supervised].double().softmax(-1)  # raw logits at strength 0, else log p~
    return pilot, rectified, torch.nn.functional.one_hot(output.mistakes.target, VOCAB_SIZE).double()


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@batch_sizes
def test_scores_equal_those_of_the_dense_rectified_distribution(kind, mode, strength, batch_size):
    pair = random_pair(kind, **mode)
    held = collect(pair, rows_of(kind), batch_size=batch_size)
    found = scores(held, strength, pair.config.rectifier, pair.config.fusion)
    _, rectified, truth = dense_distributions(pair, kind, strength)
    brier = (rectified - truth).square().sum(1).mean().item()
    nll = -(rectified * truth).sum(1).clamp(min=torch.finfo(torch.float32).tiny).log().mean().item()
    assert found.per_token() == pytest.approx((brier, nll), rel=2e-5)
    assert found.tokens.tolist() == [len(answer) for _, answer in ROWS]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_row_is_exact_if_greedy_decoding_writes_it(mode, strength):
    pair = random_pair(**mode)
    rows = []
    for prompt, _ in ROWS:
        written = pair.generate(prompt[None], strength=strength, do_sample=False, max_new_tokens=4, eos_token_id=None)
        tokens = written[0].tolist()
        other = [*tokens[:-1], (tokens[-1] + 1) % VOCAB_SIZE]
        rows += [{"input_ids": t, "labels": [-100] * len(prompt) + t[len(prompt) :]} for t in (tokens, other)]
    held = collect(pair, rows)
    found = scores(held, strength, pair.config.rectifier, pair.config.fusion)
    assert found.exact.tolist() == [True, False] * len(ROWS)


@pytest.mark.parametrize("candidates", [1, 2])
def test_a_row_is_not_exact_where_a_token_outside_the_candidates_is_now_the_likeliest(candidates):
    pair = fresh_pair(candidates=candidates)
    pair.copilot.head.register_forward_hook(lambda _module, _args, delta: delta - 20)
    rows = []
    for prompt, _ in ROWS:
        written = pair.generate(prompt[None], strength=0, do_sample=False, max_new_tokens=1)[0].tolist()
        rows.append({"input_ids": written, "labels": [-100] * len(prompt) + written[-1:]})
    held = collect(pair, rows)
    for strength, exact in ((0.0, True), (1.0, False)):
        assert scores(held, strength, "simplex", "probability").exact.tolist() == [exact] * len(ROWS)


@pytest.mark.parametrize("mode", MODES[:2], ids=str)
@batch_sizes
def test_lambda_star_minimises_the_squared_error(mode, batch_size):
    pair = random_pair(**mode)
    found = calibrate(pair, rows_of("llama"), batch_size=batch_size)
    pilot, candidate, truth = dense_distributions(pair, "llama", 1.0)
    mistake, f = truth - pilot, candidate - pilot
    expected = ((mistake * f).sum() / f.square().sum()).item()
    assert found.lambda_zero == pytest.approx(2 * expected, rel=1e-4)
    assert found.strength == pytest.approx(min(max(expected, 0.0), 1.0), rel=1e-4)
    assert pair.config.strength == found.strength


def test_agreement_of_the_linear_rectifier_uses_delta_itself():
    pair = random_pair(rectifier="linear", candidates=None)
    [held] = collect(pair, rows_of("llama"))
    truth = torch.nn.functional.one_hot(held.mistakes.target, VOCAB_SIZE).double()
    mistake = truth - held.mistakes.top_prob.double()
    along, norm = agreement(held.mistakes, held.delta, "linear")
    torch.testing.assert_close(along, (mistake * held.delta.double()).sum(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm, held.delta.double().square().sum(1), rtol=1e-5, atol=0)


def test_a_copilot_that_predicts_the_mistake_gets_lambda_1_and_a_perfect_score():
    pair = fresh_pair(rectifier="linear", candidates=None)
    held = collect(pair, rows_of("llama"))
    _, value = held[0].mistakes.error()  # l itself
    along, norm = agreement(held[0].mistakes, value, "linear")
    torch.testing.assert_close(along, norm, rtol=1e-5, atol=0)
    perfect = scores([replace(held[0], delta=value)], 1.0, "linear", "probability")
    assert perfect.exact.all()
    assert perfect.per_token() == pytest.approx((0.0, 0.0), abs=1e-6)


@pytest.mark.parametrize(
    ("rectifier", "share", "strength"),
    [("linear", 0.5, 2.0), ("linear", -0.5, 0.0), ("simplex", 0.1, 1.0), ("simplex", -0.1, 0.0)],
)
def test_lambda_star_is_clipped_to_what_the_rectifier_allows_and_lambda_zero_is_not(
    rectifier, share, strength, monkeypatch
):
    """Of a Copilot that predicts a share of the mistake, or of the logits that lead from it to the truth."""
    pair = fresh_pair(rectifier=rectifier, candidates=None)
    monkeypatch.setattr(pair, "predict", lambda round_: share * round_.mistakes.error()[1])
    found = calibrate(pair, rows_of("llama"))
    assert found.strength == pytest.approx(strength, rel=1e-5)
    [held] = collect(pair, rows_of("llama"))
    along, norm = (float(rows.sum()) for rows in agreement(held.mistakes, held.delta, rectifier))
    assert found.lambda_zero == pytest.approx(2 * along / norm, rel=1e-5)
    assert (found.lambda_zero > 2) == (share > 0)


@pytest.mark.parametrize("fusion", ["probability", "logit"])
def test_of_a_whole_vocabulary_one_batch_is_kept_at_a_time(fusion, monkeypatch):
    """And the one before, until it is replaced."""
    made: list[weakref.ref[Held]] = []
    alive = []

    def of(pair, passed, original=Held.of):
        held = original(pair, passed)
        made.append(weakref.ref(held))
        alive.append(sum(reference() is not None for reference in made))
        return held

    pair = random_pair(candidates=None, fusion=fusion)
    expected = calibrate(pair, rows_of("llama") * 2, batch_size=6)
    monkeypatch.setattr(Held, "of", of)
    found = calibrate(pair, rows_of("llama") * 2, batch_size=1)
    assert len(alive) == (12 if fusion == "probability" else 6)
    assert max(alive) == 2
    assert found.strength == pytest.approx(expected.strength, rel=1e-4)
    torch.testing.assert_close(found.pair.brier, expected.pair.brier)
    torch.testing.assert_close(found.pilot.nll, expected.pilot.nll)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_pair_runs_over_the_data_as_often_as_said(mode, monkeypatch):
    pair, forwards = random_pair(**mode), []
    monkeypatch.setattr(Held, "of", lambda pair, passed, original=Held.of: forwards.append(1) or original(pair, passed))
    calibrate(pair, rows_of("llama"))
    twice = pair.config.candidates is None and pair.config.fusion == "probability"
    assert len(forwards) == (2 if twice else 1)


def test_a_fresh_copilot_gets_strength_0():
    pair = fresh_pair()
    assert calibrate(pair, rows_of("llama")).strength == 0.0


def test_logit_fusion_is_calibrated_on_a_grid():
    pair = random_pair(fusion="logit")
    found = calibrate(pair, rows_of("llama"))
    held = collect(pair, rows_of("llama"))
    best = found.pair.per_token()[0]
    others = [scores(held, step / 20, "simplex", "logit").per_token()[0] for step in range(21)]
    assert best == pytest.approx(min(others))
    assert found.lambda_zero is None


MEASUREMENTS = {
    "calibrate": lambda pair: calibrate(pair, rows_of("llama")),
    "collect": lambda pair: collect(pair, rows_of("llama")),
    "theorem": lambda pair: theorem_quantities([pair], rows_of("llama")),
}


@pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)
@pytest.mark.parametrize("fails", [False, True])
def test_measuring_in_training_leaves_the_pair_in_training(measure, fails, monkeypatch):
    pair = random_pair().train()
    if fails:
        monkeypatch.setattr(pair, "predict", lambda round_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure(pair)
    else:
        measure(pair)
    assert pair.training and pair.pilot.training and pair.copilot.training


TURNS = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4 w5"}]


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([{"prompt": "w1 w2", "completion": "w3"}] * 2, {"completion_only_loss": False}),
        ([{"messages": TURNS}] * 2, {"assistant_only_loss": True}),
        ([{"text": "w1 w2 w3 w4 w5 w6"}] * 2, {"max_length": 4}),
    ],
    ids=["completion_only_loss", "assistant_only_loss", "max_length"],
)
def test_what_is_measured_are_the_tokens_of_a_training_with_the_same_options(tokenizer, rows, options):
    pair = random_pair(pilot=tiny_pilot("llama", vocab_size=128))

    def supervised(**options: Any) -> list[int]:
        return [sum(label != -100 for label in row["labels"]) for row in prepare_dataset(rows, tokenizer, **options)]

    expected = supervised(**options)
    assert expected != supervised()
    [held] = collect(pair, rows, tokenizer, **options)
    assert held.lengths.tolist() == expected
    found = calibrate(pair, rows, tokenizer, **options).pilot
    assert found.tokens.tolist() == expected
    assert len(measure(pair, rows, tokenizer, **options).before[0]) == sum(expected)
    error = theorem_quantities([pair], rows, tokenizer, **options).e_pilot
    assert error**2 == pytest.approx(found.per_token()[0], rel=1e-5)


def test_corrections_that_overflow_give_no_lambda(monkeypatch):
    pair = random_pair(rectifier="linear", candidates=None)
    before = pair.config.strength
    monkeypatch.setattr(pair, "predict", lambda round_: torch.full_like(round_.mistakes.top_prob, 1e38))
    with pytest.raises(FloatingPointError, match=r"too large to choose lambda: .* sum \|\|f\|\|\^2 is inf"):
        calibrate(pair, rows_of("llama"))
    assert pair.config.strength == before


def test_a_confident_pilot_whose_token_is_corrected_away_has_finite_scores():
    pair = random_pair(candidates=1)
    [held] = collect(pair, rows_of("llama"))
    tiny = torch.full_like(held.mistakes.rest_mass, 1e-26)
    mistakes = replace(
        held.mistakes,
        top_prob=torch.ones_like(held.mistakes.top_prob),
        rest_mass=tiny,
        rest_square=torch.zeros_like(tiny),
    )
    sure = replace(held, mistakes=mistakes, delta=torch.full_like(held.delta, -80.0))
    found = calibration_of([sure], pair.config)
    assert all(math.isfinite(score) for score in (*found.pilot.per_token(), *found.pair.per_token()))
    assert found.strength > 0


def test_an_empty_dataset_is_an_error():
    with pytest.raises(ValueError, match="empty"):
        calibrate(random_pair(), [])


@pytest.mark.parametrize("mode", [mode for mode in MODES if "fusion" not in mode], ids=str)
@batch_sizes
def test_the_theorems_quantities_equal_their_definitions_over_seeds(mode, batch_size):
    pairs = [random_pair(seed=seed, **mode) for seed in range(3)]
    found = theorem_quantities(pairs, rows_of("llama"), batch_size=batch_size)
    dense = [dense_distributions(pair, "llama", 1.0) for pair in pairs]
    prob = torch.stack([pilot for pilot, _, _ in dense])
    f = torch.stack([candidate - pilot for pilot, candidate, _ in dense])
    if mode.get("rectifier") == "linear":  # delta itself, where p~ is clamped
        with torch.no_grad():
            outputs = [pair(**batch_of_rows("llama", ROWS, side="left")) for pair in pairs]
        f = torch.stack([dense_delta(o.delta, o.mistakes.top_index, VOCAB_SIZE).double() for o in outputs])
    truth = dense[0][2]
    mistake = truth - prob

    def root_mean_square(values: torch.Tensor) -> float:
        return values.square().sum(-1).mean().sqrt().item()

    assert found.e_pilot == pytest.approx(root_mean_square(truth - prob.mean(0)), rel=1e-4)
    assert found.s_pilot == pytest.approx(root_mean_square(prob.std(0, correction=0)), rel=1e-4)
    assert found.e_copilot == pytest.approx(root_mean_square(f.mean(0) - mistake.mean(0)), rel=1e-4)
    assert found.s_copilot == pytest.approx(root_mean_square(f.std(0, correction=0)), rel=1e-4)
    assert found.lambda_zero == pytest.approx((2 * (mistake * f).sum() / f.square().sum()).item(), rel=1e-4)
    assert found.holds == (found.e_copilot**2 < found.e_pilot**2 + found.s_pilot**2)


def test_below_lambda_zero_the_squared_error_falls_and_above_it_rises():
    pairs = [random_pair(seed=seed, rectifier="simplex") for seed in range(2)]
    # Head weights that descend the loss make the correction useful, so that lambda_0 is positive.
    for pair in pairs:
        batch = batch_of_rows("llama", ROWS, side="left")
        optimizer = torch.optim.Adam(pair.copilot.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            pair(**batch).copilot_loss.backward()
            optimizer.step()
    zero = theorem_quantities(pairs, rows_of("llama")).lambda_zero
    assert zero > 0

    def error(strength: float) -> float:
        total = 0.0
        for pair in pairs:
            pilot, candidate, truth = dense_distributions(pair, "llama", 1.0)
            total += (truth - pilot - strength * (candidate - pilot)).square().sum().item()
        return total

    assert error(0.5 * zero) < error(0.0)
    assert error(0.99 * zero) < error(0.0) < error(1.01 * zero)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_pilots_head_sees_the_supervised_tokens_only(kind):
    pair, seen = random_pair(kind), []
    pair.get_output_embeddings().register_forward_hook(lambda _module, _args, output: seen.append(output.shape[:-1]))
    theorem_quantities([pair], rows_of(kind))
    assert [shape.numel() for shape in seen] == [sum(len(answer) for _, answer in ROWS)]


def test_the_theorem_does_not_cover_logit_fusion():
    pairs = [random_pair(), random_pair(fusion="logit")]
    with pytest.raises(ValueError, match=r"pairs have the fusions \['probability', 'logit'\], expected 'probability'"):
        theorem_quantities(pairs, rows_of("llama"))


def test_no_pairs_is_an_error():
    with pytest.raises(ValueError, match="pairs"):
        theorem_quantities([], rows_of("llama"))


def test_calibrating_counts_the_tokens_that_were_trained(tokenizer):
    messages = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4"}]
    rows = [{"messages": messages}]
    pair = random_pair(pilot=tiny_pilot(vocab_size=len(tokenizer)))
    for assistant_only in (False, True):
        prepared = prepare_dataset(rows, tokenizer, assistant_only_loss=assistant_only)
        supervised = sum(label != -100 for label in prepared[0]["labels"])
        found = calibrate(pair, rows, tokenizer, assistant_only_loss=assistant_only)
        assert found.pilot.tokens.tolist() == [supervised]
        assert found.strength == calibrate(pair, prepared).strength


@pytest.mark.parametrize("fusion", ["probability", "logit"])
def test_corrections_that_are_nan_are_an_error_and_leave_the_strength(fusion):
    pair = random_pair("llama", fusion=fusion, strength=0.5)
    with torch.no_grad():
        pair.copilot.head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="corrections of the Copilot are NaN"):
        calibrate(pair, rows_of("llama"))
    assert pair.config.strength == 0.5
