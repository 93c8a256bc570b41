"""One experiment: python benchmarks/quality/run.py benchmarks/quality/mawps.yaml --data DATA --pilot PILOT --out OUT

A YAML file says what is trained and compared; see `Experiment`. Each training writes one JSON to OUT/NAME when it is
complete; what is there already is skipped, as are the committed results in the default OUT. DATA is a folder in the
layout of LLM-Adapters (for a task of recommendation its file), PILOT a folder or hub id. Several processes may share
the seeds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from equations import Equations
from models import add_layers, compile_layers
from tasks import SCORES, TEMPERATURES, NextItem, WrittenAnswers, per_example
from training import Student, Teacher, precision, train

from copilot.calibration import Held, agreement, calibration_of, scores
from copilot.config import CopilotConfig
from copilot.environment import environment
from copilot.ops.rectify import check_choice
from copilot.pair import PilotCopilotModel
from copilot.tap import decoder_layers

STRENGTHS = [step / 10 for step in range(1, 11)]
SOURCES = ("training", "final", "both", "cross_fitted", "another")
ANOTHER = 1000  # what is added to a seed
TASKS = {"written_answers": WrittenAnswers, "next_item": NextItem, "equations": Equations}
Task = WrittenAnswers | NextItem | Equations


@dataclass(frozen=True)
class Arm:
    """A Copilot.

    Attributes:
        design: arguments of `from_pilot`.
        mistakes: whose it learns from: those of the Pilot in "training", at that time; of the "final" Pilot, on its
            training rows (the paper's "Latest"); of "both", one after the other; "cross_fitted": of two Pilots, each
            trained as long on one half of the rows, on the half it was not trained on; or of "another" Pilot, in its
            training with another seed.
        final_pass: how long it learns from the final Pilot, as a share of the Pilot's steps.
        learning_rate, weight_decay, updates, draws, log_rounds: see `training.Student`; no rate takes the experiment's.
        write: whether it also writes its answers freely.
    """

    design: dict[str, Any] = field(default_factory=dict)
    mistakes: str = "training"
    final_pass: float = 1.0
    learning_rate: float | None = None
    weight_decay: float = 0.0
    updates: int = 1
    draws: int = 1
    log_rounds: int = 128
    write: bool = False

    def __post_init__(self) -> None:
        check_choice("mistakes", self.mistakes, SOURCES)


@dataclass(frozen=True)
class Point:
    """A length of training.

    Attributes:
        epochs: over the Pilot's rows.
        arms: names of the Copilots that are trained; all of the file's where it names none.
        rivals: Pilots without one: "extra_compute", trained longer by the share of time that the first arm took, and
            "extra_compute_ARM", by that of another; "extra_parameters", with as many new layers as the first arm has.
    """

    epochs: float
    arms: list[str]
    rivals: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Experiment:
    """The content of a YAML file.

    Attributes:
        kind: a key of `TASKS`.
        task: further fields of that class.
        batch_size, learning_rate, copilot_learning_rate, warmup: of every training; see `training.train`.
        weight_decay: of the Pilots.
        compile: whether decoder layers, of Pilots and Copilots, are compiled for training.
        arms: by name.
        points: by name.
    """

    kind: str
    task: dict[str, Any]
    batch_size: int
    learning_rate: float
    copilot_learning_rate: float
    warmup: float
    arms: dict[str, Arm]
    points: dict[str, Point]
    weight_decay: float = 0.0
    compile: bool = False

    @classmethod
    def read(cls, path: str | Path) -> Experiment:
        facts = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        arms = {name: Arm(**(arm or {})) for name, arm in facts.pop("arms").items()}
        points = {name: Point(**{"arms": list(arms)} | point) for name, point in facts.pop("points").items()}
        return cls(**facts, arms=arms, points=points)

    def of(self, task: str) -> Experiment:
        """The same with another task of its kind."""
        return replace(self, task=self.task | {"task": task})


class Run:
    """All trainings of one seed at one point."""

    def __init__(self, experiment: Experiment, task: Task, point: Point, seed: int):
        self.experiment, self.task, self.point, self.seed = experiment, task, point, seed
        self.rows = task.rows(seed)
        self.steps = round(point.epochs * len(self.rows) / experiment.batch_size)

    def train(self, teachers: list[Teacher], students: dict[str, Student], steps: int) -> dict[str, float]:
        of = self.experiment
        names = ("batch_size", "learning_rate", "warmup", "weight_decay")
        shared = {name: getattr(of, name) for name in names}
        if of.compile:
            for pair in [teacher.pair for teacher in teachers] + [student.pair for student in students.values()]:
                compile_layers(decoder_layers(pair.pilot))
                compile_layers(pair.copilot.layers)
        return train(teachers, students, self.task.collate, steps=steps, seed=self.seed, **shared)

    def student(self, arm: Arm, pair: PilotCopilotModel) -> Student:
        rate = arm.learning_rate or self.experiment.copilot_learning_rate
        return Student(pair, rate, arm.weight_decay, arm.updates, arm.draws, arm.log_rounds)

    def copilots(self) -> dict[str, Any]:
        """The Pilot and all of the point's arms."""
        arms = {name: self.experiment.arms[name] for name in self.point.arms}
        check_context_layers({name: arm.design for name, arm in arms.items()})
        pairs = self.task.pairs({name: arm.design for name, arm in arms.items()}, self.seed)
        first = next(iter(pairs.values()))

        def students_of(*sources: str) -> dict[str, Student]:
            return {name: self.student(arm, pairs[name]) for name, arm in arms.items() if arm.mistakes in sources}

        learning = Teacher(first, learns=self.rows)
        seconds = {"training": self.train([learning], students_of("training", "both"), self.steps)}
        after = students_of("final", "both")
        for share in sorted({arms[name].final_pass for name in after}):
            students = {name: student for name, student in after.items() if arms[name].final_pass == share}
            steps = round(self.steps * share)
            seconds[f"final {share:g}"] = self.train([Teacher(first, shows=self.rows)], students, steps)
        if students := students_of("cross_fitted"):
            halves = [self.rows.shard(2, index) for index in range(2)]
            pilots = [self.task.pairs({"half": {"layers": 2}}, self.seed)["half"] for _ in halves]
            teachers = [Teacher(pilots[index], halves[index], halves[1 - index]) for index in range(2)]
            seconds["cross_fitted"] = self.train(teachers, students, self.steps)
        if students := students_of("another"):
            other = self.task.pairs({"other": {"layers": 2}}, self.seed + ANOTHER)["other"]
            teacher = Teacher(other, learns=self.task.rows(self.seed + ANOTHER))
            seconds["another"] = self.train([teacher], students, self.steps)
        return {"seconds": seconds, **self.measure(pairs, {name for name, arm in arms.items() if arm.write})}

    def first_pair(self) -> PilotCopilotModel:
        """The first arm, trained beside its Pilot."""
        name = self.point.arms[0]
        arm = self.experiment.arms[name]
        pair = self.task.pairs({name: arm.design}, self.seed)[name]
        self.train([Teacher(pair, learns=self.rows)], {name: self.student(arm, pair)}, self.steps)
        return pair

    def extra_compute(self, extra: float) -> dict[str, Any]:
        """The same Pilot, its one schedule longer."""
        pairs = self.task.pairs({"extra_compute": {"layers": 2}}, self.seed)
        teacher = Teacher(pairs["extra_compute"], learns=self.rows)
        seconds = self.train([teacher], {}, round(self.steps * (1 + extra)))
        return {"seconds": {"training": seconds}, "extra": extra, **self.measure(pairs)}

    def extra_parameters(self) -> dict[str, Any]:
        """The same Pilot with new layers."""
        pairs = self.task.pairs({"extra_parameters": {"layers": 2}}, self.seed)
        pair = pairs["extra_parameters"]
        add_layers(pair.pilot, self.experiment.arms[self.point.arms[0]].design.get("layers", 6))
        seconds = self.train([Teacher(pair, learns=self.rows)], {}, self.steps)
        return {"seconds": {"training": seconds}, **self.measure(pairs)}

    @torch.compiler.set_stance("force_eager")
    def measure(self, pairs: dict[str, PilotCopilotModel], write: set[str] | None = None) -> dict[str, Any]:
        """Scores of the Pilot and, unless `write` is None, of every pair at its lambda*; those named also write.

        Each also with the temperature of the Pilot, and the lambda* there, that give the best score on validation data.
        """
        first = next(iter(pairs.values()))
        compared = pairs if write is None else {"pilot": first, **pairs}
        splits, place = ("validation", "held_out"), SCORES.index(self.task.score)
        seen = {split: self.task.held_out(split).collect(compared, TEMPERATURES) for split in splits}
        arms: dict[str, Any] = {}
        for name, pair in compared.items():
            config, validation, tested = pair.config, seen["validation"].held[name], seen["held_out"].held[name]
            is_pilot = write is None or name == "pilot"
            strength, of_validation = calibrated(validation, config, is_pilot)
            scored = scores(tested, strength, config.rectifier, config.fusion)
            arms[name] = {
                "strength": strength,
                "validation": of_validation,
                **self.task.judge(pair, scored, strength, is_pilot or name in (write or ())),
            }
            if not is_pilot:
                grid = {s: scores(tested, s, config.rectifier, config.fusion) for s in STRENGTHS}
                arms[name]["grid"] = {s: [*g.per_token(), float(g.exact.float().mean())] for s, g in grid.items()}
            if not is_pilot and config.rectifier == "simplex" and config.fusion == "probability":
                arms[name]["by_confidence"] = by_confidence(validation, tested)
            if name in seen["validation"].tempered:
                by_temperature = {
                    temperature: calibrated(part, config, is_pilot)
                    for temperature, part in seen["validation"].tempered[name].items()
                }
                temperature = min(by_temperature, key=lambda of: by_temperature[of][1][place])
                strength, of_validation = by_temperature[temperature]
                tested = seen["held_out"].tempered[name][temperature]
                arms[name]["tempered"] = {
                    "temperature": temperature,
                    "chosen_by": self.task.score,
                    "strength": strength,
                    "validation": of_validation,
                    **per_example(scores(tested, strength, config.rectifier, config.fusion)),
                }
        return {"arms": arms, "pilot_dtype": precision(first)}


def check_context_layers(designs: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError unless all Copilots read the same of the Pilot's layers, as they share its forward."""
    partial = {name: design.get("context_layers") for name, design in designs.items()}
    read = {name: None if choice in (None, "even", "every") else choice for name, choice in partial.items()}
    if len(set(read.values())) > 1:
        raise ValueError(f"arms of one point share the Pilot's forward, but context_layers differ: {read}")


def calibrated(held: list[Held], config: CopilotConfig, is_pilot: bool) -> tuple[float, tuple[float, float]]:
    """lambda*, 0 for a Pilot alone, and the Brier score and NLL with it."""
    found = calibration_of(held, config)
    return (0.0, found.pilot.per_token()) if is_pilot else (found.strength, found.pair.per_token())


CONFIDENCE_BINS = 5


def by_confidence(validation: list[Held], tested: list[Held]) -> dict[str, list[float]]:
    """Brier score of each row with a lambda* for each fifth of the tokens, by the Pilot's largest probability."""
    edges = torch.cat([part.mistakes.top_prob.max(1).values for part in validation]).quantile(
        torch.linspace(0, 1, CONFIDENCE_BINS + 1)[1:-1]
    )
    sums = torch.zeros(2, CONFIDENCE_BINS, dtype=torch.float64)
    for part in validation:
        bin_of = torch.bucketize(part.mistakes.top_prob.max(1).values, edges)
        sums.index_add_(1, bin_of, torch.stack(agreement(part.mistakes, part.delta, "simplex")))
    strength = (sums[0] / sums[1].clamp(min=1e-30)).clamp(0, 1)
    brier: list[float] = []
    for part in tested:
        mistakes = part.mistakes
        by = strength[torch.bucketize(mistakes.top_prob.max(1).values, edges)]
        l_dot_f, norm = agreement(mistakes, part.delta, "simplex")
        square = mistakes.top_prob.square().sum(1) + mistakes.rest_square - 2 * mistakes.target_prob + 1
        per_token = square - 2 * by * l_dot_f + by.square() * norm  # ||l - lambda f||^2
        row = torch.repeat_interleave(part.lengths)
        total = torch.zeros(len(part.lengths), dtype=torch.float64).index_add(0, row, per_token)
        brier += (total / part.lengths).tolist()
    return {"strength": strength.tolist(), "brier": [round(value, 5) for value in brier]}


def extra_time(seconds: dict[str, dict[str, float]], arm: str) -> float:
    """What an arm took, its own teachers included, as a share of the time of the Pilot that it corrects."""
    own = sum(spent.get(arm, 0.0) for spent in seconds.values())
    teachers = sum(spent["pilot"] for stage, spent in seconds.items() if arm in spent and stage != "training")
    return (own + teachers) / seconds["training"]["pilot"]


def task_of(experiment: Experiment, data: str, pilot: str | None, parser: argparse.ArgumentParser) -> Task:
    """The experiment's task on this data, with this Pilot unless it is None; the parser refuses one in vain."""
    task = TASKS[experiment.kind]
    if pilot is not None and "pilot" not in {of.name for of in fields(task)}:
        parser.error(
            f"--pilot: Pilots of kind {experiment.kind} are trained from scratch, none is accepted; got {pilot}"
        )
    return task(**experiment.task | {"data": data} | ({} if pilot is None else {"pilot": pilot}))


def provenance(experiment: Experiment) -> dict[str, Any]:
    """What a result needs beside its figures: all settings, the commit, and where it was measured."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {"settings": asdict(experiment), "commit": commit, "environment": environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="a YAML file")
    parser.add_argument("--data", required=True)
    parser.add_argument("--pilot", help="of experiments with a pretrained Pilot; replaces the one of the YAML file")
    parser.add_argument("--task", help="replaces the one of the YAML file, and OUT/NAME becomes OUT/NAME_TASK")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--points", nargs="+", help="only these")
    parser.add_argument("--out", default="benchmarks/results/quality")
    arguments = parser.parse_args()
    experiment = Experiment.read(arguments.experiment)
    name = Path(arguments.experiment).stem
    if arguments.task is not None:
        if "task" not in experiment.task:
            parser.error(f"--task: kind {experiment.kind} is one task, none is accepted; got {arguments.task}")
        experiment, name = experiment.of(arguments.task), f"{name}_{arguments.task}"
    task = task_of(experiment, arguments.data, arguments.pilot, parser)
    folder = Path(arguments.out) / name
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance(experiment)  # of the code that runs: the commit may be another when a training is complete

    def once(name: str, work: Any, *inputs: Any) -> dict[str, Any]:
        """The result of a training, from its file or made now."""
        path = folder / f"{name}.json"
        if not path.exists():
            started = time.time()
            result = work(*inputs) | {"wall_seconds": time.time() - started} | facts
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(result) + "\n", encoding="utf-8")
            unfinished.replace(path)
        return json.loads(path.read_text(encoding="utf-8"))

    for seed in arguments.seeds:
        for name in arguments.points or experiment.points:
            point = experiment.points[name]
            run = Run(experiment, task, point, seed)
            found = once(f"{name}_seed{seed}_copilots", run.copilots)
            for rival in point.rivals:
                if rival == "extra_parameters":
                    once(f"{name}_seed{seed}_{rival}", run.extra_parameters)
                else:
                    arm = rival.removeprefix("extra_compute").removeprefix("_") or point.arms[0]
                    once(f"{name}_seed{seed}_{rival}", run.extra_compute, extra_time(found["seconds"], arm))


if __name__ == "__main__":
    main()
