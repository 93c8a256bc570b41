"""Fixtures shared by the tests: a tiny tokenizer and tiny random Pilots."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import emulation
import gpu
import pytest
import torch
from experiments import quality_modules
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

if os.environ.get("COPILOT_EMULATION") == "1":
    emulation.load()
if os.environ.get("COPILOT_TEST_GPU") == "1":
    SENT = gpu.load()

VOCABULARY = ["<pad>", "<eos>", "<bos>", "<unk>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(121))]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} <{{ message['role'] }}> {{ message['content'] }} <end>{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """128 whitespace-separated words w0, w1, ..., a <bos> before each text, and a chat template."""
    words = {word: index for index, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>", "<end>"],
        chat_template=CHAT_TEMPLATE,
    )


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of benchmarks/quality, by name."""
    with quality_modules(monkeypatch) as modules:
        yield modules


@pytest.fixture
def tiny_pilot() -> Callable[[str], PreTrainedModel]:
    """`tiny_pilot("llama")` or `tiny_pilot("t5")`: a random Pilot of width 32, always the same one, without dropout."""

    def build(kind: str) -> PreTrainedModel:
        torch.manual_seed(0)
        if kind == "t5":
            return T5ForConditionalGeneration(
                T5Config(
                    vocab_size=128,
                    d_model=32,
                    d_kv=8,
                    d_ff=64,
                    num_layers=2,
                    num_heads=4,
                    decoder_start_token_id=0,
                    dropout_rate=0.0,
                )
            )
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
            )
        )

    return build
