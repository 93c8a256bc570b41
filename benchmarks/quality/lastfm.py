"""LastFM, next item from the item sequence: a small T5-style model trained from scratch, alone and with a Copilot.

    python benchmarks/quality/lastfm.py --data DATA/sequences/LastFM.txt --seeds 0 1 2

Leave-one-out: a user's last item is the test, the one before it the validation; lambda comes from the validation items.
The decoder's one supervised token is the item, so the rectified distribution ranks all items at once. Also measured:
the same Pilot, from the same start, trained longer by the time the Copilot took. Writes one JSON a seed, skips seeds
that are done.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import T5Config, T5ForConditionalGeneration, get_cosine_schedule_with_warmup

from copilot import MistakeLog, PilotCopilotForSeq2SeqLM
from copilot.calibration import calibrate
from copilot.data import DataCollator
from copilot.environment import environment
from copilot.tasks import read_item_sequences

ARMS = {
    "pair": {},
    "literal": {"rectifier": "linear", "candidates": None, "feedback": "predicted", "context_norm": False},
}
HISTORY = 50


def rows_of(steps) -> list[dict[str, list[int]]]:
    """Encoder input: the most recent items; decoder target: the next item (the padding token 0 starts the decoder)."""
    return [{"input_ids": list(step.history[-HISTORY:]), "labels": [step.target]} for step in steps]


def fresh_pilot(n_items: int, seed: int) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=n_items + 1,
            d_model=64,
            d_kv=16,
            d_ff=256,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.2,
            pad_token_id=0,
            decoder_start_token_id=0,
            eos_token_id=0,
        )
    )


def train(driver, pairs, users, collate, steps: int, args, seed: int) -> dict[str, float]:
    """Train the Pilot of `driver`, and the Copilot of each of `pairs` on its own log; seconds spent on each."""
    generator = random.Random(seed)
    models = {"pilot": (driver.pilot, args.learning_rate)} | {
        name: (pair.copilot, args.copilot_learning_rate) for name, pair in pairs.items()
    }
    optimizers, schedules = {}, {}
    for name, (model, rate) in models.items():
        optimizers[name] = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
        schedules[name] = get_cosine_schedule_with_warmup(optimizers[name], steps // 20, steps)
    driver.train()
    for pair in pairs.values():
        pair.train()
        pair.mistake_log = MistakeLog(128, seed=seed)
    seconds = dict.fromkeys(models, 0.0)

    def update(name: str, loss: torch.Tensor, started: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(models[name][0].parameters(), 1.0)
        optimizers[name].step()
        schedules[name].step()
        optimizers[name].zero_grad()
        seconds[name] += time.perf_counter() - started

    bar = tqdm(range(steps), desc=f"seed {seed}")
    for step in bar:
        # A random user and a random point in that user's training items.
        rows = []
        for items in generator.choices(users, k=args.batch_size):
            position = generator.randrange(1, len(items))
            rows.append({"input_ids": items[max(0, position - HISTORY) : position], "labels": [items[position]]})
        batch = collate(rows)
        started = time.perf_counter()
        passed = driver.pilot_pass(**batch)
        loss = nn.functional.cross_entropy(passed.supervised_logits(), passed.supervision.target)
        pilot_seconds = time.perf_counter() - started
        for name, pair in pairs.items():
            started = time.perf_counter()
            update(name, pair.losses(passed, 1.0, None).copilot_loss, started)
        update("pilot", loss, time.perf_counter() - pilot_seconds)
        if step % 50 == 0:
            bar.set_postfix(ce=loss.item())
    return seconds


@torch.no_grad()
def ranks(pair, rows, collate, strength: float) -> list[int]:
    """1-based rank of the true item among all items, those of equal probability shared in its favour by half."""
    pair.eval()
    found = []
    for start in range(0, len(rows), 128):
        batch = collate(rows[start : start + 128])
        scores = pair(**batch, strength=strength).logits[:, 0].float()
        scores[:, 0] = -torch.inf  # padding is no item
        true = scores.gather(1, batch["labels"])
        above, equal = (scores > true).sum(1), (scores == true).sum(1) - 1
        found += (1 + above + equal // 2).tolist()
    return found


def run_seed(seed: int, args) -> dict:
    sequences = read_item_sequences(args.data)
    users = [items for items in sequences.training_items() if len(items) > 1]
    validation = rows_of(sequences.leave_one_out("validation"))
    test = rows_of(sequences.leave_one_out("test"))
    collate = DataCollator(0, is_encoder_decoder=True)
    pilot = fresh_pilot(sequences.n_items, seed)
    pairs = {name: PilotCopilotForSeq2SeqLM.from_pilot(pilot, layers="all", **ARMS[name]) for name in args.arms}
    first = pairs[args.arms[0]]
    seconds = train(first, pairs, users, collate, args.steps, args, seed)
    result = {"seed": seed, "steps": args.steps, "training_seconds": seconds, "calibration": {}, "arms": {}}
    result["arms"]["pilot"] = {"strength": 0.0, "ranks": ranks(first, test, collate, 0.0)}
    for name, pair in pairs.items():
        pair.mistake_log = None
        found = calibrate(pair, validation, batch_size=128)
        result["calibration"][name] = {
            "strength": found.strength,
            "lambda_zero": found.lambda_zero,
            "brier_pilot": found.pilot.per_token()[0],
            "brier_pair": found.pair.per_token()[0],
        }
        result["arms"][name] = {"strength": found.strength, "ranks": ranks(pair, test, collate, found.strength)}
    extra = seconds[args.arms[0]] / seconds["pilot"]
    longer = PilotCopilotForSeq2SeqLM.from_pilot(fresh_pilot(sequences.n_items, seed), layers="all")
    train(longer, {}, users, collate, round(args.steps * (1 + extra)), args, seed)
    result["arms"]["pilot_extra_compute"] = {"strength": 0.0, "ranks": ranks(longer, test, collate, 0.0)}
    return result | {"extra_compute": extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a file with one user a line")
    parser.add_argument("--out", default="benchmarks/results/quality")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--copilot_learning_rate", type=float, default=3e-3)
    args = parser.parse_args()
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    for seed in args.seeds:
        path = Path(args.out) / f"lastfm_seed{seed}.json"
        if path.exists():
            continue
        result = run_seed(seed, args)
        settings = {k: v for k, v in vars(args).items() if k not in ("data", "out")}
        result |= {"settings": settings, "arms_config": ARMS, "commit": commit, "environment": environment()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
