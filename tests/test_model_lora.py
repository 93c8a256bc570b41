"""LoRA in the Copilot trains the adapters and the new maps, and survives saving."""

from __future__ import annotations

import pytest
import torch
from builders import batch_of, fresh_pair, random_pair
from inputs import delta_of, random_inputs

from copilot import CopilotModel

LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}
T5_LORA = LORA | {"target_modules": ["q", "v"]}


@pytest.mark.parametrize(("kind", "lora"), [("llama", LORA), ("t5", T5_LORA)])
def test_lora_trains_only_adapters_and_the_new_maps(kind, lora):
    pair = fresh_pair(kind, lora=lora)
    for name, parameter in pair.copilot.named_parameters():
        assert parameter.requires_grad == ("lora_" in name or not name.startswith("layers.")), name


def test_lora_in_the_copilot_leaves_the_pilot_trainable():
    pair = fresh_pair("llama", lora=LORA)
    assert all(parameter.requires_grad for parameter in pair.pilot.parameters())
    assert not any("lora_" in name for name, _ in pair.pilot.named_parameters())


def test_a_step_with_lora_moves_only_adapters_and_the_new_maps():
    pair = random_pair("llama", lora=LORA).train()
    before = {name: p.detach().clone() for name, p in pair.copilot.named_parameters()}
    optimizer = torch.optim.SGD(pair.copilot.parameters(), lr=0.1)
    pair(**batch_of("llama")).copilot_loss.backward()
    optimizer.step()
    moved = {name for name, p in pair.copilot.named_parameters() if not torch.equal(p, before[name])}
    assert any("lora_B" in name for name in moved)
    assert "head.weight" in moved
    assert not any(name.startswith("layers.") and "lora_" not in name for name in moved)


@pytest.mark.parametrize(("kind", "lora"), [("llama", LORA), ("t5", T5_LORA), ("qwen2", LORA | {"bias": "lora_only"})])
def test_a_copilot_with_lora_survives_saving(tmp_path, kind, lora):
    pair = random_pair(kind, lora=lora)
    with torch.no_grad():
        for name, parameter in pair.copilot.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    pair.copilot.save_pretrained(tmp_path)
    loaded = CopilotModel.from_pretrained(tmp_path).eval()
    inputs = random_inputs()
    assert torch.equal(delta_of(loaded, inputs), delta_of(pair.copilot, inputs))
    assert [n for n, p in loaded.named_parameters() if p.requires_grad] == [
        n for n, p in pair.copilot.named_parameters() if p.requires_grad
    ]
