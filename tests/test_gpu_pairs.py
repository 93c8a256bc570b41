"""Pairs on a GPU: they decode, train, are calibrated and saved there as on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from builders import BOTH_KINDS, EOS, TEXT_ROWS, fresh_pair, prompts, random_pair, randomize, rows_of
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from copilot import CopilotTrainer, CopilotTrainingArguments, MistakeLog, PilotCopilotForCausalLM, calibrate
from copilot.calibration import theorem_quantities
from copilot.evaluation import complete
from copilot.ops import extension

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not extension.CUDA, reason="no kernels for CUDA")]
both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)

STEPS = 6


def prompts_on(device: str) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in prompts().items()}


# ---- Decoding ----


@both_kinds
@pytest.mark.parametrize("mode", [{}, {"candidates": None, "feedback": "predicted"}, {"fusion": "logit"}])
@pytest.mark.parametrize("options", [{}, {"num_beams": 4}, {"cache_implementation": "static"}])
def test_the_gpu_decodes_what_the_cpu_decodes(kind: str, mode: dict[str, Any], options: dict[str, Any]) -> None:
    pair = random_pair(kind, **mode)
    pair.config.strength = 0.6
    how = {"do_sample": False, "max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True} | options
    expected = pair.generate(**prompts_on("cpu"), **how)
    actual = pair.to("cuda").generate(**prompts_on("cuda"), **how)
    assert torch.equal(actual.sequences.cpu(), expected.sequences)
    for step, (scores, of_cpu) in enumerate(zip(actual.scores, expected.scores, strict=True)):
        torch.testing.assert_close(scores.exp().cpu(), of_cpu.exp(), rtol=1e-4, atol=1e-6, msg=f"step {step}")


@both_kinds
def test_strength_zero_is_the_pilots_own_generation(kind: str) -> None:
    pair = random_pair(kind).to("cuda")
    for options in ({"do_sample": False, "num_beams": 4}, {"do_sample": True, "temperature": 0.8, "top_k": 20}):
        written = []
        for model, strength in ((pair, {"strength": 0}), (pair.pilot, {})):
            torch.manual_seed(11)
            written.append(model.generate(**prompts_on("cuda"), max_new_tokens=12, **options, **strength))
        assert torch.equal(*written)


@both_kinds
def test_a_fresh_copilot_in_bfloat16_changes_nothing(kind: str) -> None:
    pair = fresh_pair(kind).to("cuda", torch.bfloat16)
    pair.config.strength = 1.0
    written = [
        model.generate(**prompts_on("cuda"), do_sample=False, max_new_tokens=12, eos_token_id=EOS)
        for model in (pair, pair.pilot)
    ]
    assert torch.equal(*written)


# ---- Training ----


@pytest.fixture
def train(tiny_pilot: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Any) -> Callable[..., CopilotTrainer]:
    def run(
        kind: str, device: str, *, resume: str | None = None, peft_config: LoraConfig | None = None, **options: Any
    ) -> CopilotTrainer:
        torch.manual_seed(1)
        pair = type(fresh_pair(kind)).from_pilot(tiny_pilot(kind), layers=2, candidates=8)
        settings: dict[str, Any] = {
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "copilot_learning_rate": 2e-3,
            "log_rounds": 3,
            "save_strategy": "no",
            "logging_steps": 1,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": device == "cpu",
        }
        arguments = CopilotTrainingArguments(str(tmp_path / "out"), **settings | options)
        trainer = CopilotTrainer(
            model=pair, args=arguments, train_dataset=TEXT_ROWS, processing_class=tokenizer, peft_config=peft_config
        )
        trainer.train(resume_from_checkpoint=resume)
        assert pair.device.type == device
        return trainer

    return run


def losses(trainer: CopilotTrainer) -> list[tuple[float, float]]:
    """The Pilot's and the Copilot's, of every step."""
    return [(line["ce"], line["rmse"]) for line in trainer.state.log_history if "ce" in line]


def assert_same_parameters(actual: torch.nn.Module, expected: torch.nn.Module, atol: float) -> None:
    named = dict(expected.named_parameters())
    for name, parameter in actual.named_parameters():
        difference = (parameter.detach().cpu() - named[name].detach().cpu()).abs().max().item()
        assert difference <= atol, f"{name}: {difference}"


@both_kinds
def test_the_gpu_trains_as_the_cpu_does(train: Callable[..., CopilotTrainer], kind: str) -> None:
    on_gpu, on_cpu = train(kind, "cuda"), train(kind, "cpu")
    assert len(losses(on_gpu)) == STEPS
    torch.testing.assert_close(torch.tensor(losses(on_gpu)), torch.tensor(losses(on_cpu)), rtol=1e-3, atol=1e-4)
    # Adam divides by the root of the squared gradient: where that is next to nothing, rounding decides the sign.
    for model in ("pilot", "copilot"):
        assert_same_parameters(getattr(on_gpu.model, model), getattr(on_cpu.model, model), atol=5e-4)


@both_kinds
def test_a_resumed_run_continues_on_a_gpu(train: Callable[..., CopilotTrainer], kind: str) -> None:
    whole = train(kind, "cuda", save_strategy="steps", save_steps=STEPS // 2, save_total_limit=None)
    folder = f"{whole.args.output_dir}/checkpoint-{STEPS // 2}"
    resumed = train(kind, "cuda", resume=folder)
    torch.testing.assert_close(losses(resumed)[-1], losses(whole)[-1], rtol=1e-4, atol=1e-5)
    assert_same_parameters(resumed.model, whole.model, atol=5e-5)


def test_bfloat16_and_lora_learn(train: Callable[..., CopilotTrainer]) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    trainer = train(
        "llama", "cuda", bf16=True, peft_config=lora, max_steps=60, learning_rate=1e-2, copilot_learning_rate=1e-2
    )
    first, *_, last = torch.tensor(losses(trainer)).split(10)
    assert {p.dtype for p in trainer.model.copilot.parameters()} == {torch.float32}
    assert (last.mean(0) < 0.96 * first.mean(0)).all()
    log = trainer.mistake_log
    assert isinstance(log, MistakeLog)
    assert len(log) == 6  # two batches a step


# ---- What follows ----


@both_kinds
def test_calibration_agrees_with_the_cpu(kind: str) -> None:
    pair = random_pair(kind)
    pair.copilot.head.weight.data.mul_(0.1)  # some lambda between 0 and 1
    found, quantities = [], []
    for device in ("cpu", "cuda"):
        pair.to(device)
        found.append(calibrate(pair, rows_of(kind)))
        quantities.append(astuple(theorem_quantities([pair], rows_of(kind))))
    on_cpu, on_gpu = found
    assert on_gpu.strength == pytest.approx(on_cpu.strength, abs=1e-5)
    torch.testing.assert_close(astuple(on_gpu.pair), astuple(on_cpu.pair), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(quantities[1], quantities[0], rtol=1e-4, atol=1e-6)


def test_written_completions_are_the_cpus(tokenizer: PreTrainedTokenizerFast, tiny_pilot: Any) -> None:
    pair = PilotCopilotForCausalLM.from_pilot(tiny_pilot("llama"), layers=2, candidates=8)
    randomize(pair.copilot)
    texts = ["w1 w2 w3", "w4", "w5 w6"]
    written = [
        complete(pair.to(device), tokenizer, texts, strength=0.5, do_sample=False, max_new_tokens=8)
        for device in ("cpu", "cuda")
    ]
    assert written[0] == written[1]
    assert all(written[0])


@both_kinds
def test_a_pair_saved_on_a_gpu_loads_on_a_cpu(kind: str, tmp_path: Any) -> None:
    pair = random_pair(kind).to("cuda")
    pair.save_pretrained(tmp_path, save_pilot=True)
    loaded = type(pair).from_pretrained(tmp_path)
    assert loaded.device.type == "cpu"
    assert_same_parameters(loaded, pair, atol=0)
    assert isinstance(loaded, PilotCopilotForCausalLM) == (kind == "llama")
