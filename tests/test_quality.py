"""The experiments' runner: what is trained on what, what is measured, and that a stopped run goes on."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import fresh_pair
from experiments import QUALITY, run_experiment, saved_pilot

from copilot import MistakeLog
from copilot.calibration import Held, agreement, calibration_of, scores
from copilot.data import DataCollator, prepare_dataset
from copilot.tasks import read_examples

EXPERIMENT = {
    "kind": "written_answers",
    "task": {
        "task": "mawps",
        "train_size": 12,
        "held_out_size": 6,
        "validation_size": 4,
        "lora": {"r": 2},
        "new_tokens": 4,
        "decoding": ["greedy", "4 beams"],
    },
    "batch_size": 4,
    "learning_rate": 1e-3,
    "copilot_learning_rate": 1e-2,
    "warmup": 0.1,
    "arms": {
        "pair": {"design": {"layers": 2}, "write": True},
        "latest": {"design": {"layers": 2}, "mistakes": "final", "updates": 2, "draws": 2},
        "finish": {"design": {"layers": 2}, "mistakes": "both", "final_pass": 0.5},
        "cross_fitted": {"design": {"layers": 2}, "mistakes": "cross_fitted", "log_rounds": 1},
        "transferred": {"design": {"layers": 2}, "mistakes": "another"},
    },
    "points": {
        "best": {
            "epochs": 2,
            "arms": ["pair", "latest", "finish", "cross_fitted", "transferred"],
            "rivals": ["extra_compute", "extra_compute_latest", "extra_parameters"],
        }
    },
}


@pytest.fixture
def pilot(tmp_path: Path, tokenizer: Any) -> str:
    return saved_pilot(tmp_path / "pilot", tokenizer)


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Made-up problems in the layout of LLM-Adapters, those of the validation file in the training file too."""
    draw = random.Random(0)

    def problem(number: int) -> dict[str, str]:
        words = [f"w{draw.randrange(40)}" for _ in range(draw.randrange(3, 7))]  # its answer repeats some
        question = f"w{50 + number} {' '.join(words)}"
        return {"instruction": question, "input": "", "output": f"{words[0]} {words[-1]}", "answer": "1"}

    problems = [problem(number) for number in range(36)]
    folder = tmp_path / "data" / "mawps"
    folder.mkdir(parents=True)
    for split, numbers in (("train", range(24)), ("valid", range(2, 12)), ("test", range(30, 36))):
        rows = [problems[number] | ({"output": ""} if split == "test" else {}) for number in numbers]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    return str(tmp_path / "data")


def test_an_experiment_trains_every_arm_and_rival_and_measures_all_on_the_same_examples(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str, pilot: str
) -> None:
    facts = EXPERIMENT
    chosen_on = set()

    def recorded(choose: Any, held: list[Held], *others: Any) -> Any:
        chosen_on.add(sum(len(part.lengths) for part in held))
        return choose(held, *others)

    for name in ("calibrated", "by_confidence"):
        monkeypatch.setattr(quality.run, name, partial(recorded, getattr(quality.run, name)))
    folder = run_experiment(quality, monkeypatch, tmp_path, facts, "--data", data, "--pilot", pilot, "--seeds", "3")
    assert chosen_on == {4}  # rows for validation, of which lambda* and the temperature are
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*")}
    parts = ("copilots", "extra_compute", "extra_compute_latest", "extra_parameters")
    assert sorted(results) == [f"best_seed3_{part}" for part in parts]
    found = results["best_seed3_copilots"]
    assert list(found["arms"]) == ["pilot", *EXPERIMENT["arms"]]
    assert found["seconds"].keys() == {"training", "final 0.5", "final 1", "cross_fitted", "another"}
    everything = [arm for result in results.values() for arm in result["arms"].values()]
    assert len(everything) == 9
    for arm in everything:
        assert len(arm["exact"]) == len(arm["brier"]) == len(arm["nll"]) == 6
        assert arm["tokens"] == arm["tempered"]["tokens"] == everything[0]["tokens"]
        assert arm["tempered"]["validation"][0] <= arm["validation"][0] + 1e-6  # T = 1 is among the temperatures
        assert "grid" in arm or arm["strength"] == arm["tempered"]["strength"] == 0  # a Pilot alone
        assert "grid" not in arm or len(arm["by_confidence"]["brier"]) == 6
    for name, arm in found["arms"].items():
        assert (len(arm.get("answers, 4 beams", [])) == 6) == (name in ("pilot", "pair"))
    assert results["best_seed3_extra_compute"]["extra"] == pytest.approx(
        found["seconds"]["training"]["pair"] / found["seconds"]["training"]["pilot"]
    )
    assert [stage for stage, spent in found["seconds"].items() if "finish" in spent] == ["training", "final 0.5"]
    final = found["seconds"]["final 1"]
    assert results["best_seed3_extra_compute_latest"]["extra"] == pytest.approx(
        (final["pilot"] + final["latest"]) / found["seconds"]["training"]["pilot"]
    )
    assert found["settings"]["points"]["best"]["epochs"] == 2
    of_pilot = np.average(found["arms"]["pilot"]["nll"], weights=everything[0]["tokens"])
    for name in EXPERIMENT["arms"]:  # a fresh Copilot would change nothing, a harmful one would raise it
        assert found["arms"][name]["grid"]["1.0"][1] < of_pilot - 0.02


def test_a_stopwatch_adds_up_steps_and_ignores_outliers(quality: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 10.0, 11.0, 11.0, 12.0, 20.0, 22.0, 22.0, 24.0])
    monkeypatch.setattr(quality.training.time, "perf_counter", lambda: next(times))
    stopwatch = quality.training.Stopwatch()
    for name, step in (("pilot", 0), ("pilot", 1), ("pilot", 1), ("pilot", 2), ("pair", 2)):
        with stopwatch(name, step):
            pass
    assert stopwatch.spent == {"pilot": [9.0, 2.0, 2.0], "pair": [0.0, 0.0, 2.0]}
    assert stopwatch.totals() == {"pilot": 6.0, "pair": 0.0}


def test_compiled_layers_give_the_same_scores(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str, pilot: str
) -> None:
    compiled, compile_ = [], torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic: compiled.append(f) or compile_(f, dynamic=dynamic, backend="eager")
    )
    point = {"epochs": 1, "arms": ["pair", "finish"], "rivals": ["extra_parameters"]}
    found = []
    for compile_layers in (False, True):
        facts = EXPERIMENT | {"points": {"best": point}, "compile": compile_layers}
        arguments = ("--data", data, "--pilot", pilot, "--seeds", "0")
        folder = run_experiment(quality, monkeypatch, tmp_path / str(compile_layers), facts, *arguments)
        found.append([json.loads(path.read_text())["arms"] for path in sorted(folder.glob("*.json"))])
        assert bool(compiled) == compile_layers
    for plain, other in zip(*found, strict=True):
        for name in plain:
            assert other[name]["nll"] == pytest.approx(plain[name]["nll"], abs=1e-3)


def test_an_arms_time_counts_every_stage_and_its_other_teachers(quality: Any) -> None:
    seconds = {
        "training": {"pilot": 100.0, "pair": 10.0, "finish": 12.0},
        "final 0.25": {"pilot": 8.0, "finish": 3.0},
        "cross_fitted": {"pilot": 90.0, "cross_fitted": 11.0},
    }
    expected = {"pair": 0.10, "finish": 0.23, "cross_fitted": 1.01}
    assert {arm: quality.run.extra_time(seconds, arm) for arm in expected} == pytest.approx(expected)


def test_a_run_goes_on_where_it_stopped(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str, pilot: str
) -> None:
    facts = EXPERIMENT | {"points": {"best": {"epochs": 1, "arms": ["pair"], "rivals": ["extra_compute"]}}}
    arguments = ("--data", data, "--pilot", pilot, "--seeds", "0")
    folder = run_experiment(quality, monkeypatch, tmp_path, facts, *arguments)
    first = (folder / "best_seed0_copilots.json").read_text()
    rival = folder / "best_seed0_extra_compute.json"
    rival.unlink()
    run_experiment(quality, monkeypatch, tmp_path, facts, *arguments)
    assert (folder / "best_seed0_copilots.json").read_text() == first
    assert rival.exists()


def test_a_seed_gives_the_same_scores_again(
    quality: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: str, pilot: str
) -> None:
    facts = EXPERIMENT | {"points": {"best": {"epochs": 1, "arms": ["pair", "cross_fitted"]}}}
    arms = []
    for name in ("a", "b"):
        arguments = ("--data", data, "--pilot", pilot, "--seeds", "0")
        folder = run_experiment(quality, monkeypatch, tmp_path / name, facts, *arguments)
        arms.append(json.loads((folder / "best_seed0_copilots.json").read_text())["arms"])
    assert arms[0] == arms[1]


def test_held_out_validation_and_training_examples_are_apart(quality: Any, data: str, pilot: str) -> None:
    train, valid = ({e.prompt for e in read_examples(data, "mawps", split)} for split in ("train", "valid"))
    assert valid < train
    task = quality.tasks.WrittenAnswers(data=data, pilot=pilot, **EXPERIMENT["task"])
    prompts = {name: {example.prompt for example in examples} for name, examples in task.splits.items()}
    assert (len(prompts["held_out"]), len(prompts["validation"]), len(prompts["test"])) == (6, 4, 6)
    assert prompts["held_out"] & valid
    assert not prompts["held_out"] & prompts["validation"]
    assert not prompts["train"] & (prompts["held_out"] | prompts["validation"])
    seeds = [task.rows(seed)["input_ids"] for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def experiment_of(quality: Any) -> Any:
    """`EXPERIMENT` as it is read from a file."""
    arms = {name: quality.run.Arm(**arm) for name, arm in EXPERIMENT["arms"].items()}
    return quality.run.Experiment(**EXPERIMENT | {"arms": arms, "points": {}})


@dataclass(frozen=True)
class Rows:
    """Twelve rows of a seed, or a half of them."""

    seed: int
    half: int | None = None

    def __len__(self) -> int:
        return 12

    def shard(self, _: int, index: int) -> Rows:
        return replace(self, half=index)


def test_stages_and_rivals_take_the_steps_rows_and_seeds_that_their_names_say(
    quality: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, measured, grown = [], [], []

    def pairs(designs: dict[str, Any], seed: int) -> dict[str, Any]:
        pilot = f"{'+'.join(designs)} of {seed}"
        return {name: SimpleNamespace(pilot=pilot) for name in designs}

    def train(teachers: list[Any], students: dict[str, Any], *_: Any, steps: int, **options: Any) -> dict[str, Any]:
        taught = [(teacher.pair.pilot, teacher.learns, teacher.shows) for teacher in teachers]
        trained.append((steps, options["seed"], list(students), taught))
        return {}

    monkeypatch.setattr(quality.run, "train", train)
    monkeypatch.setattr(quality.run.Run, "measure", lambda _, *measures: measured.append(measures) or {})
    monkeypatch.setattr(quality.run, "add_layers", lambda *given: grown.append(given))
    task = SimpleNamespace(rows=Rows, pairs=pairs, collate=None)
    point = quality.run.Point(epochs=2, arms=list(EXPERIMENT["arms"]))
    run = quality.run.Run(experiment_of(quality), task, point, 3)
    for work in (run.copilots, lambda: run.extra_compute(0.5), run.extra_parameters, run.first_pair):
        work()
    pilot, rows, other = f"{'+'.join(EXPERIMENT['arms'])} of 3", Rows(3), 1003
    halves = [Rows(3, 0), Rows(3, 1)]
    assert trained == [
        (6, 3, ["pair", "finish"], [(pilot, rows, None)]),
        (3, 3, ["finish"], [(pilot, None, rows)]),
        (6, 3, ["latest"], [(pilot, None, rows)]),
        (6, 3, ["cross_fitted"], [("half of 3", *halves), ("half of 3", *reversed(halves))]),
        (6, 3, ["transferred"], [(f"other of {other}", Rows(other), None)]),
        (9, 3, [], [("extra_compute of 3", rows, None)]),
        (6, 3, [], [("extra_parameters of 3", rows, None)]),
        (6, 3, ["pair"], [("pair of 3", rows, None)]),
    ]
    assert [list(compared) for compared, *_ in measured] == [
        list(EXPERIMENT["arms"]),
        ["extra_compute"],
        ["extra_parameters"],
    ]
    assert [write for _, *write in measured] == [[{"pair"}], [], []]  # rivals are Pilots alone
    assert grown == [("extra_parameters of 3", 2)]


def test_a_student_has_its_arms_settings_and_else_the_experiments_rate(quality: Any) -> None:
    run = quality.run.Run(experiment_of(quality), SimpleNamespace(rows=Rows), quality.run.Point(1, []), 0)
    own = {"learning_rate": 1e-4, "weight_decay": 0.1, "updates": 2, "draws": 3, "log_rounds": 5}
    assert run.student(quality.run.Arm(**own), "a pair") == quality.training.Student("a pair", **own)
    assert run.student(quality.run.Arm(), "a pair") == quality.training.Student("a pair", 1e-2)


def test_cross_fitted_mistakes_are_of_rows_that_their_pilot_does_not_learn(
    quality: Any, monkeypatch: pytest.MonkeyPatch, data: str, pilot: str
) -> None:
    task = quality.tasks.WrittenAnswers(data=data, pilot=pilot, **EXPERIMENT["task"])
    point = quality.run.Point(epochs=1, arms=["pair", "cross_fitted"])
    given = []
    monkeypatch.setattr(quality.run, "train", lambda teachers, students, *_, **__: given.append((teachers, students)))
    monkeypatch.setattr(quality.run.Run, "measure", lambda *_: {})
    run = quality.run.Run(experiment_of(quality), task, point, 0)
    run.copilots()
    (beside, _), (teachers, students) = given
    assert [teacher.learns for teacher in beside] == [run.rows]
    assert list(students) == ["cross_fitted"]
    for teacher in teachers:
        learned, shown = (sorted(map(tuple, rows["input_ids"])) for rows in (teacher.learns, teacher.shows))
        assert not set(learned) & set(shown)
        assert sorted(learned + shown) == sorted(map(tuple, run.rows["input_ids"]))
    assert students["cross_fitted"].pair.pilot is beside[0].pair.pilot  # which corrects the Pilot trained on all rows


def test_a_teacher_that_only_shows_does_not_change(quality: Any, data: str, pilot: str) -> None:
    task = quality.tasks.WrittenAnswers(data=data, pilot=pilot, **EXPERIMENT["task"])
    pair = task.pairs({"pair": {"layers": 2}}, 0)["pair"]
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    teacher = quality.training.Teacher(pair, shows=task.rows(0))
    student = quality.training.Student(pair, 1e-2)
    options = {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0.0, "seed": 0}
    quality.training.train([teacher], {"pair": student}, task.collate, **options)
    changed = {name for name, value in pair.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("copilot.") for name in changed)


def rows_of_words(start: int) -> Any:
    """Eight rows of four of the words from `start` on, of which there are eight."""
    ids = [[start + (first + step) % 8 for step in range(4)] for first in range(8)]
    return prepare_dataset([{"input_ids": row, "labels": row} for row in ids], None)


def train_in_small(quality: Any, teachers: list[Any], student: Any, steps: int, **changed: float) -> None:
    options = {"steps": steps, "batch_size": 4, "learning_rate": 1e-3, "warmup": 0.0, "seed": 0} | changed
    quality.training.train(teachers, {"student": student}, DataCollator(0), **options)


def test_teachers_take_turns_and_show_mistakes_in_eval_mode_on_the_rows_they_do_not_learn(
    quality: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forwards, logged = [], []
    low, high = rows_of_words(10), rows_of_words(50)
    teachers = []
    for index, (learns, shows) in enumerate([(low, high), (high, low), (low, None)]):
        pair = fresh_pair(seed=index)
        teachers.append(quality.training.Teacher(pair, learns, shows))

        def seen(module: Any, _: Any, given: dict[str, Any], index: int = index) -> None:
            forwards.append((index, "low" if given["input_ids"].max() < 50 else "high", module.training))

        pair.pilot.register_forward_pre_hook(seen, with_kwargs=True)

    def learn(_: Any, round_: Any, *__: Any) -> None:
        logged.append("low" if round_.mistakes.target.max() < 50 else "high")

    monkeypatch.setattr(quality.training, "learn", learn)
    train_in_small(quality, teachers, quality.training.Student(fresh_pair(), 1e-2), steps=6)
    learning, showing = True, False
    turns = [
        (0, "high", showing),
        (0, "low", learning),
        (1, "low", showing),
        (1, "high", learning),
        (2, "low", learning),
    ]
    assert forwards == turns * 2
    assert logged == ["high", "low", "low"] * 2


def test_a_student_takes_its_updates_of_its_draws_from_a_log_of_its_length(
    quality: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, optimizers = [], []

    class Log(MistakeLog):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self.draws = 0
            logs.append(self)

        def draw(self, *given: Any) -> Any:
            self.draws += 1
            return super().draw(*given)

    class Optimizer(quality.training.Optimizer):
        def __post_init__(self) -> None:
            super().__post_init__()
            optimizers.append(self)

    monkeypatch.setattr(quality.training, "MistakeLog", Log)
    monkeypatch.setattr(quality.training, "Optimizer", Optimizer)
    pair = fresh_pair()
    student = quality.training.Student(pair, 1e-2, weight_decay=0.25, updates=2, draws=2, log_rounds=1)
    train_in_small(
        quality, [quality.training.Teacher(pair, rows_of_words(10))], student, steps=3, warmup=1 / 3, weight_decay=0.5
    )
    (log,), (of_pilot, of_copilot) = logs, optimizers
    assert [optimizer.adam.param_groups[0]["weight_decay"] for optimizer in optimizers] == [0.5, 0.25]
    assert (log.capacity, log.rounds_seen, log.draws) == (1, 3, 12)
    for optimizer, steps in ((of_pilot, 3), (of_copilot, 6)):
        assert optimizer.schedule.last_epoch == steps
        assert optimizer.warmup_steps == steps / 3
        assert optimizer.schedule.get_last_lr() == pytest.approx([0.0])  # which ends with the training


def test_every_row_is_in_one_batch_of_rows_of_like_length(quality: Any) -> None:
    lengths = [3 * index % 40 for index in range(40)]  # all different
    found = quality.training.length_grouped(lengths, 3, torch.Generator().manual_seed(0))
    assert sorted(index for batch in found for index in batch) == list(range(40))
    assert sorted(map(len, found)) == [1] + [3] * 13
    assert all(max(lengths[i] for i in batch) - min(lengths[i] for i in batch) <= 2 for batch in found)
    assert found != sorted(found, key=lambda batch: lengths[batch[0]])


def test_new_layers_change_nothing_until_they_are_trained(quality: Any) -> None:
    pair = fresh_pair()
    pair.pilot.requires_grad_(False)
    quality.models.add_lora(pair.pilot, {"r": 2}, 0)
    tokens = torch.randint(3, 90, (2, 7))
    with torch.autocast("cpu", torch.bfloat16):
        before, written = pair.pilot(tokens).logits, pair.pilot.generate(tokens, max_new_tokens=5, do_sample=False)
        quality.models.add_layers(pair.pilot, 2)
        assert len(pair.pilot.model.layers) == pair.pilot.config.num_hidden_layers == 6
        after = pair.pilot(tokens).logits
        assert torch.equal(after, before)
        assert torch.equal(pair.generate(tokens, strength=0, max_new_tokens=5, do_sample=False), written)
    trained = {n for n, p in pair.pilot.named_parameters() if p.requires_grad and "lora_" not in n}
    assert {int(name.split(".")[2]) for name in trained} == {1, 5}  # behind the first and the last of four
    after.sum().backward()
    assert pair.pilot.model.layers[1].mlp.down_proj.weight.grad.abs().sum() > 0


def test_logits_of_a_pilot_with_adapters_are_not_rounded(quality: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")  # others leave all in float32
    pair = fresh_pair()
    pair.pilot.requires_grad_(False)
    quality.models.add_lora(pair.pilot, {"r": 2}, 0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = pair.pilot(torch.randint(3, 90, (2, 7))).logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pilots_precision_is_that_of_its_roundest_weights(quality: Any, dtype: str) -> None:
    pair = fresh_pair()
    layer = pair.pilot.model.layers[0].mlp.down_proj
    layer.to(getattr(torch, dtype))
    assert quality.training.precision(pair) == dtype
    assert quality.training.autocast(pair)._enabled == (dtype == "bfloat16")


def random_held(pairs: int, seed: int) -> list[Held]:
    """Mistakes of random logits, and a correction that knows something of the truth."""
    from copilot.ops import mistake_cross_entropy

    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(pairs * 3, 50, generator=generator)
    target = torch.randint(50, (pairs * 3,), generator=generator)
    _, mistakes = mistake_cross_entropy(logits, target, 8)
    delta = torch.randn(pairs * 3, 8, generator=generator) + (mistakes.top_index == target[:, None])
    return [Held(mistakes, delta, torch.full((pairs,), 3))]


def test_lambda_by_confidence_is_the_lambda_of_each_bin_alone(quality: Any) -> None:
    validation, tested = random_held(60, 0), random_held(20, 1)
    found = quality.run.by_confidence(validation, tested)
    largest = validation[0].mistakes.top_prob.max(1).values
    edges = largest.quantile(torch.tensor([0.2, 0.4, 0.6, 0.8]))
    for index, (low, high) in enumerate(zip([0.0, *edges], [*edges, 2.0], strict=True)):
        chosen = (largest > low) & (largest <= high)
        mistakes = type(validation[0].mistakes)(
            **{name: value[chosen] for name, value in validation[0].mistakes.tensors().items()}
        )
        along, norm = agreement(mistakes, validation[0].delta[chosen], "simplex")
        expected = min(max(float(along.sum() / norm.sum()), 0.0), 1.0)
        assert found["strength"][index] == pytest.approx(expected, rel=1e-4)


def test_with_equal_lambdas_by_confidence_gives_the_brier_score_of_one_lambda(
    quality: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality.run, "CONFIDENCE_BINS", 1)
    validation, tested = random_held(60, 0), random_held(20, 1)
    config = SimpleNamespace(rectifier="simplex", fusion="probability")
    strength = calibration_of(validation, config).strength
    assert 0 < strength < 1
    brier = scores(tested, strength, "simplex", "probability").brier
    found = quality.run.by_confidence(validation, tested)
    assert found["strength"] == pytest.approx([strength], rel=1e-5)
    assert found["brier"] == pytest.approx(brier.tolist(), abs=1e-5)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_tempered_scores_are_those_of_the_pilots_softmax_at_that_temperature(
    quality: Any, data: str, pilot: str, strength: float
) -> None:
    task = quality.tasks.WrittenAnswers(data=data, pilot=pilot, **EXPERIMENT["task"])
    pair = task.pairs({"pair": {"layers": 2}}, 0)["pair"]
    torch.nn.init.normal_(pair.copilot.head.weight)
    held_out = task.held_out("held_out")
    seen = held_out.collect({"pair": pair}, [1.0, 2.0])
    plain = scores(seen.held["pair"], strength, "simplex", "probability")
    for name, expected in vars(scores(seen.tempered["pair"][1.0], strength, "simplex", "probability")).items():
        assert getattr(plain, name).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    (batch,), (held,) = held_out.batches, seen.tempered["pair"][2.0]
    with quality.training.autocast(pair), torch.no_grad():
        passed = pair.pilot_pass(**batch)
    logits = passed.logits.double() / 2.0
    corrected = logits.scatter_add(1, held.mistakes.top_index, held.delta.double()).softmax(-1)
    prob = (1 - strength) * logits.softmax(-1) + strength * corrected
    truth = torch.nn.functional.one_hot(passed.supervision.target, prob.shape[1])
    brier, nll = scores([held], strength, "simplex", "probability").per_token()
    assert brier == pytest.approx((prob - truth).square().sum(1).mean().item(), rel=1e-4)
    assert nll == pytest.approx(-(prob * truth).sum(1).log().mean().item(), rel=1e-4)


@pytest.mark.parametrize("path", sorted(QUALITY.rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_experiments_ask_for_what_there_is(quality: Any, path: Path) -> None:
    experiment = quality.run.Experiment.read(path)
    fields = {"data": "data"} | ({"pilot": "pilot"} if experiment.kind == "written_answers" else {})
    quality.run.TASKS[experiment.kind](**fields | experiment.task)
    for arm in experiment.arms.values():
        fresh_pair("t5" if experiment.kind == "equations" else "llama", **arm.design)
        assert arm.mistakes in quality.run.SOURCES
    for point in experiment.points.values():
        assert set(point.arms) <= set(experiment.arms)
        of_arms = {f"extra_compute_{arm}" for arm in point.arms}
        assert set(point.rivals) <= {"extra_compute", "extra_parameters"} | of_arms


def test_copilots_of_one_forward_read_the_same_of_its_layers(quality: Any) -> None:
    for same in ({"a": {}, "b": {"context_layers": "every"}}, {arm: {"context_layers": "last"} for arm in "ab"}):
        quality.run.check_context_layers(same)
    with pytest.raises(ValueError, match="context_layers differ"):
        quality.run.check_context_layers({"a": {}, "b": {"context_layers": "last"}})


def test_a_copilot_of_unknown_mistakes_is_refused(quality: Any) -> None:
    with pytest.raises(ValueError, match="mistakes must be one of"):
        quality.run.Arm(mistakes="none")
