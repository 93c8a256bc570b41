"""The README.md that CopilotTrainer writes beside a trained pair."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from transformers import Trainer

TAG = "transformer-copilot"
MODEL_CARD = """---
{data}
---

# {name}

{pilot}, fine-tuned together with a Copilot that learns from its Mistake Log and rectifies its predictions
([Transformer Copilot](https://arxiv.org/abs/2505.16270)).

## Quick start

```python
from copilot import {pair_class}
from transformers import AutoTokenizer

pair = {pair_class}.from_pretrained("{source}")
tokenizer = AutoTokenizer.from_pretrained("{source}")
inputs = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(pair.generate(**inputs, max_new_tokens=64)[0]))
```

## Training

Learning rates {args.learning_rate} (Pilot) and {args.copilot_learning_rate} (Copilot), seed {args.seed},
{args.train_batch_size} rows per process and micro-batch, {args.gradient_accumulation_steps} accumulation steps.
"""


def model_card(trainer: Trainer) -> str:
    """The card of the pair that a trainer trains."""
    pair, args = trainer.model, trainer.args
    name = trainer.hub_model_id or Path(args.output_dir).absolute().name
    source = trainer.hub_model_id or args.output_dir
    pilot = pair.config.base_model_name_or_path
    tags = ["generated_from_trainer", TAG]
    base_model = None if pilot is None or Path(pilot).is_dir() else pilot  # the hub takes ids alone
    data = ModelCardData(base_model=base_model, library_name="transformers", model_name=name, tags=tags)
    facts = {"data": data, "name": name, "source": source, "pilot": pilot or "A Pilot", "args": args}
    return MODEL_CARD.format(**facts, pair_class=type(pair).__name__)


def write_model_card(trainer: Trainer, folder: Path) -> None:
    """Write README.md, unless there is one of somebody else's."""
    path = folder / "README.md"
    if not path.exists() or TAG in (ModelCard.load(path, ignore_metadata_errors=True).data.tags or []):
        path.write_text(model_card(trainer), encoding="utf-8")
