"""What a Pilot's adapters change when it is loaded and saved, and what a save leaves of an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils.save_and_load import load_peft_weights
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME


def has_adapters(pilot: PreTrainedModel) -> bool:
    """Whether a Pilot trains adapters, so that only these are saved."""
    return bool(getattr(pilot, "peft_config", None))


def inject_adapter(pilot: PreTrainedModel, peft_config: PeftConfig) -> None:
    """Add a trainable adapter to a Pilot that has none. Where peft refuses, the Pilot stays as it was."""
    trainable = [(parameter, parameter.requires_grad) for parameter in pilot.parameters()]
    try:
        pilot.add_adapter(peft_config)
    except Exception:  # by then some layers may be wrapped, all weights frozen, and the Pilot marked as having adapters
        for name, module in list(pilot.named_modules()):
            if isinstance(module, BaseTunerLayer):
                pilot.set_submodule(name, module.get_base_layer())
        for parameter, was_trainable in trainable:
            parameter.requires_grad_(was_trainable)
        pilot._hf_peft_config_loaded = False
        raise


def check_restorable(config: PeftConfig) -> None:
    """Raise ValueError for adapters that cannot be saved, or that come back as others."""
    start = getattr(config, "init_lora_weights", None)
    if isinstance(start, str) and start.startswith("pissa_niter"):
        raise ValueError(f"init_lora_weights is {start!r}: loading draws another decomposition; 'pissa' is exact")
    if config.peft_type == PeftType.RANDLORA:
        raise ValueError("RandLoRA is not supported: its layers share tensors, which cannot be saved")
    if getattr(config, "layer_replication", None):
        raise ValueError("layer_replication is not supported: the Copilot reads the Pilot's original layers")


def restore_adapter(pilot: PreTrainedModel, source: str, **hub: Any) -> None:
    """Make the adapter that a Pilot was loaded with trainable, in float32 as it was trained.

    transformers loads it frozen and rounded to the Pilot's type.

    Args:
        pilot: changed in place.
        source: folder or hub id of the adapter.
        **hub: options of the download.
    """
    name = pilot.active_adapters()[0]
    pilot.set_adapter(name)
    cast_adapter_dtype(pilot, name)
    saved = load_peft_weights(source, device=str(pilot.device), **hub)
    weights = {key.removeprefix("base_model.model."): value for key, value in saved.items()}
    set_peft_model_state_dict(pilot, weights, adapter_name=name)


def check_pilot_survives(folder: Path, pilot: PreTrainedModel, adapted: bool) -> None:
    """Raise ValueError where a pair saved in `folder` would replace the model it was made from.

    In the folder itself the Copilot's files take a Pilot's place, in its `pilot` adapters that of the model under them.
    """
    if not pilot.name_or_path:
        return
    origin = Path(pilot.name_or_path).resolve()
    if origin == folder.resolve() or (adapted and origin == (folder / "pilot").resolve()):
        raise ValueError(f"the Pilot was loaded from {origin}, where the pair's files would replace it; save elsewhere")


def discard_other_kind(folder: Path, pilot: PreTrainedModel) -> None:
    """Delete adapters saved before beside a Pilot's weights, or the weights and configuration beside its adapters.

    Both would be loaded, and where there is a configuration, transformers looks for weights beside it.
    """
    for pattern in ("model*.safetensors*", "config.json") if has_adapters(pilot) else ("adapter_*",):
        for path in folder.glob(pattern):
            path.unlink()


def discard_older_weights(folder: Path) -> None:
    """Delete weights saved before in one file beside those in shards, which would be loaded instead of these.

    transformers itself deletes older shards.
    """
    if any(folder.glob("model-*-of-*.safetensors")):
        (folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)
