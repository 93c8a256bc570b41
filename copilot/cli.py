"""Train a pair, evaluate it, generate with it, and look at its Mistake Log, from the command line."""

from __future__ import annotations

import json
import logging
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from datasets.exceptions import DatasetsError
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    set_seed,
)

from copilot.calibration import calibrate
from copilot.cli_arguments import (
    CopilotArguments,
    DataArguments,
    EvaluationArguments,
    GenerationArguments,
    HelpFormatter,
    PairArguments,
    Parser,
    PilotArguments,
    PlotArguments,
    TrainSplitArguments,
    flags_of_file,
    one_line,
)
from copilot.cli_data import load_examples, load_training_data
from copilot.comparison import compare
from copilot.config import CopilotConfig
from copilot.environment import environment_text
from copilot.evaluation import complete, to_rows
from copilot.inspection import measure, read_losses, reliability, rounds_of
from copilot.mistake_log import MistakeLog
from copilot.pair import PilotCopilotForCausalLM, PilotCopilotForSeq2SeqLM, PilotCopilotModel
from copilot.trainer import CopilotTrainer
from copilot.training_arguments import CopilotTrainingArguments

# Of a finished run; a checkpoint has one for each process, mistake_log_0.safetensors and so on. The underscore keeps
# the texts that it holds from the hub.
LOG_FILE = "_mistake_log.safetensors"
LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")


# ---- Commands ----


def train(
    pilot: PilotArguments,
    design: CopilotArguments,
    data: DataArguments,
    splits: TrainSplitArguments,
    arguments: CopilotTrainingArguments,
) -> None:
    """Train a Pilot and its Copilot, calibrate lambda, and write both to --output_dir."""
    if Path(pilot.model_name_or_path, "adapter_config.json").is_file():
        raise ValueError(f"model_name_or_path is {pilot.model_name_or_path!r}, which holds adapters: merge them first")
    if Path(arguments.output_dir).is_file():
        raise ValueError(f"output_dir is {arguments.output_dir!r}, which is a file")
    options, adapters = copilot_options(design), pilot_adapters(pilot)  # wrong flags are refused before anything loads
    training_rows, validation_rows = load_training_data(data, splits, arguments.seed)
    pair_class, pilot_class = classes_of(pilot.model_name_or_path, "model_name_or_path")
    tokenizer = load_tokenizer(pilot.model_name_or_path)
    set_seed(arguments.seed)
    loaded = pilot_class.from_pretrained(pilot.model_name_or_path, dtype=pilot.dtype)
    if pilot.freeze_pilot:
        loaded.requires_grad_(False)
    pair = pair_class.from_pilot(loaded, **options)
    try:
        trainer = CopilotTrainer(pair, arguments, training_rows, validation_rows, tokenizer, peft_config=adapters)
        trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    except Exception:
        with suppress(OSError):
            Path(arguments.output_dir).rmdir()  # only when nothing has been written to it
        raise
    trainer.save_model(_internal_call=True)  # not to the hub yet: lambda is still to come
    trainer.save_state()  # with the history of the losses
    if trainer.is_world_process_zero():
        trainer.mistake_log.save(Path(arguments.output_dir) / LOG_FILE)
        found = calibrate(
            pair,
            validation_rows,
            tokenizer,
            max_length=arguments.max_length,
            completion_only_loss=arguments.completion_only_loss,
            assistant_only_loss=arguments.assistant_only_loss,
        )
        pair.config.save_pretrained(arguments.output_dir)
        before, after = found.pilot.per_token()[0], found.pair.per_token()[0]
        on = f"on {len(validation_rows)} rows"
        print(f"lambda = {found.strength:.3f} {on}: Brier score per token {before:.4f} -> {after:.4f}")
    if arguments.push_to_hub:
        trainer.push_to_hub()


def evaluate(data: DataArguments, evaluation: EvaluationArguments, generation: GenerationArguments) -> None:
    """Compare the Pilot alone with the pair: exact match, answer accuracy, Brier score and NLL."""
    examples = load_examples(data, evaluation.dataset_test_split)
    pair, tokenizer = load_pair(generation)
    print(
        compare(
            pair,
            tokenizer,
            examples,
            strength=generation.strength,
            batch_size=evaluation.batch_size,
            max_length=evaluation.max_length,
            num_beams=generation.num_beams,
            max_new_tokens=generation.max_new_tokens,
        )
    )


def generate(generation: GenerationArguments, prompt: str | None) -> None:
    """Complete a prompt."""
    prompt = sys.stdin.read().removesuffix("\n") if prompt is None else prompt
    if not prompt:
        raise ValueError("the prompt is empty; give one, or write it to standard input")
    pair, tokenizer = load_pair(generation)
    options = {"num_beams": generation.num_beams, "max_new_tokens": generation.max_new_tokens, "do_sample": False}
    print(complete(pair, tokenizer, [prompt], strength=generation.strength, **options)[0])


def log(folder: str) -> None:
    """Say what the Pilot gets wrong, from the Mistake Log of an output folder or a checkpoint."""
    paths = log_paths(folder)
    tokenizer = tokenizer_of_pair(folder)
    for path in paths:
        kept = open_log(path)
        print(f"{path.name}: {len(kept)} of {kept.rounds_seen} rounds", kept.summary(tokenizer), sep="\n")


def plot(data: DataArguments, evaluation: EvaluationArguments, chosen: PairArguments, target: PlotArguments) -> None:
    """Draw the falling mistakes of a training and, on held-out rows, corrections, a step and reliability."""
    from copilot import plots  # needs matplotlib, which is optional

    if Path(target.out).exists() and not Path(target.out).is_dir():
        raise NotADirectoryError(f"out is {target.out!r}, which is a file; expected a folder")
    rounds = rounds_of(open_log(path) for path in log_paths(chosen.pair))
    losses = read_losses(chosen.pair)
    examples = load_examples(data, evaluation.dataset_test_split)
    without = sum(not example.completion for example in examples)
    if without:
        raise ValueError(
            f"{without} of {len(examples)} rows have no completion, expected one in each (give another split)"
        )
    pair, tokenizer = load_pair(chosen)
    held = measure(
        pair,
        to_rows(examples),
        tokenizer,
        strength=chosen.strength,
        batch_size=evaluation.batch_size,
        max_length=evaluation.max_length,
    )
    figures = {
        "mistakes": plots.draw_mistakes(rounds, losses),
        "corrections": plots.draw_corrections(held),
        "step": plots.draw_step(held.step),
        "reliability": plots.draw_reliability(reliability(*held.before), reliability(*held.after)),
    }
    print(*plots.save(figures, target.out), sep="\n")


def env() -> None:
    """Print the versions, the device and the build facts that a bug report needs."""
    print(environment_text())


# ---- Models ----


def classes_of(name: str, option: str) -> tuple[type[PilotCopilotModel], Any]:
    """Classes of the pair and of the Pilot, by the configuration of either, which an option names."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} is {name!r}, which holds no model that can be read: {one_line(error)}") from error
    is_pair = config.model_type == CopilotConfig.model_type
    if is_pair != (option == "pair"):
        found, expected = ("pair", "Pilot") if is_pair else (config.model_type, "pair")
        raise ValueError(f"{option} is {name!r}, which holds a {found}, expected a {expected}")
    if config.is_encoder_decoder:
        return PilotCopilotForSeq2SeqLM, AutoModelForSeq2SeqLM
    return PilotCopilotForCausalLM, AutoModelForCausalLM


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A tokenizer that can pad."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_of_pair(pair: str, pilot: str | None = None) -> PreTrainedTokenizerBase:
    """The one saved beside a pair, else that of the Pilot given or named in its configuration."""
    named = None
    with suppress(OSError, ValueError):
        named = AutoConfig.from_pretrained(pair).base_model_name_or_path
    failed = []
    for place in (pair, pilot, named):
        if place:
            try:
                return load_tokenizer(place)
            except (OSError, ValueError) as error:
                failed.append(f"{place} ({str(error).partition(chr(10))[0]})")
    raise ValueError(
        f"no tokenizer in {', nor in '.join(failed)}; save the Pilot's with tokenizer.save_pretrained({pair!r})"
    )


def load_pair(chosen: PairArguments) -> tuple[PilotCopilotModel, PreTrainedTokenizerBase]:
    """A saved pair, on the GPU when there is one, and its tokenizer."""
    pair_class, _ = classes_of(chosen.pair, "pair")
    pair = pair_class.from_pretrained(chosen.pair, pilot=chosen.pilot, pilot_dtype=chosen.dtype)
    tokenizer = tokenizer_of_pair(chosen.pair, chosen.pilot)
    return pair.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def pilot_adapters(pilot: PilotArguments) -> LoraConfig | None:
    """The adapters to train, or None for a Pilot trained in full."""
    if pilot.use_peft and pilot.freeze_pilot:
        raise ValueError("use_peft and freeze_pilot are both True: adapters of a frozen Pilot would not be trained")
    if not pilot.use_peft:
        changed = [name for name in LORA if getattr(pilot, name) != getattr(PilotArguments(""), name)]
        if changed:
            raise ValueError(
                f"{changed[0]} is {getattr(pilot, changed[0])}, but use_peft is False: there are no adapters"
            )
        return None
    names = pilot.lora_target_modules
    return LoraConfig(
        r=pilot.lora_r,
        lora_alpha=pilot.lora_alpha,
        lora_dropout=pilot.lora_dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
    )


def copilot_options(design: CopilotArguments) -> dict[str, Any]:
    """The arguments of `from_pilot`."""
    options = dict(vars(design))
    options["layers"] = number_or("all", "copilot_layers", options.pop("copilot_layers"))
    candidates = number_or("none", "candidates", options.pop("candidates"))
    options["candidates"] = None if candidates == "none" else candidates
    options["loss"] = options.pop("copilot_loss")
    rank = options.pop("copilot_lora_r")
    if rank:
        options["lora"] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    return options


def number_or(word: str, name: str, value: str) -> int | str:
    """`value` as a number, unless it is `word`."""
    if value != word and (not value.isdigit() or int(value) < 1):
        raise ValueError(f"{name} must be a number, at least 1, or {word!r}; got {value!r}")
    return value if value == word else int(value)


def log_paths(folder: str) -> list[Path]:
    """The Mistake Logs of an output folder or a checkpoint, at least one."""
    paths = sorted(Path(folder).glob("*mistake_log*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder!r} holds no *mistake_log*.safetensors; give an output folder or a checkpoint")
    return paths


def open_log(path: Path) -> MistakeLog:
    """A saved Mistake Log of any capacity and type."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["mistake_log"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no complete Mistake Log: {error}") from error
    kept = MistakeLog(facts["capacity"], hidden_dtype=facts["hidden_dtype"])
    kept.load(path)
    return kept


# ---- Command line ----


TRAINING = [PilotArguments, CopilotArguments, DataArguments, TrainSplitArguments, CopilotTrainingArguments]
COMMANDS: dict[str, tuple[Callable[..., None], list[type]]] = {
    "train": (train, TRAINING),
    "eval": (evaluate, [DataArguments, EvaluationArguments, GenerationArguments]),
    "generate": (generate, [GenerationArguments]),
    "log": (log, []),
    "plot": (plot, [DataArguments, EvaluationArguments, PairArguments, PlotArguments]),
    "env": (env, []),
}


def parse(name: str, argv: list[str]) -> list[Any]:
    """The arguments of a command's function."""
    command, dataclasses = COMMANDS[name]
    about = {"prog": f"tcopilot {name}", "description": command.__doc__, "formatter_class": HelpFormatter}
    parser = Parser(dataclasses, allow_abbrev=False, **about)
    if name == "generate":
        parser.add_argument("prompt", nargs="?", help="Text to complete; by default standard input.")
    if name == "log":
        parser.add_argument("folder", help="Output folder or checkpoint of a training.")
    if name in ("train", "eval", "plot"):
        parser.add_argument("--config", help="YAML file of flags; those on the command line count more.")
        first = Parser([], add_help=False, allow_abbrev=False)
        first.add_argument("--config")
        config = first.parse_known_args(argv)[0].config
        argv = argv if config is None else flags_of_file(config, parser) + argv
    *values, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    if len(values) > len(dataclasses):  # a namespace of what is in no dataclass
        rest = vars(values.pop())
        values += [rest[key] for key in ("prompt", "folder") if key in rest]
    return values


def main(argv: list[str] | None = None) -> int:
    """The command `tcopilot`.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit code: 0, or 1 after an error in what the user gave. Wrong flags leave by SystemExit(2).
    """
    argv = sys.argv[1:] if argv is None else argv
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # what it reports it raises as well
    lines = [f"  {name:<8}  {command.__doc__}" for name, (command, _) in COMMANDS.items()]
    about = "\n".join([__doc__, "", *lines])
    top = Parser([], prog="tcopilot", description=about, formatter_class=RawDescriptionHelpFormatter)
    top.add_argument("command", choices=COMMANDS, help="One of these; `tcopilot COMMAND --help` lists its flags.")
    name = top.parse_args(argv[:1]).command
    try:
        COMMANDS[name][0](*parse(name, argv[1:]))
    except (ValueError, OSError, ImportError, FloatingPointError, DatasetsError) as error:
        print(f"tcopilot: error: {one_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
