"""The demo runs on any small Pilot, and says no more than its figures carry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from copilot import MistakeLog, PilotCopilotForCausalLM
from copilot.cli import LOG_FILE
from copilot.cli import main as tcopilot
from copilot.comparison import Comparison, align, compare
from copilot.demo import (
    NEW_TOKENS,
    SETTINGS,
    Timing,
    build,
    changes,
    in_turns,
    main,
    report_changes,
    run,
    show_change,
    time_decoding,
)
from copilot.demo import time_training as time_steps
from copilot.tasks import Example, generate_problems, paired_bootstrap

QUESTIONS = [Example(f"w{i} w{i + 1}", f" w{i + 2} w{i}", "0", "arithmetic_problems") for i in range(8)]


@pytest.fixture
def pilot(tiny_pilot, tokenizer, tmp_path) -> str:
    tiny_pilot("llama").save_pretrained(tmp_path / "pilot")
    tokenizer.save_pretrained(tmp_path / "pilot")
    return str(tmp_path / "pilot")


@pytest.fixture
def pair(pilot) -> PilotCopilotForCausalLM:
    """With a random Copilot that changes most answers."""
    pair, _ = build(pilot)
    with torch.no_grad():
        pair.copilot.head.weight.normal_(std=2.0, generator=torch.Generator().manual_seed(0))
    return pair.eval()


def found(pilot_texts: list[str], pair_texts: list[str]) -> Comparison:
    return Comparison(1.0, {}, pilot_texts, pair_texts)


def test_timing_training_steps_changes_nothing(pair, tokenizer):
    before = {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    timing = time_steps(pair, tokenizer, QUESTIONS)
    assert timing.pilot > 0 and timing.pair > 0
    assert [name for name, tensor in pair.state_dict().items() if not torch.equal(tensor, before[name])] == []
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_decoding_is_timed_by_the_token(pair, tokenizer, monkeypatch):
    def in_turns(*works):
        for work in works:
            assert work().shape[1] == len(tokenizer(QUESTIONS[0].prompt).input_ids) + NEW_TOKENS
        return Timing(1.0 * NEW_TOKENS, 2.0 * NEW_TOKENS)

    monkeypatch.setattr("copilot.demo.in_turns", in_turns)
    assert time_decoding(pair, tokenizer, QUESTIONS[0]) == Timing(1.0, 2.0)


def test_both_are_timed_in_turns_and_the_first_turn_is_dropped(monkeypatch):
    order: list[str] = []
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def work(name: str, *seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def turn() -> None:
            order.append(name)
            now[0] += next(left)

        return turn

    # With the first turns the medians would be 1.5 and 3.
    assert in_turns(work("pilot", 9, 1, 1, 2), work("pair", 9, 2, 2, 4)) == Timing(1, 2)
    assert order == ["pilot", "pair"] * 4


def test_changes_are_sorted_by_what_was_right_before_and_after():
    right = [question.completion for question in QUESTIONS[:4]]
    alone = [right[0], right[1], "?", "?"]
    together = [right[0], "?", right[2], "!"]
    assert changes(QUESTIONS[:4], found(alone, together)) == {
        (True, False): [1],
        (False, True): [2],
        (False, False): [3],
    }


def test_a_change_shows_where_both_part_and_what_they_chose(pair, tokenizer):
    change = next(change for question in QUESTIONS if (change := show_change(pair, tokenizer, question)))
    for text, top in ((change.pilot_text, change.pilot_top), (change.pair_text, change.pair_top)):
        assert f"{change.shared} {top[0][0]}".split() == text.split()[: len(change.shared.split()) + 1]
        probabilities = [probability for _, probability in top]
        assert len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1
    assert change.pilot_top[0][0] != change.pair_top[0][0]


def test_equal_answers_are_no_change(pair, tokenizer):
    pair.config.strength = 0.0
    assert show_change(pair, tokenizer, QUESTIONS[0]) is None


def test_the_report_counts_all_changes_and_prefers_one_that_was_put_right(pair, tokenizer, capsys):
    compared = compare(pair, tokenizer, QUESTIONS, batch_size=1, max_new_tokens=24)
    index = next(i for i, (a, b) in enumerate(zip(compared.pilot_texts, compared.pair_texts, strict=True)) if a != b)
    question = QUESTIONS[index]
    put_right = Example(question.prompt, compared.pair_texts[index], "0", question.task)
    problems = [put_right if i == index else question for i, question in enumerate(QUESTIONS)]
    change = report_changes(pair, tokenizer, problems, compared)
    printed = capsys.readouterr().out
    assert change is not None and change.problem == put_right
    assert "1 from wrong to right" in printed and "One from wrong to right:" in printed


def test_the_report_says_when_nothing_was_changed(pair, tokenizer, capsys):
    same = ["w1"] * len(QUESTIONS)
    assert report_changes(pair, tokenizer, QUESTIONS, found(same, same)) is None
    assert "changed 0 of 8 answers." in capsys.readouterr().out


def test_comparing_at_strength_0_shows_no_difference(pair, tokenizer):
    table = str(compare(pair, tokenizer, QUESTIONS * 3, strength=0.0, max_new_tokens=4))
    assert table.count("no difference shown") == 4
    assert "better" not in table and "worse" not in table


def test_a_difference_is_called_better_or_worse_only_outside_its_interval():
    low, high = np.linspace(0.1, 0.2, 50), np.linspace(0.3, 0.4, 50)
    metrics = {"exact match": paired_bootstrap(low, high), "NLL": paired_bootstrap(low, high)}
    metrics["Brier score"] = paired_bootstrap(high, low)
    metrics["answer accuracy"] = paired_bootstrap(low, low[::-1])
    verdicts = {row[0]: row[-1] for row in Comparison(1.0, metrics, [""] * 50, [""] * 50).rows()}
    assert [verdicts[name] for name in metrics] == ["better", "worse", "better", "no difference shown"]


def test_a_difference_that_is_written_as_zero_is_none():
    values = np.linspace(1.0, 2.0, 50)
    row = Comparison(1.0, {"NLL": paired_bootstrap(values, values - 2e-5)}, [""] * 50, [""] * 50).rows()[0]
    assert row[-2:] == ("-0.0000 [-0.0000, -0.0000]", "no difference shown")


@pytest.mark.parametrize(("examples", "verdict"), [(1, "too few examples"), (19, "too few examples"), (20, "better")])
def test_a_few_examples_get_no_verdict(examples, verdict):
    metrics = {"exact match": paired_bootstrap([0] * examples, [1] * examples)}
    texts = [""] * examples
    assert Comparison(1.0, metrics, texts, texts).rows()[0][-1] == verdict


def test_examples_without_text_or_task_cannot_be_compared(pair, tokenizer):
    for examples in ([], [Example("w1", "", "", "")]):
        with pytest.raises(ValueError, match="completions or a task"):
            compare(pair, tokenizer, examples)


def test_cells_are_aligned():
    assert align([("a", "bb"), ("ccc", "d")]) == "a    bb\nccc  d"


def test_a_missing_pilot_is_one_line(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "out"), "--pilot", "missing/"]) == 1
    assert capsys.readouterr().err.startswith("demo: error: ")
    assert not (tmp_path / "out").exists()


def test_the_whole_demo_leaves_a_pair_that_generates(pilot, tmp_path, capsys):
    out = tmp_path / "out"
    run(out, pilot, generate_problems(train=24, validation=8, test=8))
    printed = capsys.readouterr().out
    for part in (
        "exact match",
        "Brier score",
        "NLL",
        "lambda",
        "training step",
        "decoded token",
        "The Copilot changed",
    ):
        assert part in printed
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["metrics"]["NLL"]["difference"]["low"] <= results["metrics"]["NLL"]["difference"]["high"]
    log = MistakeLog(128)
    log.load(out / LOG_FILE)
    assert log.rounds_seen == 24 // SETTINGS["per_device_train_batch_size"]
    assert tcopilot(["generate", "--pair", str(out), "w1 w2", "--max_new_tokens", "4"]) == 0
    plot = ["plot", "--pair", str(out), "--dataset_name", str(out / "test.jsonl"), "--out", str(out / "figures")]
    assert tcopilot(plot) == 0
    assert len(list((out / "figures").glob("*.png"))) == 4
    assert Path(out / "pilot" / "adapter_model.safetensors").exists()
