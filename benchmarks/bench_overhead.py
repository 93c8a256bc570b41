"""What a Copilot costs: a training step and greedy decoding, the Pilot alone against Pilot + Copilot.

    python -m pytest benchmarks/bench_overhead.py --benchmark-only --results benchmarks/results/cpu

The Pilot is PILOT of the environment (a folder or a hub id), else SmolLM2-135M from its Python package; the data are
random. Some five minutes on two cores. Without --results the figures are in pytest-benchmark's extra_info only.

A round runs every variant once in turn, and a ratio is taken within its round: whatever slows the machine down for a
while slows all of them down. Beside each ratio stands its floor, the same ratio of the work that cannot be avoided;
the formulas stand above `pilot_flops` and `pilot_bytes`.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from copilot import CopilotModel, MistakeLog, PilotCopilotForCausalLM
from copilot.loss import pilot_loss
from copilot.pilots import packaged_smollm2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

PILOT = "Pilot"
EVERY_LOGIT = "Pilot, logits of every position"
OUR_LOSS = "Pilot, the pairs' loss"
LAYERS: tuple[int | str, ...] = (3, 6, "all")
PAIRS = {
    f"{layers} layers, {'full vocabulary' if k is None else f'{k} candidates'}": (layers, k)
    for layers in LAYERS
    for k in (32, None)
}

BATCH, LENGTH, SUPERVISED = 16, 64, 20  # of a training step
KEPT = SUPERVISED + 1  # of transformers' positions with logits: those that predict a supervised token, and the last one
BATCHES, PROMPT, NEW_TOKENS = (1, 16), 64, 24  # of decoding
COMPILED, COMPILED_TOKENS = [PILOT, "6 layers, 32 candidates"], 96  # of decoding with a static cache, compiled
SETTINGS = {
    "training": f"LoRA r=32, AdamW, bfloat16 autocast, {BATCH} x {LENGTH} tokens, {SUPERVISED} supervised in each",
    "decoding": f"greedy, bfloat16 weights, prompts of {PROMPT} tokens, {NEW_TOKENS} new ones, "
    f"compiled {COMPILED_TOKENS}",
}

# Rounds of one benchmark: as many as its seconds allow, by its second warm-up round, within these bounds.
BUDGET = 55.0 if DEVICE.type == "cpu" else 12.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 20

Run = Callable[[], dict[str, float]]


def now() -> float:
    """Seconds, after all work given to the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(benchmark: Any, runs: dict[str, Run]) -> dict[str, dict[str, list[float]]]:
    """Run the variants in turn, round after round: {quantity: {variant: [seconds in each round]}}."""
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def one_round() -> None:
        for name, run in runs.items():
            for quantity, value in run().items():
                seconds[quantity][name].append(value)

    one_round()  # sets up whatever is set up once
    started = now()
    one_round()
    rounds = int(BUDGET / (now() - started))
    seconds.clear()
    benchmark.pedantic(one_round, rounds=min(max(rounds, FEWEST_ROUNDS), MOST_ROUNDS))
    return seconds


def summarise(
    seconds: dict[str, list[float]], unit: str | None = None, work: dict[str, int] | None = None
) -> dict[str, Any]:
    """Seconds and ratio to the Pilot of every variant (p20, median, p80), and the floor, if the work is known."""
    pilot = np.array(seconds[PILOT])
    variants = {
        name: {
            "seconds": np.quantile(values, [0.2, 0.5, 0.8]).tolist(),
            "ratio": np.quantile(np.array(values) / pilot, [0.2, 0.5, 0.8]).tolist(),
            "work": None if work is None else work[name],
            "floor": None if work is None else work[name] / work[PILOT],
        }
        for name, values in seconds.items()
    }
    return {"rounds": len(pilot), "unit_of_work": unit, "variants": variants}


@pytest.fixture(scope="module")
def pilot_name(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder or a hub id."""
    return os.environ.get("PILOT") or packaged_smollm2(tmp_path_factory.mktemp("pilots") / "smollm2-135m")


@pytest.fixture(scope="module")
def figures(write_results: Callable[[str, dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
    """What the benchmarks found, by case; written down when all of them have succeeded."""
    found: dict[str, Any] = {"settings": SETTINGS, "cases": {}}
    yield found
    if len(found["cases"]) == 1 + 2 * len(BATCHES) + (DEVICE.type == "cuda"):
        write_results("overhead", found)


def load_pairs(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, dict[int | str, PilotCopilotForCausalLM]]:
    """The Pilot, frozen, and one pair for each number of layers; candidates are chosen run by run."""
    pilot = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(DEVICE).requires_grad_(False)
    pairs = {layers: PilotCopilotForCausalLM.from_pilot(pilot, layers=layers) for layers in LAYERS}
    for pair in pairs.values():
        pair.copilot.to(dtype)
    return pilot, pairs


def describe(pilot: PreTrainedModel) -> dict[str, Any]:
    """The Pilot's size, by which results name it."""
    config = pilot.config
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocab_size": config.vocab_size,
        "parameters": pilot.num_parameters(),
    }


def random_ids(pilot: PreTrainedModel, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(pilot.config.vocab_size, shape, generator=generator).to(DEVICE)


# Training. A matrix of P parameters costs 2 P FLOPs a token forward, 2 P for the gradient of its input and 2 P for its
# own gradient: 6 P when trained, 4 P when frozen. Left out, on both sides: attention scores, norms, the softmax of the
# losses and the optimizer, whose AdamW passes over all V x c tables of the Copilot whatever the candidates.


def pilot_flops(pilot: PreTrainedModel, positions: int) -> int:
    """Of a step with LoRA, with logits at `positions` of the batch's positions."""
    layers = [p for p in pilot.get_decoder().layers.parameters() if p.dim() == 2]
    in_layers = sum((6 if p.requires_grad else 4) * p.numel() for p in layers) * BATCH * LENGTH
    return in_layers + 4 * pilot.get_output_embeddings().weight.numel() * positions


def copilot_flops(copilot: CopilotModel, candidates: int | None) -> int:
    """Of a step on a round of this batch.

    Its tokens are the supervised ones; keys and values of cross-attending layers also see the context, every token
    that is not supervised. The head makes k (or V) products a token. The mistake input reads k + 1 rows (or V), and its
    own input needs no gradient: 4 instead of 6.
    """
    tokens, context = BATCH * SUPERVISED, BATCH * (LENGTH - SUPERVISED)
    flops = 0
    for index, layer in enumerate(copilot.layers):
        for name, parameter in layer.named_parameters():
            if parameter.dim() == 2:
                reads_context = copilot.cross_attends(index) and name.startswith(("self_attn.k", "self_attn.v"))
                flops += 6 * parameter.numel() * (tokens + context if reads_context else tokens)
    vocabulary, width = copilot.head.weight.shape
    rows_out, rows_in = (vocabulary, vocabulary) if candidates is None else (candidates, candidates + 1)
    return flops + (6 * rows_out + 4 * rows_in) * width * tokens


def training_flops(pilot: PreTrainedModel, pairs: dict[int | str, PilotCopilotForCausalLM]) -> dict[str, int]:
    """FLOPs of a step of every variant."""
    supervised = pilot_flops(pilot, BATCH * SUPERVISED)
    work = {
        PILOT: pilot_flops(pilot, BATCH * KEPT),
        EVERY_LOGIT: pilot_flops(pilot, BATCH * LENGTH),
        OUR_LOSS: supervised,
    }
    return work | {name: supervised + copilot_flops(pairs[layers].copilot, k) for name, (layers, k) in PAIRS.items()}


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW on what is trained, at a rate that keeps random data harmless."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)


def update(*models: tuple[nn.Module, torch.optim.Optimizer]) -> None:
    """Clip each model by itself and step, as `copilot.loop` does."""
    for model, optimizer in models:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def test_training_step(benchmark: Any, figures: dict[str, Any], pilot_name: str) -> None:
    """Forward, backward and optimizer step; the Pilot's logits are computed where a supervised token is predicted.

    Transformers' own Trainer computes them everywhere: that is a variant of its own. So is the Pilot with the loss that
    the pairs take of it, by the kernel: the saving is part of theirs. The pairs append to a log and draw from it; both
    numbers of candidates train one Copilot.
    """
    pilot, pairs = load_pairs(pilot_name, torch.float32)
    pilot.add_adapter(LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules="all-linear"))
    pilot.train()
    ids = random_ids(pilot, BATCH, LENGTH)
    labels = ids.clone()
    labels[:, :-SUPERVISED] = -100
    of_pilot = pilot, optimizer_of(pilot)

    def pilot_step(positions: int) -> dict[str, float]:
        started = now()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            output = pilot(input_ids=ids, labels=labels[:, -positions:], logits_to_keep=positions, use_cache=False)
        output.loss.backward()
        update(of_pilot)
        return {"training step": now() - started}

    def our_step(pair: PilotCopilotForCausalLM) -> dict[str, float]:
        started = now()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            passed = pair.pilot_pass(input_ids=ids, labels=labels)
            loss = pilot_loss(passed.logits, passed.supervision, 1)[0].mean()
        loss.backward()
        update(of_pilot)
        return {"training step": now() - started}

    def pair_step(pair: PilotCopilotForCausalLM, candidates: int | None, log: MistakeLog, of_copilot: Any) -> Run:
        def step() -> dict[str, float]:
            pair.config.candidates, pair.mistake_log = candidates, log
            started = now()
            with torch.autocast(DEVICE.type, torch.bfloat16):
                output = pair(input_ids=ids, labels=labels)
            output.loss.backward()
            update(of_pilot, of_copilot)
            return {"training step": now() - started}

        return step

    runs: dict[str, Run] = {
        PILOT: lambda: pilot_step(KEPT),
        EVERY_LOGIT: lambda: pilot_step(LENGTH),
        OUR_LOSS: lambda: our_step(pairs[LAYERS[0]]),
    }
    optimizers = {layers: optimizer_of(pair.copilot) for layers, pair in pairs.items()}
    for name, (layers, k) in PAIRS.items():
        pair = pairs[layers].train()
        runs[name] = pair_step(pair, k, MistakeLog(), (pair.copilot, optimizers[layers]))
    work = training_flops(pilot, pairs)

    seconds = interleave(benchmark, runs)
    case = summarise(seconds["training step"], "FLOPs of matrix products", work)
    benchmark.extra_info["training step"] = case
    figures["cases"]["training step"] = case


# Decoding. A step must read every weight it multiplies with once, however many sequences there are. Left out, on both
# sides: the caches of keys and values, and activations.


def pilot_bytes(pilot: PreTrainedModel, batch: int) -> int:
    """Parameters the Pilot reads in one step: all but its input embedding, of which it reads one row a sequence."""
    embedding, output = pilot.get_input_embeddings().weight, pilot.get_output_embeddings().weight
    inside = sum(p.numel() for p in pilot.get_decoder().parameters()) - embedding.numel()
    return (inside + output.numel() + batch * embedding.shape[1]) * output.element_size()


def copilot_bytes(copilot: CopilotModel, candidates: int | None, batch: int) -> int:
    """Parameters the Copilot reads in one step: of its head k rows a sequence, of its mistake input k + 1, or all."""
    head, error_in = copilot.head.weight, copilot.error_in.weight
    vocabulary, width = head.shape
    inside = sum(p.numel() for p in copilot.parameters()) - head.numel() - error_in.numel()
    rows = [vocabulary, vocabulary] if candidates is None else [batch * candidates, batch * (candidates + 1)]
    return (inside + sum(min(count, vocabulary) for count in rows) * width) * head.element_size()


def decoding_bytes(
    pilot: PreTrainedModel, pairs: dict[int | str, PilotCopilotForCausalLM], batch: int
) -> dict[str, int]:
    """Bytes of parameters read in a step of every variant."""
    alone = pilot_bytes(pilot, batch)
    of_pairs = {name: alone + copilot_bytes(pairs[layers].copilot, k, batch) for name, (layers, k) in PAIRS.items()}
    return {PILOT: alone} | of_pairs


class StepTimes(BaseStreamer):
    """When `generate` took the prompt, and when it had each new token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(now())

    def end(self) -> None:
        pass


def decode(model: Any, prompts: Tensor, tokens: int = NEW_TOKENS, **options: Any) -> dict[str, float]:
    """Seconds from the prompt to the first token, and of each token after it."""
    clock = StepTimes()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        pad_token_id=0,
        streamer=clock,
        **options,
    )
    start, first, *_, last = clock.times
    return {"prompt": first - start, "token": (last - first) / (tokens - 1)}


def decoding_runs(
    pilot: PreTrainedModel, pairs: dict[int | str, PilotCopilotForCausalLM], prompts: Tensor, **options: Any
) -> dict[str, Run]:
    """Of every variant; a fresh Copilot costs what a trained one does."""

    def pair_run(pair: PilotCopilotForCausalLM, candidates: int | None) -> Run:
        def run() -> dict[str, float]:
            pair.config.candidates = candidates
            return decode(pair, prompts, **options)

        return run

    runs: dict[str, Run] = {PILOT: lambda: decode(pilot, prompts, **options)}
    return runs | {name: pair_run(pairs[layers].eval(), k) for name, (layers, k) in PAIRS.items()}


@pytest.mark.parametrize("batch", BATCHES)
def test_decoding(benchmark: Any, figures: dict[str, Any], pilot_name: str, batch: int) -> None:
    """Greedy `generate` with a dynamic cache."""
    pilot, pairs = load_pairs(pilot_name, torch.bfloat16)
    figures["pilot"] = describe(pilot)
    seconds = interleave(benchmark, decoding_runs(pilot, pairs, random_ids(pilot, batch, PROMPT)))
    unit = "bytes of parameters"
    cases = {
        f"prompt, batch {batch}": summarise(seconds["prompt"]),
        f"token, batch {batch}": summarise(seconds["token"], unit, decoding_bytes(pilot, pairs, batch)),
    }
    benchmark.extra_info.update(cases)
    figures["cases"] |= cases


@pytest.mark.skipif(DEVICE.type == "cpu", reason="transformers compiles on a GPU alone")
def test_compiled_decoding(benchmark: Any, figures: dict[str, Any], pilot_name: str) -> None:
    """Greedy `generate` with a static cache: each token after the first is one CUDA graph."""
    pilot, pairs = load_pairs(pilot_name, torch.bfloat16)
    options = {"tokens": COMPILED_TOKENS, "cache_implementation": "static"}
    every = decoding_runs(pilot, pairs, random_ids(pilot, 1, PROMPT), **options)
    seconds = interleave(benchmark, {name: every[name] for name in COMPILED})
    case = summarise(seconds["token"], "bytes of parameters", decoding_bytes(pilot, pairs, 1))
    benchmark.extra_info["compiled token, batch 1"] = case
    figures["cases"]["compiled token, batch 1"] = case
