"""The demo: fine-tune a small Pilot and its Copilot on generated word problems, and show what the Copilot changed.

python -m copilot.demo --out runs/demo
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, set_seed

from copilot.calibration import calibrate
from copilot.cli import LOG_FILE, load_tokenizer
from copilot.cli_arguments import one_line
from copilot.comparison import HEADER, Comparison, align, compare
from copilot.data import DataCollator, prepare_dataset
from copilot.environment import environment
from copilot.evaluation import to_rows
from copilot.loop import parameter_groups
from copilot.mistake_log import MistakeLog
from copilot.pair import PilotCopilotForCausalLM
from copilot.pilots import packaged_smollm2
from copilot.tasks import ArithmeticProblems, Example, exact_match, generate_problems
from copilot.trainer import CopilotTrainer
from copilot.training_arguments import CopilotTrainingArguments

SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "learning_rate": 5e-4,
    "copilot_learning_rate": 5e-4,
    "warmup_steps": 5,
    "seed": 0,
}
PROBLEMS = {"train": 1360, "validation": 200, "test": 300}
GRADES = (1, 2, 3)  # those of the fourth remain beyond so short a training
NEW_TOKENS = 24  # the longest equation has fewer
REPEATS = 3  # of each timing
RIGHT = {True: "right", False: "wrong"}

INTRODUCTION = """
A Pilot ({pilot}) learns to write the equation of a word problem (LoRA):

  {prompt}{completion}

Beside it a Copilot learns, from the log of the Pilot's mistakes, to predict the next mistake. When the two write, that
prediction, times lambda, is added to the Pilot's probabilities before each token is chosen. {train} problems to learn
from, {validation} to choose lambda, {test} to compare both; these three share neither numbers nor wordings.
"""


@dataclass(frozen=True)
class Timing:
    """Median seconds of the same work by the Pilot alone and by the pair."""

    pilot: float
    pair: float

    def row(self, name: str) -> tuple[str, ...]:
        """A line of the result table."""
        return name, f"{self.pilot:.3f} s", f"{self.pair:.3f} s", f"{self.pair / self.pilot - 1:+.0%} time", ""


@dataclass(frozen=True)
class ChangedAnswer:
    """A problem that Pilot and pair answer differently.

    Attributes:
        problem: with its reference.
        pilot_text, pair_text: both answers.
        shared: what both wrote before they differ.
        pilot_top, pair_top: there, the five most likely tokens and their probabilities, before and after the Copilot.
    """

    problem: Example
    pilot_text: str
    pair_text: str
    shared: str
    pilot_top: list[tuple[str, float]]
    pair_top: list[tuple[str, float]]

    def __str__(self) -> str:
        answers = (
            ("  reference", self.problem.completion),
            ("  Pilot", self.pilot_text),
            ("  Pilot + Copilot", self.pair_text),
        )
        tops = [
            [f"{probability:.3f} {token!r}" for token, probability in top] for top in (self.pilot_top, self.pair_top)
        ]
        tokens = [("  Pilot", "Pilot + Copilot"), *((f"  {a}", b) for a, b in zip(*tops, strict=True))]
        return f"{self.problem.prompt}\n{align(answers)}\nThe likeliest tokens after {self.shared!r}:\n{align(tokens)}"


# ---- Steps ----


def bfloat16_is_fast() -> bool:
    """Whether this machine computes in bfloat16 at least as fast as in float32."""
    return torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability() == "AVX512"


def build(pilot: str) -> tuple[PilotCopilotForCausalLM, Any]:
    """A pair with a fresh Copilot and LoRA adapters in the Pilot, and the tokenizer."""
    set_seed(SETTINGS["seed"])
    # Eager attention: with some fifty tokens per sequence, a step on a CPU then takes three quarters of the time.
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    pair = PilotCopilotForCausalLM.from_pilot(AutoModelForCausalLM.from_pretrained(pilot, **options))
    pair.pilot.add_adapter(LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear"))
    return pair.to("cuda" if torch.cuda.is_available() else "cpu"), load_tokenizer(pilot)


def time_training(pair: PilotCopilotForCausalLM, tokenizer: Any, problems: list[Example]) -> Timing:
    """Training steps of the Pilot alone and of the pair, in turns, at learning rate 0: nothing is changed."""
    rows = prepare_dataset(to_rows(problems), tokenizer)
    batch: dict[str, Any] = {
        name: tensor.to(pair.device) for name, tensor in DataCollator(tokenizer.pad_token_id)(list(rows)).items()
    }
    rates = dict.fromkeys(("learning_rate", "copilot_learning_rate", "weight_decay", "copilot_weight_decay"), 0.0)
    groups = parameter_groups(pair, **rates)
    of_pilot, of_pair = (torch.optim.AdamW(part, fused=True) for part in (groups[:2], groups))
    pair.train()
    pair.mistake_log = MistakeLog(1)

    def pilot_loss() -> Tensor:
        passed = pair.pilot_pass(**batch)
        return nn.functional.cross_entropy(passed.logits.float(), passed.supervision.target)

    def step(loss_of: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
        with torch.autocast(pair.device.type, torch.bfloat16, enabled=bfloat16_is_fast()):
            loss = loss_of()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for a GPU

    return in_turns(lambda: step(pilot_loss, of_pilot), lambda: step(lambda: pair(**batch).loss, of_pair))


def train(pair: PilotCopilotForCausalLM, tokenizer: Any, problems: list[Example], out: Path) -> CopilotTrainer:
    """Train both models; `out` is created but nothing is written to it yet."""
    arguments = CopilotTrainingArguments(
        str(out),
        train_sampling_strategy="group_by_length",  # little padding
        use_cpu=not torch.cuda.is_available(),
        bf16=bfloat16_is_fast(),
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        **SETTINGS,
    )
    trainer = CopilotTrainer(pair, arguments, to_rows(problems), processing_class=tokenizer)
    trainer.train()
    return trainer


def time_decoding(pair: PilotCopilotForCausalLM, tokenizer: Any, problem: Example) -> Timing:
    """Seconds per token of greedily decoding one prompt by the Pilot alone and by the pair, in turns."""
    inputs = tokenizer(problem.prompt, return_tensors="pt").to(pair.device)
    options = {"do_sample": False, "min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    options["pad_token_id"] = tokenizer.pad_token_id
    whole = in_turns(lambda: pair.pilot.generate(**inputs, **options), lambda: pair.generate(**inputs, **options))
    return Timing(whole.pilot / NEW_TOKENS, whole.pair / NEW_TOKENS)


def in_turns(pilot: Callable[[], object], pair: Callable[[], object]) -> Timing:
    """Time both in turns, so that a busy moment of the machine meets both; the first turn is not counted."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(REPEATS + 1):
        for work, kept in zip((pilot, pair), seconds, strict=True):
            started = time.perf_counter()
            work()
            kept.append(time.perf_counter() - started)
    return Timing(median(seconds[0][1:]), median(seconds[1][1:]))


def changes(problems: list[Example], found: Comparison) -> dict[tuple[bool, bool], list[int]]:
    """Indices of the problems answered differently, by (the Pilot was right, the pair is right)."""
    by_kind: dict[tuple[bool, bool], list[int]] = {}
    for index, (problem, alone, together) in enumerate(zip(problems, found.pilot_texts, found.pair_texts, strict=True)):
        if alone != together:
            kind = exact_match(alone, problem.completion), exact_match(together, problem.completion)
            by_kind.setdefault(kind, []).append(index)
    return by_kind


@torch.no_grad()
def show_change(pair: PilotCopilotForCausalLM, tokenizer: Any, problem: Example) -> ChangedAnswer | None:
    """Both answers to a problem and the token where they part; None when they are the same."""
    inputs = tokenizer(problem.prompt, return_tensors="pt").to(pair.device)
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": tokenizer.pad_token_id}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    written = [pair.generate(**inputs, strength=strength, **options) for strength in (0.0, None)]
    alone, together = (output.sequences[0, inputs.input_ids.shape[1] :].tolist() for output in written)
    if alone == together:
        return None
    step = next(index for index, (a, b) in enumerate(zip(alone, together, strict=False)) if a != b)
    tops = [output.logits[step][0].float().softmax(-1).topk(5) for output in written]
    pilot_top, pair_top = (
        [(tokenizer.decode([token]), p) for token, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
        for top in tops
    )
    pilot_text, pair_text = (tokenizer.decode(tokens, skip_special_tokens=True) for tokens in (alone, together))
    return ChangedAnswer(problem, pilot_text, pair_text, tokenizer.decode(alone[:step]), pilot_top, pair_top)


def report_changes(
    pair: PilotCopilotForCausalLM, tokenizer: Any, problems: list[Example], found: Comparison
) -> ChangedAnswer | None:
    """Count the answers that the Copilot changed, and show one: one it put right, else one it spoiled, else any."""
    by_kind = changes(problems, found)
    kinds = sorted(by_kind, key=[(False, True), (True, False), (False, False), (True, True)].index)
    counts = [f"{len(by_kind[kind])} from {RIGHT[kind[0]]} to {RIGHT[kind[1]]}" for kind in kinds]
    total = sum(map(len, by_kind.values()))
    print(f"\nThe Copilot changed {total} of {len(problems)} answers{': ' if counts else ''}{', '.join(counts)}.")
    for kind in kinds:
        for index in by_kind[kind]:
            # Written again, one by one: without padding a rare answer comes out as before or another way.
            change = show_change(pair, tokenizer, problems[index])
            if change and (change.pilot_text, change.pair_text) == (found.pilot_texts[index], found.pair_texts[index]):
                print(f"One from {RIGHT[kind[0]]} to {RIGHT[kind[1]]}:\n\n{change}")
                return change
    return None


# ---- The whole ----


def run(out: Path, pilot: str | None, problems: ArithmeticProblems) -> None:
    """Run the demo and write its models, Mistake Log, test problems and figures.

    Args:
        out: folder for the result; a pair that `tcopilot generate --pair` understands.
        pilot: folder or hub id of a decoder-only Pilot; None takes the packaged SmolLM2-135M, converted to out/base.
        problems: to train, calibrate and test on.
    """
    started = time.perf_counter()

    def announce(text: str) -> None:
        print(f"\n[{time.perf_counter() - started:.0f} s] {text}", flush=True)

    example = problems.train[0]
    sizes = {name: len(rows) for name, rows in vars(problems).items()}
    prompt = example.prompt.replace("\n", "\n  ")
    print(INTRODUCTION.format(pilot=pilot or "SmolLM2-135M", prompt=prompt, completion=example.completion, **sizes))
    pair, tokenizer = build(pilot or packaged_smollm2(out.absolute() / "base"))
    announce("Timing training steps of the Pilot alone and of the pair, in turns.")
    training = time_training(pair, tokenizer, problems.train[: SETTINGS["per_device_train_batch_size"]])
    announce("Training: ce is the Pilot's loss, rmse the distance of the Copilot's predictions from the mistakes.")
    trainer = train(pair, tokenizer, problems.train, out)
    trainer.save_model()
    trainer.save_state()
    trainer.mistake_log.save(out / LOG_FILE)
    lines = (json.dumps(row, ensure_ascii=False) for row in to_rows(problems.test))
    (out / "test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    announce("Saved. Choosing lambda on the validation problems.")
    calibration = calibrate(pair, to_rows(problems.validation), tokenizer)
    pair.config.save_pretrained(out)
    pair.eval()
    announce("Timing decoding, then writing and scoring the test answers twice: lambda 0 is the Pilot alone.")
    decoding = time_decoding(pair, tokenizer, problems.test[0])
    found = compare(pair, tokenizer, problems.test, batch_size=64, max_new_tokens=NEW_TOKENS)
    timings = [training.row("training step, median"), decoding.row("decoded token, median")]
    print("", align([HEADER, *found.rows(), *timings]), sep="\n")
    print("'no difference shown': the interval of the difference includes 0. Of Brier score and NLL less is better.")
    change = report_changes(pair, tokenizer, problems.test, found)
    seconds = time.perf_counter() - started
    results = {
        "settings": SETTINGS | {"pilot": pilot or "SmolLM2-135M", "problems": sizes, "grades": GRADES},
        "metrics": {name: asdict(metric) for name, metric in found.metrics.items()},
        "strength": calibration.strength,
        "lambda_zero": calibration.lambda_zero,
        "training_step_seconds": asdict(training),
        "decoded_token_seconds": asdict(decoding),
        "changed_answer": change and asdict(change),
        "seconds": seconds,
        "environment": environment(),
    }
    (out / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    announce(f"Done; all is in {out}. Try it, and see what the Pilot gets wrong:\n")
    question = problems.test[0].prompt.replace("\n", "\\n")
    tcopilot = Path(sys.executable).with_name("tcopilot")
    print(f'  printf "{question}" | {tcopilot} generate --pair {out}\n  {tcopilot} log {out}')
    print(f"  {tcopilot} plot --pair {out} --dataset_name {out}/test.jsonl --out {out}/figures")


def main(argv: list[str] | None = None) -> int:
    """Run the demo from the command line; the exit code is 0, or 1 when something it needs is missing."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the results (%(default)s)")
    parser.add_argument("--pilot", help="folder or hub id of a decoder-only model (SmolLM2-135M from its package)")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.out, arguments.pilot, generate_problems(**PROBLEMS, seed=SETTINGS["seed"], grades=GRADES))
    except (ValueError, OSError, ImportError) as error:
        print(f"demo: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
