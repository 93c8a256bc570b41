"""Transformer Copilot: a second, smaller decoder that learns from a language model's mistakes in fine-tuning."""

from transformers import AutoConfig, AutoModel

from copilot import ops
from copilot.calibration import calibrate
from copilot.config import CopilotConfig, UnsupportedArchitectureError
from copilot.data import prepare_dataset
from copilot.environment import build_info
from copilot.mistake_log import MistakeLog
from copilot.model import CopilotModel
from copilot.pair import PairOutput, PilotCopilotForCausalLM, PilotCopilotForSeq2SeqLM
from copilot.trainer import CopilotTrainer
from copilot.training_arguments import CopilotTrainingArguments

__version__ = "0.1.0"

AutoConfig.register(CopilotConfig.model_type, CopilotConfig)
AutoModel.register(CopilotConfig, CopilotModel)

__all__ = [
    "CopilotConfig",
    "CopilotModel",
    "CopilotTrainer",
    "CopilotTrainingArguments",
    "MistakeLog",
    "PairOutput",
    "PilotCopilotForCausalLM",
    "PilotCopilotForSeq2SeqLM",
    "UnsupportedArchitectureError",
    "__version__",
    "build_info",
    "calibrate",
    "ops",
    "prepare_dataset",
]
