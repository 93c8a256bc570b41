"""CopilotConfig: every wrong choice is an error that names it, and what is saved is what is loaded."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

import pytest
import torch
from builders import DECODER_FIELDS, FAMILIES, T5_FIELDS, fresh_pair, tiny_pilot
from transformers import AutoConfig, AutoModel, GPT2Config, LlamaConfig, T5Config

from copilot import CopilotConfig, CopilotModel, PilotCopilotForCausalLM, UnsupportedArchitectureError
from copilot.config import DESIGN
from copilot.training_arguments import CopilotTrainingArguments

CHOICES = {
    "candidates": 5,
    "rectifier": "linear",
    "fusion": "logit",
    "feedback": "predicted",
    "visibility": "previous",
    "pooling": "max",
    "context_layers": "every",
    "context_norm": False,
    "head": "factored",
    "error_in": "tied",
    "rank": 7,
    "lora": {"r": 2, "target_modules": ["q_proj"]},
    "strength": 0.3,
    "base_model_name_or_path": "some/pilot",
}


def llama_copilot(**choices) -> CopilotConfig:
    return CopilotConfig(LlamaConfig(**DECODER_FIELDS), vocab_size=97, pilot_hidden_size=32, **choices)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[(name, "nonsense") for name in ("rectifier", "fusion", "feedback", "visibility", "loss", "pooling")],
        *[(name, "nonsense") for name in ("context_layers", "head", "error_in")],
        ("candidates", 0),
        ("candidates", -3),
        ("rank", 0),
        ("strength", -0.1),
        ("strength", 1.5),
        ("strength", float("nan")),
    ],
)
def test_a_wrong_choice_is_an_error_that_names_the_field(field, value):
    with pytest.raises(ValueError, match=f"^{field} must"):
        llama_copilot(**{field: value})


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_the_ablations_losses_need_the_simplex(loss):
    with pytest.raises(ValueError, match=r"^loss"):
        llama_copilot(loss=loss, rectifier="linear")


@pytest.mark.parametrize("choices", [{"rectifier": "linear"}, {"fusion": "logit"}])
def test_a_strength_above_one_is_accepted_where_it_leaves_a_distribution(choices):
    assert llama_copilot(strength=1.5, **choices).strength == 1.5


def test_more_candidates_than_tokens_are_all_tokens():
    assert llama_copilot(candidates=1000).candidates == 97


@pytest.mark.parametrize("unsupported", [GPT2Config(), {"model_type": "mamba"}])
def test_an_unsupported_decoder_is_an_error_that_lists_the_supported_ones(unsupported):
    with pytest.raises(UnsupportedArchitectureError) as caught:
        CopilotConfig(unsupported, vocab_size=97, pilot_hidden_size=32)
    assert all(family in str(caught.value) for family in FAMILIES)


def test_a_pilot_of_an_unsupported_family_is_the_same_error():
    from transformers import GPT2LMHeadModel

    pilot = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=20, n_positions=16))
    with pytest.raises(UnsupportedArchitectureError, match="'gpt2' is not supported"):
        PilotCopilotForCausalLM.from_pilot(pilot)


def test_a_model_that_also_takes_images_is_the_same_error():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    small = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    text = small | {"num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 20}
    images = small | {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    with torch.device("meta"):
        pilot = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=images))
    with pytest.raises(UnsupportedArchitectureError, match="'gemma3' is not supported"):
        PilotCopilotForCausalLM.from_pilot(pilot)


def test_the_design_that_a_resumed_run_must_keep_is_every_choice_but_these():
    others = {"decoder", "vocab_size", "pilot_hidden_size", "base_model_name_or_path", "lora"}
    others |= {"pilot_dtype", "pilot_checksum", "strength", "self", "kwargs"}
    assert set(DESIGN) == set(inspect.signature(CopilotConfig.__init__).parameters) - others


def test_the_docstring_names_every_default():
    parameters = inspect.signature(CopilotConfig.__init__).parameters
    choices = [*DESIGN, "lora", "strength"]
    assert documented_defaults(CopilotConfig) == {name: parameters[name].default for name in choices}


def test_the_docstring_of_the_training_arguments_names_every_default():
    fields = CopilotTrainingArguments.__dataclass_fields__
    own = {name: fields[name].default for name in CopilotTrainingArguments.__annotations__}
    assert documented_defaults(CopilotTrainingArguments) == own


def documented_defaults(documented: type) -> dict[str, Any]:
    """What stands in brackets behind a name in the class's docstring."""
    found = re.findall(r"^ {4}(\w+) \((.+?)\): ", inspect.getdoc(documented), re.MULTILINE)
    return {name: ast.literal_eval(default) for name, default in found}


def test_every_choice_survives_saving(tmp_path):
    config = llama_copilot(**CHOICES)
    config.save_pretrained(tmp_path)
    loaded = CopilotConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in CHOICES} == CHOICES
    assert loaded.to_json_string() == config.to_json_string()


def test_a_full_vocabulary_survives_saving(tmp_path):
    llama_copilot(candidates=None).save_pretrained(tmp_path)
    assert CopilotConfig.from_pretrained(tmp_path).candidates is None


@pytest.mark.parametrize("loss", ["rmse", "ce", "kl"])
def test_the_loss_survives_saving(tmp_path, loss):
    llama_copilot(loss=loss).save_pretrained(tmp_path)
    assert CopilotConfig.from_pretrained(tmp_path).loss == loss


@pytest.mark.parametrize("decoder", [LlamaConfig(**DECODER_FIELDS), T5Config(**T5_FIELDS)], ids=["llama", "t5"])
def test_the_decoder_survives_saving(tmp_path, decoder):
    config = CopilotConfig(decoder, vocab_size=97, pilot_hidden_size=32)
    config.save_pretrained(tmp_path)
    loaded = CopilotConfig.from_pretrained(tmp_path)
    assert loaded.build_decoder_config().to_dict() == decoder.to_dict()
    assert (loaded.hidden_size, loaded.num_hidden_layers) == (32, 4)
    assert loaded.is_encoder_decoder == (decoder.model_type == "t5")


def test_the_auto_classes_know_a_copilot(tmp_path):
    CopilotModel(llama_copilot()).save_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), CopilotConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), CopilotModel)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_pairs_configuration_survives_saving(tmp_path, kind):
    pair = fresh_pair(kind)
    pair.config.save_pretrained(tmp_path)
    assert CopilotConfig.from_pretrained(tmp_path).to_json_string() == pair.config.to_json_string()
    assert pair.config is pair.copilot.config


@pytest.mark.parametrize("kind", FAMILIES)
def test_building_a_pair_leaves_the_pilots_configuration_alone(kind):
    pilot = tiny_pilot(kind)
    before = pilot.config.to_dict()
    fresh_pair(kind, pilot=pilot)
    assert pilot.config.to_dict() == before
    assert pilot.config._attn_implementation == tiny_pilot(kind).config._attn_implementation
