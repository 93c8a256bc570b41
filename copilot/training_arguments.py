"""CopilotTrainingArguments: the options of a training of two models."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from peft import PeftConfig
from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging

from copilot.adapters import check_pilot_survives, check_restorable, has_adapters
from copilot.building import check_attachable
from copilot.mistake_log import HIDDEN_DTYPES
from copilot.ops.rectify import check_choice
from copilot.pair_base import PilotCopilotModel

logger = logging.get_logger(__name__)

# What `__post_init__` refuses, and what only goes with it; `tcopilot train --help` leaves these out.
UNSUPPORTED = (
    "label_smoothing_factor",
    *("use_liger_kernel", "liger_kernel_config"),
    "neftune_noise_alpha",
    *("bf16_full_eval", "fp16_full_eval"),
    *("fsdp", "fsdp_config", "deepspeed"),
)


@dataclass
class CopilotTrainingArguments(TrainingArguments):
    """TrainingArguments with a second model to train. `learning_rate` and `weight_decay` are the Pilot's.

    Below is what is new, or has another default or meaning here; defaults in brackets.

    Args:
        learning_rate (3e-4): the Pilot's peak learning rate.
        copilot_learning_rate (5e-4): the Copilot's peak learning rate.
        copilot_weight_decay (0.0): the Copilot's weight decay.
        lr_scheduler_type ("cosine"): the schedule of both learning rates.
        copilot_updates (1): the Copilot's optimizer steps for each of the Pilot's. The first is the one of both models;
            each further one draws its rounds anew.
        log_rounds (128): how many of the last optimizer steps the Mistake Log keeps; each has one round per
            micro-batch.
        log_hidden_dtype ("bfloat16"): how the Mistake Log keeps the Pilot's states: "bfloat16", "int8" or "float32".
        max_length (256): tokens a row may have, at least 2; `prepare_dataset` says how longer ones are cut.
        completion_only_loss (True): of rows `{prompt, completion}` supervise the completion only.
        assistant_only_loss (False): of rows `{messages}` supervise only what the assistant said.
        greater_is_better (None): None is False also where metric_for_best_model is "ce", "rmse" or that of one dataset,
            such as "eval_de_ce".
        remove_unused_columns (False): without effect: rows are prepared, and hold no other columns.
        logging_nan_inf_filter (False): replace NaN losses in the logs. A NaN of the Pilot raises at once, one of
            the Copilot before it is logged.
        ddp_find_unused_parameters (False): not needed: both losses come from one forward and use every parameter.
        resume_from_checkpoint (None): a checkpoint that `tcopilot train` continues; in Python it is given to `train`.

    Raises:
        ValueError: one of `UNSUPPORTED`, which the pair cannot honour, or a value out of range.
    """

    learning_rate: float = field(default=3e-4, metadata={"help": "The Pilot's peak learning rate."})
    copilot_learning_rate: float = field(default=5e-4, metadata={"help": "The Copilot's peak learning rate."})
    copilot_weight_decay: float = field(default=0.0, metadata={"help": "The Copilot's weight decay."})
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "Schedule of both rates."})
    copilot_updates: int = field(default=1, metadata={"help": "The Copilot's optimizer steps for each of the Pilot's."})
    log_rounds: int = field(
        default=128,
        metadata={
            "help": "How many of the last optimizer steps the Mistake Log keeps; each has one round per micro-batch."
        },
    )
    log_hidden_dtype: str = field(
        default="bfloat16", metadata={"help": "The Mistake Log keeps states as 'bfloat16', 'int8' or 'float32'."}
    )
    max_length: int = field(default=256, metadata={"help": "Tokens a row may have; see prepare_dataset."})
    completion_only_loss: bool = field(default=True, metadata={"help": "Do not supervise prompts."})
    assistant_only_loss: bool = field(default=False, metadata={"help": "Supervise only what the assistant said."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Prepared rows hold no unused columns."})
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether the best model has the largest metric; not of ce, rmse and losses."}
    )
    # The filter reads each loss on the host and hides what it filters; a NaN of the Pilot raises instead.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Replace NaN losses in the logs."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: both losses come from one forward and use every parameter."}
    )
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "Continue from this checkpoint folder."})

    def __post_init__(self) -> None:
        if self.greater_is_better is None and (self.metric_for_best_model or "").rpartition("_")[2] in ("ce", "rmse"):
            self.greater_is_better = False  # TrainingArguments knows only names that end in "loss"
        super().__post_init__()
        if self.label_smoothing_factor != 0:
            raise ValueError(f"label_smoothing_factor is {self.label_smoothing_factor}, the pair supports only 0")
        for name in ("copilot_learning_rate", "copilot_weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0; got {getattr(self, name)}")
        if self.copilot_updates < 1:
            raise ValueError(f"copilot_updates must be at least 1; got {self.copilot_updates}")
        if self.use_liger_kernel:
            raise ValueError(
                "use_liger_kernel is True, expected False: mistakes are taken from logits, which its loss skips"
            )
        if self.neftune_noise_alpha is not None:
            raise ValueError(f"neftune_noise_alpha is {self.neftune_noise_alpha}, expected None: it adds noise to X~")
        for name in ("bf16_full_eval", "fp16_full_eval"):
            if getattr(self, name):
                raise ValueError(f"{name} is True, expected False: it would round the weights that are trained")
        if self.max_length is None:
            raise ValueError("max_length is None, expected a number (a large one cuts nothing)")
        if self.log_rounds < 1:
            raise ValueError(f"log_rounds must be at least 1; got {self.log_rounds}")
        check_choice("log_hidden_dtype", self.log_hidden_dtype, tuple(HIDDEN_DTYPES))
        if self.fsdp or self.deepspeed:
            raise ValueError("fsdp and deepspeed are not supported: start one process for each GPU with torchrun")


def check_training(model: PilotCopilotModel, args: CopilotTrainingArguments, peft_config: PeftConfig | None) -> None:
    """Raise ValueError for a pair that cannot be trained so; warn of adapters on a Pilot that was not loaded by name.

    That is a model that is no pair, arguments of another class, several GPUs in one process, adapters that were not
    added by the Pilot's own `add_adapter` or cannot be saved and loaded again, a Pilot that has several active ones or
    both adapters and a `peft_config`, that has another vocabulary by now, or that was loaded from where the pair would
    be saved.
    """
    if not isinstance(model, PilotCopilotModel):
        raise ValueError(f"model is a {type(model).__name__}, expected a pair (PilotCopilotForCausalLM.from_pilot)")
    if not isinstance(args, CopilotTrainingArguments):
        raise ValueError(f"args is a {type(args).__name__}, expected CopilotTrainingArguments")
    if args.n_gpu > 1:
        raise ValueError(f"one process sees {args.n_gpu} GPUs, expected 1: use torchrun or CUDA_VISIBLE_DEVICES")
    if has_adapters(model):
        raise ValueError("the pair itself has adapters: make it anew, and give peft_config or call pilot.add_adapter")
    if has_adapters(model.pilot) != model.pilot._hf_peft_config_loaded:  # get_peft_model's, or refused ones
        raise ValueError("the Pilot's adapters cannot be saved: load it anew, and give peft_config or call add_adapter")
    adapters = model.pilot.active_adapters() if has_adapters(model.pilot) else []
    if peft_config is not None and adapters:
        raise ValueError(f"peft_config is given, but the Pilot has the adapters {adapters}")
    if len(adapters) > 1:
        raise ValueError(f"the Pilot has the active adapters {adapters}, expected one: choose with pilot.set_adapter")
    adapted = peft_config is not None or bool(adapters)
    for config in [peft_config] if peft_config is not None else [model.pilot.peft_config[name] for name in adapters]:
        check_restorable(config)
    check_attachable(model.pilot, model.config)
    check_pilot_survives(Path(args.output_dir), model.pilot, adapted)
    if adapted and not model.pilot.name_or_path:
        logger.warning(
            "The Pilot was not loaded by name, so that what is saved with its adapters cannot say which model is under "
            "them. Save that model and load the Pilot from there; or attach the pair to it yourself, with "
            "base.load_adapter('FOLDER/pilot') and then from_pretrained('FOLDER', pilot=base)."
        )
