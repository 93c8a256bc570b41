"""The training loop without a Trainer: Algorithm 1 in plain PyTorch, readable top to bottom. Copy it and change it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup
from transformers.trainer_pt_utils import get_parameter_names

from copilot.loss import IGNORE_INDEX, check_copilot_loss
from copilot.mistake_log import MistakeLog
from copilot.pair import PilotCopilotModel

REFRESH_BAR_EVERY = 10  # steps; reading a loss waits for the device


def parameter_groups(
    pair: PilotCopilotModel,
    *,
    learning_rate: float,
    copilot_learning_rate: float,
    weight_decay: float,
    copilot_weight_decay: float,
) -> list[dict[str, Any]]:
    """Four groups for one optimizer: Pilot with and without weight decay, Copilot with and without.

    Biases and norms do not decay, as in Hugging Face's Trainer. Frozen parameters are left out.
    """
    groups: list[dict[str, Any]] = []
    for model, rate, decay in (
        (pair.pilot, learning_rate, weight_decay),
        (pair.copilot, copilot_learning_rate, copilot_weight_decay),
    ):
        decaying = set(get_parameter_names(model, [nn.LayerNorm], ["bias", "norm"]))
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups += [
            {"params": [p for name, p in trained if name in decaying], "lr": rate, "weight_decay": decay},
            {"params": [p for name, p in trained if name not in decaying], "lr": rate, "weight_decay": 0.0},
        ]
    return groups


def train(
    pair: PilotCopilotModel,
    dataset: Dataset,
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    *,
    epochs: int = 3,
    batch_size: int = 4,
    accumulation_steps: int = 4,
    learning_rate: float = 3e-4,
    copilot_learning_rate: float = 5e-4,
    weight_decay: float = 0.0,
    copilot_weight_decay: float = 0.0,
    warmup_steps: int = 0,
    max_gradient_norm: float = 1.0,
    copilot_updates: int = 1,
    log_rounds: int = 128,
    log_hidden_dtype: str = "bfloat16",
    bf16: bool = False,
    shuffle: bool = True,
    seed: int = 42,
) -> None:
    """Train Pilot and Copilot side by side, in place, on the device they are on.

    Args:
        dataset: rows of `prepare_dataset`.
        collate: makes a batch of rows, such as a `DataCollator`.
        batch_size: rows in one forward; an optimizer step sees `accumulation_steps` of them.
        warmup_steps: optimizer steps over which both learning rates rise, before both follow a cosine to 0.
        max_gradient_norm: each model's gradient is clipped to it by itself; 0 clips none.
        copilot_updates: optimizer steps of the Copilot for each of the Pilot's, each on rounds drawn anew.
        log_rounds: how many recent optimizer steps' rounds the Mistake Log holds.
        bf16: compute in bfloat16 autocast; the parameters keep their type.

    Raises:
        FloatingPointError: a Pilot's loss that is not finite, or, when the bar is next written, a Copilot's NaN.
    """
    torch.manual_seed(seed)
    pair.train()
    pair.mistake_log = MistakeLog(log_rounds * accumulation_steps, seed=seed, hidden_dtype=log_hidden_dtype)
    loader = DataLoader(dataset, batch_size, shuffle=shuffle, collate_fn=collate)
    total_steps = epochs * math.ceil(len(loader) / accumulation_steps)
    groups = parameter_groups(
        pair,
        learning_rate=learning_rate,
        copilot_learning_rate=copilot_learning_rate,
        weight_decay=weight_decay,
        copilot_weight_decay=copilot_weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup_steps, total_steps)

    def clip(model: nn.Module) -> None:
        if max_gradient_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)

    bar = tqdm(total=total_steps, desc="Training")
    for _epoch in range(epochs):
        batches = iter(loader)
        while accumulated := list(itertools.islice(batches, accumulation_steps)):
            # The Pilot's loss is a mean over all supervised tokens of the step, the Copilot's over its batches.
            tokens = sum(batch["labels"].ne(IGNORE_INDEX).sum() for batch in accumulated).to(pair.device)
            cross_entropy, rmse = torch.zeros(2, device=pair.device)
            for batch in accumulated:
                batch = {name: tensor.to(pair.device) for name, tensor in batch.items()}
                with torch.autocast(pair.device.type, torch.bfloat16, enabled=bf16):
                    # Pilot forward, round appended to the log, round drawn from the log, Copilot forward on it.
                    output = pair(**batch, num_items_in_batch=tokens)
                copilot_loss = output.copilot_loss / len(accumulated)
                (output.pilot_loss + copilot_loss).backward()
                cross_entropy += output.pilot_loss.detach()
                rmse += copilot_loss.detach()

            # Clipped together, a large gradient of one model would slow the other.
            for model in (pair.pilot, pair.copilot):
                clip(model)
            optimizer.step()
            for _ in range(copilot_updates - 1):
                optimizer.zero_grad()  # without a gradient the Pilot stays as it is
                for _ in accumulated:
                    with torch.autocast(pair.device.type, torch.bfloat16, enabled=bf16):
                        again = pair.replayed_loss() / len(accumulated)
                    again.backward()
                clip(pair.copilot)
                optimizer.step()
            schedule.step()
            optimizer.zero_grad()

            bar.update()
            if bar.n % REFRESH_BAR_EVERY == 0 or bar.n == total_steps:
                check_copilot_loss(rmse.item())
                rates = schedule.get_last_lr()
                bar.set_postfix(ce=cross_entropy.item(), rmse=rmse.item(), lr=rates[0], copilot_lr=rates[-1])
    bar.close()
