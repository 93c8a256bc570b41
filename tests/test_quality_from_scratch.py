"""The experiments with Pilots trained from scratch: what is predicted, and how it is judged."""

from __future__ import annotations

import json
import math
import random
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from builders import randomize
from experiments import run_experiment

from copilot.calibration import scores


@pytest.fixture
def sequences(tmp_path: Path) -> str:
    draw = random.Random(0)
    lines = [
        f"{user} {' '.join(str(draw.randrange(1, 30)) for _ in range(draw.randrange(5, 12)))}" for user in range(1, 13)
    ]
    path = tmp_path / "items.txt"
    path.write_text("\n".join(lines))
    return str(path)


NEXT_ITEM = {
    "kind": "next_item",
    "task": {},
    "batch_size": 8,
    "learning_rate": 3e-3,
    "copilot_learning_rate": 3e-3,
    "warmup": 0.1,
    "arms": {"pair": {"design": {"layers": "all"}}},
    "points": {"best": {"epochs": 1, "arms": ["pair"], "rivals": ["extra_compute"]}},
}


def test_a_rule_of_the_sequences_is_learned_and_users_held_out_are_judged(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "items.txt"  # each item is followed by the next one, the last by the first
    lines = [[start % 29 + step for step in range(9)] for start in range(0, 48, 4)]
    path.write_text(
        "\n".join(f"{user} {' '.join(str(i % 29 + 1) for i in items)}" for user, items in enumerate(lines, 1))
    )
    facts = NEXT_ITEM | {"learning_rate": 1e-2, "points": {"best": {"epochs": 30}}}
    folder = run_experiment(quality, monkeypatch, tmp_path, facts, "--data", str(path), "--seeds", "0")
    result = json.loads((folder / "best_seed0_copilots.json").read_text())
    assert result["pilot_dtype"] == "float32"
    arms = result["arms"]
    assert arms.keys() == {"pilot", "pair"}
    for arm in arms.values():
        assert arm["tokens"] == [8, 8]  # of a fifth of twelve users
        assert max(arm["nll"]) < math.log(29) / 2
        assert min(arm["hit@10"]) > 0.9
    assert sum(arms["pair"]["nll"]) < sum(arms["pilot"]["nll"])


def test_an_item_is_ranked_by_how_many_score_higher(quality: Any, sequences: str) -> None:
    task = quality.tasks.NextItem(data=sequences)
    pair = task.pairs({"pair": {"layers": "all"}}, 1)["pair"].eval()
    randomize(pair.copilot)
    seen = task.held_out("held_out").collect({"pair": pair}).held["pair"]
    gains = []
    for strength in (0.0, 0.5):
        found = task.judge(pair, scores(seen, strength, "simplex", "probability"), strength, False)
        for user, items in enumerate(sorted(task.splits["held_out"], key=len)):
            batch = {"input_ids": torch.tensor([items]), "labels": torch.tensor([items])}
            with torch.no_grad():
                order = pair(**batch, strength=strength).logits[0, :-1, 1:].argsort(descending=True) + 1
            place = [(row == item).nonzero().item() for row, item in zip(order, items[1:], strict=True)]
            expected = [1 / math.log2(at + 2) if at < 10 else 0.0 for at in place]
            assert found["ndcg@10"][user] == pytest.approx(sum(expected) / len(place), abs=1e-4)
            assert found["hit@10"][user] == pytest.approx(sum(at < 10 for at in place) / len(place), abs=1e-4)
        gains.append(found["ndcg@10"])
    assert 0 < max(gains[0]) < max(gains[1])  # of true items among the ten, which the Copilot moves


def test_items_of_equal_score_share_their_ranks_and_padding_has_none(quality: Any) -> None:
    score = torch.tensor([[9.0, 1.0, 1.0, 1.0, 0.0], [9.0, 0.0, 2.0, 0.0, 1.0]])
    found = quality.tasks.ranking(score, torch.tensor([1, 4]), [1, 1])
    assert found == {"hit@10": [1.0, 1.0], "ndcg@10": [round(1 / math.log2(3), 5)] * 2}  # second of three, second


def test_ensembles_are_compared_user_by_user_with_the_copilots_of_the_same_experiment(
    quality: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    sequences: str,
) -> None:
    folder = run_experiment(quality, monkeypatch, tmp_path, NEXT_ITEM, "--data", sequences, "--seeds", "0")
    pilot, pair = json.loads((folder / "best_seed0_copilots.json").read_text())["arms"].values()
    monkeypatch.setattr(quality.ensemble, "COMMITTED", folder.parent)
    out = tmp_path / "ensembles"
    arguments = ["ensemble.py", str(tmp_path / "toy.yaml"), "--data", sequences, "--seeds", "0", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    quality.ensemble.main()
    found = json.loads((out / "ensemble_toy.json").read_text())
    alone, of_two, ensemble = (of_seeds["0"] for of_seeds in found["scores"].values())
    tokens = np.asarray(pair["tokens"])
    assert alone["tokens"] == ensemble["tokens"] == pair["tokens"]
    for metric in ("nll", "hit@10", "ndcg@10"):
        assert alone[metric] == pytest.approx(pilot[metric], abs=2e-5)
    assert len({tuple(of["nll"]) for of in (alone, of_two, ensemble)}) == 3
    for metric in ("nll", "hit@10", "ndcg@10"):  # seed 1 has no Copilot
        expected = np.average(np.asarray(ensemble[metric]) - np.asarray(pair[metric]), weights=tokens)
        assert found["differences"]["3"]["pair"][metric]["mean"] == pytest.approx(expected)
    of_pilot = found["differences"]["3"]["pilot"]["nll"]
    assert f"3 Pilots - pilot (2 seeds): nll {of_pilot['mean']:+.4f} [{of_pilot['low']:+.4f}" in capsys.readouterr().out


def test_an_ensembles_scores_are_those_of_its_mean_distribution(quality: Any) -> None:
    target, lengths = torch.tensor([1, 3, 2]), [2, 1]
    one = torch.tensor([[0.0, 0.5, 0.3, 0.2], [0.0, 0.6, 0.2, 0.2], [0.0, 0.7, 0.2, 0.1]])
    other = torch.tensor([[0.0, 0.1, 0.2, 0.7], [0.0, 0.2, 0.0, 0.8], [0.0, 0.3, 0.0, 0.7]])
    found = quality.ensemble.scores([[(one, target, lengths)], [(other, target, lengths)]])
    nll = [-math.log(p) for p in (0.3, 0.5, 0.1)]
    assert found["nll"] == pytest.approx([(nll[0] + nll[1]) / 2, nll[2]], abs=1e-4)
    assert found["ndcg@10"] == pytest.approx([(1 / math.log2(3) + 1) / 2, 0.5], abs=1e-4)  # second, first; third
    assert (found["hit@10"], found["tokens"]) == ([1.0, 1.0], lengths)


def test_an_ensemble_is_not_compared_with_results_of_other_users(quality: Any) -> None:
    scores = {"nll": [1.0, 2.0], "hit@10": [0.0, 1.0], "ndcg@10": [0.0, 1.0]}
    with pytest.raises(ValueError, match="same users"):
        quality.ensemble.differences({0: scores | {"tokens": [3, 4]}}, {0: scores | {"tokens": [4, 3]}})


def test_a_pilot_with_dropout_drops_what_leaves_its_layers_in_training_alone(quality: Any, sequences: str) -> None:
    pair = quality.tasks.NextItem(sequences, dropout=0.5).pairs({"pair": {"layers": "all"}}, 0)["pair"]
    states = torch.ones(1, 4, 64)

    def share_of_zeros(layer: torch.nn.Module, training: bool) -> float:
        hook = next(iter(layer._forward_hooks.values()))
        layer.train(training)
        return float((hook(layer, None, states) == 0).float().mean())

    for layer in pair.pilot.model.layers:
        assert 0.3 < share_of_zeros(layer, training=True) < 0.7
        assert share_of_zeros(layer, training=False) == 0
    assert not any(layer._forward_hooks for layer in pair.copilot.layers)


def test_a_pilot_trains_alike_whatever_copilots_stand_beside_it(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sequences: str
) -> None:
    arms = {"pair": {"design": {"layers": "all"}}, "recent": {"design": {"layers": "all"}, "updates": 2}}
    pilots = []
    for count in (1, 2):
        point = {"epochs": 4, "arms": list(arms)[:count]}
        facts = NEXT_ITEM | {"arms": arms, "points": {"best": point}}
        arguments = ("--data", sequences, "--seeds", "0")
        folder = run_experiment(quality, monkeypatch, tmp_path / str(count), facts, *arguments)
        pilots.append(json.loads((folder / "best_seed0_copilots.json").read_text())["arms"]["pilot"])
    assert pilots[0]["nll"] == pilots[1]["nll"]


@pytest.mark.parametrize(
    ("flag", "given", "why"),
    [
        ("--pilot", "smollm2", "Pilots of kind next_item are trained from scratch"),
        ("--task", "lastfm", "kind next_item is one task"),
    ],
)
def test_what_a_kind_of_task_has_no_choice_of_is_refused(
    quality: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    sequences: str,
    flag: str,
    given: str,
    why: str,
) -> None:
    with pytest.raises(SystemExit):
        run_experiment(quality, monkeypatch, tmp_path, NEXT_ITEM, "--data", sequences, flag, given)
    assert f"{flag}: {why}, none is accepted; got {given}" in capsys.readouterr().err


@pytest.mark.parametrize(("score", "temperature"), [("Brier score", 3.0), ("NLL", 0.6)])
def test_a_temperature_is_chosen_by_the_tasks_score(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sequences: str, score: str, temperature: float
) -> None:
    def by_sharpness(held: list[Any], *_: Any) -> tuple[float, tuple[float, float]]:
        sharpness = float(torch.cat([part.mistakes.top_prob for part in held]).max(1).values.mean())
        return 0.0, (sharpness, -sharpness)

    assert quality.tasks.NextItem.score == "NLL"
    monkeypatch.setattr(quality.tasks.NextItem, "score", score)
    monkeypatch.setattr(quality.run, "calibrated", by_sharpness)
    facts = NEXT_ITEM | {"points": {"best": {"epochs": 1}}}
    folder = run_experiment(quality, monkeypatch, tmp_path, facts, "--data", sequences, "--seeds", "0")
    for arm in json.loads((folder / "best_seed0_copilots.json").read_text())["arms"].values():
        assert (arm["tempered"]["chosen_by"], arm["tempered"]["temperature"]) == (score, temperature)


def test_a_pilot_far_too_sure_of_itself_gets_its_temperature(quality: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=generator)
    truth = torch.nn.functional.one_hot(logits.softmax(-1).multinomial(1, generator=generator)[:, 0], 10)
    brier = {
        temperature: (2.6 * logits / temperature).softmax(-1).sub(truth).square().sum(1).mean().item()
        for temperature in quality.tasks.TEMPERATURES
    }
    assert min(brier, key=brier.__getitem__) == pytest.approx(2.6, abs=0.11)


def test_users_are_held_out_whole(quality: Any, sequences: str) -> None:
    splits = quality.tasks.NextItem(data=sequences).splits
    assert {name: len(users) for name, users in splits.items()} == {"held_out": 2, "validation": 1, "train": 9}
    everyone = [tuple(items) for users in splits.values() for items in users]
    assert len(set(everyone)) == 12


def test_a_users_last_fifty_items_are_kept(quality: Any, tmp_path: Path) -> None:
    path = tmp_path / "items.txt"
    path.write_text(f"1 {' '.join(map(str, range(1, 61)))}")
    assert quality.tasks.NextItem(data=str(path)).splits["train"] == [list(range(11, 61))]


def test_the_theorem_is_measured_over_seeds(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sequences: str
) -> None:
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(NEXT_ITEM))
    out = tmp_path / "results"
    arguments = [str(tmp_path / "toy.yaml"), "--data", sequences, "--seeds", "0", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["theorem.py", *arguments])
    quality.theorem.main()
    found = json.loads((out / "theorem_toy.json").read_text())
    of_held_out = found["quantities"]["held_out"]
    assert of_held_out["s_pilot"] > 0  # two seeds that differ
    assert of_held_out["holds"] == (
        of_held_out["e_copilot"] < (of_held_out["e_pilot"] ** 2 + of_held_out["s_pilot"] ** 2) ** 0.5
    )
    # The measured error is the parabola of the quantities: its value at lambda = 0 and its second zero.
    brier = dict(zip(found["strengths"], found["brier"], strict=True))
    assert brier[0.0] == pytest.approx(of_held_out["e_pilot"] ** 2 + of_held_out["s_pilot"] ** 2, rel=1e-4)
    fallen = {strength: value < brier[0.0] for strength, value in brier.items() if strength > 0}
    assert all(below == (strength < of_held_out["lambda_zero"]) for strength, below in fallen.items())


@pytest.mark.parametrize(
    ("problem", "equation", "words", "expression"),
    [
        ("Ann has 3.0 figs and eats 1 .", "x=3-1", "ann has n0 figs and eats n1 .", "- n0 n1"),
        ("Add 2 to 5, then 2 .", "X=(2.0+(5.0*0.5))", "add n0 to n1 , then n0 .", "+ n0 * n1 0.5"),
        ("Is 4 below zero?", "x=-4.0", "is n0 below zero ?", "neg n0"),
    ],
)
def test_numbers_are_named_and_equations_stand_in_prefix_notation(
    quality: Any, problem: str, equation: str, words: str, expression: str
) -> None:
    found = quality.equations.words_and_expression(problem, equation)
    assert [" ".join(tokens) for tokens in found] == [words, expression]


@pytest.fixture
def problems(tmp_path: Path) -> str:
    """Made-up word problems in the layout of LLM-Adapters: twelve wordings; the last of a file is not solved for x."""
    draw = random.Random(0)
    folder = tmp_path / "data" / "mawps"
    folder.mkdir(parents=True)
    for split, count in (("train", 20), ("valid", 6)):
        rows = []
        for number in range(count):
            a, b = draw.randrange(1, 50), draw.randrange(50, 99)
            sign, things = "+-*/"[number % 4], ("figs", "hens", "cups")[number % 3]
            equation = f"x={a}{sign}{b}" if number < count - 1 else f"{a}{sign}x={b}"
            problem = f"{sign} of {a} and {b} {things}"
            rows.append({"instruction": problem, "input": "", "output": equation, "answer": "1"})
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return str(tmp_path / "data")


EQUATIONS = NEXT_ITEM | {
    "kind": "equations",
    "task": {"held_out_size": 4, "validation_size": 2},
    "arms": {"pair": {"design": {"layers": "all"}, "write": True}},
}


def test_equations_are_written_by_an_encoder_decoder(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, problems: str
) -> None:
    facts = EQUATIONS | {"learning_rate": 1e-2, "points": {"best": {"epochs": 30}}}
    folder = run_experiment(quality, monkeypatch, tmp_path, facts, "--data", problems, "--seeds", "0")
    arms = json.loads((folder / "best_seed0_copilots.json").read_text())["arms"]
    assert arms.keys() == {"pilot", "pair"}
    for arm in arms.values():
        assert arm["tokens"] == [4] * 4  # a sign, two numbers, and the end
        assert len(arm["exact"]) == len(arm["exact, 4 beams"]) == len(arm["brier"]) == 4
        assert any(arm["exact"]) and any(arm["exact, 4 beams"])


def test_wordings_held_out_are_not_learned_from(quality: Any, problems: str) -> None:
    task = quality.equations.Equations(data=problems, held_out_size=4, validation_size=2)
    wordings = {
        name: [tuple(word for word in words if word not in ("n0", "n1")) for words, _ in found]
        for name, found in task.splits.items()
    }
    assert {name: len(set(found)) for name, found in wordings.items()} == {"held_out": 4, "validation": 2, "train": 6}
    assert len(wordings["held_out"]) == 4 and len(wordings["validation"]) == 2 and len(wordings["train"]) > 6
    assert len(set().union(*wordings.values())) == 12
    assert {"n0", "n1", "of", "and"} < set(task.vocabulary)
    assert {row["labels"][-1] for row in task.rows(0)} == {task.vocabulary["</s>"]}


def test_exact_is_what_the_encoder_decoder_writes(quality: Any, problems: str) -> None:
    task = quality.equations.Equations(data=problems, held_out_size=4, validation_size=2)
    pair = task.pairs({"pair": {"layers": "all"}}, 0)["pair"]
    options = {"steps": 60, "batch_size": 8, "learning_rate": 1e-2, "warmup": 0.1, "seed": 0}
    quality.training.train([quality.training.Teacher(pair, learns=task.rows(0))], {}, task.collate, **options)
    pair.eval()
    held_out = task.held_out("held_out")
    seen = held_out.collect({"pair": pair}).held["pair"]
    exact = task.judge(pair, scores(seen, 0.0, "simplex", "probability"), 0.0, False)["exact"]
    assert exact == task.exact(pair, strength=0)
    assert exact == task.exact(pair, strength=0, num_beams=4)
    assert any(exact)


def test_an_equation_ends_with_its_first_end_marker(quality: Any, problems: str) -> None:
    task = quality.equations.Equations(data=problems, held_out_size=4, validation_size=2)
    (batch,) = task.held_out("held_out").batches
    start, end = torch.zeros(4, 1, dtype=torch.long), torch.full((4, 1), task.vocabulary["</s>"])
    asked = batch["labels"].clamp(min=0)  # all of one length
    beams = types.SimpleNamespace(generate=lambda **_: torch.cat([start, asked, end], 1))  # which go on with the marker
    assert task.exact(beams) == [1] * 4
    longer = types.SimpleNamespace(generate=lambda **_: torch.cat([start, asked[:, :-1], asked[:, :1], end], 1))
    assert task.exact(longer) == [0] * 4
