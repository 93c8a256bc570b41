"""A fresh Copilot from a Pilot's own layers."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from copilot.adapters import has_adapters
from copilot.config import ENCODER_DECODER, CopilotConfig
from copilot.model import CopilotModel
from copilot.tap import decoder_layers, text_config

# What `from_pilot` accepts beside the Pilot and its layers.
CHOICES = inspect.signature(CopilotConfig).parameters.keys() - {
    "decoder",
    "vocab_size",
    "pilot_hidden_size",
    "base_model_name_or_path",
    "pilot_dtype",
    "pilot_checksum",
    "kwargs",
}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def build_copilot(
    pilot: PreTrainedModel, source: PreTrainedModel, layers: int | str | list[int], config: dict[str, Any]
) -> CopilotModel:
    """A Copilot for `pilot` whose layers are copies of `source`'s; see `PilotCopilotModel.from_pilot`."""
    unknown = sorted(config.keys() - CHOICES)
    if unknown:
        raise ValueError(
            f"{unknown[0]} is no choice of a Copilot; accepted are {', '.join(sorted(CHOICES))} (options of loading "
            "the Pilot belong to its own from_pretrained)"
        )
    source_config = text_config(source)
    if source_config.model_type != text_config(pilot).model_type:
        raise ValueError(
            f"copilot_from must be of the Pilot's family {text_config(pilot).model_type!r}; "
            f"got {source_config.model_type!r}"
        )
    available = decoder_layers(source)
    picked = pick_layers(layers, len(available))
    lora = config.pop("lora", None)
    if pilot.get_output_embeddings() is None:
        raise ValueError(f"pilot must be a language model with its head; got a {type(pilot).__name__}")
    copilot_config = CopilotConfig(
        decoder=copilot_decoder_config(source_config, len(picked)),
        vocab_size=pilot.get_output_embeddings().weight.shape[0],
        pilot_hidden_size=text_config(pilot).hidden_size,
        base_model_name_or_path=pilot.config._name_or_path or None,
        **config,
    )
    with pilot.device:
        copilot = CopilotModel(copilot_config)
    for mine, index in zip(copilot.layers, picked, strict=True):
        copy_layer(mine, available[index], index)
    stack = source.get_decoder()
    final_norm = stack.final_layer_norm if copilot_config.is_encoder_decoder else stack.norm
    copilot.norm.load_state_dict(final_norm.state_dict())
    embedding = source.get_input_embeddings().weight
    if copilot.error_in.weight is not None and copilot.error_in.weight.shape == embedding.shape:
        copilot.error_in.weight.data.copy_(embedding)
    if lora is not None:
        copilot.inject_lora(lora)
    return copilot


def copy_layer(mine: nn.Module, layer: nn.Module, index: int) -> None:
    """Load a decoder layer's weights into a Copilot's layer of the same family.

    Raises:
        ValueError: the layer carries adapters, or its weights are quantised.
    """
    weights = layer.state_dict()
    unusable = [name for name in mine.state_dict() if name not in weights or weights[name].dtype not in FLOATS]
    if any("lora_" in name for name in weights):
        raise ValueError(f"pilot must not carry adapters yet: layer {index} lacks {unusable[0]}")
    if unusable:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(
            f"pilot must have weights of {accepted} to copy; layer {index} has no such {unusable[0]}. For a quantised "
            "Pilot pass the model it was made from as copilot_from"
        )
    mine.load_state_dict(weights, strict=False)  # relative positions are left behind


def evenly_spaced(count: int, total: int) -> list[int]:
    """`count` layer indices from 0 to total - 1, both ends included."""
    return torch.linspace(0, total - 1, count).round().int().tolist()


def pick_layers(layers: int | str | list[int], total: int) -> list[int]:
    """The layer indices that `layers` names; ValueError when there are no such layers."""
    if layers == "all":
        return list(range(total))
    if isinstance(layers, int) and layers >= 1:
        return evenly_spaced(min(layers, total), total)
    if isinstance(layers, list) and layers and all(0 <= index < total for index in layers):
        return layers
    raise ValueError(f"layers must be a number >= 1, 'all', or a list of indices below {total}; got {layers!r}")


def copilot_decoder_config(source: PretrainedConfig, layers: int) -> dict[str, Any]:
    """The source's configuration with another number of layers, in float32: the Copilot is trained in full."""
    fields = source.to_dict()
    for name in ("dtype", "layer_types", "quantization_config", "no_rope_layers", "_name_or_path", "architectures"):
        fields.pop(name, None)
    return fields | {"num_hidden_layers": layers, "num_layers": layers, "num_decoder_layers": layers}


def checksum_of(pilot: PreTrainedModel) -> str | None:
    """What tells Pilots of one name and type apart, such as a model and what was made of it by merging adapters.

    Returns:
        A hash of up to 64 numbers of each weight; None of a Pilot with adapters, or of weights that are no floats or on
        the meta device.
    """
    weights = list(pilot.parameters())
    if has_adapters(pilot) or any(weight.is_meta or weight.dtype not in FLOATS for weight in weights):
        return None
    some = [weight.detach().reshape(-1)[:: max(1, weight.numel() // 64)][:64].float() for weight in weights]
    return hashlib.sha256(torch.cat(some).cpu().numpy().tobytes()).hexdigest()


def is_another(pilot: PreTrainedModel, config: CopilotConfig) -> bool:
    """Whether a Pilot, of the type it had then, is not the one that a Copilot was saved beside."""
    same_type = str(pilot.dtype) == f"torch.{config.pilot_dtype}"
    return same_type and checksum_of(pilot) not in (None, config.pilot_checksum)


def check_attachable(pilot: PreTrainedModel, config: CopilotConfig) -> None:
    """Raise ValueError unless a Copilot of this configuration fits the Pilot."""
    own = text_config(pilot)
    places = set((getattr(pilot, "hf_device_map", None) or {}).values())
    if len(places) > 1:
        raise ValueError(f"pilot must be on one device, where its states are pooled; its layers are on {places}")
    if (own.model_type in ENCODER_DECODER) != config.is_encoder_decoder:
        raise ValueError(
            f"a Copilot for {config.decoder_config['model_type']!r} cannot be attached to {own.model_type!r}"
        )
    vocab_size = pilot.get_output_embeddings().weight.shape[0]
    if vocab_size != config.vocab_size:
        raise ValueError(f"the Copilot's vocabulary has {config.vocab_size} tokens; the Pilot's has {vocab_size}")
    if own.hidden_size != config.pilot_hidden_size:
        raise ValueError(
            f"the Copilot reads states of width {config.pilot_hidden_size}; the Pilot's have {own.hidden_size}"
        )
