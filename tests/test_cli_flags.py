"""What the flags of tcopilot become, and which of them are refused before a Pilot is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from copilot import cli
from copilot.cli_arguments import CopilotArguments, PilotArguments


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--candidates", "some"], "candidates must be a number"),
        (["--copilot_layers", "0"], "copilot_layers must be a number"),
        (["--lora_r", "4"], "lora_r is 4, but use_peft is False"),
        (["--use_peft", "--freeze_pilot"], "use_peft and freeze_pilot are both True"),
        (["--copilot_loss", "ce", "--rectifier", "linear"], "loss='ce' needs rectifier='simplex'"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch, flags, named):
    def load(*_arguments: Any) -> None:
        raise AssertionError("loaded")

    for loader in ("load_training_data", "load_tokenizer", "classes_of"):
        monkeypatch.setattr(cli, loader, load)
    required = ["--model_name_or_path", "pilot", "--dataset_name", "rows.jsonl", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["train", *required, "--use_cpu", *flags]) == 1
    assert named in capsys.readouterr().err


def test_the_pilots_adapters_are_those_of_the_flags():
    adapters = cli.pilot_adapters(PilotArguments("", use_peft=True, lora_r=4, lora_alpha=6, lora_dropout=0.25))
    assert adapters is not None
    assert (adapters.r, adapters.lora_alpha, adapters.lora_dropout) == (4, 6, 0.25)


def test_the_copilots_adapters_have_twice_their_rank_as_scale():
    options = cli.copilot_options(CopilotArguments(copilot_lora_r=3))
    assert options["lora"] == {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}


def test_a_seed_makes_the_same_copilot_again(tiny_pilot, tokenizer, tmp_path, monkeypatch):
    """Its adapters and its tables begin at random."""
    tiny_pilot("llama").save_pretrained(tmp_path / "pilot")
    tokenizer.save_pretrained(tmp_path / "pilot")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w1", "completion": "w2"}\n' * 4, encoding="utf-8")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    made = []

    def stop(pair: Any, *_arguments: Any, **_options: Any) -> None:
        made.append(torch.cat([weight.flatten() for weight in pair.copilot.state_dict().values()]))
        raise ValueError("stopped")

    monkeypatch.setattr(cli, "CopilotTrainer", stop)
    paths = ["--model_name_or_path", str(tmp_path / "pilot"), "--dataset_name", str(tmp_path / "rows.jsonl")]
    for seed in ("1", "1", "2"):
        flags = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "--copilot_layers", "2", "--copilot_lora_r", "2"]
        assert cli.main(["train", *paths, *flags, "--candidates", "8", "--seed", seed]) == 1
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_dictionary_in_a_config_file_is_written_as_json(tmp_path):
    config = tmp_path / "train.yaml"
    config.write_text(
        "model_name_or_path: a\ndataset_name: b\nlr_scheduler_kwargs: {num_cycles: 2}\n", encoding="utf-8"
    )
    arguments = cli.parse("train", ["--config", str(config), "--output_dir", str(tmp_path / "out"), "--use_cpu"])[-1]
    assert arguments.lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_tokenizer_is_looked_for_in_the_pair_then_in_the_pilot_given_then_in_the_one_named(monkeypatch):
    tried = []

    def load(place: str) -> None:
        tried.append(place)
        raise OSError("it has none")

    named = SimpleNamespace(from_pretrained=lambda _: SimpleNamespace(base_model_name_or_path="named"))
    monkeypatch.setattr(cli, "AutoConfig", named)
    monkeypatch.setattr(cli, "load_tokenizer", load)
    with pytest.raises(ValueError, match=r"no tokenizer in pair .* nor in given .* nor in named"):
        cli.tokenizer_of_pair("pair", "given")
    assert tried == ["pair", "given", "named"]
