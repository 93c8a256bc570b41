"""A Pilot in half precision, as checkpoints are loaded by default, and its Copilot in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import BOTH_KINDS, batch_of, fresh_pair, pair_class, random_ids, random_pair, tiny_pilot
from peft import LoraConfig

from copilot import PilotCopilotForCausalLM, calibrate
from copilot.config import TABLES
from copilot.trainer import CopilotTrainer
from copilot.training_arguments import CopilotTrainingArguments

both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)
# (type of the Pilot, both maps between vocabulary and Copilot, candidates)
DESIGNS = [(torch.bfloat16, table, k) for table in TABLES for k in (None, 8)] + [(torch.float16, "own", 8)]
ROWS = [{"prompt": f"w{i} w{i + 1}", "completion": f"w{3 * i} w{i}"} for i in range(8)]


def options(folder: Path, **changes: Any) -> CopilotTrainingArguments:
    fixed = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "max_steps": 2}
    return CopilotTrainingArguments(str(folder), **fixed | changes)


@pytest.mark.parametrize(("dtype", "table", "candidates"), DESIGNS)
@both_kinds
def test_the_copilot_of_a_half_precision_pilot_is_float32_and_works_beside_it(kind, dtype, table, candidates):
    pilot = tiny_pilot(kind).to(dtype)
    pair = random_pair(kind, pilot=pilot, head=table, error_in=table, candidates=candidates)
    assert {parameter.dtype for parameter in pair.copilot.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in pair.pilot.parameters()} == {dtype}
    assert pair(**batch_of(kind)).logits.dtype == torch.float32
    written = pair.generate(random_ids(2, 5), max_new_tokens=4, do_sample=False, num_beams=2)
    assert len(written) == 2
    pair.train()
    loss = pair(**batch_of(kind)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert any(parameter.grad.abs().sum() > 0 for parameter in pair.copilot.head.parameters())


@both_kinds
def test_its_layers_are_the_pilots_to_the_last_bit(kind):
    pilot = tiny_pilot(kind).bfloat16()
    pair = fresh_pair(kind, pilot=pilot, layers="all")
    source = pilot.decoder.block if kind == "t5" else pilot.model.layers
    for mine, layer in zip(pair.copilot.layers, source, strict=True):
        weights = layer.state_dict()
        assert all(torch.equal(value, weights[name].float()) for name, value in mine.state_dict().items())


@both_kinds
def test_it_survives_saving(tmp_path, kind):
    pair = random_pair(kind, pilot=tiny_pilot(kind).bfloat16())
    pair.save_pretrained(tmp_path, save_pilot=True)
    loaded = pair_class(kind).from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.copilot.parameters()} == {torch.float32}
    assert loaded.pilot.dtype == torch.bfloat16
    again = pair_class(kind).from_pretrained(tmp_path, pilot=pair.pilot)
    batch = batch_of(kind)
    assert torch.equal(again.eval()(**batch).logits, pair(**batch).logits)


@pytest.mark.parametrize(
    "arguments",
    [{"bf16": torch.cuda.is_available()}, {"bf16": True, "use_cpu": True}],
    ids=["as in the readme", "autocast"],
)
def test_the_example_of_the_readme_runs_on_a_bfloat16_checkpoint(tmp_path, tokenizer, arguments):
    tiny_pilot(vocab_size=len(tokenizer)).bfloat16().save_pretrained(tmp_path / "pilot")
    pair = PilotCopilotForCausalLM.from_pilot(tmp_path / "pilot", layers=2, candidates=8)
    lora = LoraConfig(r=2, target_modules="all-linear")
    settings = CopilotTrainingArguments(tmp_path / "out", **arguments)
    trainer = CopilotTrainer(pair, settings, train_dataset=ROWS, processing_class=tokenizer, peft_config=lora)
    trainer.train()
    assert {p.dtype for p in pair.pilot.parameters() if p.requires_grad} == {torch.float32}
    calibrate(pair, ROWS, tokenizer)
    pair.eval()
    inputs = tokenizer("w1 w2", return_tensors="pt").to(pair.device)
    pair.generate(**inputs, num_beams=4, max_new_tokens=3)
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.pilot.peft_config


def test_after_a_training_in_autocast_the_pair_computes_as_its_pilot_does(tmp_path, tokenizer):
    pair = fresh_pair(pilot=tiny_pilot(vocab_size=len(tokenizer)))
    CopilotTrainer(pair, options(tmp_path, bf16=True), ROWS, processing_class=tokenizer).train()
    ids = random_ids(1, 5)
    with torch.no_grad():
        alone, together = pair.pilot.eval()(ids).logits, pair.eval()(ids, strength=0.0).logits
    assert torch.equal(together, alone)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_a_quantised_pilot_is_refused(dtype):
    pilot = tiny_pilot()
    projection = pilot.model.layers[0].mlp.up_proj
    projection.weight = torch.nn.Parameter(projection.weight.data.to(dtype), requires_grad=False)
    message = r"^pilot must have weights of float32, .*layer 0 has no such mlp.up_proj.weight.*as copilot_from"
    with pytest.raises(ValueError, match=message):
        fresh_pair(pilot=pilot, layers=2)
    assert fresh_pair(pilot=pilot, layers=2, copilot_from=tiny_pilot()).copilot.dtype == torch.float32
