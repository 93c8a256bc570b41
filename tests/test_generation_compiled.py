"""generate() with a static cache compiles a pair's step, as it does a Pilot's, and writes what it writes without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import prompts, random_pair
from torch._dynamo.utils import counters
from transformers import CompileConfig

NEW = 7  # generated tokens

DESIGNS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("t5", {}),
    ("llama", {"candidates": None, "feedback": "predicted", "rectifier": "linear"}),
    ("llama", {"context_layers": "every", "visibility": "previous", "fusion": "logit", "pooling": "max"}),
    ("llama", {"head": "tied", "error_in": "factored"}),
]


@pytest.fixture
def compile_config() -> CompileConfig:
    """One graph a step, or an error; also on a CPU, where `generate` compiles nothing unasked."""
    torch.compiler.reset()
    counters.clear()
    config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    return config


def generate(pair: Any, **options: Any) -> Any:
    return pair.generate(
        **prompts(),
        cache_implementation="static",
        do_sample=False,
        min_new_tokens=NEW,
        max_new_tokens=NEW,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )


@pytest.mark.parametrize(("kind", "design"), DESIGNS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_compiled_step_is_the_eager_one(kind: str, design: dict[str, Any], compile_config: CompileConfig) -> None:
    pair = random_pair(kind, **design)
    eager = generate(pair, disable_compile=True)
    assert counters["stats"]["unique_graphs"] == 0
    for _ in range(2):  # the second finds what the first compiled
        compiled = generate(pair, compile_config=compile_config)
        assert counters["stats"]["unique_graphs"] == 1
        assert torch.equal(compiled.sequences, eager.sequences)
        p, expected = torch.stack(compiled.logits).exp(), torch.stack(eager.logits).exp()
        torch.testing.assert_close(p, expected, atol=1e-5, rtol=1e-5)


def test_another_strength_is_compiled_anew(compile_config: CompileConfig) -> None:
    pair = random_pair()
    for strength in (0.9, 0.3, 0.0):
        eager = generate(pair, strength=strength, disable_compile=True)
        compiled = generate(pair, strength=strength, compile_config=compile_config)
        assert torch.equal(compiled.sequences, eager.sequences)
    assert counters["stats"]["unique_graphs"] == 3


def test_generation_leaves_no_hook_behind() -> None:
    pair = random_pair()
    generate(pair)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in pair.pilot.model.layers)
