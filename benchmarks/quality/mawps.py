"""MAWPS word problem -> equation: Pilot, Pilot + Copilot, the paper's literal form, and a Pilot with the extra compute.

    python benchmarks/quality/mawps.py --data DATA --pilot PILOT --seeds 0 1 2

All Copilots of a seed learn beside the very same Pilot: one Pilot forward a step, one Mistake Log each. lambda comes
from the validation file. Exact match, Brier score and NLL are measured on 120 problems held out of the training file
(the test file has no equations), answer accuracy on the test file, both by free greedy generation. Writes one JSON a
seed, skips seeds that are done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from torch import nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

from copilot import MistakeLog, PilotCopilotForCausalLM
from copilot.calibration import calibrate, collect, scores
from copilot.data import DataCollator, prepare_dataset
from copilot.environment import environment
from copilot.evaluation import evaluate, to_rows
from copilot.loss import pilot_loss
from copilot.pilots import cast_weights
from copilot.tasks import read_examples

ARMS = {
    "pair": {},
    "literal": {"rectifier": "linear", "candidates": None, "feedback": "predicted", "context_norm": False},
    "no_context_norm": {"context_norm": False},
}
HELD_OUT = 120


def length_grouped(lengths: list[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """Shuffled batches of rows of like length, so that little is padding."""
    order = torch.randperm(len(lengths), generator=generator).tolist()
    window = batch_size * 16
    batches = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda index: lengths[index])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def train(driver, pairs, rows, collate, steps: int, args, seed: int) -> dict[str, float]:
    """Train the Pilot of `driver`, and the Copilot of each of `pairs` on its own log; seconds spent on each."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [len(row) for row in rows["input_ids"]]
    models = {"pilot": (driver.pilot, args.learning_rate)} | {
        name: (pair.copilot, args.copilot_learning_rate) for name, pair in pairs.items()
    }
    optimizers, schedules = {}, {}
    for name, (model, rate) in models.items():
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizers[name] = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
        schedules[name] = get_cosine_schedule_with_warmup(optimizers[name], args.warmup_steps, steps)
    driver.train()
    for pair in pairs.values():
        pair.train()
        pair.mistake_log = MistakeLog(128, seed=seed)
    seconds = dict.fromkeys(models, 0.0)
    queue: list[list[int]] = []
    bar = tqdm(range(steps), desc=f"seed {seed}")
    for _ in bar:
        queue = queue or length_grouped(lengths, args.batch_size, generator)
        batch = collate([rows[index] for index in queue.pop()])

        def update(name: str, loss: torch.Tensor, started: float) -> None:
            loss.backward()
            nn.utils.clip_grad_norm_(models[name][0].parameters(), 1.0)
            optimizers[name].step()
            schedules[name].step()
            optimizers[name].zero_grad()
            seconds[name] += time.perf_counter() - started

        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            passed = driver.pilot_pass(**batch)
            loss = pilot_loss(passed.supervised_logits(), passed.supervision, 1)[0].mean()
        pilot_seconds = time.perf_counter() - started
        postfix = {"ce": loss.item()}
        for name, pair in pairs.items():
            started = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                copilot_loss = pair.losses(passed, 1.0, None).copilot_loss
            postfix[name] = copilot_loss.item()
            update(name, copilot_loss, started)
        update("pilot", loss, time.perf_counter() - pilot_seconds)
        bar.set_postfix(postfix)
    return seconds


def fresh_pilot(args):
    """The pretrained Pilot without adapters, its weights frozen."""
    pilot = AutoModelForCausalLM.from_pretrained(args.pilot, dtype=torch.float32)
    return pilot.requires_grad_(False)


def add_lora(pilot, seed: int) -> None:
    torch.manual_seed(seed)
    pilot.add_adapter(LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear"))


def measure(pair, tokenizer, splits, strength: float) -> dict:
    """Free generation on both splits and teacher-forced scores on the held-out problems, per example."""
    held = collect(pair, to_rows(splits["held_out"]), tokenizer, batch_size=32)
    scored = scores(held, strength, pair.config.rectifier, pair.config.fusion)
    options = {"strength": strength, "batch_size": 64, "max_new_tokens": 32}
    held_out = evaluate(pair, tokenizer, splits["held_out"], **options)
    test = evaluate(pair, tokenizer, splits["test"], **options)
    return {
        "strength": strength,
        "exact_match": held_out.exact.astype(int).tolist(),
        "answer_accuracy": test.correct.astype(int).tolist(),
        "brier": [round(value, 6) for value in scored.brier.tolist()],
        "nll": [round(value, 6) for value in scored.nll.tolist()],
        "tokens": scored.tokens.tolist(),
    }


def trained_longer(extra: float, rows, collate, steps: int, splits, args, tokenizer, seed: int) -> dict:
    """Scores of a Pilot alone after (1 + extra) times as many steps."""
    torch.manual_seed(seed)
    pair = PilotCopilotForCausalLM.from_pilot(fresh_pilot(args))
    add_lora(pair.pilot, seed)
    train(pair, {}, rows, collate, round(steps * (1 + extra)), args, seed)
    cast_weights(pair.pilot, torch.bfloat16)
    pair.mistake_log = None
    return measure(pair, tokenizer, splits, 0.0)


def run_seed(seed: int, args, tokenizer) -> dict:
    started = time.time()
    everything = read_examples(args.data, "mawps", "train")
    order = np.random.default_rng(seed).permutation(len(everything))
    held_out = [everything[index] for index in order[:HELD_OUT]]
    seen = {example.prompt for example in held_out}
    training = [everything[index] for index in order[HELD_OUT:] if everything[index].prompt not in seen][
        : args.train_size
    ]
    splits = {
        "held_out": held_out,
        "validation": read_examples(args.data, "mawps", "valid"),
        "test": read_examples(args.data, "mawps", "test"),
    }
    rows = prepare_dataset(to_rows(training), tokenizer)
    collate = DataCollator(tokenizer.pad_token_id)
    steps = round(args.epochs * len(rows) / args.batch_size)

    torch.manual_seed(seed)
    pilot = fresh_pilot(args)
    pairs = {name: PilotCopilotForCausalLM.from_pilot(pilot, **ARMS[name]) for name in args.arms}
    first = pairs[args.arms[0]]
    add_lora(pilot, seed)
    seconds = train(first, pairs, rows, collate, steps, args, seed)
    cast_weights(pilot, torch.bfloat16)  # two and a half times faster on CPUs that have it, and the same for every arm
    result = {"seed": seed, "steps": steps, "training_seconds": seconds, "arms": {}, "calibration": {}}
    for name, pair in pairs.items():
        pair.mistake_log = None
        found = calibrate(pair, to_rows(splits["validation"]), tokenizer, batch_size=32)
        result["calibration"][name] = {
            "strength": found.strength,
            "lambda_zero": found.lambda_zero,
            "brier_pilot": found.pilot.per_token()[0],
            "brier_pair": found.pair.per_token()[0],
        }
        print(seed, name, result["calibration"][name], flush=True)
    if args.probe:
        return result
    result["arms"]["pilot"] = measure(first, tokenizer, splits, 0.0)
    for name, pair in pairs.items():
        result["arms"][name] = measure(pair, tokenizer, splits, pair.config.strength)

    # A Pilot from the same start, its one schedule longer by the share of time that the Copilot took.
    extra = seconds[args.arms[0]] / seconds["pilot"]
    result["arms"]["pilot_extra_compute"] = trained_longer(extra, rows, collate, steps, splits, args, tokenizer, seed)
    result["extra_compute"] = extra
    result["seconds"] = time.time() - started
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder in the LLM-Adapters layout")
    parser.add_argument("--pilot", required=True, help="folder or id of SmolLM2-135M")
    parser.add_argument("--out", default="benchmarks/results/quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=["pair", "literal"], choices=ARMS)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--train_size", type=int, default=1000, help="training problems, of 1871")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--copilot_learning_rate", type=float, default=5e-4)
    parser.add_argument("--warmup_steps", type=int, default=20)
    parser.add_argument("--probe", action="store_true", help="stop after calibration, write nothing")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.pilot)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    for seed in args.seeds:
        path = Path(args.out) / f"mawps_seed{seed}.json"
        if path.exists() and not args.probe:
            continue
        result = run_seed(seed, args, tokenizer)
        if not args.probe:
            settings = {k: v for k, v in vars(args).items() if k not in ("data", "pilot", "out")}
            result |= {"settings": settings, "arms_config": ARMS, "commit": commit, "environment": environment()}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=None))


if __name__ == "__main__":
    main()
