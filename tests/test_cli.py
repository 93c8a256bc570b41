"""tcopilot trains, evaluates, generates and reports, and says what is wrong in one line."""

from __future__ import annotations

import ast
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from huggingface_hub.utils import filter_repo_objects
from rounds import filled
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from copilot import CopilotConfig, MistakeLog, PilotCopilotForCausalLM, calibrate, cli
from copilot.cli import main
from copilot.cli_arguments import DataArguments, TrainSplitArguments
from copilot.cli_data import load_splits
from copilot.environment import environment_text
from copilot.inspection import read_losses
from copilot.training_arguments import UNSUPPORTED

ROWS = [
    {"prompt": f"w{i} w{i + 1}", "completion": " ".join(f"w{j}" for j in range(i, i + 1 + i % 4))} for i in range(12)
]
PROBLEMS = [
    {"instruction": f"w{i} and w{i + 1} ?", "input": "", "output": f"X=({i}+1)", "answer": str(i + 1)} for i in range(6)
]
FEW_STEPS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "copilot_layers": 2,
    "candidates": 8,
    "log_rounds": 3,
    "learning_rate": 1e-4,
    "save_strategy": "no",
    "disable_tqdm": "true",
    "use_cpu": True,
}


@pytest.fixture(autouse=True)
def keep_data_sets_in_the_test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def save_pilot(
    tiny_pilot: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Callable[[str], str]:
    def save(kind: str = "llama") -> str:
        folder = tmp_path / kind
        tiny_pilot(kind).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def run(command: str, *positional: str, **flags: Any) -> int:
    """The exit code of `tcopilot command --flag value ... positional`; a flag that is True has no value."""
    argv = [command, *positional]
    for name, value in flags.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    try:
        return main(argv)
    except SystemExit as exit_:
        return int(exit_.code or 0)


def train(pilot: str, data: str, out: Path, **flags: Any) -> int:
    return run("train", model_name_or_path=pilot, dataset_name=data, output_dir=out, **FEW_STEPS | flags)


# ---- What the commands do ----


@pytest.mark.parametrize(
    ("kind", "flags"),
    [("llama", {"use_peft": True, "lora_r": 4, "bf16": True}), ("llama", {}), ("t5", {"candidates": "none"})],
    ids=["llama-lora-bf16", "llama", "t5-whole-vocabulary"],
)
def test_a_pair_is_trained_evaluated_and_used(save_pilot, rows_file, tmp_path, capsys, kind, flags):
    out = tmp_path / "out"
    assert train(save_pilot(kind), rows_file, out, **flags) == 0
    printed = capsys.readouterr().out
    strength = CopilotConfig.from_pretrained(out).strength
    assert f"lambda = {strength:.3f} on 2 rows" in printed  # a tenth of twelve, rounded up

    assert run("eval", pair=out, dataset_name=rows_file, max_new_tokens=4) == 0
    table = capsys.readouterr().out
    assert [name for name in ("exact match", "Brier score", "NLL", "answer accuracy") if name in table] == [
        "exact match",
        "Brier score",
        "NLL",
    ]
    assert f"{strength:.3f}" in table.splitlines()[-1]

    assert run("generate", "w3 w4", pair=out, max_new_tokens=4) == 0
    assert 1 <= len(capsys.readouterr().out.split()) <= 4

    assert run("log", str(out)) == 0
    report = capsys.readouterr().out
    assert "_mistake_log.safetensors: 2 of 2 rounds" in report
    assert "taken for" in report


def test_a_trained_pair_is_kept_when_calibrating_fails(save_pilot, rows_file, tmp_path, capsys, monkeypatch):
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise ValueError("no lambda")

    monkeypatch.setattr("copilot.cli.calibrate", fail)
    out = tmp_path / "out"
    assert train(save_pilot("llama"), rows_file, out) == 1
    assert "no lambda" in capsys.readouterr().err
    assert run("generate", "w3 w4", pair=out, max_new_tokens=4) == 0


def test_lambda_is_known_before_a_pair_goes_to_the_hub(save_pilot, rows_file, tmp_path, monkeypatch):
    out = tmp_path / "out"
    uploaded: list[float] = []
    monkeypatch.setattr("copilot.cli.CopilotTrainer.init_hf_repo", lambda *_arguments, **_options: None)
    monkeypatch.setattr(
        "copilot.cli.CopilotTrainer.push_to_hub",
        lambda *_arguments, **_options: uploaded.append(CopilotConfig.from_pretrained(out).strength),
    )
    monkeypatch.setattr("copilot.cli.calibrate", calibrated_to(0.25))
    assert train(save_pilot("llama"), rows_file, out, push_to_hub=True) == 0
    assert uploaded == [0.25]


def calibrated_to(strength: float) -> Callable[..., Any]:
    """`calibrate`, but for the strength that it sets."""

    def calibrate_to(pair: PilotCopilotForCausalLM, *arguments: Any, **options: Any) -> Any:
        found = calibrate(pair, *arguments, **options)
        pair.config.strength = strength
        return found

    return calibrate_to


def test_a_pair_is_loaded_in_the_type_of_its_training(save_pilot, rows_file, tmp_path, monkeypatch):
    """Adapters are saved without the model under them, whose files may be of another type."""
    pilot = save_pilot("llama")
    LlamaForCausalLM.from_pretrained(pilot, dtype=torch.bfloat16).save_pretrained(pilot)
    assert train(pilot, rows_file, tmp_path / "out", use_peft=True, lora_r=4) == 0
    loaded = []
    complete = cli.complete
    monkeypatch.setattr(
        cli, "complete", lambda pair, *rest, **options: loaded.append(pair) or complete(pair, *rest, **options)
    )
    for flags in ({}, {"dtype": "bfloat16"}):
        assert run("generate", "w3 w4", pair=tmp_path / "out", max_new_tokens=1, **flags) == 0
    assert [pair.pilot.dtype for pair in loaded] == [torch.float32, torch.bfloat16]


def test_training_changes_the_pilot_in_full_unless_adapters_are_asked_for(save_pilot, rows_file, tmp_path):
    pilot = save_pilot()
    assert train(pilot, rows_file, tmp_path / "full") == 0
    assert train(pilot, rows_file, tmp_path / "lora", use_peft=True, lora_r=4) == 0
    before = load_file(Path(pilot) / "model.safetensors")
    after = load_file(tmp_path / "full" / "pilot" / "model.safetensors")
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    adapters = load_file(tmp_path / "lora" / "pilot" / "adapter_model.safetensors")
    assert {"lora_A", "lora_B"} == {part for name in adapters for part in name.split(".") if part.startswith("lora_")}
    assert {tensor.shape[0] for name, tensor in adapters.items() if "lora_A" in name} == {4}


def test_flags_reach_the_copilots_configuration(save_pilot, rows_file, tmp_path):
    design = {
        "rectifier": "linear",
        "fusion": "logit",
        "feedback": "predicted",
        "visibility": "previous",
        "pooling": "max",
        "context_layers": "every",
        "context_norm": False,
        "head": "tied",
        "error_in": "factored",
    }
    chosen = {"candidates": "none", "copilot_layers": "all", "copilot_lora_r": 2}
    assert train(save_pilot(), rows_file, tmp_path / "out", **design | chosen) == 0
    config = CopilotConfig.from_pretrained(tmp_path / "out")
    assert {name: getattr(config, name) for name in design} == design
    assert (config.candidates, config.num_hidden_layers, config.lora["r"]) == (None, 3, 2)


def test_the_copilots_loss_is_chosen_by_flag(save_pilot, rows_file, tmp_path):
    assert train(save_pilot(), rows_file, tmp_path / "out", copilot_loss="kl") == 0
    assert CopilotConfig.from_pretrained(tmp_path / "out").loss == "kl"


def test_a_finished_pilot_stays_as_it_is(save_pilot, rows_file, tmp_path):
    pilot = save_pilot()
    assert train(pilot, rows_file, tmp_path / "out", freeze_pilot=True) == 0
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (pilot, tmp_path / "out" / "pilot"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_mistake_log_of_a_run_is_kept(save_pilot, rows_file, tmp_path):
    assert train(save_pilot(), rows_file, tmp_path / "out", log_hidden_dtype="int8", log_rounds=5) == 0
    log = MistakeLog(5, hidden_dtype="int8")
    log.load(tmp_path / "out" / "_mistake_log.safetensors")
    assert log.rounds_seen == 2


def test_an_upload_as_advised_leaves_out_every_text_of_the_training(save_pilot, rows_file, tmp_path):
    """Of the folder, of the one above it, of one of its checkpoints."""
    out = tmp_path / "runs" / "out"
    assert train(save_pilot(), rows_file, out, save_strategy="steps", save_steps=1) == 0
    files = {path for path in out.rglob("*") if path.is_file()}
    of_checkpoints = {path for path in files if path.parts[len(out.parts)].startswith("checkpoint-")}
    logs = {out / "_mistake_log.safetensors", *(out / f"checkpoint-{n}" / "mistake_log_0.safetensors" for n in (1, 2))}
    assert logs <= files
    with pytest.raises(ValueError) as refused:
        PilotCopilotForCausalLM.from_pretrained(out).save_pretrained(tmp_path / "other", push_to_hub=True)
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for advice in (str(refused.value), readme):
        patterns = ast.literal_eval(re.search(r"ignore_patterns=(\[.*?\])", advice)[1])
        uploads = {}
        for folder in (out, out.parent, out / "checkpoint-2"):
            names = [path.relative_to(folder).as_posix() for path in files if path.is_relative_to(folder)]
            uploads[folder] = {folder / name for name in filter_repo_objects(names, ignore_patterns=patterns)}
            assert uploads[folder].isdisjoint(logs)
        assert uploads[out] == files - of_checkpoints - logs


def test_log_reads_checkpoints_too(save_pilot, rows_file, tmp_path, capsys):
    assert train(save_pilot(), rows_file, tmp_path / "out", save_strategy="steps", save_steps=1) == 0
    assert run("log", str(tmp_path / "out" / "checkpoint-1")) == 0
    assert "mistake_log_0.safetensors: 1 of 1 rounds" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_finished_training_is_plotted(save_pilot, rows_file, tmp_path, capsys, kind):
    assert train(save_pilot(kind), rows_file, tmp_path / "out", logging_steps=1) == 0
    assert [len(points) for points in read_losses(tmp_path / "out").values()] == [2, 2]  # ce and rmse
    capsys.readouterr()
    figures = tmp_path / "figures"
    assert run("plot", pair=tmp_path / "out", dataset_name=rows_file, out=figures, strength=0.5, batch_size=4) == 0
    names = ["mistakes.png", "corrections.png", "step.png", "reliability.png"]
    assert capsys.readouterr().out.split() == [str(figures / name) for name in names]
    assert {path.name: path.read_bytes()[:4] for path in figures.iterdir()} == dict.fromkeys(names, b"\x89PNG")


def test_a_plot_without_matplotlib_says_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "copilot.plots", raising=False)
    monkeypatch.delattr("copilot.plots", raising=False)
    code = run("plot", pair="out", dataset_name="rows.jsonl", out=tmp_path / "figures")
    assert_refused(code, capsys, "pip install 'matplotlib", tmp_path / "figures")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"pair": "logless"}, "'logless' holds no *mistake_log*.safetensors"),
        ({"out": "rows.jsonl/figures"}, "rows.jsonl"),
        ({"out": "rows.jsonl"}, "out is 'rows.jsonl'"),
        ({"dataset_name": "incomplete.jsonl"}, "1 of 2 rows have no completion"),
        ({"dataset_test_split": "dev"}, "dataset_test_split is 'dev'"),
        ({"strength": 2}, "strength"),
        ({"max_length": 1}, "max_length"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_beams": 2}, "unknown arguments: --num_beams"),
    ],
    ids=str,
)
def test_nothing_is_plotted_of_what_cannot_be_used(
    save_pilot, rows_file, tokenizer, tmp_path, capsys, monkeypatch, flags, named
):
    pair = PilotCopilotForCausalLM.from_pilot(save_pilot(), layers=2, candidates=8)
    for folder in (tmp_path / "out", tmp_path / "logless"):
        pair.save_pretrained(folder, save_pilot=True)
        tokenizer.save_pretrained(folder)
    filled(0).save(tmp_path / "out" / "_mistake_log.safetensors")
    write_rows(tmp_path / "incomplete.jsonl", [ROWS[0], ROWS[1] | {"completion": ""}])
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    given = {"pair": "out", "dataset_name": "rows.jsonl", "out": "figures"} | flags
    assert_refused(run("plot", **given), capsys, named, tmp_path / "figures")


def test_a_stopped_training_goes_on(save_pilot, rows_file, tmp_path):
    pilot = save_pilot()
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(pilot, rows_file, whole, save_strategy="steps", save_steps=1) == 0
    assert train(pilot, rows_file, stopped, resume_from_checkpoint=whole / "checkpoint-1") == 0
    expected, actual = (load_file(out / "model.safetensors") for out in (whole, stopped))
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


def test_lambda_comes_from_the_validation_split_where_there_is_one(save_pilot, tmp_path, capsys, monkeypatch):
    write_rows(tmp_path / "data" / "train.jsonl", ROWS)
    write_rows(tmp_path / "data" / "validation.jsonl", ROWS[:5])
    write_rows(tmp_path / "data" / "test.jsonl", ROWS[:3])
    given = []
    monkeypatch.setattr(
        cli,
        "calibrate",
        lambda pair, rows, *rest, **options: given.append(rows) or calibrate(pair, rows, *rest, **options),
    )
    assert train(save_pilot(), str(tmp_path / "data"), tmp_path / "out", eval_strategy="epoch") == 0
    assert [rows.to_list() for rows in given] == [ROWS[:5]]
    printed = capsys.readouterr().out
    assert "on 5 rows" in printed
    assert "eval_rmse" in printed
    assert run("eval", pair=tmp_path / "out", dataset_name=tmp_path / "data", max_new_tokens=2) == 0


def test_without_a_validation_split_a_tenth_of_the_rows_is_kept_from_training(rows_file):
    training, held_out = cli.load_training_data(DataArguments(rows_file), TrainSplitArguments(), seed=0)
    assert (len(training), len(held_out)) == (10, 2)
    prompts = [*training["prompt"], *held_out["prompt"]]
    assert sorted(prompts) == sorted(row["prompt"] for row in ROWS)


def test_lambda_is_chosen_on_the_tokens_that_training_counts(save_pilot, rows_file, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(cli, "calibrate", lambda *rest, **options: given.append(options) or calibrate(*rest, **options))
    flags = {"max_length": 7, "completion_only_loss": "no"}
    assert train(save_pilot(), rows_file, tmp_path / "out", **flags) == 0
    assert given == [{"max_length": 7, "completion_only_loss": False, "assistant_only_loss": False}]


def test_an_evaluation_is_the_one_that_its_flags_ask_for(save_pilot, rows_file, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(cli, "compare", lambda *_arguments, **options: given.append(options))
    PilotCopilotForCausalLM.from_pilot(save_pilot(), layers=2, candidates=8).save_pretrained(tmp_path / "out")
    flags = {"strength": 0.5, "batch_size": 3, "max_length": 40, "num_beams": 2, "max_new_tokens": 4}
    assert run("eval", pair=tmp_path / "out", dataset_name=rows_file, **flags) == 0
    assert given == [flags]


def test_a_task_is_judged_by_its_answers(save_pilot, tmp_path, capsys):
    folder = tmp_path / "data" / "mawps"
    folder.mkdir(parents=True)
    without_output = [problem | {"instruction": f"w9 {problem['instruction']}", "output": ""} for problem in PROBLEMS]
    for split, problems in (("train", PROBLEMS), ("valid", PROBLEMS[:4]), ("test", without_output)):
        (folder / f"{split}.json").write_text(json.dumps(problems), encoding="utf-8")
    data = {"dataset_name": tmp_path / "data", "task": "mawps"}
    assert train(save_pilot(), str(tmp_path / "data"), tmp_path / "out", task="mawps") == 0
    assert "on 4 rows" in capsys.readouterr().out
    assert run("eval", pair=tmp_path / "out", max_new_tokens=2, **data) == 0
    table = capsys.readouterr().out
    assert "answer accuracy" in table and "exact match" not in table
    assert run("eval", pair=tmp_path / "out", max_new_tokens=2, dataset_test_split="valid", **data) == 0
    table = capsys.readouterr().out
    assert "answer accuracy" in table and "exact match" in table


def test_a_pair_attaches_to_another_pilot_and_strength_0_is_that_pilot(
    save_pilot, rows_file, tiny_pilot, tokenizer, tmp_path, capsys
):
    assert train(save_pilot(), rows_file, tmp_path / "out") == 0
    capsys.readouterr()
    other = tiny_pilot("llama")
    with torch.no_grad():
        other.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    other.save_pretrained(tmp_path / "other")
    inputs = tokenizer("w3 w4", return_tensors="pt")
    written = other.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=2, pad_token_id=0, eos_token_id=1)
    flags = {"pair": tmp_path / "out", "pilot": tmp_path / "other", "strength": 0, "num_beams": 2, "max_new_tokens": 6}
    assert run("generate", "w3 w4", **flags) == 0
    assert capsys.readouterr().out.strip() == tokenizer.decode(written[0, 3:], skip_special_tokens=True)


@pytest.mark.parametrize("flags", [{"pilot": "llama"}, {}], ids=["given", "named"])
def test_a_pair_without_a_tokenizer_takes_its_pilots(save_pilot, rows_file, tmp_path, capsys, monkeypatch, flags):
    PilotCopilotForCausalLM.from_pilot(save_pilot(), layers=2, candidates=8).save_pretrained(tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    assert run("eval", pair="out", dataset_name=rows_file, max_new_tokens=4, **flags) == 0
    assert "exact match" in capsys.readouterr().out


def test_a_pair_whose_tokenizer_is_nowhere_is_refused(save_pilot, tmp_path, capsys, monkeypatch):
    pair = PilotCopilotForCausalLM.from_pilot(save_pilot(), layers=2, candidates=8)
    pair.config.base_model_name_or_path = None
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert_refused(run("generate", "w1", pair="out"), capsys, "no tokenizer in out")


def test_a_prompt_is_read_from_standard_input(save_pilot, rows_file, tmp_path, capsys, monkeypatch):
    assert train(save_pilot(), rows_file, tmp_path / "out") == 0
    capsys.readouterr()
    written = []
    for positional, piped in ((["w3 w4"], ""), ([], "w3 w4\n")):
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        assert run("generate", *positional, pair=tmp_path / "out", max_new_tokens=4) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] != "\n"


def test_env_prints_the_environment(capsys):
    assert run("env") == 0
    assert capsys.readouterr().out == environment_text() + "\n"


def test_help_names_the_flags_and_their_defaults(capsys):
    assert run("train", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--copilot_learning_rate" in text
    assert "The Copilot's peak learning rate. (default: 0.0005)" in text
    assert "The Pilot: a hub id or a folder. --dtype" in text  # a required flag has no default
    assert "--no-completion-only-loss Switch --completion_only_loss off. (default: False)" in text


def test_help_leaves_out_the_flags_that_are_refused(capsys):
    assert run("train", "--help") == 0
    shown = re.findall(r"--(\w+)", capsys.readouterr().out)
    assert "learning_rate" in shown
    assert set(shown).isdisjoint(UNSUPPORTED)


def test_help_says_what_each_command_does_on_a_line_of_its_own(capsys):
    assert run("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Train a pair, evaluate it, generate with it, and look at its Mistake Log, from the command line." in lines
    for name, (command, _) in cli.COMMANDS.items():
        assert [line.split(maxsplit=1)[1] for line in lines if line.startswith(f"  {name} ")] == [command.__doc__]


# ---- YAML ----


def test_flags_count_more_than_the_config_file(save_pilot, rows_file, tmp_path):
    config = tmp_path / "train.yaml"
    lines = {**FEW_STEPS, "model_name_or_path": save_pilot(), "dataset_name": rows_file, "rectifier": "linear"}
    lines |= {"lora_target_modules": ["q_proj", "v_proj"], "use_peft": "true", "learning_rate": "3e-3", "candidates": 4}
    config.write_text("".join(f"{name}: {value}\n" for name, value in lines.items()), encoding="utf-8")
    assert run("train", config=config, output_dir=tmp_path / "out", candidates=5) == 0
    saved = CopilotConfig.from_pretrained(tmp_path / "out")
    assert (saved.rectifier, saved.candidates) == ("linear", 5)
    adapter = json.loads((tmp_path / "out" / "pilot" / "adapter_config.json").read_text(encoding="utf-8"))
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]
    arguments = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert arguments.learning_rate == 3e-3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("learning_rates: 1", "unknown key 'learning_rates'"),
        ("learning_rate:", "learning_rate has no value"),
        ("learning_rate: high", "--learning_rate"),
        ("rectifier: both", "--rectifier"),
        ("- learning_rate", "holds list"),
        ("a: [", "train.yaml"),
        (None, "train.yaml"),
    ],
)
def test_a_wrong_config_file_is_refused(tmp_path, capsys, text, named):
    config = tmp_path / "train.yaml"
    if text is not None:
        config.write_text(text, encoding="utf-8")
    flags = {"model_name_or_path": "none", "dataset_name": "none", "output_dir": tmp_path / "out"}
    assert_refused(run("train", config=config, **flags), capsys, named, tmp_path / "out")


def test_rows_of_a_parquet_file_are_read(tmp_path):
    path = tmp_path / "rows.parquet"
    Dataset.from_list(ROWS).to_parquet(path)
    assert load_splits(DataArguments(str(path)))["train"].to_list() == ROWS


# ---- Bad input ----


def assert_refused(code: int, capsys: Any, named: str, out: Path | None = None) -> None:
    """A code above 0, one line that names what was wrong, no traceback, and no output folder."""
    errors = [line for line in capsys.readouterr().err.splitlines() if "rror" in line or "Traceback" in line]
    assert code > 0
    assert len(errors) == 1 and errors[0].startswith("tcopilot: error: ")
    assert named in errors[0]
    assert out is None or not out.exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"model_name_or_path": "missing/"}, "model_name_or_path is 'missing/'"),
        ({"dataset_name": "missing.jsonl"}, "missing.jsonl"),
        ({"dataset_train_split": "all"}, "dataset_train_split is 'all'"),
        ({"dataset_validation_split": "dev"}, "dataset_validation_split is 'dev'"),
        ({"task": "mawps"}, "mawps/train.json"),
        ({"task": "mops"}, "--task"),
        ({"candidates": "some"}, "candidates must be a number, at least 1, or 'none'; got 'some'"),
        ({"candidates": "0"}, "candidates must be a number, at least 1, or 'none'; got '0'"),
        ({"copilot_layers": "most"}, "copilot_layers must be a number, at least 1, or 'all'; got 'most'"),
        ({"copilot_layers": "0"}, "copilot_layers must be a number, at least 1, or 'all'; got '0'"),
        ({"copilot_learning_rate": -1}, "copilot_learning_rate must be at least 0; got -1.0"),
        ({"copilot_weight_decay": -1}, "copilot_weight_decay must be at least 0; got -1.0"),
        ({"rectifier": "both"}, "--rectifier"),
        ({"copilot_loss": "ce", "rectifier": "linear"}, "linear"),
        ({"max_length": 1}, "max_length"),
        ({"log_rounds": 0}, "log_rounds"),
        ({"use_peft": True, "freeze_pilot": True}, "use_peft and freeze_pilot are both True"),
        ({"lora_r": 4}, "lora_r is 4, but use_peft is False"),
        ({"lora_r": 0}, "lora_r must be at least 1; got 0"),
        ({"copilot_lora_r": -3}, "copilot_lora_r must be at least 0; got -3"),
        ({"dataset_name": __file__}, "test_cli.py', expected a file with .json, .jsonl, .csv, .parquet"),
        ({"dataset_config": "main"}, "dataset_config is 'main', which only a hub data set has"),
        ({"log_hidden_dtype": "int4"}, "int4"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"use_liger_kernel": True}, "use_liger_kernel is True, expected False"),
        ({"neftune_noise_alpha": 5}, "neftune_noise_alpha is 5.0, expected None"),
        ({"fsdp": True}, "fsdp and deepspeed are not supported"),
        ({"use_peft": True, "lora_target_modules": "no_such_layer"}, "no_such_layer"),
        ({"learning_rates": 1}, "unknown arguments: --learning_rates"),
        ({"learning_rate": "high"}, "--learning_rate"),
        ({"resume_from_checkpoint": "missing"}, "missing"),
    ],
    ids=str,
)
def test_training_refuses_what_it_cannot_use(save_pilot, rows_file, tmp_path, capsys, flags, named):
    required = {"model_name_or_path": save_pilot(), "dataset_name": rows_file, "output_dir": tmp_path / "out"}
    assert_refused(run("train", **required | FEW_STEPS | flags), capsys, named, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("rows.jsonl", '{"question": "w1", "answer": "w2"}\n' * 4, "columns ['answer', 'question']"),
        ("rows.jsonl", '{"prompt": 1, "completion": 2}\n' * 4, "prompt"),
        ("rows.jsonl", '{"prompt": "w1", "completion": "w2"}\n', "1 rows"),
        ("rows.jsonl", "", "rows.jsonl', which cannot be read: it is empty"),
        ("rows.jsonl", "{", "rows.jsonl"),
        ("rows.csv", "prompt,completion\n", "rows.csv"),
    ],
    ids=["columns", "types", "one-row", "empty", "broken", "no-rows"],
)
def test_training_refuses_unusable_rows(save_pilot, tmp_path, capsys, name, content, named):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert_refused(train(save_pilot(), str(tmp_path / name), tmp_path / "out"), capsys, named, tmp_path / "out")


@pytest.mark.parametrize(
    ("pilot", "named"),
    [("out", "out', which holds a pair, expected a Pilot"), ("out/pilot", "out/pilot', which holds adapters: merge")],
)
def test_a_pair_or_adapters_are_no_pilot_to_train(save_pilot, rows_file, tmp_path, capsys, pilot, named):
    assert train(save_pilot(), rows_file, tmp_path / "out", use_peft=True) == 0
    capsys.readouterr()
    assert_refused(train(str(tmp_path / pilot), rows_file, tmp_path / "again"), capsys, named, tmp_path / "again")


def test_training_leaves_what_is_in_its_way_as_it_was(save_pilot, rows_file, tmp_path, capsys):
    """A Pilot that was loaded from the output folder, or a file of its name."""
    folder = Path(save_pilot())
    files = {path: path.read_bytes() for path in folder.iterdir()}
    assert_refused(train(str(folder), rows_file, folder, use_peft=True), capsys, "files would replace it")
    assert_refused(train(str(folder), rows_file, Path(rows_file)), capsys, "rows.jsonl', which is a file")
    assert {path: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.parametrize(
    ("command", "positional", "flags", "named"),
    [
        ("eval", (), {"dataset_name": "rows.jsonl", "pair": "missing/"}, "pair is 'missing/', which holds no model"),
        ("eval", (), {"dataset_name": "rows.jsonl", "pair": "out", "max_length": 1}, "max_length must be at least 2"),
        ("eval", (), {"dataset_name": "rows.jsonl", "pair": "llama"}, "'llama', which holds a llama, expected a pair"),
        ("eval", (), {"dataset_name": "rows.jsonl", "pair": "out", "strength": 2}, "strength"),
        ("eval", (), {"dataset_name": "rows.jsonl", "pair": "out", "dataset_test_split": "dev"}, "dataset_test_split"),
        ("eval", (), {"dataset_name": "other.jsonl", "pair": "out"}, "columns"),
        ("eval", (), {"pair": "out"}, "--dataset_name"),
        ("eval", (), {"dataset_name": "numbers.csv", "pair": "out"}, "row 0 of the data has completion 12"),
        ("eval", (), {"dataset_name": "rows.jsonl", "pair": "out", "batch_size": 0}, "batch_size"),
        ("generate", ("w1",), {"pair": "out", "num_beams": 0}, "num_beams"),
        ("generate", ("w1",), {"pair": "missing/"}, "missing/"),
        ("generate", ("w1",), {"pair": "out", "strength": -1}, "strength"),
        ("generate", ("w1",), {"pair": "out", "pilot": "missing/"}, "missing/"),
        ("generate", ("w1",), {"pair": "out", "pilot": "t5"}, "t5"),
        ("generate", ("",), {"pair": "out"}, "prompt"),
        ("log", ("missing",), {}, "missing"),
        ("log", ("broken",), {}, "mistake_log.safetensors"),
        ("log", (), {}, "folder"),
        ("fly", (), {}, "fly"),
    ],
    ids=str,
)
def test_a_finished_pair_is_used_only_as_it_can_be(
    save_pilot, rows_file, tiny_pilot, tokenizer, tmp_path, capsys, monkeypatch, command, positional, flags, named
):
    save_pilot(), save_pilot("t5")
    pair = PilotCopilotForCausalLM.from_pilot(str(tmp_path / "llama"), layers=2, candidates=8)
    pair.save_pretrained(tmp_path / "out", save_pilot=True)
    tokenizer.save_pretrained(tmp_path / "out")
    tokenizer.save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "_mistake_log.safetensors").write_bytes(b"not a log")
    write_rows(tmp_path / "other.jsonl", [{"text": "w1 w2"}])
    (tmp_path / "numbers.csv").write_text("prompt,completion\nw1,12\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert_refused(run(command, *positional, **flags), capsys, named)


def test_an_overflow_is_one_line(save_pilot, rows_file, tmp_path, capsys, monkeypatch):
    def overflow(*_arguments: Any, **_options: Any) -> None:
        raise FloatingPointError("the Pilot's logits for the prompt are NaN")

    assert train(save_pilot(), rows_file, tmp_path / "out") == 0
    capsys.readouterr()
    monkeypatch.setattr(cli, "complete", overflow)
    assert_refused(run("generate", "w1", pair=tmp_path / "out"), capsys, "logits for the prompt are NaN")
