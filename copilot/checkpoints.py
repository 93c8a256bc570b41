"""A checkpoint of `CopilotTrainer`: checked and read as a whole, then its weights put in place."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from copilot.adapters import has_adapters
from copilot.config import DESIGN, CopilotConfig
from copilot.model import CopilotModel
from copilot.pair import PilotCopilotModel

ADAPTER_PREFIX = "base_model.model."  # save_pretrained writes it before each name of an adapter
ADAPTER_CHOICES = ("lora_alpha", "alpha_pattern", "use_rslora", "lora_dropout")  # which its weights do not show


def check_resumable(checkpoint: Path, config: CopilotConfig, groups: list[int], process: int, processes: int) -> None:
    """Raise ValueError where Trainer would fail, or go on differently, after the weights have been changed.

    Args:
        checkpoint: its folder.
        config: the Copilot's of the run that would be resumed.
        groups: how many parameters each group of that run's optimizer has.
        process, processes: the number of this one, and how many there are.
    """
    archives = ["optimizer.pt", "scheduler.pt", f"rng_state_{process}.pth" if processes > 1 else "rng_state.pth"]
    missing = [name for name in ["trainer_state.json", *archives] if not (checkpoint / name).is_file()]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    saved_config = CopilotConfig.from_pretrained(checkpoint)
    for name in (*DESIGN, "lora"):
        saved_choice, choice = getattr(saved_config, name), _as_saved(getattr(config, name))
        if saved_choice != choice:
            raise ValueError(f"its Copilot has {name}={saved_choice!r}, this run's has {choice!r}")
    logs = len(list(checkpoint.glob("mistake_log_*.safetensors")))
    if logs != processes:
        raise ValueError(f"it holds the Mistake Logs of {logs} processes, this run has {processes}")
    json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    truncated = [name for name in archives if not zipfile.is_zipfile(checkpoint / name)]
    if truncated:
        raise ValueError(f"{', '.join(truncated)} is truncated")
    saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", mmap=True, weights_only=True)
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != groups:
        raise ValueError(f"its optimizer has groups of {sizes} parameters, this run's has {groups}")


def read_weights(pair: PilotCopilotModel, directory: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read what `pair.save_pretrained(directory, save_pilot=True)` wrote, without changing the pair.

    Returns:
        State of the Copilot, and of the Pilot or, when it has adapters, of its active adapter.

    Raises:
        ValueError: weights that are not this pair's.
    """
    copilot = read_model(CopilotModel, directory)
    check_equal_shapes("Copilot", copilot, pair.copilot.state_dict())
    if has_adapters(pair.pilot):
        saved = load_file(directory / "pilot" / "adapter_model.safetensors")
        pilot = {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in saved.items()}
        check_equal_shapes("Pilot's adapter", pilot, pair.pilot.get_adapter_state_dict())
        adapter = pair.pilot.peft_config[pair.pilot.active_adapters()[0]]
        check_equal_choices(PeftConfig.from_pretrained(directory / "pilot"), adapter)
    else:
        pilot = read_model(type(pair.pilot), directory / "pilot")
        check_equal_shapes("Pilot", pilot, pair.pilot.state_dict())
    return copilot, pilot


def read_model(model_class: type[PreTrainedModel], directory: Path) -> dict[str, Tensor]:
    """State of a saved model; its own class knows how it was written (shards, renamed and tied weights)."""
    # The configuration's type would round what is wider, a float32 head of a bfloat16 Pilot; float32 rounds nothing.
    model, info = model_class.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    if info["missing_keys"]:
        raise ValueError(f"{directory} lacks the weights {sorted(info['missing_keys'])[:3]}")
    return model.state_dict()


def check_equal_shapes(owner: str, saved: dict[str, Tensor], current: dict[str, Tensor]) -> None:
    """Raise ValueError, naming some of the tensors that one side lacks or that differ in shape."""
    saved_shapes = {(name, tuple(tensor.shape)) for name, tensor in saved.items()}
    current_shapes = {(name, tuple(tensor.shape)) for name, tensor in current.items()}
    if saved_shapes != current_shapes:
        raise ValueError(
            f"its {owner} has the weights {sorted(saved_shapes - current_shapes)[:3]}, "
            f"this run's has {sorted(current_shapes - saved_shapes)[:3]}"
        )


def check_equal_choices(saved: PeftConfig, current: PeftConfig) -> None:
    """Raise ValueError where the Pilot's adapter would act otherwise than the saved one with the same weights."""
    for name in ADAPTER_CHOICES:
        saved_choice, choice = getattr(saved, name, None), _as_saved(getattr(current, name, None))
        if saved_choice != choice:
            raise ValueError(f"its Pilot's adapter has {name}={saved_choice!r}, this run's has {choice!r}")


def _as_saved(value: Any) -> Any:
    """What a JSON file makes of a value: a list of a tuple or a set."""
    return json.loads(json.dumps(value, default=sorted))


def write_weights(pair: PilotCopilotModel, copilot: dict[str, Tensor], pilot: dict[str, Tensor]) -> None:
    """Put the result of `read_weights` into the pair, in place."""
    pair.copilot.load_state_dict(copilot)
    if has_adapters(pair.pilot):
        set_peft_model_state_dict(pair.pilot, pilot, adapter_name=pair.pilot.active_adapters()[0])
    else:
        pair.pilot.load_state_dict(pilot)
