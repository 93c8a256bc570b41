"""The figures of a pair, and the numbers in them against dense computations and computations by hand."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from builders import (
    BOTH_KINDS,
    FAMILIES,
    ROWS,
    batch_of,
    batch_of_rows,
    dense,
    dense_rectified,
    fresh_pair,
    layer_outputs,
    random_pair,
    rows_of,
)
from matplotlib.figure import Figure
from rounds import filled

from copilot.calibration import supervision_of
from copilot.inspection import (
    HeldOut,
    Reliability,
    Rounds,
    Step,
    logit_lens,
    measure,
    read_losses,
    reliability,
    rounds_of,
)
from copilot.plots import draw_corrections, draw_mistakes, draw_reliability, draw_step, save

MODES = [{}, {"candidates": None}, {"rectifier": "linear"}, {"fusion": "logit"}]


# ---- Mistakes and losses ----


def test_rounds_are_numbered_by_the_training_and_not_by_the_ring():
    log = filled(0, 1, 2, 3, 4, capacity=3)
    found = rounds_of([log])
    summary = log.summary(None, top=0)
    assert found == Rounds([3, 4, 5], summary.squared_error, summary.error_rate)


def test_logs_of_several_processes_are_averaged_round_by_round():
    logs = filled(0, 1), filled(2, 3, 4)
    found = rounds_of(logs)
    one, other = (log.summary(None, top=0).squared_error for log in logs)
    assert found.number == [1, 2, 3]
    assert found.squared_error == pytest.approx([(one[0] + other[0]) / 2, (one[1] + other[1]) / 2, other[2]])


def test_logs_without_a_round_are_an_error():
    with pytest.raises(ValueError, match="logs"):
        rounds_of([filled()])


def test_losses_are_read_by_step_and_evaluations_left_out(tmp_path):
    history = [{"step": 5, "ce": 2.0, "rmse": 0.9}, {"step": 5, "eval_ce": 2.5}, {"step": 10, "ce": 1.0, "rmse": 0.8}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": history}), encoding="utf-8")
    assert read_losses(tmp_path) == {"ce": [(5, 2.0), (10, 1.0)], "rmse": [(5, 0.9), (10, 0.8)]}


def test_a_folder_without_a_trainers_state_has_no_losses(tmp_path):
    assert read_losses(tmp_path) == {}


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"log_history": [{"ce": 1.0}]}'])
def test_a_broken_trainers_state_is_an_error(tmp_path, text):
    (tmp_path / "trainer_state.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"trainer_state\.json"):
        read_losses(tmp_path)


# ---- Corrections ----


@pytest.mark.parametrize("kind", BOTH_KINDS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_corrections_and_confidences_equal_those_of_the_dense_distributions(kind, mode, tokenizer):
    pair, strength = random_pair(kind, **mode), 0.4
    found = measure(pair, rows_of(kind), tokenizer, strength=strength, batch_size=2)
    batch = batch_of_rows(kind, ROWS, side="right" if kind == "t5" else "left")
    with torch.no_grad():
        output = pair(**batch, strength=0)
    z, index = output.logits[supervision_of(pair, batch)], output.mistakes.top_index
    kept = z.topk(32).indices if index is None else index
    before = z.double().softmax(-1)
    delta = dense(output.delta, index, z.shape[1])
    after = dense_rectified(z, delta, strength, pair.config.rectifier, pair.config.fusion)
    shares = (after.log() - before.log()) / (z.amax(1) - z.amin(1))[:, None]
    torch.testing.assert_close(found.corrections, (after - before).gather(1, kept).flatten().float(), atol=2e-6, rtol=0)
    torch.testing.assert_close(found.shares, shares.gather(1, kept).flatten().float(), atol=2e-5, rtol=1e-4)
    for (confidence, right), p in ((found.before, before), (found.after, after)):
        torch.testing.assert_close(confidence, p.amax(1).float(), atol=2e-6, rtol=0)
        assert torch.equal(right, p.argmax(1) == output.mistakes.target)


@pytest.mark.parametrize("kind", BOTH_KINDS)
def test_a_fresh_copilot_corrects_nothing_at_all(kind, tokenizer):
    found = measure(fresh_pair(kind), rows_of(kind), tokenizer, strength=0.7)
    assert found.corrections.abs().max() == found.shares.abs().max() == 0


def test_the_calibrated_strength_is_taken_where_none_is_given(tokenizer):
    pair = random_pair()
    pair.config.strength = 0.3
    found, given = (measure(pair, rows_of("llama"), tokenizer, strength=s) for s in (None, 0.3))
    assert found.strength == 0.3
    assert torch.equal(found.corrections, given.corrections)


@pytest.mark.parametrize("fails", [False, True])
def test_measuring_in_training_leaves_the_pair_in_training(tokenizer, fails, monkeypatch):
    pair = random_pair().train()
    if fails:
        monkeypatch.setattr(pair, "predict", lambda round_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measure(pair, rows_of("llama"), tokenizer)
    else:
        measure(pair, rows_of("llama"), tokenizer)
    assert pair.training and pair.pilot.training


@pytest.mark.parametrize("kind", BOTH_KINDS)
def test_the_pilots_head_sees_the_supervised_tokens_only(kind, tokenizer):
    pair, seen = random_pair(kind), []
    pair.get_output_embeddings().register_forward_hook(lambda _module, _args, output: seen.append(output.shape[:-1]))
    measure(pair, rows_of(kind), tokenizer)
    assert seen[0].numel() == sum(len(answer) for _, answer in ROWS)  # then the lens, of one row


def test_a_strength_out_of_range_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="strength"):
        measure(random_pair(), rows_of("llama"), tokenizer, strength=1.5)


# ---- One step ----


def raising_targets(pair, monkeypatch, by: dict[int, float]) -> None:
    """Have the Copilot add so much to the logit of the right token of some supervised tokens, and nothing else."""

    def predict(round_):
        delta = torch.zeros_like(round_.mistakes.top_prob)
        for token, amount in by.items():
            delta[token, round_.mistakes.target[token]] = amount
        return delta

    monkeypatch.setattr(pair, "predict", predict)


@pytest.fixture
def pair_of():
    """A pair whose candidates are the whole vocabulary in its own order, fed in predictions by the test."""
    return lambda kind: fresh_pair(kind, candidates=None)


def answers(pair, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(p^, y) of the supervised tokens of ROWS."""
    batch = batch_of_rows(kind, ROWS, side="right" if kind == "t5" else "left")
    with torch.no_grad():
        output = pair(**batch, strength=0)
    return output.logits[supervision_of(pair, batch)].softmax(-1), output.mistakes.target


def just_enough(p: torch.Tensor, target: torch.Tensor) -> float:
    """What the logit of the right token lacks to be the largest, and a little more."""
    return float((p.max() / p[target]).log()) + 0.01


@pytest.mark.parametrize("kind", BOTH_KINDS)
def test_the_step_shown_is_the_one_put_right_that_gains_most(kind, pair_of, tokenizer, monkeypatch):
    pair = pair_of(kind)
    p, target = answers(pair, kind)
    assert (p.argmax(1) != target)[[3, 5]].all()  # else there is nothing to put right
    raising_targets(pair, monkeypatch, {3: 20.0, 5: just_enough(p[5], target[5])})
    step = measure(pair, rows_of(kind), tokenizer, strength=1.0).step
    assert step.flipped
    assert step.tokens[step.right] == tokenizer.decode([target[3]])
    assert step.after[step.right] > 0.99
    top = p[3].topk(5)
    assert step.tokens[:5] == [tokenizer.decode([token]) for token in top.indices]
    torch.testing.assert_close(step.before[:5], top.values)
    torch.testing.assert_close(step.lens[-1], step.before)
    prompt, answer = ROWS[1]  # after a row of two tokens: the second of its own
    context = tokenizer.decode(prompt) + (" > " if kind == "t5" else " ") + tokenizer.decode(answer[:1])
    assert step.context == context


def test_a_token_put_right_goes_before_one_that_was_right_and_gains_more(pair_of, tokenizer, monkeypatch):
    pair = pair_of("llama")
    p, target = answers(pair, "llama")
    prompt = ROWS[0][0]
    best = p[0].argmax().item()  # after the first prompt
    rows = [{"input_ids": [*prompt.tolist(), best], "labels": [-100] * 5 + [best]}, *rows_of("llama")]
    wrong = int((p.argmax(1) != target).nonzero()[0])
    raising_targets(pair, monkeypatch, {0: 20.0, 1 + wrong: just_enough(p[wrong], target[wrong])})
    step = measure(pair, rows, tokenizer, strength=1.0).step
    assert step.flipped
    assert step.tokens[step.right] == tokenizer.decode([target[wrong]])


def test_without_a_token_put_right_the_largest_gain_of_a_right_token_is_shown(pair_of, tokenizer, monkeypatch):
    pair = pair_of("llama")
    _, target = answers(pair, "llama")
    raising_targets(pair, monkeypatch, {3: 0.01})
    step = measure(pair, rows_of("llama"), tokenizer, strength=1.0, batch_size=3).step
    assert not step.flipped
    assert step.tokens[step.right] == tokenizer.decode([target[3]])
    assert step.after[step.right] > step.before[step.right]


@pytest.mark.parametrize("kind", BOTH_KINDS)
def test_the_step_is_the_same_in_whatever_batch_it_is(kind, tokenizer):
    pair, rows = random_pair(kind), rows_of(kind)
    together = measure(pair, rows, tokenizer, strength=0.9).step
    for first in range(3):
        alone = measure(pair, rows[first:] + rows[:first], tokenizer, strength=0.9, batch_size=1).step
        assert (alone.context, alone.tokens, alone.right) == (together.context, together.tokens, together.right)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_lens_of_the_last_layer_is_the_pilots_own_prediction(family):
    pair = fresh_pair(family)
    batch = batch_of(family, rows=1, prompt=2, answer=2)  # as many positions as layers, or fewer
    for position in (1, 2) if family != "t5" else (0, 1):
        with torch.no_grad():
            expected = pair(**batch, strength=0).logits[0, position]
        lens = logit_lens(pair, batch, position)
        assert lens.shape == (4, pair.pilot.config.get_text_config().vocab_size)
        torch.testing.assert_close(lens[-1], expected)


def test_the_lens_of_every_layer_is_its_state_through_norm_and_head():
    pair = fresh_pair("llama")
    batch = batch_of("llama", rows=1)
    _, _, outputs = layer_outputs(pair.pilot, input_ids=batch["input_ids"])
    expected = [pair.pilot.lm_head(pair.pilot.model.norm(states[0, 7])) for states in outputs]
    torch.testing.assert_close(logit_lens(pair, batch, 7), torch.stack(expected))


def test_the_pilot_is_as_before_after_a_lens():
    pair = fresh_pair("llama")
    batch = batch_of("llama", rows=1)
    before, _, after = pair(**batch).logits, logit_lens(pair, batch, 7), pair(**batch).logits
    assert torch.equal(before, after)


# ---- Reliability ----


def test_reliability_equals_a_computation_by_hand():
    confidence = torch.tensor([0.1, 0.2, 0.45, 0.75, 0.9, 1.0])
    found = reliability(confidence, torch.tensor([True, False, False, True, True, False]), bins=4)
    assert found.count.tolist() == [2, 1, 0, 3]  # 0.75 opens the last bin, 1 belongs to it
    assert found.confidence[[0, 1, 3]].tolist() == pytest.approx([0.15, 0.45, 2.65 / 3])
    assert found.accuracy[[0, 1, 3]].tolist() == pytest.approx([1 / 2, 0, 2 / 3])
    assert found.confidence[2].isnan() and found.accuracy[2].isnan()
    assert found.error == pytest.approx((2 * 0.35 + 1 * 0.45 + 3 * (2.65 - 2) / 3) / 6)


def test_reliability_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="confidence"):
        reliability(torch.empty(0), torch.empty(0, dtype=torch.bool))


# ---- Figures ----

STEP = Step(
    context="w1 w2",
    tokens=["$x^$", "b$"],
    right=1,
    before=torch.tensor([0.6, 0.4]),
    after=torch.tensor([0.3, 0.7]),
    lens=torch.tensor([[0.1, 0.2], [0.5, 0.3], [0.6, 0.4]]),
    flipped=True,
)
HELD = HeldOut(
    strength=0.5,
    corrections=torch.tensor([0.1, -0.2, 0.0, 0.01]),
    shares=torch.tensor([0.01, -torch.inf, 0.0, 0.02]),
    before=(torch.tensor([0.6]), torch.tensor([True])),
    after=(torch.tensor([0.7]), torch.tensor([True])),
    step=STEP,
)


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts) + figure.get_suptitle()


def test_mistakes_are_drawn_by_round_and_losses_by_step_where_there_are_any():
    rounds = Rounds([126, 127, 128], [0.9, 0.7, 0.6], [0.5, 0.4, 0.3])
    assert len(draw_mistakes(rounds, {}).axes) == 2
    axes = draw_mistakes(rounds, {"ce": [(5, 2.0), (10, 1.0)], "copilot_loss": [(5, 0.9), (10, 0.8)]}).axes
    drawn = [line.get_xydata().tolist() for panel in axes for line in panel.lines]
    assert drawn[0] == drawn[1] == [[126, 0.9], [127, 0.7], [128, 0.6]]
    assert drawn[2] == [[126, 50], [127, 40], [128, 30]]
    assert drawn[4:] == [[[5, 2.0], [10, 1.0]], [[5, 0.9], [10, 0.8]]]
    assert axes[3].get_ylabel() == "loss of the Copilot"


def test_the_line_through_many_rounds_is_their_running_mean():
    values = [float(value % 3) for value in range(30)]
    line = draw_mistakes(Rounds(list(range(1, 31)), values, values), {}).axes[0].lines[1]
    assert line.get_xdata()[0] == 2 and len(line.get_xdata()) == 28  # means of three
    assert line.get_ydata() == pytest.approx([1.0] * 28)


def test_corrections_are_drawn_as_shares_of_all_candidates_and_the_rest_is_counted():
    probability, share = draw_corrections(HELD).axes
    assert sum(bar.get_height() for bar in probability.patches) == pytest.approx(75)
    assert sum(bar.get_height() for bar in share.patches) == pytest.approx(50)
    assert probability.get_title() == "25.0 % unchanged"
    assert share.get_title() == "25.0 % unchanged, 25.0 % removed"
    assert [text.get_text() for text in probability.texts] == ["median 0.01", "95 % below 0.2"]


def test_a_single_correction_is_drawn_too():
    one = torch.tensor([-0.1])
    for axes in draw_corrections(replace(HELD, corrections=one, shares=one)).axes:
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)


def test_a_strength_of_0_is_drawn_as_no_correction():
    nothing = torch.zeros(4)
    axes = draw_corrections(replace(HELD, corrections=nothing, shares=nothing, strength=0.0)).axes
    assert [panel.get_title() for panel in axes] == ["100.0 % unchanged"] * 2
    assert not axes[0].patches


def test_a_step_shows_before_correction_and_after_and_says_who_is_right():
    figure = draw_step(STEP)
    widths = [[bar.get_width() for bar in axes.patches] for axes in figure.axes[:3]]
    assert widths == [pytest.approx(values) for values in ([0.6, 0.4], [-0.3, 0.3], [0.3, 0.7])]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["'$x^$'", "'b$'"]
    assert "The Pilot says '$x^$', the pair 'b$', which is right\nafter 'w1 w2'" in texts(figure)
    assert "−0.300" in texts(figure)
    lines = [list(line.get_ydata()) for line in figure.axes[3].lines]
    assert sorted(lines) == [pytest.approx(values) for values in ([0.1, 0.5, 0.6], [0.2, 0.3, 0.4])]


def test_a_step_that_is_not_put_right_is_not_called_so():
    said = draw_step(replace(STEP, flipped=False)).get_suptitle()
    assert "which is right" not in said
    assert said.startswith("No wrong token is put right; the right token that gains most is 'b$', +0.300")


def test_the_reliability_diagram_shows_full_bins_their_counts_and_the_calibration_error():
    full = torch.tensor([0.3, torch.nan]), torch.tensor([0.5, torch.nan])
    before = Reliability(torch.tensor([4, 0]), *full, error=0.2)
    after = Reliability(torch.tensor([1, 3]), torch.tensor([0.4, 0.8]), torch.tensor([0.0, 1.0]), error=0.25)
    axes, counts = draw_reliability(before, after).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["Pilot: ECE 20.0 %", "Pilot + Copilot: ECE 25.0 %"]
    points = [line.get_xydata().tolist() for line in axes.lines[1:]]
    assert points == [[pytest.approx([0.3, 0.5])], [pytest.approx([0.4, 0.0]), pytest.approx([0.8, 1.0])]]
    assert [bar.get_height() for bar in counts.patches] == [4, 0, 1, 3]
    ends = [[segment[:, 1].tolist() for segment in lines.get_segments()] for lines in axes.collections]
    # Wilson's intervals of 2 in 4, of 0 in 1 and of 3 in 3, from a table.
    assert ends == [
        [pytest.approx([0.150, 0.850], abs=5e-4)],
        [pytest.approx(e, abs=5e-4) for e in ([0, 0.793], [0.438, 1])],
    ]


def test_figures_are_written_as_png_files_with_dollars_in_tokens_too(tmp_path):
    paths = save({"step": draw_step(STEP), "corrections": draw_corrections(HELD)}, tmp_path / "new" / "figures")
    assert paths == [tmp_path / "new" / "figures" / name for name in ("step.png", "corrections.png")]
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG"] * 2


def test_tokens_that_the_font_cannot_draw_are_escaped(tmp_path):
    step = replace(STEP, context="w1 日本", tokens=["é日", "ü"])
    figure = draw_step(step)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs
        save({"step": figure}, tmp_path)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [r"'\xe9\u65e5'", "'ü'"]
    assert r"after 'w1 \u65e5\u672c'" in figure.get_suptitle()


def test_nothing_is_written_when_one_figure_cannot_be_drawn(tmp_path):
    broken = Figure()
    broken.suptitle(r"$\nosuchcommand$")
    with pytest.raises(ValueError, match="nosuchcommand"):
        save({"step": draw_step(STEP), "broken": broken}, tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_without_matplotlib_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "copilot.plots")
    with pytest.raises(ImportError, match=r"pip install 'matplotlib>=3\.8'"):
        importlib.import_module("copilot.plots")
