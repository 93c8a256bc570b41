"""The Pilots of the experiments: fine-tuned with LoRA, enlarged, or trained from scratch."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from copilot.building import pick_layers
from copilot.tap import decoder_layers


def pretrained(name: str, **options: Any) -> PreTrainedModel:
    """A pretrained decoder-only Pilot, frozen, in float32."""
    # Eager attention: at these lengths a step on a CPU takes three quarters of the time.
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    return AutoModelForCausalLM.from_pretrained(name, **options).requires_grad_(False)


def add_lora(pilot: PreTrainedModel, lora: dict[str, Any], seed: int) -> None:
    """Give a frozen Pilot adapters to train, and make it ready for autocast to bfloat16 where that is fast.

    Its own matrices become bfloat16, as autocast would make them anew in each forward. Logits stay float32: rounded to
    bfloat16, the likeliest tokens would often be equally likely. On a CPU without AVX-512, where a product in bfloat16
    takes many times that in float32, all stays float32.
    """
    torch.manual_seed(seed)
    pilot.add_adapter(LoraConfig(target_modules="all-linear", **lora))
    if not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return
    head = pilot.get_output_embeddings()
    for module in pilot.modules():
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad:
            module.weight.data = module.weight.data.bfloat16()
    head.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
    head.forward = torch.autocast("cpu", enabled=False)(torch.autocast("cuda", enabled=False)(head.forward))


def add_layers(pilot: PreTrainedModel, copied: int | str | list[int]) -> None:
    """Put new decoder layers between those of a Pilot with adapters: trained in full, at first without effect.

    `copied` says which of its layers are copied, as in `from_pilot`; a copy stands behind its original.

    The rival of LLaMA-Pro (Wu et al., arXiv:2401.02415): as many layers as the Copilot has, spent on the Pilot itself.
    """
    layers = decoder_layers(pilot)
    chosen = pick_layers(copied, len(layers))
    grown = nn.ModuleList()
    for index, layer in enumerate(layers):
        grown.append(layer)
        if index in chosen:
            new = copy.deepcopy(layer).float().requires_grad_(True)
            nn.init.zeros_(new.self_attn.o_proj.weight)
            nn.init.zeros_(new.mlp.down_proj.weight)
            grown.append(new)
    for index, layer in enumerate(grown):
        layer.self_attn.layer_idx = index  # its place in the cache
    pilot.get_decoder().layers = grown
    pilot.config.num_hidden_layers = len(grown)


def compile_layers(layers: nn.ModuleList) -> None:
    """Compile the forward of each layer, once for all of them; the hooks on layers stay outside."""
    for layer in layers:
        if "forward" not in vars(layer):
            layer.forward = torch.compile(layer.forward, dynamic=True)


def small_llama(vocab_size: int, seed: int, dropout: float = 0.0) -> LlamaForCausalLM:
    """2 layers of width 64, untrained, embeddings tied; token 0 pads.

    `dropout` is of what leaves a layer; that of attention is 0.2. A Copilot's copies of layers have the latter alone.
    """
    torch.manual_seed(seed)
    pilot = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            attention_dropout=0.2,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    if dropout > 0:
        for layer in pilot.model.layers:
            layer.register_forward_hook(lambda layer, _, output: F.dropout(output, dropout, layer.training))
    return pilot


def small_t5(vocab_size: int, pad: int, end: int, seed: int) -> T5ForConditionalGeneration:
    """2 + 2 layers of width 64, untrained, embeddings tied."""
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab_size,
            d_model=64,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.1,
            decoder_start_token_id=pad,
            pad_token_id=pad,
            eos_token_id=end,
        )
    )
