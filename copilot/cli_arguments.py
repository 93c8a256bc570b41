"""The flags of `tcopilot`, and where their values come from: the command line and a YAML file."""

from __future__ import annotations

import json
import sys
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from copilot.config import CONTEXT_LAYERS, FEEDBACKS, TABLES, VISIBILITIES
from copilot.evaluation import MAX_NEW_TOKENS
from copilot.ops.candidate_loss import LOSSES, check_loss
from copilot.ops.pool_layers import POOLINGS
from copilot.ops.rectify import FUSIONS, RECTIFIERS
from copilot.tasks import TASKS
from copilot.training_arguments import UNSUPPORTED

DTYPES = ("float32", "bfloat16", "float16", "auto")


def flag(help: str, default: Any = None, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field that is a command line flag."""
    return field(default=default, metadata={"help": help} | ({"choices": choices} if choices else {}))


def check_positive(**values: int) -> None:
    """Raise ValueError, naming the first that is below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


@dataclass
class PilotArguments:
    """Which Pilot is trained, and how."""

    model_name_or_path: str = field(metadata={"help": "The Pilot: a hub id or a folder."})
    dtype: str = flag("Type of the Pilot's weights.", "float32", DTYPES)
    freeze_pilot: bool = flag("Train the Copilot alone, on the mistakes of a Pilot that is finished.", False)
    use_peft: bool = flag("Train LoRA adapters of the Pilot instead of all its weights.", False)
    lora_r: int = flag("Rank of the Pilot's adapters.", 32)
    lora_alpha: int = flag("Scale of the Pilot's adapters.", 64)
    lora_dropout: float = flag("Dropout of the Pilot's adapters.", 0.05)
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["all-linear"], metadata={"help": "Names of the Pilot's layers that get adapters."}
    )

    def __post_init__(self) -> None:
        check_positive(lora_r=self.lora_r)


@dataclass
class CopilotArguments:
    """The Copilot's design; see CopilotConfig."""

    copilot_layers: str = flag("How many of the Pilot's layers to copy, or 'all'.", "6")
    candidates: str = flag("How many of the Pilot's most likely tokens to correct; 'none' for all.", "32")
    rectifier: str = flag("How the correction becomes a predicted mistake.", "simplex", RECTIFIERS)
    fusion: str = flag("What the predicted mistake is added to.", "probability", FUSIONS)
    feedback: str = flag("Which mistake the Copilot reads at each step.", "observed", FEEDBACKS)
    visibility: str = flag("Up to which of the Pilot's states the Copilot sees.", "current", VISIBILITIES)
    copilot_loss: str = flag("The Copilot's loss.", "rmse", LOSSES)
    pooling: str = flag("Pooling of the Pilot's layers.", "mean", POOLINGS)
    context_layers: str = flag("Where the Pilot's states enter the Copilot.", "even", CONTEXT_LAYERS)
    context_norm: bool = flag(
        "Normalise X~ (the prompt's embeddings) and the Pilot's states where the Copilot reads them.", True
    )
    head: str = flag("The Copilot's output map.", "own", TABLES)
    error_in: str = flag("The Copilot's input map.", "own", TABLES)
    copilot_lora_r: int = flag("Rank of adapters in the Copilot's layers; 0 trains the layers in full.", 0)

    def __post_init__(self) -> None:
        if self.copilot_lora_r < 0:
            raise ValueError(f"copilot_lora_r must be at least 0; got {self.copilot_lora_r}")
        check_loss(self.copilot_loss, self.rectifier)


@dataclass
class DataArguments:
    """Where the data comes from."""

    dataset_name: str = field(
        metadata={
            "help": "A hub id, a folder, a .json, .jsonl, .csv or .parquet file; with --task a folder of LLM-Adapters "
            "data."
        }
    )
    dataset_config: str | None = flag("Configuration of a hub data set.")
    task: str | None = flag("A task of the LLM-Adapters layout, read from <dataset_name>/<task>/.", None, list(TASKS))


@dataclass
class TrainSplitArguments:
    """Which splits a training reads."""

    dataset_train_split: str = flag("Split to train on.", "train")
    dataset_validation_split: str | None = flag(
        "Split for lambda and --eval_strategy; by default 'validation' or 'valid', else a tenth of the training rows."
    )


@dataclass
class EvaluationArguments:
    """What an evaluation reads."""

    dataset_test_split: str | None = flag("Split to evaluate; by default 'test', or the only one there is.")
    batch_size: int = flag("Examples per forward pass.", 32)
    max_length: int = flag("Tokens a scored example may have.", 256)

    def __post_init__(self) -> None:
        check_positive(batch_size=self.batch_size)
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2; got {self.max_length}")


@dataclass
class PairArguments:
    """Which pair is used."""

    pair: str = field(metadata={"help": "A trained pair: its folder."})
    pilot: str | None = flag("The Pilot to attach the Copilot to; by default the one it was trained beside.")
    dtype: str | None = flag(
        "Type of the Pilot's weights; by default that of its training, for which lambda was chosen.", None, DTYPES
    )
    strength: float | None = flag(
        "lambda, how much of the correction is added; 0 is the Pilot alone. By default the calibrated value (1 in a "
        "checkpoint)."
    )


@dataclass
class GenerationArguments(PairArguments):
    """Which pair writes, and how."""

    pair: str = field(metadata={"help": "A trained pair: a folder or a hub id."})
    num_beams: int = flag("Beams; 1 is greedy decoding.", 1)
    max_new_tokens: int = flag("Tokens a completion may have.", MAX_NEW_TOKENS)

    def __post_init__(self) -> None:
        check_positive(num_beams=self.num_beams, max_new_tokens=self.max_new_tokens)


@dataclass
class PlotArguments:
    """Where the figures go."""

    out: str = field(metadata={"help": "Folder for the PNG files."})


class HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Names the default where there is one."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(HfArgumentParser):
    """Leaves out of its help what would be refused, and says what is wrong in one line."""

    def add_argument(self, *names: str, **options: Any) -> Action:
        if names[0].removeprefix("--") in UNSUPPORTED:
            options["help"] = SUPPRESS
        if options.get("action") == "store_false":  # transformers adds --no_x, with the help of --x
            options["help"] = f"Switch --{options['dest']} off."
        return super().add_argument(*names, **options)

    def error(self, message: str) -> NoReturn:
        print(f"tcopilot: error: {message}", file=sys.stderr)
        raise SystemExit(2)


def flags_of_file(path: str, parser: ArgumentParser) -> list[str]:
    """A YAML file of `flag: value` lines as command line flags."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        parser.error(f"config {path}: {one_line(error)}")
    if not isinstance(values, dict):
        parser.error(f"config {path} holds {type(values).__name__}, expected lines of 'flag: value'")
    known = {action.dest for action in parser._actions} - {"config"}
    flags: list[str] = []
    for name, value in values.items():
        if name not in known:
            parser.error(f"config {path}: unknown key {name!r}")
        if value is None:
            parser.error(f"config {path}: {name} has no value")
        if isinstance(value, bool):  # YAML reads `save_strategy: no` as False; flags of both kinds understand "no"
            value = "yes" if value else "no"
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        else:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
