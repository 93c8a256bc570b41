"""A saved Copilot is a small directory that loads without its Pilot and attaches to any that fits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import BOTH_KINDS, FAMILIES, PAD, batch_of, fresh_pair, pair_class, random_ids, random_pair, tiny_pilot
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import cast_adapter_dtype
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from copilot import CopilotModel, PilotCopilotForCausalLM, PilotCopilotForSeq2SeqLM, calibrate, pair_base

both_kinds = pytest.mark.parametrize("kind", BOTH_KINDS)


def text_of(pair: torch.nn.Module) -> torch.Tensor:
    """Log-probabilities of a greedy generation: any other weight gives others."""
    ids = random_ids(2, 5)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    output = pair.eval().generate(
        input_ids=ids.masked_fill(mask == 0, PAD),
        attention_mask=mask,
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(output.logits)


# ---- Without the Pilot ----


@pytest.mark.parametrize(
    ("kind", "table"),
    [*[(kind, "own") for kind in FAMILIES], *[(k, t) for k in BOTH_KINDS for t in ("tied", "factored")]],
)
def test_a_saved_copilot_attached_to_its_pilot_generates_the_same(tmp_path, kind, table):
    pair = random_pair(kind, head=table, error_in=table)
    pair.save_pretrained(tmp_path)
    assert not (tmp_path / "pilot").exists()
    loaded = pair_class(kind).from_pretrained(tmp_path, pilot=pair.pilot)
    assert torch.equal(text_of(loaded), text_of(pair))


@both_kinds
def test_a_saved_copilot_holds_no_weight_of_the_pilot(tmp_path, kind):
    pair = random_pair(kind)
    pair.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == pair.copilot.state_dict().keys()
    written = ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == written


@both_kinds
def test_a_copilot_loads_by_itself(tmp_path, kind):
    pair = random_pair(kind)
    pair.save_pretrained(tmp_path)
    loaded = CopilotModel.from_pretrained(tmp_path)
    for name, value in pair.copilot.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


@both_kinds
def test_a_copilot_attaches_to_another_pilot_of_the_same_vocabulary(tmp_path, kind):
    pair, other = random_pair(kind), tiny_pilot(kind, seed=9)
    pair.save_pretrained(tmp_path)
    moved = pair_class(kind).from_pretrained(tmp_path, pilot=other)
    assert moved.pilot is other
    assert torch.equal(text_of(moved), text_of(type(pair)(other, pair.copilot)))
    assert not torch.allclose(text_of(moved), text_of(pair))


def test_the_strength_is_saved(tmp_path):
    pair = random_pair("llama")
    pair.config.strength = 0.4
    pair.save_pretrained(tmp_path)
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot=pair.pilot)
    assert loaded.config.strength == 0.4
    assert torch.equal(text_of(loaded), text_of(pair))


def test_arguments_that_say_where_the_copilot_lies_reach_its_configuration_too(tmp_path):
    pair = random_pair("llama")
    pair.save_pretrained(tmp_path / "inner")
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot=pair.pilot, subfolder="inner")
    assert torch.equal(text_of(loaded), text_of(pair))


def test_the_pilot_of_a_subfolder_is_the_one_saved_there(tmp_path):
    random_pair().save_pretrained(tmp_path, save_pilot=True)
    pair = random_pair(pilot=tiny_pilot(seed=9))
    pair.save_pretrained(tmp_path / "checkpoint-2", save_pilot=True)
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path, subfolder="checkpoint-2")
    assert torch.equal(text_of(loaded), text_of(pair))


@pytest.mark.parametrize("saved", ["adapters", "copilot", "everything"])
def test_the_pairs_generation_config_is_saved(tmp_path, saved):
    tiny_pilot().save_pretrained(tmp_path / "base")
    pair = PilotCopilotForCausalLM.from_pilot(str(tmp_path / "base"), layers=2)
    if saved == "adapters":
        pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
        pair.generation_config.eos_token_id = [1, 7]  # as a training sets it
    else:
        pair.generation_config = GenerationConfig(eos_token_id=[1, 7], pad_token_id=PAD)
    pair.save_pretrained(tmp_path / "out", save_pilot=saved != "copilot")
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.generation_config.eos_token_id == [1, 7]
    assert loaded.pilot.generation_config is loaded.generation_config


def test_a_copilot_saved_without_a_generation_config_leaves_the_pilots(tmp_path):
    pair = random_pair()
    pair.generation_config = GenerationConfig(eos_token_id=[1, 7], pad_token_id=PAD)
    pair.save_pretrained(tmp_path)
    pair.pilot.save_pretrained(tmp_path / "somewhere")
    for eos in ([1, 7], pair.pilot.generation_config.eos_token_id):
        loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot=str(tmp_path / "somewhere"))
        assert loaded.generation_config.eos_token_id == eos
        (tmp_path / "generation_config.json").unlink(missing_ok=True)


def test_a_pilot_that_is_given_keeps_its_generation_config(tmp_path):
    pair = random_pair()
    pair.generation_config = GenerationConfig(eos_token_id=[1, 7], pad_token_id=PAD)
    pair.save_pretrained(tmp_path)
    config = pair.pilot.generation_config
    assert PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot=pair.pilot).generation_config is config


@both_kinds
def test_a_pilot_given_as_a_folder_is_loaded(tmp_path, kind):
    pair = random_pair(kind)
    pair.pilot.save_pretrained(tmp_path / "somewhere")
    pair.save_pretrained(tmp_path / "copilot")
    loaded = pair_class(kind).from_pretrained(tmp_path / "copilot", pilot=str(tmp_path / "somewhere"))
    assert torch.equal(text_of(loaded), text_of(pair))


@both_kinds
def test_the_pilot_named_in_the_configuration_is_found(tmp_path, kind):
    tiny_pilot(kind).save_pretrained(tmp_path / "somewhere")
    pair = pair_class(kind).from_pilot(str(tmp_path / "somewhere"), layers=2)
    pair.save_pretrained(tmp_path / "copilot")
    assert torch.equal(text_of(pair_class(kind).from_pretrained(tmp_path / "copilot")), text_of(pair))


# ---- With the Pilot ----


@both_kinds
def test_a_pair_saved_with_its_pilot_needs_nothing_else(tmp_path, kind):
    pair = random_pair(kind)
    pair.save_pretrained(tmp_path, save_pilot=True)
    assert torch.equal(text_of(pair_class(kind).from_pretrained(tmp_path)), text_of(pair))


@pytest.mark.parametrize(("kind", "targets"), [("llama", ["q_proj", "v_proj"]), ("t5", ["q", "v"])])
def test_a_pilot_with_lora_is_saved_as_its_adapter(tmp_path, kind, targets):
    tiny_pilot(kind).save_pretrained(tmp_path / "base")
    pair = pair_class(kind).from_pilot(str(tmp_path / "base"), layers=2)
    torch.manual_seed(5)
    pair.pilot.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    pair.copilot.head.weight.data.normal_()
    pair.save_pretrained(tmp_path / "saved", save_pilot=True)
    assert (tmp_path / "saved" / "pilot" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "saved" / "pilot" / "model.safetensors").exists()
    loaded = pair_class(kind).from_pretrained(tmp_path / "saved")
    assert torch.equal(text_of(loaded), text_of(pair))
    loaded.pilot.disable_adapters()
    assert not torch.allclose(text_of(loaded), text_of(pair))


# ---- What does not fit ----


@pytest.mark.parametrize(
    ("kind", "other_kind", "changes", "message"),
    [
        ("llama", "llama", {"vocab_size": 98}, "vocabulary has 97 tokens; the Pilot's has 98"),
        ("t5", "t5", {"vocab_size": 98}, "vocabulary has 97 tokens; the Pilot's has 98"),
        ("llama", "llama", {"hidden_size": 48}, "width 32; the Pilot's have 48"),
        ("t5", "t5", {"d_model": 48}, "width 32; the Pilot's have 48"),
        ("llama", "t5", {}, "'llama' cannot be attached to 't5'"),
        ("t5", "llama", {}, "'t5' cannot be attached to 'llama'"),
    ],
)
def test_a_pilot_that_does_not_fit_is_refused(tmp_path, kind, other_kind, changes, message):
    pair = random_pair(kind)
    pair.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        pair_class(kind).from_pretrained(tmp_path, pilot=tiny_pilot(other_kind, **changes))


def test_a_copilot_whose_pilot_nobody_names_is_refused(tmp_path):
    random_pair("llama").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"^pilot must be given"):
        PilotCopilotForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(("wrong", "kind"), [(PilotCopilotForSeq2SeqLM, "llama"), (PilotCopilotForCausalLM, "t5")])
def test_the_class_of_the_other_kind_is_refused(wrong, kind):
    with pytest.raises(ValueError, match=f"{kind!r}"):
        wrong.from_pilot(tiny_pilot(kind), layers=2)


def truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def drop_a_weight(path: Path) -> None:
    rewrite(path, lambda weights: weights.pop("head.weight"))


def reshape_a_weight(path: Path) -> None:
    rewrite(path, lambda weights: weights.update({"head.weight": torch.zeros(97, 31)}))


def remove_the_configuration(path: Path) -> None:
    (path / "config.json").unlink()


def save_a_pilot_there(path: Path) -> None:
    tiny_pilot("llama").save_pretrained(path)


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "damage",
    [truncate, drop_a_weight, reshape_a_weight, remove_the_configuration, save_a_pilot_there],
)
def test_a_folder_that_holds_no_complete_copilot_is_one_clear_error(tmp_path, damage):
    pair = random_pair("llama")
    pair.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=r"^path must hold"):
        PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot=pair.pilot)


# ---- What is no Pilot ----


def test_a_model_wrapped_by_peft_is_refused():
    wrapped = get_peft_model(tiny_pilot("llama"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match=r"^pilot must be a transformers PreTrainedModel.*PeftModel"):
        PilotCopilotForCausalLM.from_pilot(wrapped)


def test_a_pilot_that_carries_adapters_is_refused():
    pilot = tiny_pilot("llama")
    pilot.add_adapter(LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"^pilot must not carry adapters"):
        PilotCopilotForCausalLM.from_pilot(pilot)


# ---- Resuming ----


@both_kinds
def test_a_loaded_pair_trains_on(tmp_path, kind):
    """Every parameter of the Copilot is trainable again, and one step gives the same losses and gradients."""
    pair = random_pair(kind).train()
    pair.save_pretrained(tmp_path, save_pilot=True)
    loaded: PreTrainedModel = pair_class(kind).from_pretrained(tmp_path).train()
    ids = random_ids(2, 6)
    for model in (pair, loaded):
        model(input_ids=ids, labels=ids).loss.backward()
    gradients = dict(pair.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name


def test_adapters_that_were_saved_train_on(tmp_path):
    tiny_pilot().save_pretrained(tmp_path / "base")
    pair = PilotCopilotForCausalLM.from_pilot(str(tmp_path / "base"), layers=2)
    pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path / "out").train()
    trained = {name for name, parameter in loaded.pilot.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in pair.pilot.named_parameters() if parameter.requires_grad}
    ids = random_ids(2, 6)
    loaded(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad.any() for name, parameter in loaded.pilot.named_parameters() if name in trained)


# ---- Where and how the Pilot is loaded ----


def test_the_copilot_goes_to_the_device_of_a_pilot_that_is_given(tmp_path):
    random_pair().save_pretrained(tmp_path)
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot=tiny_pilot().to("meta"))
    assert {parameter.device.type for parameter in loaded.copilot.parameters()} == {"meta"}


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), (torch.float32, torch.float32)])
def test_the_type_of_a_pilot_that_is_loaded_can_be_chosen(tmp_path, dtype, expected):
    random_pair().save_pretrained(tmp_path)
    tiny_pilot().bfloat16().save_pretrained(tmp_path / "pilot")
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot_dtype=dtype)
    assert loaded.pilot.dtype == expected
    assert loaded.copilot.dtype == torch.float32


def test_a_pilot_is_loaded_where_it_is_wanted_and_its_copilot_follows(tmp_path):
    random_pair().save_pretrained(tmp_path, save_pilot=True)
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path, device_map="meta")
    assert {parameter.device.type for parameter in loaded.parameters()} == {"meta"}


def test_float32_adapters_of_a_half_precision_pilot_come_back_as_they_were(tmp_path):
    tiny_pilot().bfloat16().save_pretrained(tmp_path / "base")
    pair = PilotCopilotForCausalLM.from_pilot(str(tmp_path / "base"), layers=2)
    pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    cast_adapter_dtype(pair.pilot, "default")
    adapter = {name: value + 1e-6 for name, value in pair.pilot.get_adapter_state_dict().items()}
    set_peft_model_state_dict(pair.pilot, adapter)
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    loaded = PilotCopilotForCausalLM.from_pretrained(tmp_path / "out").pilot
    assert loaded.dtype == torch.bfloat16
    for name, value in loaded.get_adapter_state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, adapter[name]), name


def test_a_head_trained_beside_adapters_comes_back_with_them(tmp_path):
    tiny_pilot().save_pretrained(tmp_path / "base")
    pair = PilotCopilotForCausalLM.from_pilot(str(tmp_path / "base"), layers=2)
    pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    trained = {name: weight for name, weight in pair.pilot.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(0.1)
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    loaded = dict(PilotCopilotForCausalLM.from_pretrained(tmp_path / "out").pilot.named_parameters())
    assert {name for name, weight in loaded.items() if weight.requires_grad} == trained.keys()
    assert any("lm_head" in name for name in trained)
    for name, weight in trained.items():
        assert torch.equal(loaded[name], weight), name


def test_the_hub_token_reaches_the_pilot(tmp_path, monkeypatch):
    random_pair().save_pretrained(tmp_path)
    given: dict[str, Any] = {}

    def load(_name: str, **options: Any) -> PreTrainedModel:
        given.update(options)
        return tiny_pilot()

    monkeypatch.setattr(PilotCopilotForCausalLM._pilot_class, "from_pretrained", load)
    PilotCopilotForCausalLM.from_pretrained(tmp_path, pilot="gated/model", token="secret")
    assert given["token"] == "secret"


def test_a_pilot_is_loaded_in_the_type_it_had_when_the_pair_was_saved(tmp_path):
    """Adapters are saved without the model under them, whose files may be of another type."""
    tiny_pilot().bfloat16().save_pretrained(tmp_path / "base")
    pilot = type(tiny_pilot()).from_pretrained(tmp_path / "base", dtype=torch.float32)
    pair = PilotCopilotForCausalLM.from_pilot(pilot, layers=2)
    pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    assert PilotCopilotForCausalLM.from_pretrained(tmp_path / "out").pilot.dtype == torch.float32
    assert PilotCopilotForCausalLM.from_pretrained(tmp_path / "out", pilot_dtype="auto").pilot.dtype == torch.bfloat16
    pair.bfloat16().save_pretrained(tmp_path / "out", save_pilot=True)
    assert PilotCopilotForCausalLM.from_pretrained(tmp_path / "out").pilot.dtype == torch.bfloat16


@pytest.mark.parametrize("given", [False, True])
def test_a_pair_of_the_hub_comes_with_its_pilot_where_that_is_needed(tmp_path, monkeypatch, given):
    random_pair().save_pretrained(tmp_path, save_pilot=True)
    asked: list[Any] = []
    monkeypatch.setattr(
        pair_base, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path)
    )
    where = {"revision": "r", "token": "t", "cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    pilot = tiny_pilot() if given else None
    PilotCopilotForCausalLM.from_pretrained("some/pair", pilot=pilot, **where)
    unneeded = ["checkpoint-*", "last-checkpoint/*", *(["pilot/*"] if given else [])]
    assert asked == [("some/pair", {"allow_patterns": "*", "ignore_patterns": unneeded} | where)]


def test_a_checkpoint_of_the_hub_comes_where_it_is_asked_for(tmp_path, monkeypatch):
    random_pair().save_pretrained(tmp_path / "checkpoint-2", save_pilot=True)
    asked: list[Any] = []
    monkeypatch.setattr(
        pair_base, "snapshot_download", lambda _name, **patterns: asked.append(patterns) or str(tmp_path)
    )
    for pilot in (None, tiny_pilot()):
        PilotCopilotForCausalLM.from_pretrained("some/pair", pilot=pilot, subfolder="checkpoint-2")
    assert asked == [
        {"allow_patterns": "checkpoint-2/*", "ignore_patterns": []},
        {"allow_patterns": "checkpoint-2/*", "ignore_patterns": ["checkpoint-2/pilot/*"]},
    ]


def test_what_is_neither_a_folder_nor_a_hub_id_is_told():
    with pytest.raises(FileNotFoundError, match=r"^path must be a folder or a hub id; got 'no//id'"):
        PilotCopilotForCausalLM.from_pretrained("no//id")


def test_a_damaged_pilot_is_one_clear_error(tmp_path):
    random_pair().save_pretrained(tmp_path, save_pilot=True)
    truncate(tmp_path / "pilot")
    with pytest.raises(ValueError, match=r"^pilot must have complete weights; .*pilot"):
        PilotCopilotForCausalLM.from_pretrained(tmp_path)


def test_a_pilot_spread_over_devices_is_refused():
    pilot = tiny_pilot()
    pilot.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ValueError, match=r"^pilot must be on one device"):
        PilotCopilotForCausalLM.from_pilot(pilot, layers=2)


# ---- Into a used folder, and the arguments of save_pretrained ----


def test_a_pilot_takes_the_place_of_the_adapters_saved_before(tmp_path):
    pair = random_pair()
    pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    pair.save_pretrained(tmp_path, save_pilot=True)
    assert (tmp_path / "pilot" / "adapter_config.json").exists()
    other = random_pair(pilot=tiny_pilot(seed=5))
    other.save_pretrained(tmp_path, save_pilot=True)
    assert torch.equal(text_of(PilotCopilotForCausalLM.from_pretrained(tmp_path)), text_of(other))


def test_adapters_take_the_place_of_the_pilot_saved_before(tmp_path):
    tiny_pilot().save_pretrained(tmp_path / "base")
    random_pair().save_pretrained(tmp_path / "out", save_pilot=True)
    pair = PilotCopilotForCausalLM.from_pilot(str(tmp_path / "base"), layers=2)
    pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    assert torch.equal(text_of(PilotCopilotForCausalLM.from_pretrained(tmp_path / "out")), text_of(pair))


@pytest.mark.parametrize("save_pilot", [False, True])
def test_an_upload_of_a_part_is_refused_before_anything_is_written(tmp_path, save_pilot):
    with pytest.raises(ValueError, match=r"^push_to_hub is True, expected False"):
        random_pair().save_pretrained(tmp_path / "out", save_pilot=save_pilot, push_to_hub=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("state", ["adapters", "frozen adapters", "trainable", "frozen"])
def test_a_pilot_that_may_have_been_trained_and_is_left_out_is_told(tmp_path, caplog, monkeypatch, state):
    pair = random_pair()
    if "adapters" in state:
        pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    if "frozen" in state:
        pair.pilot.requires_grad_(False)
    monkeypatch.setattr(pair_base.logger, "propagate", True)
    pair.save_pretrained(tmp_path / "both", save_pilot=True)
    assert "not saved with its Copilot" not in caplog.text
    pair.save_pretrained(tmp_path / "copilot")
    assert ("not saved with its Copilot" in caplog.text) == (state != "frozen")


@pytest.mark.parametrize("change", ["nothing", "type", "merged adapters", "adapters", "one weight"])
def test_a_pilot_that_its_name_does_not_lead_to_is_told(tmp_path, caplog, monkeypatch, change):
    tiny_pilot().save_pretrained(tmp_path / "base")
    pilot = type(tiny_pilot()).from_pretrained(tmp_path / "base", dtype=torch.float32)
    if change == "merged adapters":
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        pilot = get_peft_model(pilot, lora).merge_and_unload()
    if change == "one weight":
        with torch.no_grad():
            pilot.model.norm.weight[0] += 1e-3
    pair = PilotCopilotForCausalLM.from_pilot(pilot.requires_grad_(False), layers=2)
    if change == "adapters":
        pair.pilot.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    pair.save_pretrained(tmp_path / "out")
    monkeypatch.setattr(pair_base.logger, "propagate", True)
    caplog.clear()
    PilotCopilotForCausalLM.from_pretrained(tmp_path / "out", pilot=str(tmp_path / "base"))
    PilotCopilotForCausalLM.from_pretrained(tmp_path / "out", pilot_dtype=torch.bfloat16 if change == "type" else None)
    told = caplog.text.count("base has other weights than the one that this Copilot was saved beside")
    assert told == (change not in ("nothing", "type"))


def test_a_pilot_of_an_earlier_save_is_told(tmp_path, caplog, monkeypatch):
    pair = random_pair()
    monkeypatch.setattr(pair_base.logger, "propagate", True)
    pair.save_pretrained(tmp_path, save_pilot=True)
    assert "earlier save" not in caplog.text
    pair.save_pretrained(tmp_path)
    assert "pilot is of an earlier save" in caplog.text


def test_a_state_dict_of_the_pair_is_shared_out(tmp_path):
    pair = random_pair()
    state = {name: value + 1 for name, value in pair.state_dict().items()}
    pair.save_pretrained(tmp_path, save_pilot=True, state_dict=state)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == pair.copilot.state_dict().keys()
    assert all(torch.equal(value, state[f"copilot.{name}"]) for name, value in saved.items())
    of_pilot = load_file(tmp_path / "pilot" / "model.safetensors")
    assert all(torch.equal(value, state[f"pilot.{name}"]) for name, value in of_pilot.items())


def test_only_the_main_process_writes(tmp_path):
    random_pair().save_pretrained(tmp_path, save_pilot=True, is_main_process=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_large_pilot_is_sharded(tmp_path):
    random_pair().save_pretrained(tmp_path, save_pilot=True, max_shard_size="20KB")
    assert len(list((tmp_path / "pilot").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("sizes", [("5GB", "20KB"), ("20KB", "5GB")], ids=["in-shards", "in-one-file"])
def test_weights_take_the_place_of_those_saved_before(tmp_path, sizes):
    pair = random_pair()
    for size in sizes:
        with torch.no_grad():
            for parameter in pair.parameters():
                parameter.add_(1.0)
        pair.save_pretrained(tmp_path, save_pilot=True, max_shard_size=size)
    loaded = pair_class("llama").from_pretrained(tmp_path).state_dict()
    assert [name for name, value in pair.state_dict().items() if not torch.equal(loaded[name], value)] == []


@pytest.mark.parametrize("kind", BOTH_KINDS)
def test_a_pair_is_in_the_mode_of_its_pilot_and_calibrating_leaves_it_there(tmp_path, kind):
    def modes(pair: torch.nn.Module) -> set[bool]:
        return {module.training for module in pair.modules()}

    fresh_pair(kind).save_pretrained(tmp_path, save_pilot=True)
    pair = pair_class(kind).from_pretrained(tmp_path)
    assert modes(pair) == {False}
    assert pair(**batch_of(kind)).logits is not None
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}] * 2
    calibrate(pair, rows, None)
    assert modes(pair) == {False}
    assert modes(pair_class(kind).from_pilot(tiny_pilot(kind).train(), layers=2)) == {True}
