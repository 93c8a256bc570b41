"""The README.md that CopilotTrainer writes beside a trained pair."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData
from transformers import Trainer

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

pair = {pair_class}.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
inputs = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(pair.generate(**inputs, max_new_tokens=64)[0]))
```

## Training

Learning rates {args.learning_rate} (Pilot) and {args.copilot_learning_rate} (Copilot), seed {args.seed},
{args.train_batch_size} rows a process and micro-batch, {args.gradient_accumulation_steps} accumulation steps.
"""


def model_card(trainer: Trainer) -> str:
    """The card of the pair that a trainer trains."""
    pair, args = trainer.model, trainer.args
    name = trainer.hub_model_id or Path(args.output_dir).absolute().name
    pilot = pair.config.base_model_name_or_path
    tags = ["generated_from_trainer", "transformer-copilot"]
    base_model = None if pilot is None or Path(pilot).is_dir() else pilot  # the hub takes ids alone
    data = ModelCardData(base_model=base_model, library_name="transformers", model_name=name, tags=tags)
    return MODEL_CARD.format(data=data, name=name, pilot=pilot or "A Pilot", pair_class=type(pair).__name__, args=args)
